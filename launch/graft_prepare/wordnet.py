"""Makes instruction records from WordNet's data files: define a word, name a synonym, is X a kind of Y, part of speech.

The files are those of Debian's wordnet-base; their format is described in wndb(5WN). Every word is used once, so a
held-out record asks about a word that training never showed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .errors import input_error, io_error, usage_error

POS_NAMES = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
TASKS = ("definition", "synonym", "is_a", "part_of_speech")
HYPERNYM = "@"
MAX_GLOSS_CHARS = 90
MAX_WORD_CHARS = 24

Key = tuple[str, int]


@dataclass
class Synset:
    """One meaning: its words, its gloss without examples, and the synsets that it is a kind of."""

    words: list[str]
    gloss: str
    parents: list[Key] = field(default_factory=list)


@dataclass(frozen=True)
class Word:
    """A word with its most frequent meaning; `senses` over all parts of speech decides what can be asked."""

    text: str
    pos: str
    synset: Key


def _parse_synset(line: str, pos: str) -> tuple[int, Synset]:
    """A line of data.POS: offset lex_file type w_cnt (word lex_id)* p_cnt (symbol offset pos source)* | gloss."""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    num_words = int(fields[3], 16)
    words = [fields[4 + 2 * index].split("(")[0].replace("_", " ") for index in range(num_words)]
    at = 4 + 2 * num_words
    parents = []
    for index in range(int(fields[at])):
        symbol, offset = fields[at + 1 + 4 * index], fields[at + 2 + 4 * index]
        if symbol == HYPERNYM:
            parents.append((pos, int(offset)))
    return int(fields[0]), Synset(words, gloss.split('; "')[0].strip(), parents)


def _data_lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise io_error(
            f"{path}: no such file; the Debian package wordnet-base has it (launch/setup.sh installs it)"
        )
    with path.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.startswith("  "):  # the licence
                yield number, line


class WordNet:
    """The part of WordNet that the records need: synsets, and the first meaning of each commonly used word."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[Key, Synset] = {}
        self.words: list[Word] = []
        seen: dict[str, int] = {}
        for pos in POS_NAMES:
            self._read_data(folder / f"data.{pos}", pos)
            self._read_index(folder / f"index.{pos}", pos, seen)
        self.pos_count = seen

    def _read_data(self, path: Path, pos: str) -> None:
        for number, line in _data_lines(path):
            try:
                offset, synset = _parse_synset(line, pos)
            except (ValueError, IndexError):
                raise input_error(f"{path}:{number}: not a synset line of WordNet") from None
            self.synsets[pos, offset] = synset

    def _read_index(self, path: Path, pos: str, seen: dict[str, int]) -> None:
        """A line of index.POS: lemma pos synset_cnt p_cnt symbol* sense_cnt tagsense_cnt offset*."""
        for number, line in _data_lines(path):
            fields = line.split()
            try:
                word = fields[0].replace("_", " ")
                at = 4 + int(fields[3])
                tagged, first = int(fields[at + 1]), int(fields[at + 2])
            except (ValueError, IndexError):
                raise input_error(f"{path}:{number}: not an index line of WordNet") from None
            seen[word] = seen.get(word, 0) + 1
            plain = word.replace(" ", "").replace("-", "").isalpha()
            if tagged and plain and len(word) <= MAX_WORD_CHARS and (pos, first) in self.synsets:
                self.words.append(Word(word, pos, (pos, first)))

    def ancestors(self, key: Key) -> list[Key]:
        """Everything that a synset is a kind of, nearest first."""
        found: list[Key] = []
        level = self.synsets[key].parents
        while level:
            found.extend(parent for parent in level if parent not in found)
            level = [
                up for parent in level for up in self.synsets[parent].parents if up not in found
            ]
        return found


class RecordMaker:
    """Makes records of each task from one random stream, so that a seed gives the same file."""

    def __init__(self, wordnet: WordNet, seed: int) -> None:
        self.net = wordnet
        self.random = random.Random(seed)

    def _asked(self, word: Word) -> str:
        return f"the {POS_NAMES[word.pos]} '{word.text}'"

    def definition(self, word: Word) -> tuple[str, str] | None:
        gloss = self.net.synsets[word.synset].gloss
        if not 12 <= len(gloss) <= MAX_GLOSS_CHARS:
            return None
        return f"Define {self._asked(word)}.", gloss[0].upper() + gloss[1:] + "."

    def synonym(self, word: Word) -> tuple[str, str] | None:
        others = [
            other
            for other in self.net.synsets[word.synset].words
            if other.lower() != word.text.lower()
        ]
        return (f"Name a synonym of {self._asked(word)}.", others[0]) if others else None

    def is_a(self, word: Word) -> tuple[str, str] | None:
        if word.pos != "noun":
            return None
        kinds = self.net.ancestors(word.synset)
        if len(kinds) < 3:
            return None
        yes = self.random.random() < 0.5
        if yes:
            kind = self.net.synsets[self.random.choice(kinds[:3])]
        else:
            other = self.random.choice(self.net.words)
            related = (
                other.pos != "noun"
                or other.synset in kinds
                or word.synset in self.net.ancestors(other.synset)
            )
            if related or other.synset == word.synset:
                return None
            kind = self.net.synsets[other.synset]
        if word.text in kind.words:
            return None
        answer = f"'{word.text}' is {'' if yes else 'not '}a kind of '{kind.words[0]}'."
        return (
            f"Is '{word.text}' a kind of '{kind.words[0]}'? Answer yes or no.",
            f"{'Yes' if yes else 'No'}, {answer}",
        )

    def part_of_speech(self, word: Word) -> tuple[str, str] | None:
        if self.net.pos_count[word.text] != 1:
            return None
        return (
            f"Which part of speech is the word '{word.text}'?",
            f"'{word.text}' is {_article(POS_NAMES[word.pos])}.",
        )

    def records(self, count: int) -> Iterator[dict[str, str]]:
        """`count` records, the tasks in equal parts; fewer when the words run out."""
        words = self.net.words.copy()
        self.random.shuffle(words)
        used: set[str] = set()
        made = 0
        for word in words:
            if made == count:
                return
            task = TASKS[made % len(TASKS)]
            pair = None if word.text in used else getattr(self, task)(word)
            if pair is not None:
                used.add(word.text)
                made += 1
                yield {"instruction": pair[0], "input": "", "output": pair[1], "task": task}


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def write_wordnet(folder: Path, out: Path, count: int, seed: int) -> None:
    """The `wordnet` command: writes `count` records as JSONL, whole or not at all."""
    if count < 1:
        raise usage_error(f"--count {count}: at least 1 is needed")
    maker = RecordMaker(WordNet(folder), seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    temp = out.with_name(f".{out.name}.tmp")
    tally = dict.fromkeys(TASKS, 0)
    try:
        with temp.open("w", encoding="utf-8") as stream:
            for record in maker.records(count):
                tally[record["task"]] += 1
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        if sum(tally.values()) < count:
            raise usage_error(
                f"--count {count}: WordNet gives {sum(tally.values())} records with this seed"
            )
        temp.rename(out)
    finally:
        temp.unlink(missing_ok=True)
    print(
        f"{out}: {count} records ({', '.join(f'{name} {number}' for name, number in tally.items())})"
    )
