"""What a careful reader asks next of a verdict, in a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.analysis.certificate import KERNEL_CLASS
from orchestrator.analysis.tables import block_of
from orchestrator.conclusion.comparison import Comparison, Row, listed
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
        yield from _basis(comparison)
    yield from unfair([comparison])
    yield from _by_other_code(comparison)


def heading(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What stands before verdicts of which some are between codes of two kinds."""
    figures = {one.challenger: one.clauses(False).get(KERNEL_CLASS) for one in comparisons}
    concerned = [label for label, figure in figures.items() if figure]
    if len(comparisons) == 1 and concerned:
        yield f"Implementations, not architectures, are compared ({figures[concerned[0]]})."
    elif concerned:
        of = "" if len(concerned) == len(comparisons) else f" for {listed(concerned)}"
        yield f"Implementations, not architectures, are compared{of} (kernels of two kinds)."


def unfair(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What was not fair about them, and of what nobody knows whether it was: each clause once, with
    its figure of a single comparison, with the challengers it concerns of several."""
    for opening, holds in (("Not as fair as it should be", False), ("Not known to be fair", None)):
        found: dict[str, list[tuple[str, str]]] = {}
        for one in comparisons:
            for clause, figure in one.clauses(holds).items():
                if holds is None or clause != KERNEL_CLASS:
                    found.setdefault(clause, []).append((one.challenger, figure))
        told = [
            f"{clause} ({of[0][1] if len(comparisons) == 1 else _whose(of, comparisons)})"
            for clause, of in found.items()
        ]
        if told:
            yield f"{opening}: {'; '.join(told)}."


def _whose(concerned: Sequence[tuple[str, str]], comparisons: Sequence[Comparison]) -> str:
    if len(concerned) == len(comparisons):
        return "all of them"
    return listed([challenger for challenger, _ in concerned])


def _by_other_code(comparison: Comparison) -> Iterator[str]:
    """What the verdict is where another label of the sweep computes the challenger's method by
    other code, and by what factor that moves the crossing."""
    alike = comparison.same_method()
    others: dict[str, list[Row]] = {}
    for row in comparison.tables.crossovers.to_pylist() if alike else ():
        if row["challenger"] in alike and block_of(row) == block_of(comparison.first):
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


def _basis(comparison: Comparison) -> Iterator[str]:
    """Nothing of what has no noise: a limit is found once, and holds for every replicate."""
    if effect := comparison.first["smallest_effect"]:
        scale = comparison.summary()["scale"]
        seen = percent(effect) if scale == "ratio" else figures(effect, 2)
        yield (
            f"This rests on {comparison.replicates}, enough to see a difference of {seen} with"
            " probability 0.8."
        )
