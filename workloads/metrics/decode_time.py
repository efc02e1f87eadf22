"""Seconds to generate one more token of each of `batch_size` sequences after `seq_len` tokens of
context.

Protocol: inference mode; the context goes through prefill once, not timed; then up to 32 steps of
one token, of which the first few warm up and each later one is a sample. The context grows
meanwhile, by 32 tokens at most, and the state has room for them from the start. Left out: choosing
the next token (random ones are fed in) and turning it into text.
"""

from __future__ import annotations

import torch

from workloads import timing
from workloads.plugins import Metric
from workloads.subject import Subject

MAX_STEPS = 32
MIN_SAMPLES = 16


@torch.inference_mode()
def measure(subject: Subject) -> tuple[float, ...]:
    _, state = subject.prefilled(room=MAX_STEPS)
    token = subject.tokens[:, -1].contiguous()

    def step() -> None:
        nonlocal state
        _, state = subject.model.step(token, state)

    return timing.sample(
        step,
        device=subject.device,
        min_samples=MIN_SAMPLES,
        max_samples=MAX_STEPS - timing.warm_up_calls(subject.device),
    )


METRIC = Metric(
    title="decode time per token", version=1, unit="s", work="decoding_steps", measure=measure
)
