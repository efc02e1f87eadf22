"""Seconds of one training step: forward, cross-entropy, backward, AdamW (fused), gradients dropped.

Protocol: a fresh model and one fixed batch of random tokens, `batch_size` by `seq_len`; steps to
warm up until they get no faster, two at least, five on an accelerator (the first makes the
optimiser's moments), then single steps, each a sample, as many as the clock asks for (`timing.py`).
Left out: data loading, gradient clipping, evaluation. bfloat16 is autocast over
float32 weights, as in training. `execution` is that of the model's forward and backward pass; loss
and optimiser are fused kernels of their own. Nothing is dropped (`train.optimiser.dropout`).
"""

from __future__ import annotations

from workloads import timing
from workloads.plugins import Metric
from workloads.subject import Subject, TrainingStep


def once(subject: Subject) -> TrainingStep:
    return subject.training_step(executed=True)


def measure(subject: Subject) -> tuple[float, ...]:
    return timing.sample(once(subject), device=subject.device)


METRIC = Metric(
    title="training step time",
    version=2,
    unit="s",
    work="training_steps",
    by_execution=True,
    once=once,
    measure=measure,
)
