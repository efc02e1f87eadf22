"""The fairness certificate: what a fair comparison has, clause by clause, each with its figure.

A clause holds, fails, or is not known (null) where the records do not tell. One that fails forbids
no verdict; it is printed beside it, for the reader to weigh.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator import quantities
from orchestrator.analysis.blocks import BEST, Block
from orchestrator.analysis.derived import TIMED
from orchestrator.analysis.observations import Observed, ObservedCell
from orchestrator.search import Search
from workloads.conditions import BUSY, LAUNCH_BOUND, SLOWED, SM_CLOCK
from workloads.environment import is_cpu
from workloads.neighbours import DISTURBED, WAITED, WITHHELD, disturbance

PARAMETERS = 0.02
"""How far apart the non-embedding parameters may lie, relative: what the solver of widths promises.
"""
NOISE = 0.05
"""How far the replicates of a time may scatter (standard deviation of their logarithms)."""
_SET = ("num_threads", "float32_products", "bfloat16_sums", "denormals", "device_uuid")
"""Facts of how the device computed, and of which one it was."""
CLOCKS = 0.05
"""How far apart an accelerator's clocks may lie, of the two in the median (logarithm)."""
TIMES = ("s", "1/s")
DISTURBED_CELLS = 0.1
"""The share of the cells that may be without a core for longer than `DISTURBED` says."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two: its cells of the block that have records, and the searches that said how it
    is trained."""

    label: str
    row: int
    cells: tuple[ObservedCell, ...]
    searches: tuple[Search, ...]

    def facts(self, name: str, metric: str = "") -> set[Any]:
        """What its records say of something, of a metric if it has a say of its own, without those
        that do not."""
        return {seen.said(name, metric) for seen in self.cells} - {None}


@dataclass(frozen=True, slots=True)
class _Compared:
    block: Block
    challenger: _Side
    baseline: _Side

    @property
    def sides(self) -> tuple[_Side, _Side]:
        return self.challenger, self.baseline


_Cells = dict[tuple[str, str, int, str], list[ObservedCell]]
"""With records, by label, task, size and device."""

_Clause = Callable[[_Compared], tuple[bool | None, str] | None]
"""Whether it holds, and its figure; None where it does not concern the comparison."""


def rows(
    blocks: tuple[Block, ...],
    baseline: str,
    observed: Observed,
    references: Collection[str] = (),
    searches: Collection[Search] = (),
) -> list[dict[str, object]]:
    """The rows of the `certificate` table: the clauses of each challenger in each block.
    `references` are labels that are no candidates and have no rows; `searches` are those of
    tuning."""
    cells: _Cells = {}
    for seen in observed.compared:
        if seen.merged is not None:
            cell = seen.cell
            cells.setdefault((cell.label, cell.task, cell.size, cell.device), []).append(seen)
    return [
        compared.block.key
        | {
            "environment": observed.environment,
            "baseline": baseline,
            "challenger": compared.challenger.label,
            "clause": clause,
            "holds": outcome[0],
            "figure": outcome[1],
        }
        for compared in _comparisons(blocks, baseline, cells, searches)
        if compared.challenger.label not in references
        for clause, examine in CLAUSES.items()
        if (outcome := examine(compared)) is not None
    ]


def _comparisons(
    blocks: tuple[Block, ...], baseline: str, cells: _Cells, searches: Collection[Search]
) -> Iterator[_Compared]:
    """Every challenger of every block that the baseline is part of, as in `pairs`."""
    for block in blocks:
        if baseline not in block.labels or block.facts.scale == "share":
            continue
        theirs = _side(block, block.labels.index(baseline), cells, searches)
        for row in range(len(block.labels)):
            ours = _side(block, row, cells, searches)
            if row != theirs.row and ours.cells and theirs.cells:
                yield _Compared(block, ours, theirs)


def _side(block: Block, row: int, cells: _Cells, searches: Collection[Search]) -> _Side:
    label = block.labels[row]
    mine = [
        seen
        for seen in cells.get((label, block.task, block.size, block.device), [])
        if (seen.cell.kind, seen.cell.batch) == (block.kind, block.batch)
        and block.execution in (None, BEST, seen.cell.execution)
    ]
    searched = tuple(s for s in searches if (s.label, s.size) == (label, block.size))
    return _Side(label, row, tuple(mine), searched)


def _parameters(of: _Compared) -> tuple[bool | None, str] | None:
    ours, theirs = (sorted(side.facts("parameters")) for side in of.sides)
    if not ours or not theirs:
        return None, "not on record"
    apart = max(abs(a - b) / b for a in ours for b in theirs)
    said = " and ".join("/".join(map(quantities.count, side)) for side in (ours, theirs))
    return apart <= PARAMETERS, f"{said}: {quantities.percent(apart)} apart"


def _flops(of: _Compared) -> tuple[bool | None, str] | None:
    ours, theirs = (
        {
            seen.cell.seq_len: float(value)
            for seen in side.cells
            if isinstance(value := seen.said("flops_per_token", ""), int | float)
        }
        for side in of.sides
    )
    ratios = [ours[n] / theirs[n] for n in sorted(ours.keys() & theirs.keys()) if theirs[n]]
    if not ratios:
        return None, "not on record"
    low, high = (quantities.figures(end(ratios)) for end in (min, max))
    return True, f"{low if low == high else f'{low} to {high}'} times the baseline’s"


def _kernel_class(of: _Compared) -> tuple[bool | None, str] | None:
    if of.block.facts.deterministic:
        return None
    metric = of.block.metric
    ours, theirs = (side.facts("kernel_class", metric) for side in of.sides)
    code = " and ".join("/".join(sorted(side.facts("implementation", metric))) for side in of.sides)
    if not ours or not theirs:
        return None, f"not on record: {code}"
    said = " and ".join("/".join(sorted(side)) for side in (ours, theirs))
    return ours == theirs, f"{said if ours != theirs else min(ours)}: {code}"


def _data_order(of: _Compared) -> tuple[bool | None, str] | None:
    if of.block.kind != "train":
        return None
    ours, theirs = (
        {
            (seen.cell.seq_len, seen.cell.seed): seen.merged.facts.get("data_order")
            for seen in side.cells
            if seen.merged
        }
        for side in of.sides
    )
    shared = [(ours[at], theirs[at]) for at in ours.keys() & theirs.keys()]
    known = [pair for pair in shared if None not in pair]
    if not known:
        return None, "not on record"
    same = sum(a == b for a, b in known)
    return same == len(known), f"the same in {same} of {len(known)} pairs of cells"


def _training(of: _Compared) -> tuple[bool | None, str] | None:
    if of.block.kind != "train":
        return None
    ours, theirs = (
        {(s.cell.seq_len, s.cell.tokens, s.cell.tokens_per_update) for s in side.cells}
        for side in of.sides
    )
    contexts = {one[0] for one in ours} & {one[0] for one in theirs}
    ours, theirs = ({one for one in side if one[0] in contexts} for side in (ours, theirs))
    tokens = "/".join(quantities.count(n) for n in sorted({one[1] or 0 for one in ours | theirs}))
    return ours == theirs, f"{tokens} tokens each" if ours == theirs else f"{tokens} tokens"


def _budget(of: _Compared) -> tuple[bool | None, str] | None:
    if of.block.kind != "train":
        return None
    ours, theirs = (side.searches for side in of.sides)
    if not ours or not theirs:
        said = " and ".join(
            "/".join(
                f"{rate:g}" for rate in sorted({s.cell.learning_rate or 0 for s in side.cells})
            )
            for side in of.sides
        )
        return False, f"learning rates {said}, as the sweep file gives them: nobody was tuned"
    spent = [
        sorted((s.seq_len, s.is_check, t.cell.tokens or 0) for s in side for t in s.trials)
        for side in (ours, theirs)
    ]
    said = " and ".join(
        f"{len(side)} trials of {quantities.count(sum(one[-1] for one in side))} tokens in all"
        for side in spent
    )
    if spent[0] == spent[1]:
        return True, f"{said.partition(' and ')[0]} each"
    return False, said


def _inside(of: _Compared) -> tuple[bool | None, str] | None:
    searched = [(side.label, search) for side in of.sides for search in side.searches]
    ends = [(label, search) for label, search in searched if not search.is_check]
    if of.block.kind != "train" or not ends:
        return None
    if any(search.chosen is None for _, search in searched):
        return None, "not found yet, or nothing could be trained"
    beyond = [
        f"{label} at {quantities.count(search.seq_len)}: {search.chosen['learning_rate']:g} lies"
        f" at the {search.at_edge} end of {search.low:g} to {search.high:g}"
        for label, search in ends
        if search.at_edge is not None and search.chosen is not None
    ]
    beyond += [
        f"{label}: the {search.better_beside} is best at {quantities.count(search.seq_len)}"
        for label, search in searched
        if search.better_beside is not None
    ]
    if beyond:
        return False, "; ".join(beyond)
    rates = sorted(search.chosen["learning_rate"] for _, search in ends if search.chosen)
    low, high = min(s.low for _, s in ends), max(s.high for _, s in ends)
    return True, f"{rates[0]:g} to {rates[-1]:g}, of {low:g} to {high:g}"


def _precision(of: _Compared) -> tuple[bool | None, str] | None:
    metric = TIMED.get(of.block.metric, of.block.metric)
    ours, theirs = (
        {seen.said("arithmetic", metric) or seen.cell.precision for seen in side.cells}
        for side in of.sides
    )
    said = " and ".join("/".join(sorted(side)) for side in (ours, theirs))
    return ours == theirs, said if ours != theirs else "/".join(sorted(ours))


def _device(of: _Compared) -> tuple[bool | None, str] | None:
    # Another kind of device is another environment, whose cells are not compared; how it was set,
    # and which one of its kind it was, each cell says.
    ours, theirs = (
        {
            ", ".join(
                [str(seen.merged.environment.device_name)]
                + [f"{name} {value}" for name in _SET if (value := seen.said(name, "")) is not None]
            )
            for seen in side.cells
            if seen.merged
        }
        for side in of.sides
    )
    return ours == theirs, " and ".join(sorted(ours | theirs))


def _noise(of: _Compared) -> tuple[bool | None, str] | None:
    if of.block.facts.unit not in TIMES or of.block.facts.deterministic:
        return None
    scatter = [_scatter(of.block, side.row) for side in of.sides]
    known = [one for one in scatter if one is not None]
    if len(known) < 2:
        return None, "too few replicates to tell"
    said = " and ".join(quantities.percent(one) for one in known)
    return max(known) < NOISE, f"{said} between replicates, in the median over contexts"


def _scatter(block: Block, row: int) -> float | None:
    """Standard deviation of the logarithms over replicates, in the middle of the contexts."""
    values = block.comparable[row]
    found = [
        float(np.log(of[of > 0]).std(ddof=1))
        for of in (at[np.isfinite(at)] for at in values)
        if (of > 0).sum() > 1
    ]
    return float(np.median(found)) if found else None


def _is_timed(of: _Compared) -> bool:
    return of.block.kind == "measure" and of.block.facts.unit in TIMES


def _quiet(of: _Compared) -> tuple[bool | None, str] | None:
    if not _is_timed(of):
        return None
    taken = [
        [share for seen in side.cells for share in _disturbance(seen, of.block.metric)]
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
    """The share of the time of this metric, or of what it derives from, that a cell was without a
    core, as far as that is known."""
    under = {name: share for name in (WAITED, WITHHELD) for share in _condition(seen, metric, name)}
    share = disturbance(under)
    if share is not None:
        yield share


def _condition(seen: ObservedCell, metric: str, name: str) -> Iterator[float]:
    """A condition under which this metric, or what it derives from, was timed, if it is known."""
    if (value := seen.condition(name, TIMED.get(metric, metric))) is not None:
        yield value


def _conditions(of: _Compared, name: str) -> list[list[float]]:
    """A condition of the cells of either side, of those that know it."""
    return [
        [value for seen in side.cells for value in _condition(seen, of.block.metric, name)]
        for side in of.sides
    ]


def _busy(of: _Compared) -> tuple[bool | None, str] | None:
    if not _is_timed(of) or is_cpu(of.block.device):
        return None
    busy = _conditions(of, BUSY)
    if not all(busy):
        return None, "not on record"
    shares = [float(np.median(side)) for side in busy]
    said = " and ".join(map(quantities.percent, shares))
    bound = min(shares) < LAUNCH_BOUND
    return not bound, f"{said} of a call{': launch-bound' if bound else ''}"


def _clocks(of: _Compared) -> tuple[bool | None, str] | None:
    if not _is_timed(of) or is_cpu(of.block.device):
        return None
    clocks, slowed = _conditions(of, SM_CLOCK), _conditions(of, SLOWED)
    if not all(clocks):
        return None, "not on record: nvidia-ml-py was not there, or could not tell"
    ours, theirs = (float(np.median(side)) for side in clocks)
    shares = slowed[0] + slowed[1]
    held_back = sum(share > DISTURBED for share in shares)
    holds = abs(np.log(ours / theirs)) <= CLOCKS and held_back <= DISTURBED_CELLS * len(shares)
    return bool(holds), (
        f"{ours / 1e9:.2f} and {theirs / 1e9:.2f} GHz; {held_back} of {len(shares)} cells were"
        " slowed by heat or supply"
    )


KERNEL_CLASS = "kernel class"
CLAUSES: dict[str, _Clause] = {
    "parameters": _parameters,
    "FLOPs per token": _flops,
    "data order": _data_order,
    "training tokens": _training,
    "tuning budget": _budget,
    "optimum inside the range": _inside,
    KERNEL_CLASS: _kernel_class,
    "precision": _precision,
    "device": _device,
    "clocks": _clocks,
    "device busy": _busy,
    "noise": _noise,
    "quiet machine": _quiet,
}
