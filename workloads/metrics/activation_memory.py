"""Bytes of a training step's peak that do not live from step to step: the activations kept for
backward, gradients as far as they are there at the peak, and what is needed for a moment. It is
what grows with context and batch.

Protocol: `peak_memory` less weights, AdamW's moments and the batch.
"""

from __future__ import annotations

from workloads import traced
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    step = subject.training_step()
    step()
    held = step.held_bytes()
    return (float(traced.peak_bytes(step, held, subject.device) - held),)


METRIC = Metric(
    title="activation memory",
    version=1,
    unit="bytes",
    deterministic=True,
    turn=traced.TURN,
    work="traced_training_step",
    measure=measure,
)
