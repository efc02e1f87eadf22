"""The only clock: raw seconds of single calls, by CUDA events on an accelerator and the monotonic
clock on a CPU; never a mean.

A sample is the time from an idle device to an idle device around one call, launching included.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from workloads import collector, neighbours

MIN_SAMPLES = 3
MAX_SAMPLES = 100
MIN_SECONDS = 0.25


def sample(
    function: Callable[[], object],
    *,
    device: torch.device,
    warm_up: int | None = None,
    min_samples: int = MIN_SAMPLES,
    max_samples: int = MAX_SAMPLES,
    min_seconds: float = MIN_SECONDS,
) -> tuple[float, ...]:
    """Seconds of each timed call, after `warm_up` calls (default: `warm_up_calls`) that are not
    timed.

    Calls go on until there are `min_samples` of them and they took `min_seconds` together, or until
    there are `max_samples`. Python's garbage collector rests meanwhile. Raises what `function`
    raises.
    """
    once = _once_on_cpu if device.type == "cpu" else _once_on_accelerator
    for _ in range(warm_up_calls(device) if warm_up is None else warm_up):
        once(function, device)
    samples: list[float] = []
    gc.collect()
    with collector.paused(), neighbours.watched():
        while len(samples) < max_samples and (
            len(samples) < min_samples or sum(samples) < min_seconds
        ):
            samples.append(once(function, device))
    return tuple(samples)


def warm_up_calls(device: torch.device) -> int:
    """Calls before the first sample, of the very shapes that are timed: in them an accelerator also
    raises its clocks, and its kernels are built and chosen, which no sample may hold."""
    return 2 if device.type == "cpu" else 5


def _once_on_cpu(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _once_on_accelerator(function: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


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
