"""A metric by length: the same test examples at the training length and at each `eval_seq_len`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Literal

from workloads.plugins import Evaluation, Metric, Unsupported
from workloads.train import TrainedModel


def by_length(trained: TrainedModel, measure: Callable[[int], float]) -> Evaluation:
    """What `measure` gives at each of the cell's lengths, the shortest first."""
    lengths = sorted({trained.cell.seq_len, *trained.cell.eval_seq_len})
    return Evaluation(
        samples=tuple(measure(seq_len) for seq_len in lengths),
        coordinate="eval_seq_len",
        at=tuple(map(float, lengths)),
    )


def at_lengths(
    name: str,
    title: str,
    unit: str,
    measure: Callable[[TrainedModel, int], float],
    better: Literal["greater", "smaller"] = "greater",
) -> Mapping[str, Metric]:
    """A metric at the cell's own length, and by length, whose `measure` raises ValueError where
    there is nothing of a length."""

    def at(trained: TrainedModel, seq_len: int) -> float:
        try:
            return measure(trained, seq_len)
        except ValueError as error:
            raise Unsupported(str(error)) from None

    def here(trained: TrainedModel) -> Evaluation:
        return Evaluation(samples=(at(trained, trained.cell.seq_len),))

    scale: Literal["ratio", "difference"] = "difference" if better == "greater" else "ratio"
    return {
        name: Metric(title=title, version=1, unit=unit, better=better, scale=scale, evaluate=here),
        f"{name}_by_length": Metric(
            title=f"{title}, by the length it is evaluated at",
            version=1,
            unit=unit,
            better=better,
            scale=scale,
            evaluate=lambda trained: by_length(trained, functools.partial(at, trained)),
        ),
    }
