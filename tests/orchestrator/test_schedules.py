"""Two thousand sweeps, each through faults of its own: every cell is answered exactly once, whoever
was killed, came back late, was down, or had a clock that jumped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.analysis import tables
from orchestrator.analysis.schema import SCHEMAS
from orchestrator.analysis.tables import Tables
from orchestrator.cost import CostModel, cost_model
from orchestrator.plan import Plan
from tests.orchestrator.schedules import LONGEST, Driver, Schedule, bound
from tests.simulated_world import (
    Law,
    SimulatedWorld,
    enveloped,
    measure_cells,
    plan_of,
    train_cells,
)

SCHEDULES = 2000
BLOCK = 100
QUICK_BLOCKS = 3
"""So many in `make test`, a fiftieth of a second of CPU time each; all in `make exhaustive`."""
LAWS = {"lstm": Law(linear=1e-5), "transformer": Law(quadratic=1e-8)}
WORLD = SimulatedWorld(laws=LAWS)
BY_HISTORY = {"run_id", "attempts", "predicted_seconds", "predicted_peak_bytes"}
BY_CODE = {"commit", "dirty", "source_hash"}
"""Columns that tell how a sweep went, or which code ran, and not what it measured."""


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder where an fsync costs nothing, where there is one."""
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def plan() -> Plan:
    measured = measure_cells(LAWS, (128,), rounds=1, metrics=("train_step_time", "state_bytes"))
    return plan_of([*measured, *train_cells(LAWS, (128,), seeds=1)])


@pytest.fixture(scope="module")
def model(memory: Path) -> CostModel:
    return cost_model("cpu:1", memory)


@pytest.fixture(scope="module")
def undisturbed(plan: Plan) -> Tables:
    """The tables of a sweep without faults."""
    return tables.build(plan, enveloped(WORLD.execute(plan.cells)), {})


@pytest.fixture(autouse=True)
def boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    bound(monkeypatch)


def same(one: Tables, other: Tables) -> bool:
    """Whether two tables say the same of what was measured."""
    return all(
        getattr(one, name).select(said) == getattr(other, name).select(said)
        for name in SCHEMAS
        if (said := [c for c in SCHEMAS[name].names if c not in BY_HISTORY | BY_CODE])
    )


def test_a_driver_without_faults_comes_to_as_many_boundaries_as_are_tried(
    memory: Path, plan: Plan, model: CostModel
) -> None:
    schedule = Schedule(seed=0, folder=memory / "whole", plan=plan, world=WORLD, model=model)
    schedule._failing = {}
    driver = Driver(schedule.drive)
    driver.proceed()
    assert driver.error is None
    assert LONGEST / 2 < driver.boundaries <= LONGEST


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(number, marks=pytest.mark.exhaustive if number >= QUICK_BLOCKS else ())
        for number in range(SCHEDULES // BLOCK)
    ],
)
def test_every_cell_is_answered_exactly_once(
    memory: Path, plan: Plan, model: CostModel, undisturbed: Tables, block: int
) -> None:
    wrong = []
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        folder = memory / str(seed)
        schedule = Schedule(seed=seed, folder=folder, plan=plan, world=WORLD, model=model)
        schedule.run()
        schedule.check()
        if not same(tables.build(plan, schedule.envelopes(), {}), undisturbed):
            schedule.faults.append("the tables differ from those of a sweep without faults")
        if schedule.faults:
            wrong.append(f"seed {seed}: {schedule.faults} after {schedule.incidents}")
        shutil.rmtree(folder)
    assert wrong == []
