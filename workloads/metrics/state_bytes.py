"""Bytes that one sequence's decoding state really holds after `seq_len` tokens of context: the KV
cache of attention, the hidden state of a recurrence.

Protocol: the context goes through prefill with room for exactly `seq_len` tokens; the storages
behind the state's tensors are summed, each once, over all layers, and divided by the batch. Left
out: the weights, and temporary memory of a step.
"""

from __future__ import annotations

from workloads.mixer import held_bytes
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    _, state = subject.prefilled()
    return (held_bytes(state) / subject.batch_size,)


METRIC = Metric(
    title="state per sequence",
    version=1,
    unit="bytes",
    scale="difference",
    deterministic=True,
    measure=measure,
)
