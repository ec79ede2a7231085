"""C2 without a model: the items of scoring over real ranks that are killed, stopped and started again on
other layouts. What comes out is the same bytes, and nothing that was done is computed again."""

import os
import random
import re
import signal
import time

import pytest
from job import BINARY_DIR, SOON, mpirun, until

ITEMS = 60
LAYOUTS = {"1x1": (1, 1), "2x1": (2, 1), "4x1": (4, 1), "1x2": (1, 2), "2x2": (2, 2)}
KILLED = 137


def start(output, layout, folder, items=ITEMS, milliseconds=40):
    data, pipeline = layout
    return mpirun(
        data * pipeline, [BINARY_DIR / "chaos_items", output, items, milliseconds, pipeline], folder
    )


def computed(job):
    return int(re.search(r"computed (\d+) of", job.out).group(1))


def finish(output, layout, folder, **options):
    job = start(output, layout, folder, **options)
    code, _ = job.wait(SOON)
    assert code == 0, job.err[-3000:]
    return job


def journal_size(output):
    path = output / "journal.bin"
    return path.stat().st_size if path.exists() else 0


def wait_for_work(job, output, size=300):
    """Until the journal holds more than so many bytes, or the job has ended."""
    until(lambda: journal_size(output) > size or job.process.poll() is not None, SOON, "work")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(folder / "run", (1, 1), folder / "job", milliseconds=0)
    return (folder / "run" / "results.bin").read_bytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_bytes(name, tmp_path, whole):
    job = finish(tmp_path / "run", LAYOUTS[name], tmp_path / "job", milliseconds=8)
    assert (tmp_path / "run" / "results.bin").read_bytes() == whole
    assert computed(job) == ITEMS


def test_kills_lose_only_what_was_not_acknowledged(tmp_path, rounds, whole):
    chance = random.Random("items")
    for number in range(rounds(2, 50)):
        output, kills = tmp_path / f"run-{number}", 0
        while True:
            layout = chance.choice(list(LAYOUTS.values()))
            before = journal_size(output) + 300
            job = start(output, layout, tmp_path / f"job-{number}-{kills}")
            if kills < 2:
                wait_for_work(job, output, before)
                time.sleep(chance.uniform(0, 0.3))
                kills += job.kill_rank(chance.randrange(layout[0] * layout[1]))
            code, _ = job.wait(SOON)
            if code == 0:
                break
            assert code == KILLED, job.err[-3000:]
        assert (output / "results.bin").read_bytes() == whole
        # What the last start computed and what the journal held before it are all items.
        assert computed(job) < ITEMS or kills == 0


def test_a_stop_request_is_75_and_the_next_start_goes_on(tmp_path, whole):
    output = tmp_path / "run"
    job = start(output, (2, 2), tmp_path / "job")
    wait_for_work(job, output, 1000)
    job.process.send_signal(signal.SIGUSR1)
    code, _ = job.wait(SOON)
    assert code == 75, job.err[-3000:]
    assert re.search(r"graft: stopped: .*on request after \d+ of 60 items", job.last_line), (
        job.last_line
    )
    done = int(re.search(r"after (\d+) of", job.last_line).group(1))
    again = finish(output, (1, 1), tmp_path / "again")
    assert computed(again) == ITEMS - done
    assert (output / "results.bin").read_bytes() == whole


def test_a_stopped_replica_ends_the_job(tmp_path):
    """The watchdog finds it: leases do not keep a job alive whose rank will never answer."""
    output = tmp_path / "run"
    job = start(output, (2, 1), tmp_path / "job", items=100_000)
    wait_for_work(job, output, 1000)
    os.kill(job.rank(1), signal.SIGSTOP)
    code, seconds = job.wait(90)
    assert code == 76, job.err[-3000:]
    assert seconds < SOON
    assert "rank 1" in job.last_line
