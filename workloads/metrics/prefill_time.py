"""Seconds to read a whole context for generation: `batch_size` sequences of `seq_len` tokens
through prefill, to the logits of the last position.

Protocol: inference mode, weights in the cell's precision; two calls to warm up, five on an
accelerator, then single calls, each a sample. The allocation of the empty state is part of it, as
it is of any real request; that of the weights is not.
"""

from __future__ import annotations

from workloads import timing
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    # Weights and tokens are made on first use, which is the first call that warms up.
    prefill = subject.executed(subject.model.prefill)
    return timing.sample(lambda: subject.prefilled(prefill=prefill), device=subject.device)


METRIC = Metric(
    title="prefill time",
    version=1,
    unit="s",
    work="prefills",
    by_execution=True,
    measure=measure,
)
