"""What generated tasks share that are trained at one length and evaluated at longer ones: a test
set that training never meets, and the share of right answers at each length.

A word, the tokens that decide an example's answers, is held out for the test by its own hash, one
in eight. Different random numbers alone would not do: there are only 65,536 words of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.objectives import IGNORED
from workloads.plugins import Evaluation, Metric, Unsupported
from workloads.tasks.data import TEST_SEED, generator_of
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, outputs_of

SOLVED = 0.95
"""Accuracy from which a seed counts as having solved a task."""
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
        trained.memo[key] = float((_said(trained, inputs) == targets)[scored].mean())
    return float(trained.memo[key])


@torch.inference_mode()
def _said(trained: TrainedModel, inputs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The likeliest class at each position (B, T)."""
    rows = max(1, MICRO_BATCH_TOKENS // inputs.shape[1])
    said = [
        outputs_of(trained.model, part.to(trained.device), trained.cell.precision).argmax(-1)
        for part in torch.split(torch.from_numpy(inputs), rows)
    ]
    return torch.cat(said).cpu().numpy()


def metrics(title: str, test_set: Callable[[TrainedModel, int], Examples]) -> Mapping[str, Metric]:
    """`accuracy`, `solved` and `accuracy_by_length` of a task, from its test set at each length."""

    def accuracy(trained: TrainedModel) -> Evaluation:
        return Evaluation(samples=(accuracy_at(trained, trained.cell.seq_len, test_set),))

    def solved(trained: TrainedModel) -> Evaluation:
        found = accuracy_at(trained, trained.cell.seq_len, test_set)
        return Evaluation(samples=(float(found >= SOLVED),))

    def accuracy_by_length(trained: TrainedModel) -> Evaluation:
        lengths = sorted({trained.cell.seq_len, *trained.cell.eval_seq_len})
        return Evaluation(
            samples=tuple(accuracy_at(trained, length, test_set) for length in lengths),
            coordinate="eval_seq_len",
            at=tuple(map(float, lengths)),
        )

    return {
        "accuracy": Metric(
            title=f"{title} accuracy",
            version=1,
            unit="1",
            better="greater",
            scale="difference",
            evaluate=accuracy,
        ),
        "solved": Metric(
            title=f"share of seeds that solve it (accuracy of {SOLVED} or more)",
            version=1,
            unit="1",
            better="greater",
            scale="share",
            evaluate=solved,
        ),
        "accuracy_by_length": Metric(
            title=f"{title} accuracy by the length it is evaluated at",
            version=1,
            unit="1",
            better="greater",
            scale="difference",
            evaluate=accuracy_by_length,
        ),
    }
