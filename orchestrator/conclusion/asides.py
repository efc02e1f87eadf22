"""What a careful reader asks next of a verdict, in a sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.certificate import KERNEL_CLASS
from orchestrator.analysis.tables import block_of
from orchestrator.conclusion.comparison import Comparison, Row
from orchestrator.conclusion.verdicts import sentence
from orchestrator.quantities import count, figures, percent

_STOPPED = {
    "out_of_memory": "ran out of memory",
    "timeout": "ran out of time",
    "diverged": "diverged",
    "unsupported": "could not run",
}


def asides(comparison: Comparison) -> Iterator[str]:
    """Whether it matters there, whether it is the zone asked about, where a curve stopped, on how
    much it rests, and what was not fair about it."""
    row = comparison.first
    if row["verdict"] == "crosses":
        if row["indifferent_low"] is not None:
            yield (
                f"Between {count(row['indifferent_low'])} and {count(row['indifferent_high'])}"
                f" {comparison.unit} the two lie within 5 % of each other."
            )
        low, high = comparison.tables.sweep.zone
        inside = any(crossing["in_zone"] for crossing in comparison.rows)
        yield (
            f"The interval {'overlaps' if inside else 'lies outside'} the zone asked about,"
            f" {count(low)} to {count(high)}."
        )
    yield from _stops(comparison)
    if (row["replicates"] or 0) >= 5:
        yield _basis(comparison)
    yield from _unfair(comparison)
    yield from _by_other_code(comparison)


def _unfair(comparison: Comparison) -> Iterator[str]:
    unfair = comparison.unfair()
    if KERNEL_CLASS in unfair:
        yield f"This compares implementations, not architectures: {unfair.pop(KERNEL_CLASS)}."
    if unfair:
        said = "; ".join(f"{clause} ({figure})" for clause, figure in unfair.items())
        yield f"Not as fair as it should be: {said}."


def _by_other_code(comparison: Comparison) -> Iterator[str]:
    """What the verdict is where another label of the sweep computes the challenger's method by
    other code, and by what factor that moves the crossing."""
    mine = comparison.method(comparison.challenger)
    others: dict[str, list[Row]] = {}
    for row in comparison.tables.crossovers.to_pylist():
        if (
            block_of(row) == block_of(comparison.first)
            and row["challenger"] != comparison.challenger
            and mine is not None
            and comparison.method(row["challenger"]) == mine
        ):
            others.setdefault(row["challenger"], []).append(row)
    for rows in others.values():
        text = f"The same method by other code: {sentence(Comparison(comparison.tables, rows))}"
        here, there = comparison.first, rows[0]
        if here["verdict"] == there["verdict"] == "crosses":
            factor = there["seq_len"] / here["seq_len"]
            text += f", which moves the crossing by a factor of {figures(factor)}"
        yield f"{text}."


def _stops(comparison: Comparison) -> Iterator[str]:
    summary = comparison.tables.summary.to_pylist()
    mine = [row for row in summary if block_of(row) == block_of(comparison.first)]
    for label in (comparison.challenger, comparison.baseline):
        at = [
            (row["seq_len"], row["reason"])
            for row in mine
            if row["label"] == label and row["reason"] in _STOPPED
        ]
        if at:
            context, reason = min(at)
            yield (
                f"{label} {_STOPPED[reason]} at {count(context)} {comparison.unit}, so nothing is"
                " said from there on."
            )


def _basis(comparison: Comparison) -> str:
    text = f"This rests on {comparison.replicates}"
    effect = comparison.first["smallest_effect"]
    if not effect:
        return f"{text}."
    scale = comparison.summary()["scale"]
    seen = percent(effect) if scale == "ratio" else figures(effect, 2)
    return f"{text}, enough to see a difference of {seen} with probability 0.8."
