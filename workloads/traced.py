"""The most memory that tensors hold at once while a function runs, to the byte.

On CUDA it is the caching allocator's maximum of allocated bytes, in which the workspace that torch
lends to cuBLAS counts (32 MiB on Hopper); on a CPU torch's profiler traces every allocation and
release, on top of what lives when it begins. Left out: what libraries allocate past torch (oneDNN's
scratch memory); `peak_process_memory` has that too. The profiler stays resident once it has run, so
a metric that traces comes last (TURN).
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.autograd.profiler import profile

TURN = 1


def peak_bytes(function: Callable[[], object], held: int, device: torch.device) -> int:
    """Bytes at the peak of one call; `held` is what the tensors hold that were there before it,
    which an accelerator's allocator knows by itself."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr
    # Not torch.profiler, which builds a Python object for each operation at its end: ten times the
    # seconds for a recurrence, and of no use here.
    with profile(use_kineto=True, profile_memory=True) as trace:
        function()
    assert trace.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in trace.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = peak = held
    for _, change in sorted(changes, key=lambda item: item[0]):
        now += change
        peak = max(peak, now)
    return peak
