"""How much of a call's time an accelerator computes or copies, by the profiler of its driver
(CUPTI, through torch): where it is little, the call's time is that of launching.

Looked at after all metrics of a cell were taken, for a process that was profiled is no longer one
to be timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from workloads import timing


def busy_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call on an accelerator, warm."""
    for _ in range(timing.warm_up_calls(device)):
        call()
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize(device)
    return (
        covered(
            (event.time_range.start, event.time_range.end)
            for event in seen.events()
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        )
        / 1e6
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of the spans (start, end) lasted: several streams count once."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
