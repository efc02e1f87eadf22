"""The only clock: raw seconds of single calls, by CUDA events on an accelerator and the monotonic
clock on a CPU; never a mean.

A sample is the time from an idle device to an idle device around one call, launching included.
Before the first one, calls go untimed until they get no faster. Samples are then taken until the
interval of their median is narrow, or for a bounded time; those of an accelerator that was slowed
by heat meanwhile are left out. What was so (`conditions.py`) is in the record.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import torch

from workloads import clocks, collector, conditions, neighbours
from workloads.median import interval_width

MIN_SAMPLES = 3
MAX_SAMPLES = 200
MIN_SECONDS = 0.1
MAX_SECONDS = 0.25
NARROW = 0.02
"""Width of the 95 % interval of the median, relative to the median, at which samples are enough."""
STABLE = 0.02
"""A call that is faster than all before it by no more than this is warm."""
MAX_WARM_UP = 10
SLOWED = 0.5
"""The share of the calls that may be left out because the device was slowed; if there were more,
all count, and the record says so."""

Once = Callable[[Callable[[], object], torch.device], tuple[float, clocks.Reading | None]]
"""Seconds of one call, and what was read of the device in it."""


def sample(
    function: Callable[[], object],
    *,
    device: torch.device,
    warm_up: int | None = None,
    min_samples: int = MIN_SAMPLES,
    max_samples: int = MAX_SAMPLES,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
) -> tuple[float, ...]:
    """Seconds of each timed call, after calls that are not timed: so many as `warm_up` says, else
    `warm_up_calls` and then on until they get no faster.

    Calls go on until there are `min_samples` of them, they took `min_seconds` together and their
    median is known to within NARROW; or they took `max_seconds`, or there are `max_samples`.
    Python's garbage collector rests meanwhile. Raises what `function` raises.
    """
    once = _once_on_cpu if device.type == "cpu" else _once_on_accelerator
    samples: list[float] = []
    readings: list[clocks.Reading | None] = []
    gc.collect()  # before the calls that warm up, for it empties the processor's caches
    with collector.paused():
        if warm_up is None:
            _warm_up(function, device, once)
        else:
            for _ in range(warm_up):
                once(function, device)
        with neighbours.watched():
            while not enough(samples, min_samples, max_samples, min_seconds, max_seconds):
                seconds, reading = once(function, device)
                samples.append(seconds)
                readings.append(reading)
    _note(samples, readings)
    return _undisturbed(samples, readings, min_samples)


def enough(
    samples: Sequence[float],
    min_samples: int = MIN_SAMPLES,
    max_samples: int = MAX_SAMPLES,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
) -> bool:
    """Whether so many samples do: see `sample`."""
    if len(samples) < min_samples:
        return False
    seconds = sum(samples)
    if len(samples) >= max_samples or seconds >= max(min_seconds, max_seconds):
        return True
    return seconds >= min_seconds and interval_width(samples) <= NARROW


def _warm_up(function: Callable[[], object], device: torch.device, once: Once) -> None:
    calls = [once(function, device)[0] for _ in range(warm_up_calls(device))]
    while len(calls) < MAX_WARM_UP and calls[-1] < (1 - STABLE) * min(calls[:-1]):
        calls.append(once(function, device)[0])


def warm_up_calls(device: torch.device) -> int:
    """The least of calls before the first sample, of the very shapes that are timed: in them an
    accelerator also raises its clocks, and its kernels are built and chosen, which no sample may
    hold."""
    return 2 if device.type == "cpu" else 5


def _note(samples: Sequence[float], readings: Sequence[clocks.Reading | None]) -> None:
    for seconds, reading in zip(samples, readings, strict=True):
        if reading is not None:
            conditions.note(conditions.SM_CLOCK, reading.sm_clock, seconds)
            conditions.note("temperature", reading.temperature, seconds)
            conditions.note(conditions.SLOWED, float(reading.slowed), seconds)
            conditions.note("power_capped_share", float(reading.capped), seconds)


def _undisturbed(
    samples: Sequence[float], readings: Sequence[clocks.Reading | None], min_samples: int
) -> tuple[float, ...]:
    """Without the calls in which the device was slowed, if enough are left."""
    kept = tuple(
        seconds
        for seconds, reading in zip(samples, readings, strict=True)
        if reading is None or not reading.slowed
    )
    enough = len(kept) >= max(min_samples, (1 - SLOWED) * len(samples))
    return kept if enough else tuple(samples)


def _once_on_cpu(
    function: Callable[[], object], device: torch.device
) -> tuple[float, clocks.Reading | None]:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start, None


def _once_on_accelerator(
    function: Callable[[], object], device: torch.device
) -> tuple[float, clocks.Reading | None]:
    read = clocks.gauge(device)
    start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    function()
    end.record()
    # While it computes what was asked: idle, it says nothing of that.
    reading = read() if read is not None else None
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3, reading


class Pace:
    """Says when at least `seconds` have passed since it last said so: for progress and for figures
    so far."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
