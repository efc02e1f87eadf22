"""What a forked child does for a job: run a cell, prepare a task's data, or probe the machine.

Each job tells JSON lines, read by `guard.py` in the parent.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workloads.cell import Cell

Write = Callable[[str], object]
"""Takes one line."""


def data_job(cell: Cell) -> dict[str, Any]:
    """The job that prepares what this train cell learns from."""
    return {"job": "prepare", "task": cell.task, "options": dict(cell.task_options)}


def run(job: dict[str, Any], write: Write) -> None:
    """Do one job and write its lines; raises what the work raises."""
    _JOBS[job["job"]](job, write)


def foresee(job: dict[str, Any]) -> None:
    """Do in the server what each child would do alike: the dry build of a cell's model. It was done
    before, when the sweep was planned, in the driver.

    Not for an accelerator: torch asks the driver for its devices on the way, and a process that has
    opened CUDA cannot be forked.
    """
    from workloads.check import check
    from workloads.environment import is_cpu

    if job["job"] == "cell" and is_cpu(job["cell"]["device"]):
        # What is wrong with a cell is for its child to say.
        with contextlib.suppress(Exception):
            check(Cell.from_dict(job["cell"]))


def _cell(job: dict[str, Any], write: Write) -> None:
    from workloads.events import encode
    from workloads.run import run

    for event in run(Cell.from_dict(job["cell"])):
        write(encode(event))


def _prepare(job: dict[str, Any], write: Write) -> None:
    from workloads import plugins, registry
    from workloads.tasks.data import cache_folder
    from workloads.tasks.headway import Headway, heard

    def hear(one: Headway) -> None:
        write(json.dumps({"headway": [one.doing, one.done, one.total]}))

    task = registry.load("tasks", job["task"])
    with heard(by=hear):
        options = plugins.build_options(task.options, job["options"])
        data = task.prepare(options, Path(cache_folder()))
    # A length that the data have no window of is said before the first cell.
    for length in job.get("lengths", ()):
        data.batch(1, length, seed=0, update=0)
    write(json.dumps({"prepared": job["task"]}))


def _probe(job: dict[str, Any], write: Write) -> None:
    from workloads.probe import probe

    write(json.dumps({"rates": probe(job["device"])}))


_JOBS = {"cell": _cell, "prepare": _prepare, "probe": _probe}
