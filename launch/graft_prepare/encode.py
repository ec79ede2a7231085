"""From samples to token ids and masks: which tokens are the prompt, which are trained, and what a limit cuts.

T tokens of a sample. A token is trained when its characters overlap the words to be learnt; whitespace behind the
special token that ends a turn is not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .errors import input_error, usage_error
from .records import Rejected, Sample
from .templates import ChatTemplate, Span
from .tokenizer import LoadedTokenizer

LOSS_ON = ("all_assistant", "last_assistant", "completion", "all")
TRUNCATION = ("end", "start", "reject")


@dataclass
class Encoded:
    """One sample ready to be written. loss_mask is set for causal_lm, target_ids for seq2seq."""

    number: int
    input_ids: np.ndarray
    prompt_length: int
    loss_mask: np.ndarray | None = None
    target_ids: np.ndarray | None = None
    label: str | None = None
    encoder_ids: np.ndarray | None = None  # the prompt in the vocabulary of a separate encoder

    @property
    def trained(self) -> int:
        """Trained tokens; of the kinds that predict a label, one."""
        if self.loss_mask is not None:
            return int(self.loss_mask.sum())
        return 1 if self.target_ids is None else len(self.target_ids)


@dataclass(frozen=True)
class EncodeOptions:
    """What the user asked for."""

    loss_on: str
    max_length: int
    truncation: str


def span_mask(offsets: np.ndarray, span: Span) -> np.ndarray:
    """(T) bool: tokens whose characters overlap the span. A token of white space whose offsets the tokenizer
    trimmed to nothing stands at its own end."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    first, last = span
    wide = (starts < ends) & (starts < last) & (ends > first)
    trimmed = (starts == ends) & (first < ends) & (ends <= last)
    return wide | trimmed


def _without_tail(
    mask: np.ndarray,
    ids: np.ndarray,
    offsets: np.ndarray,
    text: str,
    span: Span,
    special_ids: frozenset[int],
) -> np.ndarray:
    """The mask less the whitespace behind the span's last special token."""
    inside = np.flatnonzero(mask)
    special = [index for index in inside if int(ids[index]) in special_ids]
    if special and not text[offsets[special[-1], 1] : span[1]].strip():
        mask[special[-1] + 1 :] = False
    return mask


def _chosen_spans(spans: list[Span], loss_on: str, length: int) -> tuple[int, list[Span]]:
    """Where the prompt ends (a character) and the spans to train on."""
    if loss_on == "last_assistant":
        return spans[-1][0], spans[-1:]
    if loss_on == "completion":
        return spans[0][0], [(spans[0][0], length)]
    if loss_on == "all":
        return spans[0][0], [(0, length)]
    return spans[0][0], spans


class CausalEncoder:
    """Conversations and texts for causal_lm."""

    def __init__(
        self, tokenizer: LoadedTokenizer, template: ChatTemplate | None, options: EncodeOptions
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.options = options

    def _layout(self, sample: Sample) -> tuple[str, int, list[Span]]:
        """Text, the character at which the prompt ends, and the spans to train on. Raises Rejected."""
        if sample.text is not None:
            tokens = self.tokenizer.special_tokens
            text = self.tokenizer.bos_text + sample.text + tokens.get("eos_token", "")
            return text, 0, [(0, len(text))]
        if self.template is None:
            raise input_error(f"{sample.where}: a conversation in a data set of plain text")
        messages = sample.messages
        answers = [
            index for index, message in enumerate(messages) if message["role"] == "assistant"
        ]
        if not answers:
            raise Rejected("no assistant turn")
        if not any(messages[index]["content"].strip() for index in answers):
            raise Rejected("empty answer")
        if self.options.loss_on != "all":
            messages = messages[
                : answers[-1] + 1
            ]  # turns behind the last answer would never be trained on
        text, spans = self.template.spans(messages, sample.raw)
        if not spans:
            raise Rejected("template: shows no assistant turn")
        return text, *_chosen_spans(spans, self.options.loss_on, len(text))

    def _encoded(
        self, sample: Sample, text: str, prompt_end: int, spans: list[Span], encoding
    ) -> Encoded:
        ids = np.array(encoding.ids, dtype=np.int32)
        if not len(ids):
            raise Rejected("no token")
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        mask = np.zeros(len(ids), dtype=bool)
        for span in spans:
            part = span_mask(offsets, span)
            if sample.text is None:
                part = _without_tail(part, ids, offsets, text, span, self.tokenizer.special_ids)
            mask |= part
        behind_prompt = np.flatnonzero(span_mask(offsets, (prompt_end, len(text))))
        prompt = int(behind_prompt[0]) if prompt_end and len(behind_prompt) else 0
        return self._cut(sample, ids, mask, prompt)

    def _cut(self, sample: Sample, ids: np.ndarray, mask: np.ndarray, prompt: int) -> Encoded:
        limit = self.options.max_length
        if len(ids) > limit:
            if self.options.truncation == "reject":
                raise Rejected("too long")
            if self.options.truncation == "start":
                prompt = max(0, prompt - (len(ids) - limit))
                ids, mask = ids[-limit:], mask[-limit:]
            else:
                ids, mask, prompt = ids[:limit], mask[:limit], min(prompt, limit)
            if not mask[1:].any():
                raise Rejected("no trained token is left after truncation")
        mask[0] = False  # nothing predicts the first token
        if not mask.any():
            raise Rejected("no trained token")
        return Encoded(sample.number, ids, prompt, loss_mask=mask.astype(np.uint8))

    def encode(self, samples: list[Sample]) -> list[Encoded | Rejected]:
        """One result for each sample, in order; tokenises the batch on all cores."""
        layouts: list[tuple[str, int, list[Span]] | Rejected] = []
        for sample in samples:
            try:
                layouts.append(self._layout(sample))
            except Rejected as reason:
                layouts.append(reason)
        texts = [layout[0] for layout in layouts if not isinstance(layout, Rejected)]
        encodings = iter(self.tokenizer.backend.encode_batch(texts, add_special_tokens=False))
        results: list[Encoded | Rejected] = []
        for sample, layout in zip(samples, layouts):
            if isinstance(layout, Rejected):
                results.append(layout)
                continue
            try:
                results.append(self._encoded(sample, *layout, next(encodings)))
            except Rejected as reason:
                results.append(reason)
        return results


def prompt_text(sample: Sample) -> tuple[str, str | None]:
    """What an encoder of its own reads of a sample: the turns before the answer, without markers; an input, and its second text."""
    if not sample.messages:
        return sample.text or "", sample.text_pair
    turns = itertools.takewhile(lambda turn: turn["role"] != "assistant", sample.messages)
    return "\n".join(turn["content"] for turn in turns), None


class PromptEncoder:
    """Prompts for the model that `adapter.encoder` names (LoPA, IDPG), at most `limit` tokens of each."""

    def __init__(self, tokenizer: LoadedTokenizer, limit: int) -> None:
        self.backend = tokenizer.backend
        self.backend.enable_truncation(limit)

    def ids(self, sample: Sample) -> np.ndarray:
        ids = np.array(self.backend.encode(*prompt_text(sample)).ids, dtype=np.int32)
        if not len(ids):
            raise Rejected("no token of the prompt for the encoder")
        return ids


class InputEncoder:
    """Whole inputs with the tokenizer's own special tokens: classification, regression, seq2seq."""

    def __init__(self, tokenizer: LoadedTokenizer, kind: str, options: EncodeOptions) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.options = options
        if kind == "seq2seq" and tokenizer.eos_id is None:
            raise usage_error(
                f"{tokenizer.folder}: --kind seq2seq needs a tokenizer with an eos_token"
            )

    def _tokens(self, text: str, pair: str | None = None) -> np.ndarray:
        """Ids with special tokens; a cut takes words, never the special tokens around them."""
        backend, options = self.tokenizer.backend, self.options
        encoding = backend.encode(text, pair)
        if len(encoding.ids) > options.max_length:
            if options.truncation == "reject":
                raise Rejected("too long")
            backend.enable_truncation(
                options.max_length, direction="left" if options.truncation == "start" else "right"
            )
            encoding = backend.encode(text, pair)
            backend.no_truncation()
        if not encoding.ids:
            raise Rejected("no token")
        return np.array(encoding.ids, dtype=np.int32)

    def _one(self, sample: Sample) -> Encoded:
        if self.kind != "seq2seq":
            ids = self._tokens(sample.text or "", sample.text_pair)
            return Encoded(sample.number, ids, len(ids), label=sample.label)
        turns = sample.messages
        if not turns or turns[-1]["role"] != "assistant":
            raise Rejected("no assistant turn at the end")
        if not turns[-1]["content"].strip():
            raise Rejected("empty answer")
        ids = self._tokens("\n\n".join(turn["content"] for turn in turns[:-1]))
        target = self._tokens(turns[-1]["content"])
        if target[-1] != self.tokenizer.eos_id:
            target = np.append(
                target[: self.options.max_length - 1], np.int32(self.tokenizer.eos_id)
            )
        return Encoded(sample.number, ids, len(ids), target_ids=target.astype(np.int32))

    def encode(self, samples: list[Sample]) -> list[Encoded | Rejected]:
        results: list[Encoded | Rejected] = []
        for sample in samples:
            try:
                results.append(self._one(sample))
            except Rejected as reason:
                results.append(reason)
        return results
