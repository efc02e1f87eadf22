"""A sweep over three real nodes of two slots each: how busy the slots are, where the rest goes.

    python -m tests.benchmarks.cluster [CELLS] [SECONDS]

Every node is a raylet of its own on this machine, and cells sleep, so that six slots need no six
cores. A slot is busy while a cell's child runs. Printed: the busy fraction from the moment all
slots have begun until the first has nothing left to begin, which is what a long sweep comes to; the
same over everything between the first cell's start and the last one's end; what passes between two
cells of one slot; and how long the nodes take to be ready.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.end_to_end.nap_sweep import ARCHITECTURES, nap_sweep
from tests.end_to_end.sweep_process import SweepProcess
from tests.ray_cluster import SLOTS, ray_cluster

NODES = 3
PATIENCE = 550.0
Span = tuple[float, float]


def spans(folder: Path) -> dict[str, list[Span]]:
    """When cells ran, by node, in order."""
    found: dict[str, list[Span]] = {}
    for file in folder.glob("results/busy/journal/[!.]*.json"):
        envelope: dict[str, Any] = json.loads(file.read_text())
        record = envelope["record"]
        assert record["status"] == "finished", record["message"]
        start = record["started_at"]
        found.setdefault(envelope["node"], []).append((start, start + record["seconds"]))
    return {node: sorted(ran) for node, ran in found.items()}


def busy(ran: list[Span], low: float, high: float, slots: int) -> float:
    """Which part of the slots' time between `low` and `high` was a cell's."""
    overlap = sum(max(0.0, min(high, end) - max(low, start)) for start, end in ran)
    return overlap / (slots * (high - low))


def lanes(ran: list[Span]) -> list[list[Span]]:
    """The cells of one node by slot: each goes on where the slot that is free the longest is."""
    slots: list[list[Span]] = [[] for _ in range(SLOTS)]
    for span in ran:
        min(slots, key=lambda lane: lane[-1][1] if lane else 0.0).append(span)
    return slots


def main() -> None:
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    text = nap_sweep(
        "busy",
        "How busy are the slots of a cluster?",
        seconds=seconds,
        seeds=cells // ARCHITECTURES,
    )
    with tempfile.TemporaryDirectory() as name:
        folder, clock = Path(name), time.monotonic()
        with ray_cluster(folder, NODES) as cluster:
            up, started_at = time.monotonic() - clock, time.time()
            sweep = SweepProcess(folder, text, "--address", cluster.address, **cluster.environment)
            code, _, errors = sweep.end(PATIENCE)
            assert code == 0, errors
        report(spans(folder), up, started_at)


def report(by_node: dict[str, list[Span]], up: float, started_at: float) -> None:
    slots = NODES * SLOTS
    every = sorted(span for ran in by_node.values() for span in ran)
    by_slot = [lane for ran in by_node.values() for lane in lanes(ran)]
    low = max(lane[0][0] for lane in by_slot)
    high = min(lane[-1][0] for lane in by_slot)
    gaps = [after[0] - before[1] for lane in by_slot for before, after in pairwise(lane)]
    first, last = every[0][0], max(end for _, end in every)
    length = statistics.median(end - start for start, end in every)
    for what, figure in {
        "cells": f"{len(every)} of {length:.2f} s",
        "cells by node": f"{sorted(map(len, by_node.values()))}",
        "cluster up": f"{up:.1f} s",
        "first cell after": f"{first - started_at:.1f} s",
        "all slots begun after": f"{low - started_at:.1f} s",
        "busy, all slots at work": f"{busy(every, low, high, slots):.3f} over {high - low:.1f} s",
        "busy, first to last": f"{busy(every, first, last, slots):.3f} over {last - first:.1f} s",
        "between two cells": f"{statistics.median(gaps):.3f} s (median), {max(gaps):.3f} s (most)",
    }.items():
        print(f"{what:<26} {figure}")


if __name__ == "__main__":
    main()
