"""Half a second in which nothing happens: a cell whose time is known and takes no core."""

from __future__ import annotations

import time

from workloads.plugins import Metric
from workloads.subject import Subject

SECONDS = 0.5


def measure(subject: Subject) -> tuple[float, ...]:
    time.sleep(SECONDS)
    return (SECONDS,)


METRIC = Metric(title="pause", version=1, unit="s", measure=measure)
