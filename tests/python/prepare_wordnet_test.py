"""WordNet records: the same seed gives the same file, every word once, and the facts are WordNet's."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import last_line, run_script
from graft_prepare.wordnet import WordNet, write_wordnet

FOLDER = Path("/usr/share/wordnet")


@pytest.fixture(scope="module")
def net() -> WordNet:
    return WordNet(FOLDER)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("wordnet") / "records.jsonl"
    write_wordnet(FOLDER, out, 1200, seed=3)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_seed_decides_the_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_wordnet(FOLDER, tmp_path / name, 50, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_tasks_are_balanced_and_no_word_is_asked_twice(records):
    assert Counter(record["task"] for record in records) == dict.fromkeys(
        ("definition", "synonym", "is_a", "part_of_speech"), 300
    )
    words = [re.search(r"'(.+?)'(?=[ .?])", record["instruction"])[1] for record in records]
    assert len(set(words)) == len(words)


def test_answers_are_facts_of_wordnet(records, net):
    first = {(word.text, word.pos): word.synset for word in net.words}
    for record in records:
        if record["task"] == "is_a":
            word, kind = re.match(r"Is '(.+)' a kind of '(.+)'\?", record["instruction"]).groups()
            names = {
                name
                for key in net.ancestors(first[word, "noun"])
                for name in net.synsets[key].words
            }
            assert record["output"].startswith("Yes" if kind in names else "No")
        elif record["task"] == "synonym":
            pos, word = re.match(
                r"Name a synonym of the (\w+) '(.+)'\.", record["instruction"]
            ).groups()
            pos = {"adjective": "adj", "adverb": "adv"}.get(pos, pos)
            assert record["output"] in net.synsets[first[word, pos]].words
            assert record["output"].lower() != word


def test_is_a_answers_are_mixed(records):
    yes = sum(record["output"].startswith("Yes") for record in records if record["task"] == "is_a")
    assert 100 <= yes <= 200


def test_known_entry(net):
    dog = net.synsets[
        next(word.synset for word in net.words if word.text == "dog" and word.pos == "noun")
    ]
    assert dog.words == ["dog", "domestic dog", "Canis familiaris"]
    assert "member of the genus Canis" in dog.gloss


def test_absent_and_broken_files(tmp_path):
    absent = run_script("prepare.py", "wordnet", "--out", tmp_path / "o", "--wordnet", tmp_path)
    assert absent.returncode == 74
    assert "wordnet-base" in last_line(absent)
    (tmp_path / "data.noun").write_text("00001740 03 n zz entity\n")
    broken = run_script("prepare.py", "wordnet", "--out", tmp_path / "o", "--wordnet", tmp_path)
    assert broken.returncode == 65
    assert "data.noun:1:" in last_line(broken)
    assert not (tmp_path / "o").exists()
