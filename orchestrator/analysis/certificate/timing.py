"""Clauses on how times were taken: their noise, the machine about them, an accelerator's clocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator import quantities
from orchestrator.analysis.blocks import Block
from orchestrator.analysis.certificate.compared import TIMES, Compared, Outcome
from orchestrator.analysis.observations import ObservedCell
from workloads.conditions import BUSY, LAUNCH_BOUND, SLOWED, SM_CLOCK
from workloads.environment import is_cpu
from workloads.neighbours import DISTURBED, WAITED, WITHHELD, disturbance

NOISE = 0.05
"""How far the replicates of a time may scatter (standard deviation of their logarithms)."""
CLOCKS = 0.05
"""How far apart an accelerator's clocks may lie, of the two in the median (logarithm)."""
DISTURBED_CELLS = 0.1
"""The share of the cells that may be without a core for longer than `DISTURBED` says."""


def noise(of: Compared) -> Outcome | None:
    if of.block.facts.unit not in TIMES or of.block.facts.deterministic:
        return None
    scatter = [_scatter(of.block, side.row) for side in of.sides]
    if not all(scatter):
        return None, "too few replicates to tell"
    middle = [float(np.median(over_contexts)) for over_contexts in scatter]
    said = " and ".join(map(quantities.percent, middle))
    most = quantities.percent(max(map(max, scatter)))
    return max(middle) < NOISE, (
        f"{said} between replicates, in the median over contexts; at most {most}"
    )


def _scatter(block: Block, row: int) -> list[float]:
    """Standard deviation of the logarithms over replicates, at each context that has two."""
    return [
        float(np.log(of[of > 0]).std(ddof=1))
        for of in (at[np.isfinite(at)] for at in block.comparable[row])
        if (of > 0).sum() > 1
    ]


def quiet(of: Compared) -> Outcome | None:
    if not of.is_timed:
        return None
    taken = [
        [share for seen in side.cells for share in _disturbance(seen, of.clocked)]
        for side in of.sides
    ]
    if not all(taken):
        return None, "not on record"
    shares = taken[0] + taken[1]
    disturbed = sum(share > DISTURBED for share in shares)
    return disturbed <= DISTURBED_CELLS * len(shares), (
        f"{disturbed} of {len(shares)} cells were without a core for more than"
        f" {quantities.percent(DISTURBED)} of the time"
    )


def _disturbance(seen: ObservedCell, metric: str) -> Iterator[float]:
    """The share of the time of a metric that a cell was without a core, as far as that is known."""
    under = {name: share for name in (WAITED, WITHHELD) for share in _condition(seen, metric, name)}
    share = disturbance(under)
    if share is not None:
        yield share


def _condition(seen: ObservedCell, metric: str, name: str) -> Iterator[float]:
    """A condition under which a metric was timed, if it is known."""
    if (value := seen.condition(name, metric)) is not None:
        yield value


def _conditions(of: Compared, name: str) -> list[list[float]]:
    """A condition of the cells of either side, of those that know it."""
    return [
        [value for seen in side.cells for value in _condition(seen, of.clocked, name)]
        for side in of.sides
    ]


def busy(of: Compared) -> Outcome | None:
    if not of.is_timed or is_cpu(of.block.device):
        return None
    found = _conditions(of, BUSY)
    if not all(found):
        return None, "not on record"
    shares = [float(np.median(side)) for side in found]
    said = " and ".join(map(quantities.percent, shares))
    bound = min(shares) < LAUNCH_BOUND
    return not bound, f"{said} of a call{': launch-bound' if bound else ''}"


def clocks(of: Compared) -> Outcome | None:
    if not of.is_timed or is_cpu(of.block.device):
        return None
    ran, slowed = _conditions(of, SM_CLOCK), _conditions(of, SLOWED)
    if not all(ran):
        return None, "not on record: nvidia-ml-py was not there, or could not tell"
    ours, theirs = (float(np.median(side)) for side in ran)
    shares = slowed[0] + slowed[1]
    held_back = sum(share > DISTURBED for share in shares)
    holds = abs(np.log(ours / theirs)) <= CLOCKS and held_back <= DISTURBED_CELLS * len(shares)
    return bool(holds), (
        f"{ours / 1e9:.2f} and {theirs / 1e9:.2f} GHz; {held_back} of {len(shares)} cells were"
        " slowed by heat or supply"
    )
