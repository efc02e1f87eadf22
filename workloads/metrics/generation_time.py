"""Seconds from a prompt of `seq_len` tokens to 32 tokens more of each of `batch_size` sequences:
prefill and decoding end to end, an empty state made included.

Protocol: inference mode; whole answers are timed, as often as the clock asks (`timing.py`). Random
tokens are fed in: left out are choosing the next token and turning it into text.
"""

from __future__ import annotations

import torch

from workloads import timing
from workloads.plugins import Metric
from workloads.subject import Subject

NEW_TOKENS = 32


@torch.inference_mode()
def measure(subject: Subject) -> tuple[float, ...]:
    token = subject.made[:, -1].contiguous()

    def answer() -> None:
        _, state = subject.prefilled(room=NEW_TOKENS)
        for _ in range(NEW_TOKENS - 1):
            _, state = subject.model.step(token, state)

    return timing.sample(answer, device=subject.device)


METRIC = Metric(
    title="time to 32 tokens",
    version=2,
    unit="s",
    work="generations",
    code="both",
    measure=measure,
)
