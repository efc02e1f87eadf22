"""Derived metrics: pure expressions of a cell's columns, so that a new one needs no rerun.

To add one, add an entry to `DERIVED`. An expression sees the cell's own fields, its measured
medians, the derived metrics above it, and `train_tokens`: the token budget of the train cells of
the same label, size and length, where one of them came through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from workloads.measurement import Better, Scale

if TYPE_CHECKING:
    from orchestrator.analysis.observations import ObservedCell


class MetricFacts(NamedTuple):
    """What a metric says of itself: how it is called, counted and compared."""

    title: str
    unit: str
    better: Better = "smaller"
    scale: Scale = "ratio"
    deterministic: bool = False


class Derived(NamedTuple):
    """One derived metric of measure cells; it exists where every column that it reads does."""

    name: str
    facts: MetricFacts
    value: Callable[[Mapping[str, Any]], float]
    timed: str = ""
    """The metric that it takes its seconds from."""


DERIVED = (
    Derived(
        "train_tokens_per_second",
        MetricFacts("Training throughput", "1/s", "greater"),
        lambda c: c["batch_size"] * c["seq_len"] / c["train_step_time"],
        "train_step_time",
    ),
    Derived(
        "train_time",
        MetricFacts("Time to train on the token budget", "s"),
        lambda c: c["train_tokens"] / c["train_tokens_per_second"],
        "train_step_time",
    ),
    Derived(
        "int8_size_ratio",
        MetricFacts("Size of the int8 graph over the float32 one", "1", deterministic=True),
        lambda c: c["int8_bytes"] / c["onnx_bytes"],
    ),
    Derived(
        "int8_latency_ratio",
        MetricFacts("Time per token of the int8 graph over the float32 one", "1"),
        lambda c: c["int8_decode_time"] / c["onnx_decode_time"],
        "int8_decode_time",
    ),
)

TIMED = {derived.name: derived.timed for derived in DERIVED if derived.timed}
"""The metric that each takes its seconds from, of those that have any."""


def derive(cells: Sequence[ObservedCell]) -> None:
    """Adds every derived metric, or the reason why what it reads is missing, to the measure
    cells."""
    budgets = _budgets(cells)
    for seen in cells:
        if seen.cell.kind != "measure":
            continue
        columns: dict[str, Any] = {**vars(seen.cell), **seen.medians}
        budget = budgets.get((seen.cell.label, seen.cell.size, seen.cell.seq_len))
        if budget is not None:
            columns["train_tokens"] = budget
        for derived in DERIVED:
            try:
                value = float(derived.value(columns))
            except KeyError as missing:
                reason = seen.reasons.get(missing.args[0])
                if reason is not None:
                    seen.reasons[derived.name] = reason
            else:
                columns[derived.name] = seen.medians[derived.name] = value


def _budgets(cells: Sequence[ObservedCell]) -> dict[tuple[str, int, int], int]:
    """Tokens trained on, by (label, size, seq_len), where a train cell finished with a number."""
    return {
        (seen.cell.label, seen.cell.size, seen.cell.seq_len): seen.cell.tokens
        for seen in cells
        if seen.cell.kind == "train" and seen.medians and seen.cell.tokens is not None
    }
