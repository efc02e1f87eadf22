"""Counts executions: each appends its cell's id to the file that WORKLOADS_TALLY names."""

from __future__ import annotations

import os

from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    # One short write to a file opened for appending is never torn or mixed with another's.
    descriptor = os.open(os.environ["WORKLOADS_TALLY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{subject.cell.id}\n".encode())
    os.close(descriptor)
    return (1.0,)


METRIC = Metric(title="executions", version=1, unit="1", measure=measure)
