"""Bytes that a training step adds to the process at its peak, over the process's own start: tensors
and everything libraries allocate besides.

Protocol on a CPU: taken before any other metric, in a process that has built nothing. Resident
anonymous memory is read; a fresh model takes two steps (the first makes AdamW's moments), and the
kernel's high-water mark of resident memory (VmHWM, set back before the second step where the kernel
lets us) gives the peak. Pages of program files that were first touched meanwhile are taken off:
they are code, not memory a step needs. Linux only.

On CUDA: how far the device's used memory rises over two steps, from the driver's own count of free
memory after an empty cache. It counts the allocator's reserve and the libraries' workspaces, not
the CUDA context; another process on the device would disturb it, so the device must be exclusive.
"""

from __future__ import annotations

import torch

from workloads import process_memory
from workloads.plugins import Metric, Unsupported
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    on_cpu = subject.device.type == "cpu"
    return (float(_growth_on_cpu(subject) if on_cpu else _growth_on_accelerator(subject)),)


def _growth_on_cpu(subject: Subject) -> int:
    if not process_memory.is_readable():
        raise Unsupported("peak_process_memory reads /proc/self/status, which only Linux has")
    start = process_memory.anonymous_bytes()
    step = subject.training_step()
    step()
    # Where the kernel refuses, the mark covers the first step as well, whose peak is no higher.
    process_memory.set_back_peak()
    step()
    return process_memory.peak_bytes() - start


def _growth_on_accelerator(subject: Subject) -> int:
    device = subject.device
    torch.cuda.empty_cache()
    free_before, _ = torch.cuda.mem_get_info(device)
    step = subject.training_step()
    step()
    step()
    torch.cuda.synchronize(device)
    free_after, _ = torch.cuda.mem_get_info(device)
    return free_before - free_after


METRIC = Metric(
    title="peak process memory",
    version=1,
    unit="bytes",
    turn=-1,
    work="training_steps",
    measure=measure,
)
