"""Seconds to generate one more token of each of `batch_size` sequences after `seq_len` tokens of
context.

Protocol: inference mode; the context goes through prefill once, not timed; then 32 steps of one
token, of which the first few warm up and each later one is a sample. The context grows meanwhile,
by 32 tokens at most, and the state has room for them from the start. Steps are short, and a
machine's hiccup is not: the 32 steps are repeated, from a copy of the state after the context,
until they have taken a tenth of a second, or six times. On an accelerator one whole pass runs
untimed before them, for a kernel may be built anew for one of the lengths on the way. Left out:
choosing the next token (random ones are fed in) and turning it into text.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from workloads import timing
from workloads.plugins import Metric
from workloads.subject import Subject

STEPS = 32
MAX_REPEATS = 6
MIN_SECONDS = 0.1


@torch.inference_mode()
def measure(subject: Subject) -> tuple[float, ...]:
    _, after_context = subject.prefilled(room=STEPS)
    if subject.device.type != "cpu":
        _steps(subject, copy.deepcopy(after_context))
    samples: list[float] = []
    for _ in range(MAX_REPEATS):
        samples += _steps(subject, copy.deepcopy(after_context))
        if sum(samples) >= MIN_SECONDS:
            break
    return tuple(samples)


def _steps(subject: Subject, state: Any) -> tuple[float, ...]:
    token = subject.made[:, -1].contiguous()

    def step() -> None:
        nonlocal state
        _, state = subject.model.step(token, state)

    samples = STEPS - timing.warm_up_calls(subject.device)
    return timing.sample(step, device=subject.device, min_samples=samples, max_samples=samples)


METRIC = Metric(
    title="decode time per token", version=1, unit="s", work="decoding_steps", measure=measure
)
