"""The longest context that trains under `limits.memory_bytes` at the cell's batch size, in tokens.

Protocol (`limits.py`): from the shortest context of the sweep on, doubled until a training step
(forward, backward, AdamW with its moments) no longer fits, then bisected to 5 %; each try in a
fresh child of this process. What is found is confirmed in a second child over six steps. The
contexts of the sweep do not matter otherwise, so it is taken once for all of them.
"""

from __future__ import annotations

from workloads import limits
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return (limits.largest(subject, "seq_len", Subject.training_step),)


METRIC = Metric(
    title="longest context in training",
    version=2,
    unit="tokens",
    better="greater",
    deterministic=True,
    turn=-2,
    work="training_limit",
    ignores=("seq_len",),
    capped=True,
    measure=measure,
)
