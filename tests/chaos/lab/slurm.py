"""A private SLURM on this machine: munged, slurmctld and slurmd processes of our own, with their state in one folder.

    with Slurm() as slurm:
        job = slurm.sbatch(script, "--ntasks=2", cwd=folder)
        slurm.show(job)["JobState"]

    with Hosts(2) as hosts, Slurm(hosts=hosts) as slurm:   # each node a machine with its own network (hosts.py)
        slurm.crash("host2"); slurm.return_to_service("host2")

A job of partition `urgent` takes the nodes of one of `main`, the default, which is told, gets GRACE_SECONDS and goes back into
the queue. What it is told is SIGTERM, or with `preempt_signal` what it asked for by --signal.

Debian packages: munge slurmctld slurmd slurm-client. Their services are neither used nor touched.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "scontrol"]
START_SECONDS = 30
GRACE_SECONDS = 3
RETURN_SECONDS = 5
# All nodes are this machine: ranks find each other by loopback.
JOB_ENVIRONMENT = dict(
    OMPI_ALLOW_RUN_AS_ROOT="1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    OMPI_MCA_btl_tcp_if_include="lo",
    OMPI_MCA_oob_tcp_if_include="lo",
    OMPI_MCA_mpi_yield_when_idle="1",
)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Slurm:
    def __init__(self, nodes=1, cpus=4, hosts=None, preempt_signal=False):
        missing = [program for program in PROGRAMS if self._find(program) is None]
        if missing:
            raise RuntimeError(f"missing {missing}; apt packages: munge slurmctld slurmd slurm-client")
        # Not below a test's own folder: munged wants all parents passable for everybody.
        self.folder = Path(tempfile.mkdtemp(prefix="graft-slurm-"))
        self.folder.chmod(0o711)
        self.started = False
        self.hosts = hosts
        self.nodes = hosts.names if hosts else [f"node{i + 1}" for i in range(nodes)]
        self.cpus = cpus
        self.preempt_signal = preempt_signal
        self.daemons = []
        self.environment = os.environ | JOB_ENVIRONMENT
        self.environment["SLURM_CONF"] = str(self.folder / "slurm.conf")
        if hosts:
            self.environment |= {key: "eth0" for key in JOB_ENVIRONMENT if key.endswith("if_include")}

    def _at(self, node, command):
        """A command line that runs on this node."""
        return self.hosts.command(node, command) if self.hosts else [*command]

    @staticmethod
    def _find(program):
        return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def _start(self):
        for name in ["state", "log", "munge", *[f"{part}.{n}" for part in ("spool", "tmp") for n in self.nodes]]:
            (self.folder / name).mkdir(parents=True)
        # munged wants its folders safe from others; the socket's may be passed through.
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        (self.folder / "slurm.conf").write_text(self._config())
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        munge = self.folder / "munge"
        self._daemon(
            "munged",
            "--foreground",
            f"--key-file={key}",
            *[f"--{part}={munge / part.split('-')[0]}" for part in ["socket", "pid-file", "seed-file"]],
            f"--log-file={self.folder / 'log' / 'munged.log'}",
        )
        self._until(lambda: (munge / "socket").exists(), "munged's socket")
        self._daemon("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        for node in self.nodes:
            self.boot(node)
        self._until(lambda: self.idle() == self.nodes, "idle nodes")
        self.started = True

    def idle(self):
        """The nodes that wait for work."""
        return sorted(set(self._ask(["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]).split()))

    def boot(self, node):
        """Starts a node, which joins the cluster by itself. The sockets of steps that died with it are gone, as after a reboot."""
        spool = self.folder / f"spool.{node}"
        for left in [*spool.glob("pmix.*"), *spool.glob(f"{node}_*"), *(self.folder / f"tmp.{node}").iterdir()]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._daemon("slurmd", "-D", "-N", node, "-f", self.environment["SLURM_CONF"], node=node)

    def return_to_service(self, node):
        """Boots a node that crashed and waits until it can be used: an allocation made in the second of its return gets no steps
        on it."""
        self.daemons = [daemon for daemon in self.daemons if daemon.poll() is None]
        self.boot(node)
        self._until(lambda: node in self.idle(), f"idle {node}")
        time.sleep(RETURN_SECONDS)

    def crash(self, node):
        """Ends all processes of a node, as a power loss does. Only with hosts."""
        for process in self.hosts.processes(node):
            os.kill(process, signal.SIGKILL)

    def _config(self):
        user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
        host = socket.gethostname().split(".")[0]
        control, *ports = free_ports(1 + len(self.nodes))
        names = self.nodes if self.hosts else [host] * len(self.nodes)
        addresses = [self.hosts.address(n) for n in self.nodes] if self.hosts else ["127.0.0.1"] * len(names)
        lines = dict(
            ClusterName="chaos",
            SlurmctldHost=f"{names[0]}({addresses[0]})",
            SlurmctldPort=control,
            SlurmUser=user,
            SlurmdUser=user,
            AuthType="auth/munge",
            AuthInfo=f"socket={self.folder}/munge/socket",
            CredType="cred/munge",
            StateSaveLocation=f"{self.folder}/state",
            SlurmdSpoolDir=f"{self.folder}/spool.%n",
            TmpFS=f"{self.folder}/tmp.%n",  # where PMIx has its sockets: one folder for all would be one too few
            SlurmctldPidFile=f"{self.folder}/slurmctld.pid",
            SlurmdPidFile=f"{self.folder}/slurmd.%n.pid",
            SlurmctldLogFile=f"{self.folder}/log/slurmctld.log",
            SlurmdLogFile=f"{self.folder}/log/slurmd.%n.log",
            ProctrackType="proctrack/linuxproc",
            TaskPlugin="task/none",
            JobAcctGatherType="jobacct_gather/none",
            AccountingStorageType="accounting_storage/none",
            SelectType="select/cons_tres",
            SelectTypeParameters="CR_CPU",
            SchedulerParameters="sched_interval=2,bf_interval=2",
            SlurmdParameters="config_overrides",
            MpiDefault="none",
            PreemptType="preempt/partition_prio",
            PreemptMode="REQUEUE",
            JobRequeue=1,
            KillWait=5,
            SlurmdTimeout=10 if self.hosts else 300,
            ReturnToService=2,
        )
        if self.preempt_signal:
            lines["SlurmctldParameters"] = "preempt_send_user_signal"
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        for node, name, address, port in zip(self.nodes, names, addresses, ports, strict=True):
            text += f"NodeName={node} NodeHostname={name} NodeAddr={address} Port={port}"
            text += f" CPUs={self.cpus} RealMemory=1000 State=UNKNOWN\n"
        everywhere = "Nodes=ALL MaxTime=INFINITE State=UP"
        text += f"PartitionName=main Default=YES {everywhere} PriorityTier=1 GraceTime={GRACE_SECONDS}\n"
        return text + f"PartitionName=urgent {everywhere} PriorityTier=10\n"

    def _daemon(self, program, *arguments, node=None):
        with (self.folder / "log" / f"{program}.out").open("a") as out:
            self.daemons.append(
                subprocess.Popen(
                    self._at(node or self.nodes[0], [self._find(program), *arguments]),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def _ask(self, command):
        command = self._at(self.nodes[0], command)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def _until(self, condition, what):
        end = time.monotonic() + START_SECONDS
        while not condition():
            dead = [d.args[0] for d in self.daemons if d.poll() is not None]
            if dead or time.monotonic() > end:
                logs = sorted((self.folder / "log").iterdir())
                text = "".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in logs)
                raise RuntimeError(f"{what}: not there; ended: {dead}\n{text}")
            time.sleep(0.1)

    def run(self, *command):
        """A SLURM command; returns its stdout, raises when it fails."""
        command = self._at(self.nodes[0], command)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{command}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def sbatch(self, script, *options, arguments=(), cwd):
        """Submits from folder `cwd`; returns the job's id."""
        command = ["sbatch", "--parsable", f"--chdir={cwd}", *options, str(script), *map(str, arguments)]
        command = self._at(self.nodes[0], command)
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{command}: {done.stderr}")
        return done.stdout.strip()

    def show(self, job):
        """scontrol's facts about a job: JobState, Restarts, ExitCode ("75:0"), ..."""
        words = self._ask(["scontrol", "show", "job", job]).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def stop(self):
        if self.started:
            self._ask(["scancel", "--quiet", "--full", f"--user={os.getuid()}"])
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons = []
        shutil.rmtree(self.folder, ignore_errors=True)
