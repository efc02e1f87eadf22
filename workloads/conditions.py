"""Under which conditions calls were timed: noted by the clock, asked for by whoever runs the cell,
metric by metric."""

from __future__ import annotations

from collections.abc import Mapping

BUSY, SLOWED, SM_CLOCK = "busy_share", "slowed_share", "sm_clock"
"""Of an accelerator: see `occupancy.py` and `clocks.py`."""
LAUNCH_BOUND = 0.5
"""One that is busy for less than this share of a call waits for its launches."""

_noted: dict[str, list[tuple[float, float]]] = {}
"""Values with their weights, of what was timed in this process since somebody asked."""


def note(name: str, value: float, weight: float) -> None:
    """A condition of calls; the mean counts, by `weight`."""
    _noted.setdefault(name, []).append((value, weight))


def taken() -> Mapping[str, float]:
    """The conditions of what was timed since this was asked last; empty where nothing was."""
    found = {}
    for name, noted in _noted.items():
        total = sum(weight for _, weight in noted)
        if total > 0:
            found[name] = sum(value * weight for value, weight in noted) / total
    _noted.clear()
    return found


def fact(name: str, metric: str) -> str:
    """What a fact of one metric alone is called in a record: a condition of its calls, its code."""
    return f"{name}.{metric}"
