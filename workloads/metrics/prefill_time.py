"""Seconds to read a whole context for generation: `batch_size` sequences of `seq_len` tokens
through prefill, to the logits of the last position.

Protocol: inference mode, weights in the cell's precision; calls to warm up until they get no
faster, two at least, five on an accelerator, then single calls, each a sample, as many as the clock
asks for (`timing.py`). The allocation of the empty state is part of it, as it is of any real
request; that of the weights is not.
"""

from __future__ import annotations

from collections.abc import Callable

from workloads import timing
from workloads.plugins import Metric
from workloads.subject import Subject


def once(subject: Subject) -> Callable[[], object]:
    # Weights and tokens are made on first use, which is the first call that warms up.
    prefill = subject.executed(subject.model.prefill)
    return lambda: subject.prefilled(prefill=prefill)


def measure(subject: Subject) -> tuple[float, ...]:
    return timing.sample(once(subject), device=subject.device)


METRIC = Metric(
    title="prefill time",
    version=2,
    unit="s",
    work="prefills",
    by_execution=True,
    once=once,
    measure=measure,
)
