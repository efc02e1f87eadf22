"""What others take of a cell's core is seen, and a time that was taken beside them is taken
again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.workloads.tiny_cells import measure_cell
from workloads import conditions, measuring, neighbours, run
from workloads.cell import Cell
from workloads.events import Facts
from workloads.measurement import Measurement

BUSY = "while True: pass"
WAITED = conditions.fact(neighbours.WAITED, "train_step_time")


@pytest.fixture
def core() -> Iterator[int]:
    """One core for this process alone."""
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    yield core
    os.sched_setaffinity(0, before)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_sharing_a_core_with_three_others_is_waiting_most_of_the_time(core: int) -> None:
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(3)]
    try:
        time.sleep(0.5)  # until they run
        with neighbours.watched():
            spin(1.0)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert 0.4 < conditions.taken()[neighbours.WAITED] < 0.95


def test_whoever_sleeps_does_not_wait(core: int) -> None:
    with neighbours.watched():
        time.sleep(0.3)
    assert conditions.taken()[neighbours.WAITED] < 0.5
    assert not conditions.taken(), "nothing was timed since"


def test_what_is_withheld_only_grows() -> None:
    before = neighbours.stolen_seconds()
    assert 0 <= before <= neighbours.stolen_seconds()


def facts(cell: Cell) -> dict[str, object]:
    found: dict[str, object] = {}
    for event in run.run(cell):
        if isinstance(event, Facts):
            found |= event.values
    return found


@pytest.mark.parametrize(("shares", "calls"), [([0.01], 1), ([0.3, 0.0], 2), ([0.3, 0.4], 2)])
def test_a_disturbed_time_is_taken_once_more_and_the_quieter_counts(
    shares: list[float], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([share for one in shares for share in ({}, {neighbours.WAITED: one})])
    monkeypatch.setattr(conditions, "taken", lambda: next(told))
    events = list(run.run(measure_cell()))
    assert next(told, "over") == "over", f"it was taken less than {calls} times"
    taken = [event for event in events if isinstance(event, Measurement)]
    assert len(taken) == (2 if shares[-1] < shares[0] else 1)
    found = [event.values for event in events if isinstance(event, Facts)]
    said = [one[WAITED] for one in found if WAITED in one]
    assert said[-1] == min(shares)


def test_what_was_not_timed_here_has_no_share() -> None:
    found = facts(measure_cell(metrics=("state_bytes", "parameters")))
    assert not [name for name in found if name.startswith("waited_share")]


def test_what_takes_long_is_not_taken_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "taken", lambda: {neighbours.WAITED: 0.5})
    monkeypatch.setattr(measuring, "REPEATED", 0.0)
    events = list(run.run(measure_cell()))
    assert len([event for event in events if isinstance(event, Measurement)]) == 1
