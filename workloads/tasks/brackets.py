"""Brackets: which bracket of real code closes next, up to hundreds of lines after it was opened.

    input    namespace c10 { int  at  ( int  i  )  { return v  [  i  ]  ;  }
    target       .      .  .  .   .   .  .   )  .  .   .    .  .  ]  .  B  N

Scored are the positions after which a closing bracket follows whose opening stands in the window;
the closing one comes into the input only after its position was scored. There are five answers:
`)`, `]`, and `}` by what it closes: a block (B: of a function, of control, of values), a type
(class, struct, union, enum) or a namespace (N). With `kinds: signs` there are three, and little to
find: in C++ whatever closes after 200 tokens is a `}`, and the token before it says so in 99 of 100
cases. What it closes was said only where it was opened. Lengths count tokens as `code_tokens.py`
makes them: brackets, signs, keywords, and one token for any string and for each name.

Data, as `source` says (`code_files.py`). `packaged`: the C++ headers that come with the installed
torch (`torch/include`; BSD-3-Clause, with third parties under their own, permissive ones), without
those that are generated. With `code: python` the sources of Python's standard library without its
tests (PSF-2.0); or `both`. `huggingface`: files of a data set of the hub. `path`: a folder of one's
own. Split by a hash of the file's content: 80 in a hundred train, 10 validate, 10 test.

Score: for each distance between the brackets (1, 2, 3-4, 5-8, ... tokens) up to `per_distance`
closing brackets of the held-out files, the same at each length, each from the `seq_len` tokens
before it. `accuracy` weighs them back to the shares of all closing brackets with an opening that
near. Three guesses need no model: the most frequent answer (`baseline_majority_accuracy`), the
answer most frequent after the token just read (`baseline_last_token_accuracy`), both counted in the
training files, and the bracket opened last, closed or not (`baseline_last_opened_accuracy`).
`baseline_accuracy`, and its curve, is of the one among them that is most often right in the
training files at that length: of the packaged code the last token for C++, the last opened for
Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.ends import Ends
from workloads.plugins import Evaluation, Metric, Task, build_options
from workloads.tasks import code_files
from workloads.tasks.code_files import CodeOptions
from workloads.tasks.code_tokens import KINDS, NONE, VOCAB_SIZE, Stream, answerable, windows
from workloads.tasks.data import generator_of, prepared
from workloads.tasks.lengths import by_length
from workloads.tasks.shares import share
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, outputs_of

VERSION = 1
_TEST_SEED = 2**63

Answers = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(CodeOptions):
    """kinds: five answers, with `}` by what it closes, or the three `signs`. scored: which held-out
    files the metrics are of. per_distance: closing brackets that are scored for each distance.

    The others say which code: `CodeOptions`.
    """

    kinds: Literal["openers", "signs"] = "openers"
    scored: Literal["test", "validation"] = "test"
    per_distance: int = 200

    def __post_init__(self) -> None:
        CodeOptions.__post_init__(self)  # a class with slots is made anew, and super() lost
        for name, known in (("kinds", ("openers", "signs")), ("scored", ("test", "validation"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        if self.per_distance < 1:
            raise ValueError(f"per_distance must be positive, not {self.per_distance}")

    @property
    def answers(self) -> int:
        return len(KINDS) if self.kinds == "openers" else 3


def prepare(options: Options, folder: Path) -> Brackets:
    """Raises ValueError where the code cannot be had, or nothing of it is in a split."""
    where = folder / "brackets" / code_files.key_of(options, VERSION)
    kept = prepared(where, lambda: code_files.build(options))
    streams = code_files.streams_of(kept.arrays)
    return Brackets(options=options, streams=streams, facts=kept.facts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Brackets:
    """The streams of the three splits. `ends` are, for each length, the positions of the training
    stream at which a window may end; found once."""

    options: Options
    streams: Mapping[str, Stream]
    facts: Mapping[str, Scalar]
    ends: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows (B, T) of the training files, each up to a closing bracket that is drawn
        uniformly; the answers of all that close within a window, (B, T)."""
        stream = self.streams["train"]
        if seq_len > len(stream.tokens):
            raise ValueError(
                f"seq_len: {seq_len} tokens are more than the {len(stream.tokens)} of the training "
                "files"
            )
        if seq_len not in self.ends:
            self.ends[seq_len] = answerable(stream, seq_len)
        ends = self.ends[seq_len]
        drawn = generator_of(seed, update).integers(0, len(ends), size=sequences)
        return windows(stream, ends[drawn], seq_len, self.options.answers)

    @property
    def held_out(self) -> Stream:
        return self.streams[self.options.scored]

    def true(self, stream: Stream, ends: NDArray[np.int64]) -> Answers:
        """What closes after each of these positions."""
        return np.minimum(stream.kinds[ends], self.options.answers - 1).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Closing brackets that are asked for, (N,) each: the last position before them, the answer,
    the distance in tokens and in lines, and how many of their distance each stands for."""

    ends: NDArray[np.int64]
    answers: Answers
    distances: NDArray[np.int32]
    lines: NDArray[np.int32]
    weights: NDArray[np.float64]


def scored(data: Brackets, seq_len: int) -> Scored:
    """At most `per_distance` of each bucket of distances, the first of an order that no length
    changes.

    Raises:
        ValueError: none of the held-out files has a pair that near.
    """
    stream = data.held_out
    order = np.random.Generator(np.random.Philox(key=_TEST_SEED)).permutation(len(stream.tokens))
    found = answerable(stream, seq_len)
    found = found[np.argsort(order[found])]
    bucket = _bucket(stream.distances[found])
    parts, weights = [], []
    for one in np.unique(bucket):
        members = found[bucket == one]
        parts.append(members[: data.options.per_distance])
        weights.append(np.full(len(parts[-1]), len(members) / len(parts[-1])))
    ends = np.concatenate(parts)
    return Scored(
        ends=ends,
        answers=data.true(stream, ends),
        distances=stream.distances[ends],
        lines=stream.lines[ends],
        weights=np.concatenate(weights),
    )


def _bucket(counts: NDArray[Any]) -> NDArray[np.int64]:
    """0 for 1, then 1 for 2, 2 for 3-4, 3 for 5-8, ..."""
    return np.asarray(np.ceil(np.log2(counts)), dtype=np.int64)


def by_majority(data: Brackets, stream: Stream, ends: NDArray[np.int64]) -> Answers:
    """The most frequent answer of the training files."""
    return np.full(len(ends), _counts(data).sum(0).argmax(), dtype=np.uint8)


def by_last_token(data: Brackets, stream: Stream, ends: NDArray[np.int64]) -> Answers:
    """The answer that is most frequent after the token at each end; the majority where the training
    files have none."""
    counts = _counts(data)
    table = np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())
    return np.asarray(table[stream.tokens[ends]], dtype=np.uint8)


def by_last_opened(data: Brackets, stream: Stream, ends: NDArray[np.int64]) -> Answers:
    """The kind of the bracket that was opened last before each end, closed or not."""
    before = np.flatnonzero(stream.kinds != NONE)
    openings = before + 1 - stream.distances[before]
    order = np.argsort(openings)
    last = np.searchsorted(openings[order], ends, side="right") - 1
    return data.true(stream, before[order[last]])


def _counts(data: Brackets) -> NDArray[np.int64]:
    """How often each answer follows each token in the training files, (vocabulary, answers)."""
    stream, answers = data.streams["train"], data.options.answers
    before = np.flatnonzero(stream.kinds != NONE)
    pairs = stream.tokens[before].astype(np.int64) * answers + data.true(stream, before)
    counts = np.bincount(pairs, minlength=VOCAB_SIZE * answers)
    return np.asarray(counts.reshape(VOCAB_SIZE, answers), dtype=np.int64)


Guess = Callable[[Brackets, Stream, NDArray[np.int64]], Answers]
"""Answers (N,) after these positions of a stream (N,), without a model."""


def best_guess(data: Brackets, seq_len: int) -> Guess:
    """The guess that is most often right in the training files, of all brackets with an opening
    that near."""
    stream = data.streams["train"]
    ends = answerable(stream, seq_len)
    true = data.true(stream, ends)
    guesses: tuple[Guess, ...] = (by_last_token, by_last_opened, by_majority)
    return max(guesses, key=lambda guess: float(np.mean(guess(data, stream, ends) == true)))


Right = Callable[[TrainedModel, int], NDArray[np.bool_]]
"""Whether each scored bracket was told rightly, from so many tokens before it: (N,)."""


def _memo(trained: TrainedModel, name: str, make: Callable[[], Any]) -> Any:
    if name not in trained.memo:
        trained.memo[name] = make()
    return trained.memo[name]


def _asked(trained: TrainedModel, seq_len: int) -> Scored:
    found: Scored = _memo(trained, f"scored {seq_len}", lambda: scored(trained.data, seq_len))
    return found


def _by_model(trained: TrainedModel, seq_len: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = _memo(trained, f"right {seq_len}", lambda: _ask(trained, seq_len))
    return found


@torch.inference_mode()
def _ask(trained: TrainedModel, seq_len: int) -> NDArray[np.bool_]:
    options = build_options(Options, trained.cell.task_options)
    asked, rows = _asked(trained, seq_len), max(1, MICRO_BATCH_TOKENS // seq_len)
    said = []
    for start in range(0, len(asked.ends), rows):
        ends = asked.ends[start : start + rows]
        inputs, _ = windows(trained.data.held_out, ends, seq_len, options.answers)
        part = torch.from_numpy(inputs).to(trained.device)
        outputs = outputs_of(trained.model, part, trained.cell.precision)
        said.append(outputs[:, -1].argmax(-1).cpu().numpy())
    return np.asarray(np.concatenate(said) == asked.answers, dtype=np.bool_)


def _by_guess(guess: Guess) -> Right:
    def right(trained: TrainedModel, seq_len: int) -> NDArray[np.bool_]:
        asked, data = _asked(trained, seq_len), trained.data
        return np.asarray(guess(data, data.held_out, asked.ends) == asked.answers)

    return right


def _by_best_guess(trained: TrainedModel, seq_len: int) -> NDArray[np.bool_]:
    guess = _memo(trained, f"guess {seq_len}", lambda: best_guess(trained.data, seq_len))
    return _by_guess(guess)(trained, seq_len)


def _mean(trained: TrainedModel, right: Right, seq_len: int) -> float:
    return float(np.average(right(trained, seq_len), weights=_asked(trained, seq_len).weights))


def _curve(
    coordinate: str, counts: NDArray[np.int32], weights: NDArray[np.float64], right: NDArray[Any]
) -> Evaluation:
    """Buckets of 1, 2, 3-4, 5-8, ...; `at` is a bucket's largest."""
    bucket = _bucket(counts)
    members = [bucket == one for one in np.unique(bucket)]
    return Evaluation(
        samples=tuple(float(np.average(right[m], weights=weights[m])) for m in members),
        coordinate=coordinate,
        at=tuple(float(counts[m].max()) for m in members),
    )


def _accuracy_by_lines(trained: TrainedModel) -> Evaluation:
    """Lines that a pair touches: 1 where it opens and closes on one."""
    seq_len = trained.cell.seq_len
    asked = _asked(trained, seq_len)
    return _curve("lines", asked.lines + 1, asked.weights, _by_model(trained, seq_len))


def _accuracy_by_length(trained: TrainedModel) -> Evaluation:
    return by_length(trained, lambda seq_len: _mean(trained, _by_model, seq_len))


def _overall(title: str, right: Right) -> Metric:
    def evaluate(trained: TrainedModel) -> Evaluation:
        return Evaluation(samples=(_mean(trained, right, trained.cell.seq_len),))

    return share(title, evaluate)


def _by_distance(title: str, right: Right) -> Metric:
    def evaluate(trained: TrainedModel) -> Evaluation:
        seq_len = trained.cell.seq_len
        asked = _asked(trained, seq_len)
        return _curve("distance", asked.distances, asked.weights, right(trained, seq_len))

    return share(title, evaluate)


BEST = "accuracy of the best guess without a model (baseline)"
DISTANCE = "by tokens since the bracket was opened"

TASK = Task(
    title="brackets",
    version=VERSION,
    options=Options,
    token_unit=lambda options: "code tokens",
    ends=lambda options: Ends(vocab_size=VOCAB_SIZE, outputs=options.answers),
    prepare=prepare,
    missing=code_files.missing,
    metrics={
        "accuracy": _overall("accuracy of the bracket that closes next", _by_model),
        "accuracy_by_distance": _by_distance(f"accuracy {DISTANCE}", _by_model),
        "accuracy_by_lines": share(
            "accuracy by lines from the bracket's opening on", _accuracy_by_lines
        ),
        "accuracy_by_length": share("accuracy by length of the input", _accuracy_by_length),
        "baseline_accuracy": _overall(BEST, _by_best_guess),
        "baseline_accuracy_by_distance": _by_distance(f"{BEST} {DISTANCE}", _by_best_guess),
        "baseline_majority_accuracy": _overall(
            "accuracy of the most frequent bracket", _by_guess(by_majority)
        ),
        "baseline_last_token_accuracy": _overall(
            "accuracy of the most frequent bracket after the last token", _by_guess(by_last_token)
        ),
        "baseline_last_opened_accuracy": _overall(
            "accuracy of the bracket that was opened last", _by_guess(by_last_opened)
        ),
    },
)
