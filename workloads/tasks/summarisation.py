"""Summarisation: read a long document, then say what it is about.

    input     Etymology The term is a compound ... an absurdity . SEP Anarchism is a political ...
    target    .         .   .    .  . .            .           .  Anarchism is a political ... END
                                                                 (only the summary is scored)

Data of `source: packaged`. Test: articles of the English Wikipedia, the sections as the document,
the lead before them as its summary (CC BY-SA), from an export of 2016 that the package `gensim`
ships for its tests (read as a file, never imported): 86 articles with a lead of at least 40 words
and a body of at least 300; a hash of the title decides which are for the test and which for
validation, about half each. Training: Python's standard library without its tests (PSF-2.0), the
source of a module with its docstring (20 words or more), and the source of a function with its (5
or more); the docstring that is asked for is cut out of the source, and a pair whose document still
has it word by word is left out. That is another kind of text than is tested; `test: docstrings`
tests modules and their docstrings instead, split from those that train by a hash of the file's
path (15 in 100 validate, 15 test).

With `source: huggingface` GovReport (Huang et al. 2021) as `ccdv/govreport-summarization`, or any
data set with a column of documents and one of summaries, in its own splits. With `path` one's own
Parquet with such columns; a hash of a document decides its split (10 in 100 validate, 10 test). No
document is in two splits.

Lengths count tokens of a byte-level BPE learnt from the train split (or bytes). A window is a
document, SEP, its summary, END: in all seq_len tokens of input. A document that is too long loses
its MIDDLE: as many tokens are kept of its beginning as of its end (one more, where that is odd),
for whether a model makes use of the end is part of the question. Short pairs share a window; the
last of them is cut to what is left, with as much of its document as of its summary (where no pair
allows that, the window begins with a few ENDs that are not scored). Trained as a prefix language
model: only the summary's tokens and END are targets; the document is read causally like all else. A
summary is cut to `max_new_tokens`, with END.

Scored: each test document, cut alike to leave room for `max_new_tokens`, is read in one pass, and
up to so many tokens are said one by one, in the step form, always the likeliest, in float32. `bleu`
and `rouge_l` compare them with the whole reference. `ending_recall` asks whether the ending is
missed: of the names, numbers and identifiers of the references that only the last third of their
document gives (precisely: `text_scores.ending_facts`), the share that was said. `validation_loss`
is that of the validation pairs' summaries, given the document as at the test. The same documents
and the same targets are scored at every length.

Baselines, on the same documents: `baseline_bleu`, `baseline_rouge_l` and `baseline_ending_recall`
are of the document's first 250 words, `baseline_random_...` of random sentences of it up to 250
words, both cut to as many as `max_new_tokens` hold; `baseline_validation_loss` is the cross-entropy
of the same targets under their frequencies among the training targets.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.ends import Ends, next_token
from workloads.objectives import IGNORED
from workloads.plugins import Task, Unsupported
from workloads.tasks import sources, summaries, text_scores, tokenization
from workloads.tasks.data import TEST_SEED, Arrays, folder_name, generator_of, prepared
from workloads.tasks.generation import generate
from workloads.tasks.lengths import at_lengths
from workloads.tasks.summaries import SPLITS, Pair
from workloads.tasks.summary_windows import (
    END,
    Pairs,
    Summaries,
    references,
    tokenized,
    validation_windows,
)
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, next_token_losses

VERSION = 1
HUB = "ccdv/govreport-summarization"
_SCORERS = {"sacrebleu": "sacrebleu", "rouge-score": "rouge_score"}
_SPLIT_OPTIONS = "train_split", "validation_split", "test_split"
_COLUMNS = "document_column", "summary_column"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """source: `packaged`, or `huggingface` for `dataset`, what `datasets.load_dataset` takes, with
    its `config` and the names of its splits (slices such as `train[:2000]` too). path: Parquet of
    one's own. document_column, summary_column: `report` and `summary` on the hub, `document` and
    `summary` of one's own.

    test: what packaged data test, articles of an `encyclopaedia` or `docstrings` of modules.
    modules: the share of draws for training that are modules, the rest functions.
    tokenizer: `bpe` learnt from the train split with `vocab_size` tokens, or `bytes`.
    test_documents: how many are summarised, and how many validation pairs scored, at most.
    max_new_tokens: of a summary, END included.
    """

    source: Literal["packaged", "huggingface"] = "packaged"
    test: Literal["encyclopaedia", "docstrings"] = "encyclopaedia"
    modules: float = 0.5
    dataset: str = HUB
    config: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    path: str = ""
    document_column: str = ""
    summary_column: str = ""
    tokenizer: Literal["bytes", "bpe"] = "bpe"
    vocab_size: int = 2048
    test_documents: int = 48
    max_new_tokens: int = 500

    def __post_init__(self) -> None:
        _one_of("source", self.source, ("packaged", "huggingface"))
        _one_of("test", self.test, ("encyclopaedia", "docstrings"))
        _one_of("tokenizer", self.tokenizer, ("bpe", "bytes"))
        defaults: dict[str, Any] = {f.name: f.default for f in fields(self)}
        tokenization.check(self.tokenizer, self.vocab_size, defaults["vocab_size"])
        if self.test_documents < 1 or self.max_new_tokens < 2:
            raise ValueError("test_documents must be 1 or more, max_new_tokens 2 or more")
        if not 0 <= self.modules <= 1:
            raise ValueError(f"modules is a share, from 0 to 1, not {self.modules}")
        of_hub = self.source == "huggingface"
        if self.path and of_hub:
            raise ValueError("path: documents of one's own have no `source`")
        for kind, names, allowed in (
            ("the packaged data", ("test", "modules"), not of_hub and not self.path),
            ("`source: huggingface`", ("dataset", "config", *_SPLIT_OPTIONS), of_hub),
            ("a `path` or to `source: huggingface`", _COLUMNS, of_hub or bool(self.path)),
        ):
            for name in names:
                if not allowed and getattr(self, name) != defaults[name]:
                    raise ValueError(f"{name} belongs to {kind}")


def _one_of(name: str, value: str, allowed: tuple[str, str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {allowed[0]!r} or {allowed[1]!r}, not {value!r}")


def corpus(options: Options) -> summaries.Corpus:
    """What the options name, no document of it in two splits.

    Raises:
        ValueError: it is not here, lacks a column, or leaves a split empty.
    """
    document, summary = options.document_column, options.summary_column or "summary"
    if options.path:
        found = summaries.own(options.path, (document or "document", summary))
    elif options.source == "huggingface":
        splits = {split: getattr(options, f"{split}_split") for split in SPLITS}
        columns = document or "report", summary
        found = summaries.hub(options.dataset, options.config, splits, columns)
    elif options.test == "docstrings":
        found = summaries.library()
    else:
        found = summaries.library_and_encyclopaedia()
    return summaries.without_leaks(found)


def ends(options: Options) -> Ends:
    """The tokenizer's tokens, of which 0 is END, and SEP."""
    return next_token(separator(options) + 1)


def separator(options: Options) -> int:
    return tokenization.size_of(options.tokenizer, options.vocab_size)


def missing(options: Options) -> str | None:
    for package, folder in _SCORERS.items():
        if sources.package_file(package, folder) is None:
            return (
                f"its texts are scored by the package {package}, which is not installed here: "
                f"{sources.EXTRA}"
            )
    if options.path:
        return sources.first_fault(lambda: sources.own_files(options.path))
    if options.source == "packaged" and options.test == "encyclopaedia":
        return sources.first_fault(lambda: sources.needed(*summaries.EXPORT))
    return None


def prepare(options: Options, folder: Path) -> Summaries:
    """The tokens in a sub-folder of `folder` that is named by what decides them.

    Raises:
        ValueError: as `corpus`.
    """
    found = prepared(folder / "summarisation" / _key(options), lambda: _build(options))
    pairs = {
        split: Pairs(**{f.name: found.arrays[f"{split}_{f.name}"] for f in fields(Pairs)})
        for split in SPLITS
    }
    train = pairs["train"]
    targets = np.diff(train.summary_starts).clip(max=options.max_new_tokens)
    return Summaries(
        separator=separator(options),
        max_new_tokens=options.max_new_tokens,
        modules=options.modules,
        **pairs,
        vocabulary=tokenization.Vocabulary(
            content=found.arrays["token_content"], starts=found.arrays["token_starts"]
        ),
        facts=found.facts,
        long=int(str(found.facts["train_pairs"])) - int(str(found.facts["train_functions"])),
        targets=targets,
        sizes=np.diff(train.document_starts) + targets,
    )


def _key(options: Options) -> str:
    deciding = {f.name: getattr(options, f.name) for f in fields(options)}
    del deciding["modules"]
    if options.path:
        source = sources.own_hash(options.path)
    elif options.source == "huggingface":
        source = options.dataset
    else:
        articles = options.test == "encyclopaedia"
        source = f"{sources.named(summaries.EXPORT[0]) if articles else 'python'} "
        source += platform.python_version()
    said = f"{Path(source).name} {options.tokenizer}"
    return folder_name(said, {"version": VERSION, "origin": source, **deciding})


def _build(options: Options) -> Arrays:
    found = corpus(options)
    texts: dict[str, Sequence[Pair]] = {
        # Long ones first; of what is scored, a sample that the order of the source does not decide.
        "train": sorted(found.pairs["train"], key=lambda pair: pair.short),
        "validation": _sample(found.pairs["validation"], options.test_documents),
        "test": _sample(found.pairs["test"], options.test_documents),
    }
    tokenizer = tokenization.learnt(
        options.tokenizer,
        (text for pair in texts["train"] for text in (pair.document, pair.summary)),
        options.vocab_size,
    )
    vocabulary = tokenization.vocabulary_of(tokenizer)

    def fitted(text: str) -> str:
        (tokens,) = tokenizer.encode([text])
        if len(tokens) < options.max_new_tokens:
            return text
        # The last word may be half a one.
        return vocabulary.text(tokens[: options.max_new_tokens - 1]).rpartition(" ")[0]

    baselines = text_scores.baselines(
        [pair.document for pair in texts["test"]],
        [pair.summary for pair in texts["test"]],
        fitted,
        generator_of(TEST_SEED, 0),
    )
    pairs = {split: tokenized(of, tokenizer, separator(options)) for split, of in texts.items()}
    arrays: dict[str, NDArray[Any]] = {
        "token_content": vocabulary.content,
        "token_starts": vocabulary.starts,
    }
    for split, one in pairs.items():
        arrays |= {f"{split}_{f.name}": getattr(one, f.name) for f in fields(one)}
    learnt, asked = (
        pairs[split].targets(options.max_new_tokens) for split in ("train", "validation")
    )
    return Arrays(
        arrays=arrays,
        facts={
            "data_source": found.source,
            "data_licence": found.licence,
            "split": found.split,
            "tokenizer": tokenizer.name,
            "train_pairs": len(pairs["train"]),
            "train_functions": sum(pair.short for pair in texts["train"]),
            "train_tokens": len(pairs["train"].documents) + len(pairs["train"].summaries),
            "validation_documents": len(pairs["validation"]),
            "test_documents": len(pairs["test"]),
            **baselines,
            "baseline_validation_loss": text_scores.frequency_loss(
                np.bincount(learnt, minlength=ends(options).vocab_size), asked
            ),
        },
    )


def _sample(pairs: Sequence[Pair], count: int) -> list[Pair]:
    return sorted(pairs, key=lambda p: hashlib.sha256(p.name.encode()).digest())[:count]


def said(trained: TrainedModel, seq_len: int) -> list[str]:
    """What the model makes of each test document, at that length; computed once.

    Raises:
        ValueError: there is nothing of that length.
    """
    key = f"said {seq_len}"
    if key not in trained.memo:
        data: Summaries = trained.data
        documents = map(data.test.document, range(len(data.test)))
        prompts = [data.prompt(document, seq_len) for document in documents]
        rows = max(1, MICRO_BATCH_TOKENS // seq_len)
        found = generate(trained.model, prompts, data.max_new_tokens, END, rows)
        trained.memo[key] = [data.vocabulary.text(tokens) for tokens in found]
    texts: list[str] = trained.memo[key]
    return texts


def _bleu(trained: TrainedModel, seq_len: int) -> float:
    return text_scores.bleu(said(trained, seq_len), references(trained.data)[1])


def _rouge_l(trained: TrainedModel, seq_len: int) -> float:
    return text_scores.rouge_l(said(trained, seq_len), references(trained.data)[1])


def _ending_recall(trained: TrainedModel, seq_len: int) -> float:
    found = text_scores.ending_recall(said(trained, seq_len), *references(trained.data))
    if found is None:
        raise Unsupported("no summary of the test documents has a fact of the ending alone")
    return found


@torch.inference_mode()
def _validation_loss(trained: TrainedModel, seq_len: int) -> float:
    inputs, targets = validation_windows(trained.data, seq_len)
    rows, total = max(1, MICRO_BATCH_TOKENS // seq_len), 0.0
    for start in range(0, len(inputs), rows):
        read, asked = (
            torch.from_numpy(side[start : start + rows]).to(trained.device)
            for side in (inputs, targets)
        )
        losses = next_token_losses(trained.model, read, asked, trained.cell.precision)
        total += float(losses.double().sum())
    return total / int((targets != IGNORED).sum())


TASK = Task(
    title="summarisation",
    version=VERSION,
    options=Options,
    token_unit=lambda options: tokenization.unit_of(options.tokenizer),
    ends=ends,
    prepare=prepare,
    missing=missing,
    metrics={
        **at_lengths("bleu", "BLEU of the summaries", "BLEU (0-100)", _bleu),
        **at_lengths("rouge_l", "ROUGE-L of the summaries", "F1 (0-100)", _rouge_l),
        **at_lengths(
            "ending_recall",
            "share of the ending's facts that the summaries have",
            "1",
            _ending_recall,
        ),
        **at_lengths(
            "validation_loss",
            "validation loss of the summaries",
            "nats per token",
            _validation_loss,
            better="smaller",
        ),
    },
)
