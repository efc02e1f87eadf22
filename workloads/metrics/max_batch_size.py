"""The largest batch that trains under `limits.memory_bytes` at the cell's context, in sequences.

Protocol: as `max_seq_len`, over batch sizes from the smallest of the sweep on. The batch sizes of
the sweep do not matter otherwise, so it is taken once for all of them.
"""

from __future__ import annotations

from workloads import limits
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return (limits.largest(subject, "batch_size", Subject.training_step),)


METRIC = Metric(
    title="largest batch in training",
    version=2,
    unit="sequences",
    better="greater",
    deterministic=True,
    turn=-2,
    work="training_limit",
    ignores=("batch_size",),
    capped=True,
    measure=measure,
)
