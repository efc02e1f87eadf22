"""Seconds that 99 of 100 decoding steps of the int8 graph stay under.

Protocol: as `int8_decode_time`; the 99th percentile of a run of up to 1,000 steps is one sample.
"""

from __future__ import annotations

import numpy as np

from workloads.edge import graphs, serving
from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    seconds = serving.served(subject, graphs.INT8).seconds
    return (float(np.quantile(seconds, 0.99)),)


METRIC = Metric(
    title="decode time of the int8 graph, p99",
    version=2,
    unit="s",
    work="export",
    code="graph",
    measure=measure,
)
