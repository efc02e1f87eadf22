"""What a forked child does for a job: run a cell, prepare a task's data, or probe the machine.

Each job is a generator of JSON lines, read by `isolation.py` in the parent.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def run(job: dict[str, Any]) -> Iterator[str]:
    """The lines of one job; raises what the work raises."""
    yield from _JOBS[job["job"]](job)


def foresee(job: dict[str, Any]) -> None:
    """Do in the server what each child would do alike: the dry build of a cell's model. It was done
    before, when the sweep was planned, in the driver.

    Not for an accelerator: torch asks the driver for its devices on the way, and a process that has
    opened CUDA cannot be forked.
    """
    from workloads.cell import Cell
    from workloads.check import check
    from workloads.environment import is_cpu

    if job["job"] == "cell" and is_cpu(job["cell"]["device"]):
        # What is wrong with a cell is for its child to say.
        with contextlib.suppress(Exception):
            check(Cell.from_dict(job["cell"]))


def _cell(job: dict[str, Any]) -> Iterator[str]:
    from workloads.cell import Cell
    from workloads.events import encode
    from workloads.run import run

    for event in run(Cell.from_dict(job["cell"])):
        yield encode(event)


def _prepare(job: dict[str, Any]) -> Iterator[str]:
    from workloads import plugins, registry
    from workloads.tasks.data import cache_folder

    task = registry.load("tasks", job["task"])
    task.prepare(plugins.build_options(task.options, job["options"]), Path(cache_folder()))
    yield json.dumps({"prepared": job["task"]})


def _probe(job: dict[str, Any]) -> Iterator[str]:
    from workloads.probe import probe

    yield json.dumps({"rates": probe(job["device"])})


_JOBS = {"cell": _cell, "prepare": _prepare, "probe": _probe}
