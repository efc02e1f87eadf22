"""Bytes of the file that a device at the edge loads: the int8 graph of one decoding step in ONNX
(`edge/graphs.py`), weights and embedding included.
"""

from __future__ import annotations

from workloads.edge import graphs, serving
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return (float(len(serving.files(subject)[graphs.INT8])),)


METRIC = Metric(
    title="size of the int8 graph",
    version=1,
    unit="bytes",
    deterministic=True,
    work="export",
    measure=measure,
)
