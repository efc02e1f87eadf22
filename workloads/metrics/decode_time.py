"""Seconds to generate one more token of each of `batch_size` sequences after `seq_len` tokens of
context.

Protocol: inference mode; the context goes through prefill once, not timed; then 32 steps of one
token, of which the first few warm up and each later one is a sample. The context grows meanwhile,
by 32 tokens at most, and the state has room for them from the start. Steps are short, and a
machine's hiccup is not: the 32 steps are repeated, from a copy of the state after the context,
until their median is known as any timed call's is (`timing.sample`), or six times. On an
accelerator, and where steps are not executed eagerly, one whole pass runs untimed before them, for
a kernel may be built anew for one of the lengths on the way. Left out: choosing the next token
(random ones are fed in) and turning it into text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workloads import timing
from workloads.plugins import Metric, Unsupported
from workloads.subject import Subject

Step = Callable[[Tensor, list[Any]], tuple[Tensor, list[Any]]]

STEPS = 32
MAX_REPEATS = 6


@torch.inference_mode()
def measure(subject: Subject) -> tuple[float, ...]:
    if subject.cell.execution == "graph":
        raise Unsupported("graph: decoding is not recorded: its state lies elsewhere at each step")
    step = subject.executed(subject.model.step)
    _, after_context = subject.prefilled(room=STEPS)
    if subject.device.type != "cpu" or subject.cell.execution != "eager":
        _steps(subject, step, copy.deepcopy(after_context))
    samples: list[float] = []
    for _ in range(MAX_REPEATS):
        samples += _steps(subject, step, copy.deepcopy(after_context))
        if timing.enough(samples):
            break
    return tuple(samples)


def once(subject: Subject) -> Callable[[], object]:
    """One step after the other, STEPS of them at most."""
    _, after_context = subject.prefilled(room=STEPS)
    return _stepping(subject, subject.executed(subject.model.step), after_context)


def _steps(subject: Subject, step: Step, state: Any) -> tuple[float, ...]:
    warm_up = timing.warm_up_calls(subject.device)
    return timing.sample(
        _stepping(subject, step, state),
        device=subject.device,
        warm_up=warm_up,
        min_samples=STEPS - warm_up,
        max_samples=STEPS - warm_up,
    )


def _stepping(subject: Subject, step: Step, state: Any) -> Callable[[], object]:
    token = subject.made[:, -1].contiguous()

    @torch.inference_mode()
    def one() -> None:
        nonlocal state
        _, state = step(token, state)

    return one


METRIC = Metric(
    title="decode time per token",
    version=2,
    unit="s",
    work="decoding_steps",
    by_execution=True,
    once=once,
    code="step",
    measure=measure,
)
