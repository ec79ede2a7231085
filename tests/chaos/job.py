"""A job under mpirun or SLURM that a test can watch and hurt: its processes, its output, its end."""

import os
import signal
import subprocess
import time
from pathlib import Path

import yaml
from graft_program import metrics

BINARY_DIR = Path(os.environ["GRAFT_BINARY_DIR"])
MPIRUN = "mpirun --allow-run-as-root --oversubscribe -q --bind-to none --mca mpi_yield_when_idle 1 -np"
SOON = 60  # seconds; generous, machines of tests are slow
# What may differ between a run and the same run with stops.
TIMES = {
    "step_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "stage_peak_memory_bytes",
    "bubble_fraction",
    "communication_seconds",
    "model_flops_per_second",
    "hardware_flops_per_second",
}
ENVIRONMENT = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")


def until(condition, seconds, what):
    """Waits until condition() is true and returns its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


def processes(**environment):
    """Ids of the processes, zombies aside, that have these environment variables."""
    wanted = {f"{name}={value}" for name, value in environment.items()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            has = set((folder / "environ").read_bytes().decode(errors="replace").split("\0"))
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            continue
        if wanted <= has and alive:
            found.append(int(folder.name))
    return found


class Job:
    """`command` (a list) in the background; stdout and stderr go to files in `folder`."""

    def __init__(self, command, folder, new_group=False):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.begin = time.monotonic()
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=ENVIRONMENT | dict(GRAFT_CHAOS_JOB=self.mark),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0 if new_group else None,
            )

    @property
    def out(self):
        return (self.folder / "out").read_text()

    @property
    def err(self):
        return (self.folder / "err").read_text()

    @property
    def last_line(self):
        """The last line that graft itself wrote: MPI may have something to say when a peer is killed."""
        return [line for line in self.err.splitlines() if line.startswith("graft: ")][-1]

    def rank(self, rank):
        """Process id of a rank."""
        found = processes(GRAFT_CHAOS_JOB=self.mark, OMPI_COMM_WORLD_RANK=rank)
        assert len(found) == 1, f"rank {rank}: processes {found}"
        return found[0]

    def kill_rank(self, rank):
        """SIGKILL to a rank, waited for where it is not there yet; False when the job ended before."""

        def alive():
            return processes(GRAFT_CHAOS_JOB=self.mark, OMPI_COMM_WORLD_RANK=rank) or self.process.poll() is not None

        found = until(alive, SOON, f"rank {rank}")
        if found is True:
            return False
        try:
            os.kill(found[0], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def left_over(self):
        """Processes of the job that are still there."""
        return processes(GRAFT_CHAOS_JOB=self.mark)

    def wait(self, seconds):
        """The exit code, and the seconds from now until it came."""
        begin = time.monotonic()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"no end within {seconds} s\n{self.err[-3000:]}") from None
        return code, time.monotonic() - begin

    def end(self):
        for process in self.left_over():
            os.kill(process, signal.SIGKILL)
        self.process.wait()


def mpirun(ranks, command, folder):
    return Job([*f"{MPIRUN} {ranks}".split(), *command], folder)


def graft_job(keys, folder, command="train"):
    """`graft train`, or another command, with this recipe under mpirun."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{command}.yaml"
    config.write_text(yaml.safe_dump(keys))
    parallel = keys["parallel"]
    ranks = parallel.get("data", 1) * parallel.get("pipeline", 1)
    return mpirun(ranks, [BINARY_DIR / "graft", command, "--config", config], folder)


def outcome(output):
    """What stops and kills must not change: the adapter's bytes and the metrics of all steps but for times."""
    records = metrics(output, "train") + metrics(output, "eval")
    kept = [{key: value for key, value in record.items() if key not in TIMES} for record in records]
    return (output / "adapter" / "adapter_model.safetensors").read_bytes(), kept


def steps_done(output):
    path = Path(output) / "metrics.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0
