"""The simulated world is what it says: reproducible, true to its laws, fast."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.simulated_world import Law, SimulatedWorld, measure_cell, measure_cells

LAWS = {"lstm": Law(linear=1e-5), "transformer": Law(linear=2e-6, quadratic=1.5e-8)}


def test_records_do_not_depend_on_the_order_of_execution() -> None:
    cells = measure_cells(LAWS, (128, 256), rounds=2)
    one = {cell.id: r.measurements for cell, r in SimulatedWorld(laws=LAWS).execute(cells)}
    other = {cell.id: r.measurements for cell, r in SimulatedWorld(laws=LAWS).execute(cells[::-1])}
    assert one == other


def test_it_knows_its_crossings() -> None:
    world = SimulatedWorld(laws=LAWS)
    assert world.crossings("train_step_time", "lstm", "transformer", 64, 4096) == [
        pytest.approx(8e-6 / 1.5e-8)
    ]
    assert world.crossings("train_step_time", "lstm", "transformer", 64, 256) == []


def test_noise_is_of_the_process_first_and_of_the_sample_second() -> None:
    world = SimulatedWorld(laws=LAWS, process_noise=0.1, sample_noise=0.001)
    cells = [measure_cell(round=number) for number in range(200)]
    logs = np.log([r.measurements[0].samples for _, r in world.execute(cells)])
    assert logs.mean(1).std() == pytest.approx(0.1, rel=0.15)
    assert logs.std(1).mean() == pytest.approx(0.001, rel=0.15)


def test_thousands_of_cells_take_seconds() -> None:
    cells = measure_cells(LAWS, range(64, 64 * 101, 64), rounds=10)
    start = time.perf_counter()
    assert len(list(SimulatedWorld(laws=LAWS).execute(cells))) == 2000
    assert time.perf_counter() - start < 2
