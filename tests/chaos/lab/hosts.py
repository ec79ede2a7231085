"""Machines of our own inside this one: each has its own network, host name and /dev/shm, and hangs on one switch. Needs root.

    with Hosts(2) as hosts:
        hosts.command("host1", ["mpirun", ...])   # a command line that runs there
        hosts.cut("host2"); hosts.join("host2")   # the switch drops, and carries again, what the host sends and gets

Files are common to all of them, as on a shared file system. Debian packages: iproute2 util-linux.
"""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Hosts:
    def __init__(self, count):
        self.names = [f"host{i + 1}" for i in range(count)]
        self.tag = f"graft{os.getpid()}"
        self.switch = f"{self.tag}-switch"
        self.folder = Path(tempfile.mkdtemp(prefix="graft-hosts-"))
        self.keepers = {}

    def __enter__(self):
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _space(self, name):
        return f"{self.tag}-{name}"

    def address(self, name):
        return f"10.78.0.{self.names.index(name) + 1}"

    def _build(self):
        lines = ["127.0.0.1 localhost"]
        lines += [f"{self.address(name)} {name}" for name in self.names]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for name in self.names:
            space = self._space(name)
            ip("netns", "add", space)
            ip("link", "add", name, "netns", self.switch, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", self.switch, "link", "set", name, "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            for link in ["lo", "eth0"]:
                ip("-n", space, "link", "set", link, "up")
            self._keep(name)
        agent = self.folder / "agent"
        agent.write_text(
            "#!/bin/sh\n"
            "# What mpirun calls instead of ssh: [-options] HOST COMMAND...\n"
            'while [ "${1#-}" != "$1" ]; do shift; done\n'
            'host=$1; shift\n'
            f'exec nsenter -t "$(cat {self.folder}/$host.pid)" --net --uts --mount -- /bin/sh -c "$*"\n'
        )
        agent.chmod(0o755)

    def _keep(self, name):
        """A process that keeps the host's name and mounts alive; its id is the way in."""
        script = (
            'hostname "$1" && mount --bind "$2/hosts" /etc/hosts && mount -t tmpfs shm /dev/shm &&'
            ' echo $$ >"$2/$1.part" && mv "$2/$1.part" "$2/$1.pid" && exec sleep infinity'
        )
        inside = ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        self.keepers[name] = subprocess.Popen(
            ["ip", "netns", "exec", self._space(name), *inside, name, str(self.folder)],
            stdin=subprocess.DEVNULL,
        )
        end = time.monotonic() + 10
        while not (self.folder / f"{name}.pid").exists():
            if time.monotonic() > end or self.keepers[name].poll() is not None:
                raise RuntimeError(f"{name} did not start")
            time.sleep(0.02)

    def command(self, name, command):
        process = (self.folder / f"{name}.pid").read_text().strip()
        return ["nsenter", "-t", process, "--net", "--uts", "--mount", "--", *map(str, command)]

    @property
    def mpirun_flags(self):
        return f"--mca plm_rsh_agent {self.folder}/agent --mca pml ob1 --mca btl self,vader,tcp"

    def cut(self, name):
        ip("-n", self.switch, "link", "set", name, "nomaster")

    def join(self, name):
        ip("-n", self.switch, "link", "set", name, "master", "bridge")

    def processes(self, name):
        done = subprocess.run(
            ["ip", "netns", "pids", self._space(name)], capture_output=True, text=True
        )
        return [int(word) for word in done.stdout.split() if int(word) != self.keepers[name].pid]

    def __exit__(self, *_):
        for name, keeper in self.keepers.items():
            for process in self.processes(name):
                os.kill(process, signal.SIGKILL)
            keeper.kill()
            keeper.wait()
        for space in [*map(self._space, self.names), self.switch]:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()
