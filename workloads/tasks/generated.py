"""What generated tasks share that are trained at one length and evaluated at longer ones: a test
set that training never meets, and the share of right answers at each length.

A word, the tokens that decide an example's answers, is held out for the test by its own hash, one
in eight. Different random numbers alone would not do: there are only 65,536 words of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from workloads.objectives import IGNORED
from workloads.plugins import Evaluation, Metric, Unsupported
from workloads.tasks.data import TEST_SEED, generator_of
from workloads.tasks.lengths import by_length
from workloads.tasks.shares import classes_said, share, solved
from workloads.train import TrainedModel

FEWEST_WORDS = 4096
"""So many words there must be, or the few that are held out would be no sample of them."""

Examples = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Inputs and targets, each (B, T); targets are IGNORED where nothing is scored."""


def held_out(words: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the words (B, T) are kept for the test: those whose sum, under a fixed random weight
    for each place, falls into the first eighth of 64 bits."""
    weights = generator_of(TEST_SEED, 0).integers(2**64, size=words.shape[1], dtype=np.uint64)
    # Products and sums are modulo 2^64.
    place = (words.astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    return np.asarray(place < np.uint64(2**61))


def draw(
    sample: Callable[[int], NDArray[np.int64]], count: int, *, test: bool
) -> NDArray[np.int64]:
    """The first `count` words (count, T) of those that `sample(n)` draws n at a time, which are
    held out for the test, or which are not."""
    kept: list[NDArray[np.int64]] = []
    while sum(map(len, kept)) < count:
        words = sample(count)
        kept.append(words[held_out(words) == test])
    return np.concatenate(kept)[:count]


def accuracy_at(
    trained: TrainedModel, seq_len: int, test_set: Callable[[TrainedModel, int], Examples]
) -> float:
    """Share of the scored positions of that length's test set that are right; computed once.

    Raises:
        Unsupported: the task has nothing of that length.
    """
    key = f"accuracy {seq_len}"
    if key not in trained.memo:
        try:
            inputs, targets = test_set(trained, seq_len)
        except ValueError as error:
            raise Unsupported(str(error)) from None
        scored = targets != IGNORED
        trained.memo[key] = float((classes_said(trained, inputs) == targets)[scored].mean())
    return float(trained.memo[key])


def metrics(title: str, test_set: Callable[[TrainedModel, int], Examples]) -> Mapping[str, Metric]:
    """`accuracy`, `solved` and `accuracy_by_length` of a task, from its test set at each length."""

    def accuracy(trained: TrainedModel) -> float:
        return accuracy_at(trained, trained.cell.seq_len, test_set)

    return {
        "accuracy": share(
            f"{title} accuracy", lambda trained: Evaluation(samples=(accuracy(trained),))
        ),
        "solved": solved(accuracy),
        "accuracy_by_length": share(
            f"{title} accuracy by the length it is evaluated at",
            lambda trained: by_length(
                trained, lambda seq_len: accuracy_at(trained, seq_len, test_set)
            ),
        ),
    }
