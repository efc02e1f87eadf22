"""Tokens per second decoded at the largest batch under `limits.memory_bytes` after the cell's
context: where a fixed state pays, for more sequences fit.

Protocol: the batch is found as `max_decode_batch_size`, and lowered by a quarter until it holds
where freed memory stays in glibc's heap, as it does wherever somebody serves, and takes up to twice
the room (`process_memory.py`); which batch it was is on record, as `batch.decode_throughput`. Then
one token of every sequence at a time, in inference mode; a sample is the batch over the seconds of
one step. Left out: choosing the next token.
"""

from __future__ import annotations

from dataclasses import replace

from workloads import conditions, decoding, limits, timing
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    batch = int(limits.largest(subject, "batch_size", decoding.of_a_batch))
    while True:
        try:
            return _tokens_per_second(subject, batch)
        except MemoryError:
            if batch == subject.batch_size:
                raise
            batch = max(subject.batch_size, batch * 3 // 4)


def _tokens_per_second(subject: Subject, batch: int) -> tuple[float, ...]:
    larger = Subject(replace(subject.cell, batch_size=batch), subject.built, subject.device)

    def timed() -> tuple[float, ...]:
        step = decoding.of_a_batch(larger)
        warm_up = timing.warm_up_calls(subject.device)
        most = decoding.ROOM - warm_up
        return timing.sample(step, device=subject.device, warm_up=warm_up, max_samples=most)

    found = limits.figures(larger, timed)
    conditions.note("batch", batch, 1.0)
    return tuple(batch / seconds for seconds in found)


METRIC = Metric(
    title="decoding throughput at the largest batch",
    version=1,
    unit="1/s",
    better="greater",
    turn=-1,
    work="decoding_limit",
    ignores=("batch_size",),
    capped=True,
    code="step",
    measure=measure,
)
