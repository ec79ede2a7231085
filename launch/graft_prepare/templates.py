"""Chat templates: the tokenizer's own Jinja or a named one, and where the assistant's words stand in the result.

Rendering is done by transformers' render_jinja_template (a sandbox; the same that apply_chat_template uses).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import input_error, printable, usage_error
from .records import Rejected
from .tokenizer import LoadedTokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
    "+ m.content.strip() + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ALPACA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
    "{% elif m.role == 'user' %}"
    "{% if loop.first %}{{ 'Below is an instruction that describes a task' + (', paired with an input that provides "
    "further context' if m.input else '') + '. Write a response that appropriately completes the request.\n\n' }}{% endif %}"
    "{{ '### Instruction:\n' + (m.instruction if m.input else m.content) + '\n\n' }}"
    "{% if m.input %}{{ '### Input:\n' + m.input + '\n\n' }}{% endif %}"
    "{% else %}{{ '### Response:\n' + m.content + eos_token + ('' if loop.last else '\n\n') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% elif not loop.last or add_generation_prompt %}"
    "{{ '' if raw else '\n' }}{% endif %}{% endfor %}"
)
NAMED = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "alpaca": ALPACA, "plain": PLAIN}
# Tokens that a named template writes and that a tokenizer should know as one token each.
MARKERS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
TEMPLATE_NAMES = ("tokenizer", *NAMED)
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")

Messages = tuple[dict[str, str], ...]
Span = tuple[int, int]


@dataclass(frozen=True)
class ChatTemplate:
    """A template under its name with the special tokens that it may use."""

    name: str
    source: str
    tokens: dict[str, str] = field(default_factory=dict)

    def render(self, messages: Messages, prompt: bool = False, raw: bool = False) -> str:
        """The conversation as text; `prompt` ends it with the opening of an answer. Raises Rejected."""
        return self._render(messages, prompt, raw, track=False)[0]

    def _render(
        self, messages: Messages, prompt: bool, raw: bool, track: bool
    ) -> tuple[str, list[Span]]:
        from jinja2.exceptions import TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, indices = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.source,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=track,
                raw=raw,
                **self.tokens,
            )
        except TemplateSyntaxError as error:
            raise input_error(
                f"chat template '{self.name}' line {error.lineno}: {printable(error)}"
            ) from None
        except (
            Exception
        ) as error:  # a template may raise anything: its own message, TypeError, RecursionError
            raise Rejected(f"template: {printable(error)}") from None
        return texts[0], indices[0] if track else []

    def spans(self, messages: Messages, raw: bool = False) -> tuple[str, list[Span]]:
        """The whole text and, for each assistant turn in order, where the words to be learnt stand in it.

        A template with {% generation %} blocks says so itself. For any other the turn begins where the text of
        everything before it, ended as a prompt, ends.
        """
        if GENERATION_TAG.search(self.source):
            return self._render(messages, False, raw, track=True)
        full = self.render(messages, raw=raw)
        found = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                found.append(self._turn(messages, index, full, raw))
        return full, found

    def _turn(self, messages: Messages, index: int, full: str, raw: bool) -> Span:
        until = full if index + 1 == len(messages) else self.render(messages[: index + 1], raw=raw)
        if not full.startswith(until):
            raise Rejected("template: an earlier turn changes when later ones follow")
        before = self.render(messages[:index], prompt=True, raw=raw) if index else ""
        if until.startswith(before):
            return len(before), len(until)
        # Some templates open a prompt differently from a finished turn: then the words themselves are looked for.
        common = len(self.render(messages[:index], raw=raw))
        start = until.find(messages[index]["content"].strip(), common)
        if start < 0:
            raise Rejected("template: the assistant's words are not found in its text")
        return start, len(until)


def choose_template(name: str | None, tokenizer: LoadedTokenizer) -> ChatTemplate:
    """The named template, or the tokenizer's own when no name is given."""
    tokens = {"bos_token": "", "eos_token": "", **tokenizer.special_tokens}
    if name in (None, "tokenizer"):
        if not tokenizer.chat_template:
            raise usage_error(
                f"{tokenizer.folder}: the tokenizer has no chat template; "
                f"name one with --template {' | '.join(NAMED)}"
            )
        return ChatTemplate("tokenizer", tokenizer.chat_template, tokens)
    if name in ("alpaca", "plain"):
        tokens["bos_token"] = tokenizer.bos_text
    return ChatTemplate(name, NAMED[name], tokens)


def missing_markers(template: ChatTemplate, tokenizer: LoadedTokenizer) -> list[str]:
    """Markers of a named template that this tokenizer would cut into pieces."""
    return [
        marker
        for marker in MARKERS.get(template.name, ())
        if tokenizer.backend.token_to_id(marker) is None
    ]
