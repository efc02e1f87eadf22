"""Bytes held by tensors at the peak of inference: weights in the cell's precision, the decoding
state, and what prefill of the whole context and then one token need meanwhile.

Protocol (`traced.py`): inference mode, a fresh model and state; random inputs are not counted.
"""

from __future__ import annotations

import torch

from workloads import traced
from workloads.mixer import held_bytes
from workloads.plugins import Metric
from workloads.subject import Subject


@torch.inference_mode()
def measure(subject: Subject) -> tuple[float, ...]:
    weights = [*subject.model.parameters(), *subject.model.buffers()]
    token = subject.made[:, -1].contiguous()

    def infer() -> None:
        _, state = subject.prefilled(room=1)
        subject.model.step(token, state)

    infer()  # what is built at the first call and kept is no cost of this one
    held = held_bytes(weights)
    if subject.device.type != "cpu":
        inputs = held_bytes([subject.made, token])
        return (float(traced.peak_bytes(infer, held, subject.device) - inputs),)
    return (float(traced.peak_bytes(infer, held, subject.device)),)


METRIC = Metric(
    title="inference memory",
    version=1,
    unit="bytes",
    deterministic=True,
    turn=traced.TURN,
    work="prefills",
    measure=measure,
)
