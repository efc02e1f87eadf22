"""Floating-point operations of the forward pass for one token, mean over the positions of a context
of `seq_len`: a multiply-add is two, matrix products only; by arithmetic from the plug-ins' own
formulas. A training step costs about three times as many."""

from __future__ import annotations

from workloads import sizing
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return (float(sizing.flops_per_token(subject.shape, subject.cell.seq_len)),)


METRIC = Metric(
    title="forward FLOPs per token",
    version=1,
    unit="FLOP",
    deterministic=True,
    measure=measure,
)
