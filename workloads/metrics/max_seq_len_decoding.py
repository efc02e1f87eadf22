"""The longest context from which tokens can be decoded under `limits.memory_bytes` at the cell's
batch size, in tokens: the whole context read through prefill, then one step after another.

Protocol: as `max_seq_len`, in inference mode, weights in the cell's precision. It is the prefill
that needs the memory where the state does not grow: who reads a longer context piece by piece gets
further.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from workloads import limits
from workloads.plugins import Metric
from workloads.subject import Subject


def _decoding(subject: Subject) -> Callable[[], object]:
    def step() -> None:
        with torch.inference_mode():
            _, state = subject.prefilled(room=1)
            subject.model.step(subject.made[:, -1], state)

    return step


def measure(subject: Subject) -> tuple[float, ...]:
    return (limits.largest(subject, "seq_len", _decoding),)


METRIC = Metric(
    title="longest context in decoding",
    version=2,
    unit="tokens",
    better="greater",
    deterministic=True,
    turn=-2,
    work="prefill_limit",
    ignores=("seq_len",),
    capped=True,
    measure=measure,
)
