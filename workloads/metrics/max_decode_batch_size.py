"""The most sequences that decode at once under `limits.memory_bytes` after the cell's context:
weights, one state for each sequence, and what a step needs.

Protocol: as `max_seq_len`, over batch sizes from the smallest of the sweep on; each sequence's
context has been read before (`decoding.py`). The batch sizes of the sweep do not matter otherwise,
so it is taken once for all of them.
"""

from __future__ import annotations

from workloads import decoding, limits
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return (limits.largest(subject, "batch_size", decoding.of_a_batch),)


METRIC = Metric(
    title="largest batch in decoding",
    version=1,
    unit="sequences",
    better="greater",
    deterministic=True,
    turn=-2,
    work="decoding_limit",
    ignores=("batch_size",),
    capped=True,
    measure=measure,
)
