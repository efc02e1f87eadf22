"""Bytes held by tensors at the peak of a training step: weights, gradients, AdamW's moments, the
batch, and the activations kept for backward.

Protocol (`traced.py`): a fresh model takes one step, so that the moments exist; the peak is of the
second.
"""

from __future__ import annotations

from workloads import traced
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    step = subject.training_step()
    step()
    return (float(traced.peak_bytes(step, step.held_bytes(), subject.device)),)


METRIC = Metric(
    title="peak tensor memory",
    version=1,
    unit="bytes",
    deterministic=True,
    turn=traced.TURN,
    work="traced_training_step",
    measure=measure,
)
