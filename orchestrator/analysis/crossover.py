"""Crossovers: between which contexts does a label change places with the baseline.

`judgement.judge` decides; this file says it in the words of the tables.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.analysis.blocks import CUTS, Block
from orchestrator.analysis.derived import DERIVED
from orchestrator.analysis.judgement import MIN_REPLICATES, Judgement, Place, Range
from orchestrator.analysis.pairs import Pair, contrast_rows, pairs
from orchestrator.analysis.statistics import LEVEL, holm
from orchestrator.plan import Comparison, Primary

Rows = list[dict[str, object]]
# A derived metric restates what it derives from: it is no comparison more to adjust for.
_DERIVED = frozenset(derived.name for derived in DERIVED)


def rows(
    blocks: tuple[Block, ...], comparison: Comparison, environment: str | None
) -> tuple[Rows, Rows]:
    """The rows of the `contrasts` and of the `crossovers` table."""
    contrasts: Rows = []
    crossovers: list[Rows] = []
    p_values: list[float | None] = []
    counted: list[bool] = []
    primary = _primary_pair(blocks, comparison.primary)
    for pair in pairs(blocks, comparison.baseline):
        head = pair.block.key | {
            "environment": environment,
            "baseline": comparison.baseline,
            "challenger": pair.block.labels[pair.challenger],
        }
        head_of_verdict = head | {"primary": (pair.block, head["challenger"]) == primary}
        contrasts += [head | row for row in contrast_rows(pair)]
        verdicts = _verdict_rows(pair, comparison.zone)
        crossovers.append([head_of_verdict | row for row in verdicts])
        p_values.append(_p_value(pair))
        counted.append(pair.block.metric not in _DERIVED)
    adjusted = holm([p if counts else None for p, counts in zip(p_values, counted, strict=True)])
    for group, p, p_adjusted in zip(crossovers, p_values, adjusted, strict=True):
        for row in group:
            row |= {"p_value": p, "p_adjusted": p_adjusted}
    return contrasts, [row for group in crossovers for row in group]


def _primary_pair(blocks: tuple[Block, ...], primary: Primary | None) -> tuple[Block, str] | None:
    """The block and challenger of the primary comparison; the plan's first block where batch size
    or size leave a choice."""
    if primary is None:
        return None
    for block in blocks:
        named = block.metric == primary.metric and primary.challenger in block.labels
        if named and primary.batch_size in (None, *block.batch_sizes):
            return block, primary.challenger
    return None


def _p_value(pair: Pair) -> float | None:
    """None where there is no question of chance: too few replicates, or no noise."""
    if pair.judgement is None or not pair.decides or pair.block.facts.deterministic:
        return None
    return pair.judgement.p_value


def _verdict_rows(pair: Pair, zone: tuple[int, int]) -> Iterator[dict[str, object]]:
    judgement = pair.judgement
    row: dict[str, object] = {
        "verdict": _verdict(pair),
        "replicates": pair.replicates,
        "note": _note(pair),
    }
    if judgement is None:
        yield row
        return
    if pair.decides:
        row["smallest_effect"] = _relative(pair, judgement.smallest_effect)
    if row["verdict"] == "crosses":
        for number, place in enumerate(judgement.places):
            yield row | {"crossing": number} | _place(pair, place, zone)
        return
    yield (
        row
        | _undecided(judgement.undecided if pair.decides else None)
        | _indifferent(judgement.indifferent)
    )


def _verdict(pair: Pair) -> str:
    if pair.judgement is None or not pair.decides:
        return "uncertain"
    outcome = pair.judgement.outcome
    if outcome not in ("above", "below"):
        return outcome
    more_is_better = pair.block.facts.better == "greater"
    return "challenger_always" if (outcome == "above") == more_is_better else "baseline_always"


def _place(pair: Pair, place: Place, zone: tuple[int, int]) -> dict[str, object]:
    """A crossing's columns; whoever the contrast favours above it is its direction."""
    challenger_above = place.rises == (pair.block.facts.better == "greater")
    winner = pair.challenger if challenger_above else pair.baseline
    found = place.interval
    return {
        "direction": pair.block.labels[winner],
        "seq_len": place.seq_len,
        "low": found.low,
        "high": found.high,
        "low_open": found.low_open,
        "high_open": found.high_open,
        "in_zone": found.low <= zone[1] and found.high >= zone[0],
    } | _indifferent(place.indifferent)


def _undecided(found: Range | None) -> dict[str, object]:
    """Where a crossing would have to lie, if there is one, when none was found."""
    if found is None:
        return {}
    return {
        "low": found.low,
        "high": found.high,
        "low_open": found.low_open,
        "high_open": found.high_open,
    }


def _indifferent(found: Range | None) -> dict[str, object]:
    if found is None:
        return {}
    return {"indifferent_low": found.low, "indifferent_high": found.high}


def _ahead(pair: Pair, judgement: Judgement) -> list[str]:
    """Of an uncertain verdict, at how many contexts somebody is ahead all the same."""
    above, below = int((judgement.low > 0).sum()), int((judgement.high < 0).sum())
    if pair.block.facts.better == "smaller":
        above, below = below, above
    ahead = ((pair.challenger, above), (pair.baseline, below))
    contexts = len(judgement.means)
    return [f"{pair.block.labels[i]} ahead at {n} of {contexts} contexts" for i, n in ahead if n]


def _relative(pair: Pair, effect: float) -> float:
    """A log ratio as a relative difference; a difference stays in the metric's unit."""
    return float(np.expm1(effect)) if pair.block.facts.scale == "ratio" else effect


def _note(pair: Pair) -> str | None:
    """What a reader of the verdict must know besides: too little training or replication, where
    curves end."""
    notes = []
    if pair.hopeless:
        notes.append("no verdict at this size: neither is better than what needs no model")
    if pair.undertrained:
        notes.append("undertrained")
    if 0 < pair.replicates < MIN_REPLICATES:
        notes.append(f"fewer than {MIN_REPLICATES} replicates")
    if pair.judgement is None:
        notes.append("too few replicates at the same context")
    elif _verdict(pair) == "equivalent" and pair.judgement.p_value < 1 - LEVEL:
        notes.append("they differ, by less than 5 %")
    elif _verdict(pair) == "uncertain" and pair.decides:
        notes += _ahead(pair, pair.judgement)
    block = pair.block
    for i in (pair.baseline, pair.challenger):
        end = block.ends[i]
        if end < len(block.contexts):
            reason = str(block.reasons[i][end]).replace("_", " ")
            notes.append(f"{block.labels[i]} stops at {block.contexts[end]}: {reason}")
        others = {r for r in block.reasons[i][:end] if r not in (None, "undertrained", *CUTS)}
        notes += [f"{block.labels[i]}: {reason}" for reason in sorted(map(str, others))]
    return "; ".join(notes) or None
