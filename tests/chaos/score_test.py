"""C2: `graft score` under mpirun that is killed and stopped at any time and gone on with on other layouts. The files are
byte for byte those of a run that nobody touched, and nothing that was done is computed again."""

import random
import re
import signal

import prepared_data
import pytest
from graft_program import Golden, recipe, run
from job import SOON, graft_job, until
from variants import MAX_SAMPLE_LENGTH, VOCAB_SIZE

SAMPLES = 100  # a second of work and more: results are on disk long before the end
LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]
FILES = ["importance.json", "setting.json"]
STOPPED, KILLED = 75, 137


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepared_data.write(folder, prepared_data.ragged_samples(SAMPLES, VOCAB_SIZE, MAX_SAMPLE_LENGTH, seed=13), VOCAB_SIZE)
    return folder


def score_recipe(data, output, layout):
    replicas, pipeline = layout
    return recipe(
        Golden("gqa_lora"),
        output,
        parallel=dict(data=replicas, pipeline=pipeline, threads=1),
        score=dict(data=str(data), method="ab", shard_samples=1, layer_block=1, micro_batch=1),
    )


def files(output):
    return [(output / "score" / name).read_bytes() for name in FILES]


def journal_size(output):
    path = output / "score" / "journal.bin"
    return path.stat().st_size if path.exists() else 0


def counts(job):
    """(items computed by this start, items that the journal held, items computed twice)"""
    pattern = r"(\d+) items computed in .* s, (\d+) from the journal, (\d+) computed twice"
    return tuple(map(int, re.search(pattern, job.err).groups()))


def start_and_wait_for_work(data, output, layout, folder):
    before = journal_size(output)
    job = graft_job(score_recipe(data, output, layout), folder, "score")
    until(
        lambda: journal_size(output) > before + 500 or job.process.poll() is not None,
        SOON,
        "results in the journal",
    )
    return job


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    output = tmp_path_factory.mktemp("whole")
    run("score", score_recipe(data, output, (1, 1)), output)
    return files(output)


def test_killed_scoring(tmp_path, rounds, data, whole):
    chance = random.Random("score")
    kills = 0
    for number in range(rounds(1, 25)):
        output = tmp_path / f"run-{number}"
        for start in range(3):
            layout = chance.choice(LAYOUTS)
            job = start_and_wait_for_work(data, output, layout, tmp_path / f"job-{number}-{start}")
            if start < 2:
                job.kill_rank(chance.randrange(layout[0] * layout[1]))
            code, _ = job.wait(SOON)
            assert code in (0, KILLED), job.err[-3000:]
            kills += code == KILLED
        if code != 0:
            job = graft_job(score_recipe(data, output, (1, 1)), tmp_path / f"job-{number}", "score")
            assert job.wait(SOON)[0] == 0, job.err[-3000:]
        assert files(output) == whole
        assert counts(job)[1] > 0, job.err[-3000:]
    print(f"\n{kills} kills")
    assert kills > 0


def test_stopped_scoring(tmp_path, data, whole):
    job = start_and_wait_for_work(data, tmp_path, (2, 2), tmp_path / "job")
    job.process.send_signal(signal.SIGUSR1)
    code, _ = job.wait(SOON)
    assert code == STOPPED, job.err[-3000:]
    done = int(re.search(r"on request after (\d+) of", job.last_line).group(1))
    assert not (tmp_path / "score" / "importance.json").exists()
    again = graft_job(score_recipe(data, tmp_path, (1, 1)), tmp_path / "again", "score")
    assert again.wait(SOON)[0] == 0, again.err[-3000:]
    assert counts(again)[1:] == (done, 0)
    assert files(tmp_path) == whole
