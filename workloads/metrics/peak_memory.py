"""Bytes held by tensors at the peak of a training step: weights, gradients, AdamW's moments, the
batch, and the activations kept for backward.

Protocol: a fresh model takes one step, so that the moments exist; the peak is of the second. On
CUDA it is the caching allocator's maximum of allocated bytes, in which the workspace that torch
lends to cuBLAS counts (32 MiB on Hopper); on a CPU torch's profiler traces every allocation and
release, exact to the byte, on top of what the tensors that live from step to step hold. Left out:
what libraries allocate past torch (oneDNN's scratch memory); `peak_process_memory` has that too.
"""

from __future__ import annotations

import os

import torch
from torch.autograd.profiler import profile

from workloads.plugins import Metric
from workloads.subject import Subject, TrainingStep


def measure(subject: Subject) -> tuple[float, ...]:
    step = subject.training_step()
    step()
    traced = _peak_on_cpu if subject.device.type == "cpu" else _peak_on_accelerator
    return (float(traced(step)),)


def _peak_on_accelerator(step: TrainingStep) -> int:
    device = step.inputs.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _peak_on_cpu(step: TrainingStep) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr
    held = step.held_bytes()
    # Not torch.profiler, which builds a Python object for each operation at its end: ten times the
    # seconds for a recurrence, and of no use here.
    with profile(use_kineto=True, profile_memory=True) as trace:
        step()
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


# The profiler stays resident once it has run, so this comes last.
METRIC = Metric(
    title="peak tensor memory",
    version=1,
    unit="bytes",
    deterministic=True,
    turn=1,
    work="traced_training_step",
    measure=measure,
)
