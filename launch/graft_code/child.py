"""The processes in which one generated program runs. Standard library only; started by sandbox.py, imported by nothing.

Two of them: a supervisor, which leaves what the kernel lets it leave (network, files, other processes), and below it
the program, without rights and with limits. The supervisor watches the clock and, when the program is dead, writes one
JSON object to stdout: `problem` (null = all tests passed) and `restrictions` (name -> "on", or why not).

The program's process says "passed" with a secret that it has used for nothing before the tests were through. So a
program that exits early has not passed, whatever exit code it chooses; one that is written to search its own process
for the secret is out of scope.
"""

import ctypes
import errno
import json
import os
import resource
import select
import signal
import sys

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MS_PRIVATE, MS_NOSUID, MS_NODEV = 1, 1 << 18, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534
MAX_REPORT_BYTES = 4096

libc = ctypes.CDLL(None, use_errno=True)


def call(function, *arguments):
    """A C function that sets errno; raises OSError as the functions of os do."""
    if function(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# What the supervisor leaves.


class MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def own_user_namespace():
    """Who is not root may leave the rest only there. He stays who he is in it."""
    uid, gid = os.getuid(), os.getgid()
    call(libc.unshare, CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as stream:
            stream.write(text)


def leave_network():
    """A network namespace of its own has no interface that is up."""
    call(libc.unshare, CLONE_NEWNET | CLONE_NEWIPC)


def leave_processes():
    """The program becomes the first process of a namespace: it can signal no other, and what it starts dies with it."""
    call(libc.unshare, CLONE_NEWPID)


def leave_files(folder, max_bytes):
    """Everything becomes read-only but `folder`, which becomes an empty file system in memory."""
    call(libc.unshare, CLONE_NEWNS)
    attributes = MountAttributes(MOUNT_ATTR_RDONLY, 0, MS_PRIVATE, 0)
    size = ctypes.sizeof(attributes)
    call(
        libc.syscall,
        SYS_MOUNT_SETATTR,
        AT_FDCWD,
        b"/",
        AT_RECURSIVE,
        ctypes.byref(attributes),
        size,
    )
    options = f"size={max_bytes},nr_inodes=1000,mode=777".encode()
    call(libc.mount, b"none", os.fsencode(folder), b"tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir(folder)


def leave(job):
    """What of it worked."""
    steps = {
        "network": leave_network,
        "processes": leave_processes,
        "files": lambda: leave_files(job["folder"], job["file_bytes"]),
    }
    if os.geteuid() != 0:
        steps = {"user": own_user_namespace, **steps}
    state = {}
    for name, step in steps.items():
        try:
            step()
            state[name] = "on"
        except OSError as error:
            state[name] = f"off ({errno.errorcode.get(error.errno, error.errno)})"
    return state


# What the program's process gives up.


def give_up_rights():
    """The limit on processes does not bind root, and root may write everywhere; nothing brings a right back."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call(libc.prctl, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    call(libc.capset, header, (ctypes.c_uint32 * 6)())
    call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)


def set_limits(job):
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_CPU", int(job["seconds"]) + 1),
        ("RLIMIT_AS", job["memory_bytes"]),
        ("RLIMIT_FSIZE", job["file_bytes"]),
        ("RLIMIT_NOFILE", 32),
        ("RLIMIT_NPROC", 1),  # itself: no further process, no thread
    ):
        resource.setrlimit(getattr(resource, name), (value, value))


def problem_of(job):
    """None when the program and all its tests ran through, else what went wrong."""
    names = {"__name__": "__main__"}
    parts = [("setup", job["setup"]), ("program", job["program"])]
    parts += [(f"test {number}", test) for number, test in enumerate(job["tests"], 1)]
    for part, text in parts:
        try:
            exec(compile(text, f"<{part}>", "exec"), names)  # noqa: S102 - what this process is for
        except BaseException as error:  # SystemExit and KeyboardInterrupt end the program, not us
            return f"{part}: {type(error).__name__}: {error}"[:300]
        if part == "program" and job["entry_point"] and not callable(names.get(job["entry_point"])):
            return f"program: defines no function {job['entry_point']}"
    return None


def run_program(job, secret, report):
    """The program's process; never returns."""
    write, dumps, end = os.write, json.dumps, os._exit  # before the program can replace them
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    give_up_rights()
    set_limits(job)
    problem = problem_of(job)
    verdict = {"passed": secret} if problem is None else {"failed": problem}
    write(report, dumps(verdict).encode())
    end(0)


# The supervisor.


def read_verdict(report):
    try:
        verdict = json.loads(os.read(report, MAX_REPORT_BYTES))
    except ValueError:  # nothing, or what the program wrote there
        return {}
    return verdict if isinstance(verdict, dict) else {}


def watch(pid, seconds):
    """Waits for the program's process and kills it when its time is over. Its wait status, None when killed."""
    poll = select.poll()
    poll.register(os.pidfd_open(pid), select.POLLIN)
    if not poll.poll(seconds * 1000):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None
    return os.waitpid(pid, 0)[1]


def judge(job, status, verdict, secret):
    if verdict.get("passed") == secret:
        return None
    if status is None:
        return f"over {job['seconds']:g} s"
    if isinstance(verdict.get("failed"), str):
        return verdict["failed"]
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with {os.WEXITSTATUS(status)} before its tests were through"


def main():
    job = json.loads(sys.stdin.buffer.read())
    secret = os.urandom(16).hex()
    restrictions = leave(job)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        run_program(job, secret, theirs)
    os.close(theirs)
    status = watch(pid, job["seconds"])
    problem = judge(job, status, read_verdict(ours), secret)
    print(json.dumps({"problem": problem, "restrictions": restrictions}))


main()
