"""Bytes of the weights as they are held for inference, embedding and head included; by arithmetic,
exact. Left out: the optimiser's copies, which `peak_memory` has."""

from __future__ import annotations

from workloads import sizing
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return (float(sizing.model_bytes(subject.shape, subject.cell.precision)),)


METRIC = Metric(title="model size", version=1, unit="bytes", deterministic=True, measure=measure)
