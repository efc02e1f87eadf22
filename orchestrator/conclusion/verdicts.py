"""What the verdict on one comparison says, as a sentence without its full stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.conclusion.comparison import Comparison, Row, listed
from orchestrator.quantities import count, span

HOPELESS = "better than what needs no model"
"""What the note of a pair says that no verdict is given on."""


def sentence(comparison: Comparison) -> str:
    """The verdict of this comparison, in words."""
    telling: dict[str, Callable[[Comparison], str]] = {
        "crosses": _crosses,
        "baseline_always": lambda one: _always(one, one.baseline, one.challenger),
        "challenger_always": lambda one: _always(one, one.challenger, one.baseline),
        "equivalent": _equivalent,
        "uncertain": _uncertain,
    }
    return telling[comparison.first["verdict"]](comparison)


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """The verdicts in their order; comparisons of one baseline that lack the same for a verdict
    share a sentence."""
    alike: dict[object, list[Comparison]] = {}
    for place, one in enumerate(comparisons):
        missing = _missing(one)
        key = place if missing is None else (one.baseline, one.metric, missing)
        alike.setdefault(key, []).append(one)
    return [
        sentence(group[0]) if len(group) == 1 else _without_verdict(group)
        for group in alike.values()
    ]


def _crosses(comparison: Comparison) -> str:
    first, *more = comparison.rows
    winner, loser = _sides(first)
    text = (
        f"{comparison.named(winner)} overtakes {comparison.named(loser)} in"
        f" {comparison.metric} at a context of about {count(first['seq_len'])} {comparison.unit}"
        f" ({_interval(first)})"
    )
    for row in more:
        text += (
            f", and {_sides(row)[0]} is ahead again from about {count(row['seq_len'])} on"
            f" ({_interval(row)})"
        )
    return text if more else f"{text}; at shorter contexts {loser} is ahead"


def _sides(row: Row) -> tuple[str, str]:
    """Who is ahead above the crossing, and who below."""
    pair = (row["challenger"], row["baseline"])
    return pair if row["direction"] == row["challenger"] else (pair[1], pair[0])


def _interval(row: Row) -> str:
    if row["low"] == row["high"]:
        return "exactly there, for this metric has no noise"
    if row["low_open"] and row["high_open"]:
        return "95 % interval open on both sides: it may lie at any context measured"
    if row["low_open"]:
        return f"95 % interval: {span(row)}, open towards shorter contexts"
    if row["high_open"]:
        return f"95 % interval: {span(row)}, open towards longer contexts"
    return f"95 % interval {span(row)}"


def _always(comparison: Comparison, winner: str, loser: str) -> str:
    ahead = (
        f"{comparison.named(winner)} is ahead of {comparison.named(loser)} in {comparison.metric}"
    )
    if comparison.is_of_one_context:
        return f"{ahead} at {comparison.contexts}"
    return (
        f"{ahead} at every context compared, {comparison.contexts}; they do not change places there"
    )


def _equivalent(comparison: Comparison) -> str:
    return (
        f"{_pair(comparison)} lie within 5 % of each other in {comparison.metric} at every context"
        f" compared, {comparison.contexts}"
    )


def _uncertain(comparison: Comparison) -> str:
    row, pair, metric = comparison.first, _pair(comparison), comparison.metric
    if _missing(comparison) is not None:
        return _without_verdict([comparison])
    text = (
        f"it is uncertain where, or whether, {pair} change places in {metric} over"
        f" {comparison.contexts}{_leads(comparison)}"
    )
    if row["low"] is not None and not (row["low_open"] and row["high_open"]):
        text += f"; a crossing, if there is one, lies {_place(row)} {comparison.unit}"
    return text


def _missing(comparison: Comparison) -> str | None:
    """What a verdict lacks; None where there is enough of everything."""
    row = comparison.first
    if row["verdict"] != "uncertain":
        return None
    if "undertrained" in (row["note"] or ""):
        return "the models are undertrained, with fewer than 500 updates"
    if HOPELESS in (row["note"] or ""):
        return f"none of them is {HOPELESS}"
    if (row["replicates"] or 0) < 5:
        return f"it has {comparison.replicates} of each, and needs 5"
    return None


def _without_verdict(comparisons: Sequence[Comparison]) -> str:
    """Of one comparison, or of several that lack the same."""
    one = comparisons[0]
    names = [each.named(each.challenger) for each in comparisons]
    any_of = "any of " if len(names) > 1 else ""
    pair = f"{one.named(one.baseline)} and {any_of}{listed(names)}"
    return f"this sweep is too small for a verdict between {pair} in {one.metric}: {_missing(one)}"


def _pair(comparison: Comparison) -> str:
    challenger, baseline = comparison.challenger, comparison.baseline
    return f"{comparison.named(challenger)} and {comparison.named(baseline)}"


def _leads(comparison: Comparison) -> str:
    """At how many contexts the band puts one of the pair ahead: all that an uncertain verdict can
    say for certain."""
    contrasts = comparison.contrasts
    sides = {
        "greater": sum(contrast["low"] > 0 for contrast in contrasts),
        "smaller": sum(contrast["high"] < 0 for contrast in contrasts),
    }
    if not any(sides.values()):
        return ""
    side = max(sides, key=lambda name: sides[name])
    better = comparison.summary()["better"]
    leader = comparison.challenger if side == better else comparison.baseline
    return f", though {leader} is ahead at {sides[side]} of {len(contrasts)} contexts"


def _place(row: Row) -> str:
    if row["low_open"]:
        return f"below {count(row['high'])}"
    if row["high_open"]:
        return f"above {count(row['low'])}"
    return f"between {count(row['low'])} and {count(row['high'])}"
