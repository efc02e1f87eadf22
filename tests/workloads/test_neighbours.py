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
from workloads import neighbours, run
from workloads.events import Facts
from workloads.measurement import Measurement

BUSY = "while True: pass"


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
        watch = neighbours.start()
        spin(1.0)
        share = watch.waited_share()
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert share is not None and 0.4 < share < 0.95
    assert 0 <= watch.stolen_share() <= 1


def test_whoever_sleeps_does_not_wait(core: int) -> None:
    watch = neighbours.start()
    time.sleep(0.3)
    share = watch.waited_share()
    assert share is not None and share < 0.2


@pytest.mark.parametrize(("shares", "calls"), [([0.01], 1), ([0.3, 0.0], 2), ([0.3, 0.4], 2)])
def test_a_disturbed_time_is_taken_once_more(
    shares: list[float], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(shares)
    monkeypatch.setattr(neighbours.Watch, "waited_share", lambda watch: next(told))
    events = list(run.run(measure_cell()))
    assert next(told, None) is None, f"it was taken less than {calls} times"
    (measured,) = (event for event in events if isinstance(event, Measurement))
    assert measured.reason is None
    facts = [event.values for event in events if isinstance(event, Facts)]
    assert facts[-1]["waited_share"] == min(shares)
