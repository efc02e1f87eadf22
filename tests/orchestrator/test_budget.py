"""Device hours: every attempt on record counts, and what ends with the budget is on record, too."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import meter
from orchestrator.budget import BUDGET_SPENT, Budget
from orchestrator.errors import LeaseLost
from orchestrator.expand import expand
from orchestrator.inline import run_inline
from orchestrator.isolation import Isolation
from orchestrator.meter import Meter
from tests.orchestrator.made_records import cell, envelope
from tests.orchestrator.sweep_files import faults, load
from tests.workloads.tiny_cells import measure_cell
from workloads import environment
from workloads.cell import Limits
from workloads.record import Status

PLUGINS = Path(__file__).parents[1] / "plugins"


def test_attempts_of_every_status_count_by_the_share_they_held() -> None:
    statuses: list[tuple[Status, float]] = [("finished", 1.0), ("failed", 0.5), ("lost", 0.25)]
    made = [envelope(cell(64), status=status) for status, _ in statuses]
    envelopes = [
        replace(one, record=replace(one.record, seconds=3600.0, device_share=share))
        for one, (_, share) in zip(made, statuses, strict=True)
    ]
    budget = Budget.of(2.0, envelopes)
    assert budget.left() == pytest.approx(0.25 * 3600)
    assert budget.left([(600.0, 1.0), (600.0, 0.5)]) == pytest.approx(0)
    assert not budget.exhausted
    budget.add(envelopes[0].record)
    assert budget.exhausted
    assert budget.sentence(7) == (
        "the budget is spent: 2.75 of 2 device hours; 7 cells are left; "
        "raise limits.device_hours to go on"
    )


def test_what_a_killed_driver_was_running_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "NOTE_SECONDS", 0.0)
    done = envelope(cell(64), epoch=1)
    done = replace(done, record=replace(done.record, seconds=100.0, device_share=1.0))
    killed = Budget.of(1.0, [], Meter(tmp_path / "used", 1))
    killed.left([(90.0, 1.0), (300.0, 0.5)])
    killed.add(done.record)
    killed.left([(310.0, 0.5)])
    after = Budget.of(1.0, [done], Meter(tmp_path / "used", 2))
    assert after.spent == pytest.approx(100 + 155)
    # The next one goes on from there and notes its own alone.
    after.left([(20.0, 1.0)])
    again = Budget.of(1.0, [done], Meter(tmp_path / "used", 3))
    assert again.spent == pytest.approx(100 + 155 + 20)


def test_a_note_is_no_truer_than_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "NOTE_SECONDS", 0.0)
    Meter(tmp_path / "used", 1).note(5.0)
    done = envelope(cell(64), epoch=1)
    done = replace(done, record=replace(done.record, seconds=100.0, device_share=1.0))
    assert Budget.of(1.0, [done], Meter(tmp_path / "used", 2)).spent == pytest.approx(100)
    (tmp_path / "used/1").write_text("torn")
    assert Budget.of(1.0, [], Meter(tmp_path / "used", 2)).spent == 0


def test_a_driver_that_may_not_write_notes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise LeaseLost("another has taken over")

    monkeypatch.setattr(meter, "NOTE_SECONDS", 0.0)
    with pytest.raises(LeaseLost):
        Meter(tmp_path / "used", 1, refused).note(5.0)
    assert list(tmp_path.glob("used/*")) == []


def test_without_a_limit_there_is_always_more() -> None:
    budget = Budget.of(None, [envelope(cell(64))])
    assert budget.left() == math.inf and not budget.exhausted


def test_inline_the_running_cell_is_stopped_and_no_other_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(PLUGINS))
    hanging = [
        measure_cell(architecture="faulty", options={"fault": "hang"}, round=n) for n in (0, 1)
    ]
    budget = Budget(allowed=1.5)
    with Isolation() as isolation:
        answers = list(run_inline(hanging, isolation, cores=environment.cores(), budget=budget))
    ((first, record),) = answers
    assert (first, record.status, record.message) == (hanging[0], "lost", BUDGET_SPENT)
    assert 1.5 <= record.seconds < 10 and budget.exhausted


def test_a_cell_whose_own_limit_comes_first_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(PLUGINS))
    hanging = measure_cell(
        architecture="faulty", options={"fault": "hang"}, limits=Limits(cell_seconds=1.0)
    )
    with Isolation() as isolation:
        ((_, record),) = run_inline(
            [hanging], isolation, cores=environment.cores(), budget=Budget(allowed=600.0)
        )
    assert (record.status, record.reason) == ("finished", "timeout")


def test_the_budget_is_no_part_of_a_cell(tmp_path: Path) -> None:
    bounded = load(tmp_path, {"limits": {"device_hours": 2.5}})
    assert bounded.spec.limits.device_hours == 2.5
    cells = expand(bounded).cells
    assert cells == expand(load(tmp_path)).cells
    assert faults({"limits": {"device_hours": 0}}) == [
        "limits.device_hours: must be more than 0, not 0"
    ]
