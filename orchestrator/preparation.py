"""What happens once per machine before the first cell: task data are prepared, rates are probed.

Each is a job in a child of its own, so the driver never loads data or touches a device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator import cost
from orchestrator.errors import UserError
from orchestrator.isolation import Isolation
from orchestrator.plan import Plan
from workloads import environment
from workloads.cell import Scalar


def prepare(plan: Plan, cache: Path, isolation: Isolation, say: Callable[[str], None]) -> None:
    """Prepare the data of every task that a train cell of the plan needs, and probe a machine that
    was not probed yet.

    Raises:
        UserError: the data cannot be had; says why.
    """
    tasks: dict[str, tuple[str, dict[str, Scalar]]] = {}
    for cell in plan.cells:
        if cell.kind == "train":
            tasks[repr((cell.task, cell.task_options))] = (cell.task, dict(cell.task_options))
    for task, options in tasks.values():
        say(f"data for {task}: checking, preparing where needed")
        try:
            isolation.call({"job": "prepare", "task": task, "options": options})
        except RuntimeError as error:
            raise UserError(f"{task}: its data cannot be prepared: {error}") from None
    if cost.read_probe(cache, _fingerprint(plan)) is None:
        _probe(plan, cache, isolation, say)


def _probe(plan: Plan, cache: Path, isolation: Isolation, say: Callable[[str], None]) -> None:
    device = plan.cells[0].device
    say(f"probing how fast {device} is, for predictions")
    try:
        rates = isolation.call({"job": "probe", "device": device})["rates"]
    except RuntimeError as error:
        # Only predictions start from the rates; typical ones will do.
        say(f"the probe did not work ({error}); predictions start from typical rates")
        return
    cost.write_probe(cache, _fingerprint(plan), rates)


def _fingerprint(plan: Plan) -> str:
    return environment.describe(plan.cells[0].device).fingerprint
