"""The `data` command from files to a prepared data set: read, shape, encode, split, write, report."""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .encode import CausalEncoder, Encoded, EncodeOptions, InputEncoder, PromptEncoder
from .errors import input_error, io_error, usage_error
from .files import whole_folder
from .reader import BadLines, RawRecord, Source, read_records
from .records import BadRecord, RecordReader, Rejected, Sample
from .show import show_sample
from .templates import ChatTemplate, choose_template, missing_markers
from .tokenizer import LoadedTokenizer, load_tokenizer, read_config
from .writer import DatasetInfo, DatasetWriter

KINDS = ("causal_lm", "classification", "regression", "seq2seq")
BATCH = 256
DEFAULT_MAX_LENGTH = 1024


@dataclass
class DataOptions:
    """The command line of `prepare.py data`, checked by cli.py."""

    inputs: list[Path]
    model: Path
    encoder: Path | None
    out: Path
    kind: str
    file_format: str
    columns: dict[str, str]
    shape: str | None
    template: str | None
    loss_on: str | None
    max_length: int | None
    truncation: str
    limit: int
    eval_fraction: float
    split_seed: int
    show: int
    max_bad: int
    labels: list[str]
    shard_tokens: int
    overwrite: bool


@dataclass
class Report:
    """What was read and what became of it."""

    rejected: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1


def in_eval(number: int, fraction: float, seed: int) -> bool:
    """Whether a sample is held out: a hash of its id, so that no other sample's presence changes it."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _positions(config: dict[str, Any]) -> int | None:
    """Tokens that the model has positions for, where its config bounds them."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(positions, int) or positions <= 0 or config.get("model_type") == "t5":
        return None
    if config.get("model_type") == "roberta":  # its table begins behind the padding id
        padding = config.get("pad_token_id", 1)
        positions -= (padding if isinstance(padding, int) else 1) + 1
    return positions if positions > 0 else None


def _max_length(options: DataOptions) -> int:
    """The limit asked for, which the model's positions bound."""
    positions = _positions(read_config(options.model))
    if options.max_length is None:
        return min(DEFAULT_MAX_LENGTH, positions or DEFAULT_MAX_LENGTH)
    if positions is not None and options.max_length > positions:
        raise usage_error(f"--max-length {options.max_length}: the model has {positions} positions")
    return options.max_length


def _encoder_positions(folder: Path) -> int:
    config = read_config(folder)
    positions = _positions(config)
    if config.get("model_type") != "roberta" or positions is None:
        raise input_error(
            f"{folder}/config.json: model_type: found {config.get('model_type')!r}, "
            "a prompt encoder must be a 'roberta' with max_position_embeddings"
        )
    return positions


def _progress(options: DataOptions) -> AbstractContextManager[Any]:
    total = sum(path.stat().st_size for path in options.inputs)
    return tqdm(
        total=total, unit="B", unit_scale=True, desc="preparing", disable=None, file=sys.stderr
    )


class Preparation:
    """One run of `prepare.py data`."""

    def __init__(self, options: DataOptions) -> None:
        self.options = options
        self.bad = BadLines(options.max_bad)
        self.report = Report()
        self.tokenizer: LoadedTokenizer = load_tokenizer(options.model)
        self.reader = RecordReader(options.kind, options.columns, options.shape)
        self.max_length = _max_length(options)
        self.prompts: PromptEncoder | None = None
        if options.encoder is not None:
            limit = _encoder_positions(options.encoder)
            self.prompts = PromptEncoder(load_tokenizer(options.encoder), limit)

    def _samples(self, source: Source, reader: RecordReader) -> Iterator[Sample]:
        for record in read_records(self.options.inputs, self.options.file_format, source):
            sample = self._sample(record, source, reader)
            if sample is not None:
                yield sample

    def _sample(self, record: RawRecord, source: Source, reader: RecordReader) -> Sample | None:
        try:
            return reader.sample(record.value, record.number, record.where)
        except BadRecord as error:
            source.bad.report(record.where, str(error))
        except Rejected as reason:
            self.report.reject(str(reason))
        return None

    def _labels(self) -> list[str]:
        """Class names: as given, else those found (numbers in their order, words sorted)."""
        options = self.options
        if options.kind != "classification" or options.labels:
            return options.labels
        found: set[str] = set()
        quiet = Source(BadLines(sys.maxsize, count=10))
        first_pass = RecordReader(options.kind, options.columns, options.shape)
        for record in read_records(options.inputs, options.file_format, quiet):
            try:
                found.add(first_pass.sample(record.value, record.number, record.where).label or "")
            except (BadRecord, Rejected):
                continue
        if len(found) < 2:
            raise input_error(
                f"{options.inputs[0]}: {len(found)} different label(s), classification needs 2; "
                "--labels can name those that this file lacks"
            )
        if all(label.isdecimal() for label in found) and found:
            return [str(index) for index in range(max(map(int, found)) + 1)]
        return sorted(found)

    def _check_label(self, sample: Sample, labels: list[str]) -> None:
        if self.options.kind == "classification" and sample.label not in labels:
            raise BadRecord(f"label '{sample.label}' is not among {', '.join(labels)}")
        if self.options.kind == "regression":
            try:
                finite = math.isfinite(float(sample.label or ""))
            except ValueError:
                finite = False
            if not finite:
                raise BadRecord(f"label '{sample.label}' is not a finite number")

    def _causal(self, first: Sample) -> tuple[CausalEncoder, str, str]:
        """Encoder, template name and loss_on for conversations or, by the first sample, for plain text."""
        options = self.options
        loss_on = options.loss_on or ("all" if first.text is not None else "all_assistant")
        template: ChatTemplate | None = None
        if first.text is None:
            template = choose_template(options.template, self.tokenizer)
            for marker in missing_markers(template, self.tokenizer):
                print(
                    f"note: '{marker}' of template {template.name} is not one token of this tokenizer",
                    file=sys.stderr,
                )
        elif loss_on != "all" or options.template not in (None, "plain"):
            raise usage_error(
                "records of plain text have no turns: --loss-on all and --template plain are allowed"
            )
        encoder = CausalEncoder(
            self.tokenizer, template, EncodeOptions(loss_on, self.max_length, options.truncation)
        )
        return encoder, template.name if template else "plain", loss_on

    def _encoded(
        self, samples: Iterator[Sample], encoder: CausalEncoder | InputEncoder
    ) -> Iterator[Encoded]:
        limit = self.options.limit or sys.maxsize
        while batch := list(itertools.islice(samples, min(BATCH, limit))):
            for sample, result in zip(batch, encoder.encode(batch), strict=True):
                if isinstance(result, Encoded) and self.prompts is not None:
                    result.encoder_ids = self.prompts.ids(sample)
                if isinstance(result, Rejected):
                    self.report.reject(str(result))
                elif limit:
                    limit -= 1
                    yield result
            if not limit:
                return

    def _with_labels_checked(
        self, samples: Iterator[Sample], labels: list[str]
    ) -> Iterator[Sample]:
        for sample in samples:
            try:
                self._check_label(sample, labels)
            except BadRecord as error:
                self.bad.report(sample.where, str(error))
                continue
            yield sample

    def _writers(self, folder: Path, info: DatasetInfo) -> dict[str, DatasetWriter]:
        names = ("train", "eval") if self.options.eval_fraction else ("",)
        return {
            name: DatasetWriter(folder / name, info, self.options.shard_tokens) for name in names
        }

    def _fill(self, folder: Path, source: Source) -> dict[str, dict[str, Any]]:
        """Reads everything once and writes one data set, or train and eval. Returns their dataset.json."""
        options = self.options
        labels = self._labels()
        samples = self._with_labels_checked(self._samples(source, self.reader), labels)
        first = next(samples, None)
        if first is None:
            reasons = "; ".join(
                f"{reason}: {count}" for reason, count in self.report.rejected.items()
            )
            raise input_error(
                f"{options.inputs[0]}: no usable record{f' ({reasons})' if reasons else ''}"
            )
        if options.kind == "causal_lm":
            encoder, template, loss_on = self._causal(first)
        else:
            encoder = InputEncoder(
                self.tokenizer,
                options.kind,
                EncodeOptions("all", self.max_length, options.truncation),
            )
            template, loss_on = "none", "all"
        info = DatasetInfo(
            options.kind,
            self.tokenizer.vocab_size,
            self.tokenizer.sha256,
            self.max_length,
            template,
            loss_on,
            labels,
        )
        writers = self._writers(folder, info)
        for count, encoded in enumerate(self._encoded(itertools.chain([first], samples), encoder)):
            if count < options.show:
                show_sample(encoded, self.tokenizer)
            held_out = options.eval_fraction and in_eval(
                encoded.number, options.eval_fraction, options.split_seed
            )
            writers["" if not options.eval_fraction else "eval" if held_out else "train"].add(
                encoded
            )
            self.report.lengths.append(len(encoded.input_ids))
        self._refuse_untrained()
        return {name: writer.close() for name, writer in writers.items()}

    def _refuse_untrained(self) -> None:
        if not self.report.lengths:
            reasons = "; ".join(
                f"{reason}: {count}" for reason, count in self.report.rejected.items()
            )
            raise input_error(
                f"{self.options.inputs[0]}: no sample with a trained token is left ({reasons})"
            )

    def run(self) -> None:
        options = self.options
        with (
            whole_folder(options.out, "dataset.json", options.overwrite) as temp,
            _progress(options) as bar,
        ):
            headers = self._fill(temp, Source(self.bad, bar.update))
        self._print(headers)

    def _print(self, headers: dict[str, dict[str, Any]]) -> None:
        for name, header in headers.items():
            share = header["num_trained_tokens"] / header["num_tokens"]
            trained = (
                f"{header['num_trained_tokens']} trained ({share:.1%})"
                if self.options.kind == "causal_lm"
                else ""
            )
            print(
                f"{self.options.out / name}: {header['num_samples']} samples, {header['num_tokens']} tokens {trained}"
            )
        lengths = sorted(self.report.lengths)
        print(
            f"shape {self.reader.shape}, template {header['template']}, loss on {header['loss_on']}, lengths "
            f"{lengths[0]} / {lengths[len(lengths) // 2]} / {lengths[-1]} (min / median / max, limit {self.max_length})"
        )
        for what, counts in (("malformed", self.bad.reasons), ("rejected", self.report.rejected)):
            for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
                print(f"{what} {count}: {reason}")


def prepare_data(options: DataOptions) -> None:
    for path in options.inputs:
        if not path.is_file():
            raise io_error(f"{path}: no such file")
    Preparation(options).run()
