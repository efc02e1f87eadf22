"""What happens once before the first cell, on the machines that run cells: task data are prepared,
rates are probed.

Each is a job in a child of its own, so no driver or worker loads data or touches a device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from orchestrator import cost
from orchestrator.errors import UserError
from orchestrator.plan import Plan
from orchestrator.spec import LoadedSpec
from workloads import plugins, registry
from workloads.cell import Cell
from workloads.environment import Environment

Job = dict[str, Any]


class Machines(Protocol):
    """The machines that run a sweep's cells, as one: this one, or a cluster's."""

    def everywhere(self, job: Job) -> None:
        """Do a job on each of them. Raises RuntimeError."""
        ...

    def once(self, job: Job) -> Job:
        """Do a job on one of them; its answer. Raises RuntimeError."""
        ...


def data_jobs(plan: Plan) -> list[Job]:
    """One job for the data of each task that a train cell of the plan needs."""
    jobs: dict[str, Job] = {}
    for cell in plan.cells:
        if cell.kind == "train":
            job = data_job(cell)
            jobs[repr(job)] = job
    return list(jobs.values())


def data_job(cell: Cell) -> Job:
    """The job that prepares what this train cell learns from."""
    return {"job": "prepare", "task": cell.task, "options": dict(cell.task_options)}


def check_data(loaded: LoadedSpec, plan: Plan) -> None:
    """Whether this machine has the data of what is to be learnt.

    Raises:
        SpecError: it has not; says what mends it.
    """
    for job in data_jobs(plan):
        task = registry.load("tasks", job["task"])
        why = task.missing(plugins.build_options(task.options, job["options"]))
        if why is not None:
            raise loaded.error([(("task",), f"{job['task']}: {why}")])


def prepare(
    plan: Plan, cache: Path, machines: Machines, where: Environment, say: Callable[[str], None]
) -> None:
    """Prepare the data, and probe machines like `where` if none was probed yet.

    Raises:
        UserError: the data cannot be had; says why.
    """
    for job in data_jobs(plan):
        say(f"data for {job['task']}: checking, preparing where needed")
        try:
            machines.everywhere(job)
        except RuntimeError as error:
            raise UserError(f"{job['task']}: its data cannot be prepared: {error}") from None
    if cost.read_probe(cache, where.fingerprint) is None:
        _probe(plan.cells[0].device, cache, machines, where, say)


def _probe(
    device: str, cache: Path, machines: Machines, where: Environment, say: Callable[[str], None]
) -> None:
    say(f"probing how fast {device} is, for predictions")
    try:
        rates = machines.once({"job": "probe", "device": device})["rates"]
    except RuntimeError as error:
        # Only predictions start from the rates; typical ones will do.
        say(f"the probe did not work ({error}); predictions start from typical rates")
        return
    cost.write_probe(cache, where.fingerprint, rates)
