"""Bytes at the peak of a process that only serves the int8 graph of one decoding step: Python,
ONNX Runtime, weights and state, program files included (VmHWM). Under `limits.memory_bytes` it is
stopped where it grows beyond them.
"""

from __future__ import annotations

from workloads.edge import graphs, serving
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return (float(serving.served(subject, graphs.INT8).peak_bytes),)


METRIC = Metric(
    title="memory of serving the int8 graph",
    version=1,
    unit="bytes",
    capped=True,
    work="export",
    measure=measure,
)
