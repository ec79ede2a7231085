"""run_code.py: programs that are right, wrong, greedy, or out to get away; as root and as somebody."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LAUNCH, last_line, run_script, train_tokenizer, write_jsonl
from graft_code.sandbox import Job, Limits, run

RIGHT = "def f(x):\n    return 2 * x\n"
LIMITS = Limits(seconds=2.0, memory_mb=512, file_mb=4)
ACCEPT = "--i-accept-running-generated-code"


def outcome(program: str, test: str = "assert f(2) == 4", **keys: object):
    return run(Job(program, (test,), **keys), LIMITS)


def test_right_and_wrong_programs() -> None:
    assert outcome(RIGHT).problem is None
    assert outcome(RIGHT, "assert f(2) == 5").problem == "test 1: AssertionError: "
    assert outcome("def f(x) return x").problem.startswith("program: SyntaxError")
    assert outcome(RIGHT, entry_point="g").problem == "program: defines no function g"
    assert outcome("import math\n" + RIGHT, setup="y = 4", test="assert f(2) == y").problem is None
    second = run(Job(RIGHT, ("assert f(1) == 2", "assert f(1) == 3")), LIMITS)
    assert second.problem == "test 2: AssertionError: "


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("import sys\nsys.exit(0)", "program: SystemExit: 0"),
        ("raise SystemExit", "program: SystemExit: "),
        ("import os\nos._exit(0)", "exited with 0 before its tests were through"),
        ("import os\ndef f(x):\n    os._exit(0)", "exited with 0 before its tests were through"),
        ("def f(x):\n    raise SystemExit(0)", "test 1: SystemExit: 0"),
        ("import atexit\natexit.register(print)\nexit()", "program: NameError"),
        ("import os\nos.closerange(0, 32)\ndef f(x):\n    return 4", "exited with"),
        ("import ctypes\nctypes.string_at(0)", "killed by SIGSEGV"),
        ("raise KeyboardInterrupt", "program: KeyboardInterrupt: "),
    ],
)
def test_leaving_early_is_not_passing(program: str, problem: str) -> None:
    assert outcome(program).problem.startswith(problem)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "while True: print('x' * 100000)",
        "import os\nos.setsid()\nwhile True: pass",
        """
import signal
for s in set(range(1, 32)) - {9, 19}:
    signal.signal(s, signal.SIG_IGN)
while True: pass
""",
    ],
)
def test_the_time_ends(program: str) -> None:
    start = time.monotonic()
    assert run(Job(program, ("pass",)), Limits(seconds=1.0)).problem == "over 1 s"
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("x = [0] * (1 << 30)", "program: MemoryError"),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", "program: MemoryError"),
        ("import os\nwhile True: os.fork()", "program: BlockingIOError"),
        ("import threading\nthreading.Thread(target=print).start()", "program: RuntimeError"),
        ("import subprocess\nsubprocess.run(['/bin/true'])", "program: BlockingIOError"),
        ("open('x', 'wb').write(bytes(64 << 20))", "program: OSError: [Errno 27]"),
        ("for i in range(99): open(str(i), 'wb').write(bytes(1 << 20))", "program: OSError"),
        ("x = [open('/dev/null') for _ in range(99)]", "program: OSError: [Errno 24]"),
    ],
)
def test_bombs(program: str, problem: str) -> None:
    assert outcome(program).problem.startswith(problem)


# Restrictions that a kernel may refuse are looked at only where they are on; `restrictions` says so elsewhere.
ESCAPES = {
    "files": "open({path!r}, 'w').write('x')",
    "network": "import socket\ns = socket.create_connection(('127.0.0.1', {port}), 1)",
    "processes": "import os\nos.kill({pid}, 0)",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_what_lies_outside(name: str) -> None:
    outside = Path("/tmp") / f"graft-escape-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = ESCAPES[name].format(path=str(outside), port=port, pid=os.getpid())
        found = outcome(f"{program}\ndef f(x):\n    return 4")
    written = outside.exists()
    outside.unlink(missing_ok=True)
    if found.restrictions[name] == "on":
        assert found.problem is not None
        assert not written
    else:
        assert found.restrictions[name].startswith("off (")


def test_a_folder_of_its_own_that_is_gone_afterwards() -> None:
    program = (
        "import os\nopen('x', 'w').write('y')\nassert os.listdir() == ['x']\nhere = os.getcwd()\n"
    )
    before = set(Path("/tmp").glob("graft-code-*"))
    assert outcome(program + RIGHT).problem is None
    assert set(Path("/tmp").glob("graft-code-*")) <= before


def test_an_empty_environment_and_no_rights() -> None:
    program = (
        "import os, sys\nassert set(os.environ) <= {'LC_CTYPE'}, os.environ\n"
        "assert os.geteuid() != 0 and not os.getgroups()\n"
        "rights = [l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapPrm', 'NoNewPrivs'))]\n"
        "assert [int(l.split()[1], 16) for l in rights] == [0, 0, 1], rights\n"
    )
    if os.geteuid() != 0:
        program = program.replace(" and not os.getgroups()", "")
    assert outcome(program + RIGHT).problem is None


def test_without_root() -> None:
    identity = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    program = (
        "import sys\nfrom graft_code.sandbox import Job, Limits, run\n"
        "for text in sys.argv[1:]:\n"
        "    print(run(Job(text, ('assert f(2) == 4',)), Limits(seconds=2)).problem)\n"
    )
    texts = [RIGHT, "import os\nos.fork()", "import os\nos._exit(0)", "while True: pass"]
    result = subprocess.run(
        [os.path.realpath(sys.executable), "-B", "-c", program, *texts],
        env={"PYTHONPATH": str(LAUNCH), "TMPDIR": "/tmp"},
        cwd="/",
        **identity,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [
        "None",
        "program: BlockingIOError: [Errno 11] Resource temporarily unavailable",
        "exited with 0 before its tests were through",
        "over 2 s",
    ]


def write_generations(path: Path, texts: dict[int, str]) -> Path:
    tokenizer = train_tokenizer()
    return write_jsonl(
        path,
        [{"sample_id": i, "tokens": tokenizer.encode(text).ids} for i, text in texts.items()],
    )


TASKS = [
    {"text": "Double.", "code": RIGHT, "test_list": ["assert f(2) == 4", "assert f(0) == 0"]},
    {"prompt": "Add.", "tests": ["assert g(1, y) == 3"], "setup": "y = 2", "entry_point": "g"},
    {
        "prompt": "def h(x):\n",
        "test": "def check(c):\n    assert c(1) == 1\n",
        "entry_point": "h",
    },
]


def test_pass_at_1(tmp_path: Path, model_folder: Path) -> None:
    tasks = write_jsonl(tmp_path / "tasks.jsonl", TASKS)
    first = {
        0: f"Here it is:\n```python\n{RIGHT}```\nDone.",
        1: "def g(a, b):\n    return a + b\n[DONE] nonsense",
        2: "    return x + 1\n",
    }
    second = {0: "import sys\nsys.exit(0)", 1: "def g(a, b): return 3\n"}
    files = [
        write_generations(tmp_path / f"{name}.jsonl", texts)
        for name, texts in (("first", first), ("second", second))
    ]
    common = ("--tasks", tasks, "--model", model_folder, "--stop", "[DONE]", ACCEPT)
    details = tmp_path / "details.jsonl"
    result = run_script(
        "run_code.py", *common, "--generations", *files, "--details", details, "--seconds", 5
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["tasks"], found["programs"], found["passed"]) == (3, 5, 3)
    assert found["pass@1"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    problems = [json.loads(line)["problem"] for line in details.read_text().splitlines()]
    assert problems[:2] == [None, None]
    assert problems[2].startswith("program: IndentationError")
    assert problems[3] == "program: SystemExit: 0"
    third = write_generations(tmp_path / "third.jsonl", {2: "    return x\n"})
    result = run_script("run_code.py", *common, "--completion", "--generations", third)
    assert json.loads(result.stdout)["pass@1"] == 1


def test_nothing_runs_without_the_flag(tmp_path: Path, model_folder: Path) -> None:
    tasks = write_jsonl(tmp_path / "tasks.jsonl", TASKS)
    generations = write_generations(tmp_path / "g.jsonl", {0: RIGHT})
    arguments = ("--tasks", tasks, "--model", model_folder, "--generations", generations)
    result = run_script("run_code.py", *arguments)
    assert result.returncode == 64
    assert ACCEPT in last_line(result)
    result = run_script("run_code.py", *arguments, ACCEPT, "--seconds", 0)
    assert result.returncode == 64


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"prompt": "x"}, "tasks.jsonl:1: no tests"),
        ({"test": "x = 1"}, "tasks.jsonl:1: no tests"),
        ({"tests": [1]}, "key 'tests' must be a string or a list of strings"),
        ({"tests": ["x"], "entry_point": 3}, "key 'entry_point' must be a string"),
    ],
)
def test_bad_tasks(tmp_path: Path, model_folder: Path, task: dict, says: str) -> None:
    tasks = write_jsonl(tmp_path / "tasks.jsonl", [task])
    generations = write_generations(tmp_path / "g.jsonl", {0: RIGHT})
    arguments = ("--tasks", tasks, "--model", model_folder, "--generations", generations, ACCEPT)
    result = run_script("run_code.py", *arguments)
    assert result.returncode == 65
    assert says in last_line(result)


def test_an_answer_without_a_task(tmp_path: Path, model_folder: Path) -> None:
    tasks = write_jsonl(tmp_path / "tasks.jsonl", TASKS)
    generations = write_generations(tmp_path / "g.jsonl", {0: RIGHT, 9: RIGHT})
    arguments = ("--tasks", tasks, "--model", model_folder, "--generations", generations, ACCEPT)
    result = run_script("run_code.py", *arguments)
    assert result.returncode == 65
    assert "g.jsonl:2: sample 9:" in last_line(result)
