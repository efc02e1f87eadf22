"""Multi-query associative recall: remember which value came with which key, and say it when asked.

    input     k1 v1 k2 v2 k3 v3  0  k2  0  0  k1  0  k3  0     (3 facts, then queries in filler)
    target    .  .  .  .  .  .   .  v2  .  .  v1  .  v3  .     (only queries are scored)

Generated as in Arora et al. 2023, "Zoology", appendix: keys and values are distinct draws from two
halves of the vocabulary; each key is asked once, and how long after the facts follows a power law,
so that most queries come soon. The value never stands after its query. Nothing is downloaded and no
example is ever repeated: training draws afresh at every update, the test set from numbers of its
own. No licence applies.

A model that guesses among the values it has seen is right in 1 / facts of the cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.ends import next_token
from workloads.objectives import IGNORED
from workloads.plugins import Evaluation, Task, build_options
from workloads.tasks.buckets import by_doubling, doubling_to
from workloads.tasks.data import TEST_SEED, generator_of
from workloads.tasks.shares import classes_said, share, solved
from workloads.train import TrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """vocab_size: tokens, of which 0 is filler, the lower half keys, the upper half values.

    facts: key-value pairs in a sequence, at most a quarter of its length. power: of the law of the
    distance between facts and query; 1 is uniform. noise: fill with random tokens instead of 0.
    test_sequences: how many are scored.
    """

    vocab_size: int = 256
    facts: int = 8
    power: float = 0.01
    noise: bool = False
    test_sequences: int = 1000

    def __post_init__(self) -> None:
        if self.facts < 1 or self.test_sequences < 1 or self.power <= 0:
            raise ValueError("facts, power and test_sequences must be positive")
        if self.facts > self.vocab_size // 2 - 1:
            raise ValueError(
                f"facts: {self.facts} keys need a vocab_size of at least {2 * self.facts + 2}, "
                f"not {self.vocab_size}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Sequences made on demand."""

    options: Options

    @property
    def facts(self) -> Mapping[str, Scalar]:
        return {
            "data_source": "generated: multi-query associative recall",
            "data_licence": "none",
            "split": "training and test are drawn from different random numbers",
            "baseline_accuracy": 1 / self.options.facts,
        }

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return generate(self.options, sequences, seq_len, generator_of(seed, update))


def generate(
    options: Options, sequences: int, seq_len: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets, each (sequences, seq_len).

    Raises:
        ValueError: the length is odd, or too short for the facts and their queries.
    """
    facts, vocab_size = options.facts, options.vocab_size
    if seq_len % 2 or 4 * facts > seq_len:
        raise ValueError(
            f"seq_len: {facts} facts need an even length of at least {4 * facts}, not {seq_len}"
        )
    half = vocab_size // 2
    keys = 1 + _distinct(generator, sequences, half - 1, facts)
    values = half + _distinct(generator, sequences, vocab_size - half, facts)
    inputs = np.zeros((sequences, seq_len), dtype=np.int64)
    inputs[:, 0 : 2 * facts : 2] = keys
    inputs[:, 1 : 2 * facts : 2] = values
    queries = 2 * facts + 2 * _slots(options, sequences, seq_len, generator)
    rows = np.arange(sequences)[:, None]
    inputs[rows, queries] = keys
    targets = np.full_like(inputs, IGNORED)
    targets[rows, queries] = values
    if options.noise:
        filler = inputs == 0
        inputs[filler] = generator.integers(0, vocab_size, filler.sum())
    return inputs, targets


def _distinct(
    generator: np.random.Generator, rows: int, among: int, count: int
) -> NDArray[np.int64]:
    """(rows, count) numbers below `among`, distinct in each row, in random order."""
    return np.argsort(generator.random((rows, among)), axis=1)[:, :count].astype(np.int64)


def _slots(
    options: Options, rows: int, seq_len: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """(rows, facts) distinct places for queries, place s with weight (s + 1)^(power - 1): the
    largest of log-weight plus Gumbel noise, in falling order, which draws without replacement."""
    places = (seq_len - 2 * options.facts) // 2
    weight = (options.power - 1) * np.log(np.arange(1, places + 1))
    score = weight + generator.gumbel(size=(rows, places))
    return np.argsort(-score, axis=1)[:, : options.facts].astype(np.int64)


Answers = tuple[NDArray[np.bool_], NDArray[np.int64]]


def _answers(trained: TrainedModel, facts: int | None = None) -> Answers:
    """Whether each query of the test set with so many facts (default: as trained) was answered
    rightly, and how many tokens before it its key stood; computed once."""
    options: Options = build_options(Options, trained.cell.task_options)
    options = replace(options, facts=facts or options.facts)
    key = f"answers {options.facts}"
    if key not in trained.memo:
        trained.memo[key] = _ask(trained, options)
    answers: Answers = trained.memo[key]
    return answers


def _ask(trained: TrainedModel, options: Options) -> Answers:
    drawn = options.test_sequences, trained.cell.seq_len, generator_of(TEST_SEED, 0)
    inputs, targets = generate(options, *drawn)
    asked = targets != IGNORED
    right = (classes_said(trained, inputs) == targets)[asked]
    return right, _distances(inputs, asked, options.facts)


def _distances(
    inputs: NDArray[np.int64], asked: NDArray[np.bool_], facts: int
) -> NDArray[np.int64]:
    """Tokens from each query back to its key among the facts."""
    row, position = np.nonzero(asked)
    keys = inputs[row, 0 : 2 * facts : 2]
    fact = np.argmax(keys == inputs[row, position][:, None], axis=1)
    return np.asarray(position - 2 * fact, dtype=np.int64)


def _mean(trained: TrainedModel) -> float:
    return float(_answers(trained)[0].mean())


def _accuracy(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(_mean(trained),))


def _accuracy_by_distance(trained: TrainedModel) -> Evaluation:
    """Buckets of 1-2, 3-4, 5-8, 9-16, ... tokens between key and query; `at` is a bucket's
    largest."""
    right, distance = _answers(trained)
    at, means = by_doubling(distance, right)
    return Evaluation(samples=means, coordinate="distance", at=at)


def _accuracy_by_facts(trained: TrainedModel) -> Evaluation:
    """1, 2, 4, ... facts in a sequence, as many as it has room for, more than were trained too."""
    options: Options = build_options(Options, trained.cell.task_options)
    most = min(trained.cell.seq_len // 4, options.vocab_size // 2 - 1)
    counts = doubling_to(most)
    return Evaluation(
        samples=tuple(float(_answers(trained, count)[0].mean()) for count in counts),
        coordinate="facts",
        at=tuple(map(float, counts)),
    )


TASK = Task(
    title="associative recall",
    version=1,
    options=Options,
    token_unit=lambda options: "tokens",
    ends=lambda options: next_token(options.vocab_size),
    prepare=lambda options, folder: Recall(options=options),
    metrics={
        "accuracy": share("recall accuracy", _accuracy),
        "solved": solved(_mean),
        "accuracy_by_distance": share(
            "recall accuracy by tokens between fact and query", _accuracy_by_distance
        ),
        "accuracy_by_facts": share("recall accuracy by facts in the sequence", _accuracy_by_facts),
    },
)
