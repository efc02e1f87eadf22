"""Bytes of AdamW's state after a step: two moments for each parameter, in float32, and its counts
of steps."""

from __future__ import annotations

from torch import Tensor

from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    step = subject.training_step()
    step()
    state = [value for group in step.optimizer.state.values() for value in group.values()]
    return (float(sum(value.nbytes for value in state if isinstance(value, Tensor))),)


METRIC = Metric(
    title="optimiser state",
    version=1,
    unit="bytes",
    deterministic=True,
    work="training_steps",
    measure=measure,
)
