"""What happens once before the first cell, on the machines that run cells: task data are prepared,
rates are probed.

Each is a job in a child of its own, so no driver or worker loads data or touches a device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from orchestrator import cost
from orchestrator.errors import UserError
from orchestrator.jobs import data_job
from orchestrator.plan import Plan
from orchestrator.spec import LoadedSpec
from workloads import plugins, registry
from workloads.environment import Environment
from workloads.tasks.headway import Hear

Job = dict[str, Any]
TIMED = frozenset({"train_step_time", "decode_time"})
"""Metrics that are held against what the device reaches at best now; for predictions, what it
reached once will do."""


class Machines(Protocol):
    """The machines that run a sweep's cells, as one: this one, or a cluster's."""

    def everywhere(self, job: Job, hear: Hear) -> None:
        """Do a job on each of them, and tell how far it is. Raises RuntimeError."""
        ...

    def once(self, job: Job) -> Job:
        """Do a job on one of them; its answer. Raises RuntimeError."""
        ...


def data_jobs(plan: Plan) -> list[Job]:
    """One job for the data of each task that a cell of the plan learns, with the lengths it is to
    have windows of."""
    jobs: dict[str, Job] = {}
    lengths: dict[str, set[int]] = {}
    for cell in plan.cells:
        if cell.kind != "measure":
            job = data_job(cell)
            jobs[repr(job)] = job
            lengths.setdefault(repr(job), set()).add(cell.seq_len)
    return [{**job, "lengths": sorted(lengths[name])} for name, job in jobs.items()]


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
    plan: Plan,
    cache: Path,
    machines: Machines,
    where: Environment,
    say: Callable[[str], None],
    shown: Callable[[], AbstractContextManager[Hear]],
) -> None:
    """Prepare the data, and probe machines like `where`: what they reach at best is the ceiling
    that cells are held against. `shown` is entered for what takes a while, and given its headway.

    Raises:
        UserError: the data cannot be had; says why.
    """
    for job in data_jobs(plan):
        say(f"data for {job['task']}: checking, preparing where needed")
        try:
            with shown() as hear:
                machines.everywhere(job, hear)
        except RuntimeError as error:
            raise UserError(f"{job['task']}: its data cannot be prepared: {error}") from None
    timed = any(set(cell.metrics) & TIMED for cell in plan.cells)
    if timed or cost.read_probe(cache, where.fingerprint) is None:
        _probe(plan.cells[0].device, cache, machines, where, say)


def _probe(
    device: str, cache: Path, machines: Machines, where: Environment, say: Callable[[str], None]
) -> None:
    say(f"probing how fast {device} is at best")
    try:
        rates = machines.once({"job": "probe", "device": device})["rates"]
    except RuntimeError as error:
        # Earlier rates will do, or typical ones.
        say(f"the probe did not work ({error}); predictions start from other rates")
        return
    cost.write_probe(cache, where.fingerprint, rates)
