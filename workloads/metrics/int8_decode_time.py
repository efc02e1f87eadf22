"""Seconds per decoding step of the int8 graph, in a process that only serves it: ONNX Runtime,
one thread, after the cell's context.

Protocol (`edge/serve.py`): 20 steps warm up, then up to 1,000, or two seconds of them, are samples.
A cache is copied by the step that extends it, as the graph says. Left out: choosing the next token.
"""

from __future__ import annotations

from workloads.edge import graphs, serving
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return serving.served(subject, graphs.INT8).seconds


METRIC = Metric(
    title="decode time of the int8 graph",
    version=2,
    unit="s",
    work="export",
    code="graph",
    measure=measure,
)
