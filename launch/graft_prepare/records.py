"""From a record in one of the usual shapes to a sample: a conversation, a text, or a text with a label.

Shapes are recognised by their keys in the first record; --columns renames keys first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import input_error, printable, usage_error

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class BadRecord(Exception):
    """The record does not have its shape (missing key, wrong type): counts as a malformed line."""


class Rejected(Exception):
    """The record is well formed but cannot be trained on; the message is a short reason that is counted."""


@dataclass(frozen=True)
class Sample:
    """What is encoded. Exactly one of messages and text is set; `raw` marks prompt/completion text that the
    plain template joins without a separator."""

    number: int
    where: str
    messages: tuple[dict[str, str], ...] = ()
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    raw: bool = False


def _text(value: dict[str, Any], key: str, default: str | None = None) -> str:
    found = value.get(key, default)
    if found is None and default is None:
        raise BadRecord(f"key '{key}' is missing" if key not in value else f"key '{key}' is null")
    if found is None:
        return default or ""
    if not isinstance(found, str):
        raise BadRecord(f"key '{key}' is a {type(found).__name__}, a string is needed")
    return found


def _content(message: dict[str, Any], key: str) -> str:
    """A message's text; a list of text parts is joined."""
    content = message.get(key)
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise Rejected("a message has parts that are not text")
        return "".join(parts)
    if content is None and message.get("tool_calls"):
        raise Rejected("a message holds tool calls")
    return _text(message, key)


def _conversation(value: Any, key: str) -> tuple[dict[str, str], ...]:
    """A list of {role, content} or {from, value}."""
    if not isinstance(value, list):
        raise BadRecord(f"key '{key}' is a {type(value).__name__}, a list of messages is needed")
    messages = []
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadRecord(f"{key}[{index}] is a {type(message).__name__}, an object is needed")
        role_key, text_key = ("role", "content") if "role" in message else ("from", "value")
        name = _text(message, role_key)
        if name not in ROLES:
            raise BadRecord(
                f"{key}[{index}].{role_key} is '{printable(name)}', known are {', '.join(ROLES)}"
            )
        messages.append({"role": ROLES[name], "content": _content(message, text_key)})
    if not messages:
        raise Rejected("no message")
    return tuple(messages)


def _turns(system: str, user: str, assistant: str) -> tuple[dict[str, str], ...]:
    turns = (
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": assistant},
    )
    return turns if system else turns[1:]


def _from_messages(value: dict[str, Any]) -> dict[str, Any]:
    return {"messages": _conversation(value["messages"], "messages")}


def _from_sharegpt(value: dict[str, Any]) -> dict[str, Any]:
    messages = _conversation(value["conversations"], "conversations")
    system = _text(value, "system", "")
    if system and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    return {"messages": messages}


def _from_alpaca(value: dict[str, Any]) -> dict[str, Any]:
    instruction, extra = _text(value, "instruction"), _text(value, "input", "")
    user, answer = _turns(
        "", f"{instruction}\n\n{extra}" if extra else instruction, _text(value, "output")
    )
    # The alpaca template puts instruction and input under headings of their own.
    return {"messages": ({**user, "instruction": instruction, "input": extra}, answer)}


def _from_prompt_completion(value: dict[str, Any]) -> dict[str, Any]:
    if isinstance(value["prompt"], list):
        return {
            "messages": _conversation(value["prompt"], "prompt")
            + _conversation(value["completion"], "completion")
        }
    return {"messages": _turns("", _text(value, "prompt"), _text(value, "completion")), "raw": True}


def _from_orca(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": _turns(
            _text(value, "system_prompt", ""), _text(value, "question"), _text(value, "response")
        )
    }


def _from_flan(value: dict[str, Any]) -> dict[str, Any]:
    return {"messages": _turns("", _text(value, "inputs"), _text(value, "targets"))}


def _from_text(value: dict[str, Any]) -> dict[str, Any]:
    text = _text(value, "text")
    if not text.strip():
        raise Rejected("empty text")
    return {"text": text}


def _from_labelled(value: dict[str, Any]) -> dict[str, Any]:
    label = value["label"]
    if isinstance(label, (dict, list)) or label is None:
        raise BadRecord(f"key 'label' is a {type(label).__name__}, a string or a number is needed")
    pair = _text(value, "text_pair") if "text_pair" in value else None
    return {**_from_text(value), "text_pair": pair, "label": str(label)}


@dataclass(frozen=True)
class Shape:
    """A shape is recognised by its required keys; optional ones may also be named in --columns."""

    required: tuple[str, ...]
    build: Callable[[dict[str, Any]], dict[str, Any]]
    optional: tuple[str, ...] = ()


INSTRUCTION_SHAPES = {
    "messages": Shape(("messages",), _from_messages),
    "sharegpt": Shape(("conversations",), _from_sharegpt, ("system",)),
    "orca": Shape(("system_prompt", "question", "response"), _from_orca),
    "alpaca": Shape(("instruction", "output"), _from_alpaca, ("input",)),
    "prompt_completion": Shape(("prompt", "completion"), _from_prompt_completion),
    "flan": Shape(("inputs", "targets"), _from_flan),
    "text": Shape(("text",), _from_text),
}
LABEL_SHAPES = {"labelled": Shape(("text", "label"), _from_labelled, ("text_pair",))}
# The names that GLUE and its relatives use for the text of a labelled record.
LABEL_SYNONYMS = {"sentence": "text", "sentence1": "text", "sentence2": "text_pair"}
SHAPE_NAMES = (*INSTRUCTION_SHAPES, *LABEL_SHAPES)


def parse_columns(text: str) -> dict[str, str]:
    """`instruction=q,output=a` as {canonical name: name in the file}."""
    known = {
        name
        for shape in (INSTRUCTION_SHAPES | LABEL_SHAPES).values()
        for name in shape.required + shape.optional
    }
    columns: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, column = part.partition("=")
        if not equals or not column or name not in known or name in columns:
            raise usage_error(
                f"--columns '{printable(part)}': NAME=COLUMN is needed, once for each NAME of "
                f"{', '.join(sorted(known))}"
            )
        columns[name] = column
    return columns


class RecordReader:
    """Turns raw records into samples; remembers the shape that the first one showed."""

    def __init__(self, kind: str, columns: dict[str, str], shape: str | None) -> None:
        self.labelled = kind in ("classification", "regression")
        self.shapes = LABEL_SHAPES if self.labelled else INSTRUCTION_SHAPES
        if shape is not None and shape not in self.shapes:
            raise usage_error(
                f"--shape {shape} does not go with --kind {kind}; allowed are {', '.join(self.shapes)}"
            )
        self.columns = columns
        self.shape = shape

    def _rename(self, value: dict[str, Any]) -> dict[str, Any]:
        if self.columns:
            taken = set(self.columns.values())
            renamed = {
                key: item
                for key, item in value.items()
                if key not in taken and key not in self.columns
            }
            for name, column in self.columns.items():
                if column not in value:
                    raise BadRecord(f"key '{column}' is missing")
                renamed[name] = value[column]
            value = renamed
        if self.labelled:
            value = {
                key if LABEL_SYNONYMS.get(key, key) in value else LABEL_SYNONYMS.get(key, key): item
                for key, item in value.items()
            }
        return value

    def detect(self, value: dict[str, Any], where: str) -> str:
        """The first shape whose keys are all there and that uses every name of --columns."""
        for name, shape in self.shapes.items():
            allowed = shape.required + shape.optional
            if all(key in value for key in shape.required) and all(
                key in allowed for key in self.columns
            ):
                return name
        known = "; ".join(
            f"{name}: {', '.join(shape.required)}" for name, shape in self.shapes.items()
        )
        raise input_error(
            f"{where}: keys {printable(', '.join(value))} fit no known shape ({known}); "
            "a key may be missing, or --columns can name it"
        )

    def sample(self, value: dict[str, Any], number: int, where: str) -> Sample:
        """Raises BadRecord or Rejected; an unknown shape of the first record is an input error."""
        value = self._rename(value)
        if self.shape is None:
            self.shape = self.detect(value, where)
        shape = self.shapes[self.shape]
        for key in shape.required:
            if key not in value:
                raise BadRecord(f"key '{key}' is missing (shape {self.shape})")
        return Sample(number=number, where=where, **shape.build(value))
