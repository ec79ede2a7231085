"""score_report.py on hand-made importance and setting files: agreement by its definition, what is drawn, hostile files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import last_line, run_script
from graft_prepare.errors import GraftError
from graft_scores.agreement import overlap, ranks, spearman, top
from graft_scores.files import read_importance

ROLES = ["attn.q", "attn.k", "attn.v", "ffn.down"]
# Two layers of four modules each.
FIRST = [[4.0, 3.0, 2.0, 1.0], [8.0, 7.0, 6.0, 5.0]]
SECOND = [[4.0, 1.0, 2.0, 3.0], [8.0, 7.0, 6.0, 5.0]]


def importance_tree(scores: list[list[float]], **keys) -> dict:
    modules = [
        {"layer": layer, "role": role, "score": score, "stderr": 0.1 * (index + 1), "terms": {}}
        for layer, row in enumerate(scores)
        for index, (role, score) in enumerate(zip(ROLES, row, strict=True))
    ]
    return {
        "format": "graft-importance",
        "version": 1,
        "score": "ab",
        "num_samples": 32,
        "num_tokens": 900,
        "base_loss": 2.5,
        "modules": modules,
    } | keys


def write_importance(path: Path, scores: list[list[float]], **keys) -> Path:
    path.write_text(json.dumps(importance_tree(scores, **keys)))
    return path


def write_setting(path: Path, **keys) -> Path:
    keep = [
        {"layer": 0, "roles": ["attn.q", "attn.k"], "rank": 12, "alpha": 24.0},
        {"layer": 1, "roles": ["ffn.down"], "rank": 12, "alpha": 24.0},
    ]
    tree = {"format": "graft-setting", "version": 1, "model_type": "llama", "num_layers": 2}
    path.write_text(json.dumps(tree | {"selection": {}, "keep": keep} | keys))
    return path


def test_equal_values_share_their_ranks():
    assert ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_spearman_is_one_less_six_d_squared_over_n_cubed(tmp_path):
    a = read_importance(write_importance(tmp_path / "a", FIRST))
    b = read_importance(write_importance(tmp_path / "b", SECOND))
    # Ranks differ by 2 twice: 1 - 6 * 8 / (8 * 63).
    assert spearman(a, b) == pytest.approx(1 - 6 * 8 / (8 * 63))
    assert spearman(a, a) == pytest.approx(1)
    # Order is what counts, not the values.
    cubes = [[score**3 for score in row] for row in SECOND]
    assert spearman(a, read_importance(write_importance(tmp_path / "c", cubes))) == pytest.approx(
        spearman(a, b)
    )
    flat = read_importance(write_importance(tmp_path / "d", [[1.0] * 4] * 2))
    assert spearman(a, flat) is None


def test_overlap_by_layer_and_ties_go_to_the_earlier_role(tmp_path):
    a = read_importance(write_importance(tmp_path / "a", FIRST))
    b = read_importance(write_importance(tmp_path / "b", SECOND))
    assert overlap(a, b, 2) == {0: 0.5, 1: 1.0}  # {q, k} and {q, down}
    assert overlap(a, b, 9) == {0: 1.0, 1: 1.0}
    flat = read_importance(write_importance(tmp_path / "d", [[1.0] * 4] * 2))
    assert top(flat, 2) == {(0, "attn.q"), (0, "attn.k"), (1, "attn.q"), (1, "attn.k")}


def test_the_report_shows_scores_kept_modules_and_agreement(tmp_path):
    first = write_importance(tmp_path / "a.json", FIRST)
    second = write_importance(tmp_path / "b.json", SECOND, score="magnitude", base_loss=None)
    setting = write_setting(tmp_path / "setting.json")
    out = tmp_path / "out"
    arguments = [f"ab={first}", f"<b>={second}", "--setting", setting, "--k", 2, "--out", out]
    result = run_script("score_report.py", *arguments)
    assert result.returncode == 0, result.stderr
    lines = [re.split(r"  +", line) for line in result.stdout.splitlines()]
    assert ["ab", "ab", "8", "32", "2.5000", "1:attn.q", "2.50e-01"] in lines
    assert ["<b>", "magnitude", "8", "32", "-", "1:attn.q", "2.50e-01"] in lines
    assert ["1", "12", "24", "x"] in lines  # ffn.down alone is kept
    pair = next(line for line in lines if line[0] == "ab / <b>")
    assert pair[1:] == ["0.905", "0.750", "0.50 (layer 0)", "1 of 2 layers"]
    assert ["0", "0.50"] in lines
    page = (out / "scores.html").read_text()
    assert "<td>0.905</td>" in page
    assert "<b>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert (out / "scores.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_kept_modules_are_framed_where_they_lie(tmp_path):
    from matplotlib import pyplot
    from score_report import _draw_map

    file = read_importance(write_importance(tmp_path / "a.json", FIRST))
    _, axes = pyplot.subplots()
    image = _draw_map(axes, "ab", file, {(1, "ffn.down")})
    (frame,) = axes.patches
    assert (frame.get_x() + 0.46, frame.get_y() + 0.46) == pytest.approx((3, 1))
    assert image.get_array()[1, 3] == 5.0


HOSTILE = [
    # what is changed, what the last line says
    ({"format": "graft-setting"}, "'graft-importance' is needed"),
    ({"version": 2}, "version is 2"),
    ({"modules": []}, "modules is empty"),
    ({"modules": 3}, "modules: found 3"),
    ({"modules": [{"layer": 0}]}, "modules[0]: role is missing"),
    ({"modules": [{"layer": -1, "role": "attn.q"}]}, "modules[0]: found layer -1"),
    ({"modules": [{"layer": 0, "role": "lm_head"}]}, "role 'lm_head'"),
    ({"modules": [{"layer": 0, "role": "attn.q", "score": "1"}]}, "score: found 1"),
    ({"modules": importance_tree([[1.0] * 4])["modules"] * 2}, "layer 0 attn.q occurs twice"),
    ({"base_loss": True}, "base_loss: found True"),
]


@pytest.mark.parametrize("keys, message", HOSTILE)
def test_hostile_importance(keys, message, tmp_path):
    path = write_importance(tmp_path / "bad.json", FIRST, **keys)
    with pytest.raises(GraftError) as caught:
        read_importance(path)
    assert (caught.value.kind, message in caught.value.message) == ("input", True), caught.value
    assert str(path) in caught.value.message


def test_hostile_settings_and_command_lines(tmp_path):
    path = write_importance(tmp_path / "a.json", FIRST)
    other = write_importance(tmp_path / "b.json", FIRST[:1])
    keeps_gate = [{"layer": 0, "roles": ["ffn.gate"], "rank": 4, "alpha": 8.0}]
    setting = write_setting(tmp_path / "setting.json", keep=keeps_gate)
    twice = write_setting(tmp_path / "twice.json", keep=keeps_gate * 2)
    for arguments, code, message in (
        ([f"a={path}", "--setting", setting], 65, "layer 0 ffn.gate, which the scores do not have"),
        ([f"a={path}", "--setting", twice], 65, "keep[1]: found layer 0"),
        ([f"a={path}", f"b={other}"], 64, "scores other modules"),
        ([f"a={path}", f"a={path}"], 64, "occurs twice"),
        ([str(path)], 64, "NAME=FILE"),
        ([f"a={path}", "--k", 0], 64, "--k 0"),
        ([f"a={tmp_path / 'no'}"], 74, "no"),
    ):
        result = run_script("score_report.py", *arguments, "--out", tmp_path / "out")
        assert (result.returncode, message in last_line(result)) == (code, True), result.stderr
        assert not (tmp_path / "out").exists()
