"""How much fits into a cap of memory: by bracketing and bisection, each try in a fresh child of
this process, which is killed where it grows beyond the cap.

What counts is the anonymous memory a child gains over its own start, as for every cell, but a try
gives back at once what it frees: with glibc's own habits the same steps hold up to 1.8 times as
much, differently in every process (`process_memory.py`). That holds in a process that has built
nothing yet, whose heap has no gaps to fill: a limit comes before a cell's other metrics.

On an accelerator the tries, the one that confirms among them, run in this process, whose allocator
holds the cap (`device.py`), with its cache emptied before each: a context of its own would cost
each try seconds.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from workloads import conditions, neighbours
from workloads import device as devices
from workloads.children import done_in_a_child
from workloads.oom import out_of_memory
from workloads.plugins import Axis, Unsupported
from workloads.subject import Subject

RESOLUTION = 1.05
"""What did not fit is at most so many times what is said to fit."""
STEPS = 3
"""Steps of a try. AdamW's moments weigh beside the activations from the second on, and the heap
needs about one more to settle."""
CONFIRMING_STEPS = 6
"""Steps of the second child, which confirms what is found."""
HEADROOM = 0.01
"""Part of the cap that is left free: two children that do the same differ by about so much, and
what is said to fit shall fit again."""
_WATCHED = (neighbours.WAITED, neighbours.WITHHELD)
_UNKNOWN = -1.0
MOST = 1 << 24
"""Tokens or sequences at which the search ends, whatever would still fit."""

Act = Callable[[Subject], Callable[[], object]]
"""Makes ready what is then done in steps, all of it under the cap."""


def largest(subject: Subject, axis: Axis, act: Act) -> float:
    """The largest `seq_len` or `batch_size` (`axis`) at which the steps of `act` fit the cell's
    cap, from the cell's own on.

    Raises:
        MemoryError: the cell's own does not fit.
        Unsupported: the cell has no cap, or this system cannot watch one.
    """
    cap = subject.cell.limits.memory_bytes
    if cap is None:
        raise Unsupported("is measured under a cap: give limits.memory_bytes in the sweep file")
    start: int = getattr(subject.cell, axis)

    def tried(value: int, steps: int) -> bool:
        changed: dict[str, Any] = {axis: value}
        larger = Subject(replace(subject.cell, **changed), subject.built, subject.device)
        return fits(larger, act, steps, int(cap * (1 - HEADROOM)))

    found = search(tried, start, MOST)
    if found is None:
        raise MemoryError(f"{axis} {start:,} does not fit into {cap:,} bytes")
    return float(found)


def fits(subject: Subject, act: Act, steps: int, cap: int) -> bool:
    """Whether so many steps of `act` fit into `cap` bytes.

    Raises:
        Unsupported: this system cannot watch a process's memory.
    """

    def tried() -> tuple[float, ...]:
        step = act(subject)
        for _ in range(steps):
            step()
        return ()

    if subject.device.type != "cpu":
        with devices.memory_limited(subject.device, cap, subject.cell.limits.memory_bytes):
            return _done_here(tried) is not None
    return done_in_a_child(tried, cap, tidy=True) is not None


def figures(subject: Subject, function: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """What `function`, which times calls, returns under the cell's cap: in a child, whose times
    without a core are noted here, but on an accelerator here. Freed memory is kept as it always is,
    so that calls take the time they always take.

    Raises:
        MemoryError: the cap was passed.
        Unsupported: this system cannot watch a process's memory.
    """
    cap = subject.cell.limits.memory_bytes
    assert cap is not None

    def timed() -> tuple[float, ...]:
        found = function()
        under = conditions.taken()
        return (*(under.get(name, _UNKNOWN) for name in _WATCHED), *found)

    on_cpu = subject.device.type == "cpu"
    found = done_in_a_child(timed, cap, tidy=False) if on_cpu else _done_here(function)
    if found is None:
        raise MemoryError(f"does not fit into {cap:,} bytes")
    if not on_cpu:
        return found
    for name, share in zip(_WATCHED, found, strict=False):
        if share != _UNKNOWN:
            conditions.note(name, share, 1.0)
    return found[len(_WATCHED) :]


def search(fits: Callable[[int, int], bool], start: int, most: int) -> int | None:
    """The largest value from `start` to `most` of which `fits(value, steps)` is true, to within
    RESOLUTION, confirmed over several steps; None where `start` itself is too large."""
    low, high = 0, start
    while high <= most and fits(high, STEPS):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while low:
        while high - low > 1 and high > RESOLUTION * low:
            middle = max(low + 1, min(high - 1, round((low * high) ** 0.5)))
            low, high = (middle, high) if fits(middle, STEPS) else (low, middle)
        if fits(low, CONFIRMING_STEPS):
            return low
        # It fitted once by luck.
        low, high = (0 if low == start else start), low
    return None


def _done_here(function: Callable[[], tuple[float, ...]]) -> tuple[float, ...] | None:
    """What it returns; None where memory did not suffice."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        found = function()
        torch.cuda.synchronize()
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error) is None:
            raise
        return None
    return found
