"""How far a plan is answered: the status of each cell, and what a count does not show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator import provenance
from orchestrator.answers import Answers, cells, expected_environments
from orchestrator.journal import MAX_ATTEMPTS
from orchestrator.provenance import Envelope
from tests.orchestrator.made_records import cell, envelope, plan, timed
from workloads import environment, registry
from workloads.cell import Cell, Limits
from workloads.record import Status

HERE = environment.describe("cpu:1")
NOW = provenance.source().hash
CELLS = [cell(seq_len, "train_step_time", "prefill_time") for seq_len in (64, 128, 256)]


def here(of: Cell, status: Status = "finished", at: float = 0.0, source: str = NOW) -> Envelope:
    return envelope(of, status=status, at=at, environment=HERE, source=source)


def test_status_of_each_cell() -> None:
    records = [here(CELLS[0]), here(CELLS[1], "failed"), here(CELLS[2], "lost")]
    answers = Answers.of(plan(*CELLS, cell(512)), records)
    found = [answers.status(one) for one in answers.plan.cells]
    assert found == ["finished", "failed", "lost", "pending"]
    assert answers.counts() == dict.fromkeys(found, 1)
    assert [one.seq_len for one in answers.pending()] == [128, 256, 512]


def test_part_of_the_metrics_is_pending_for_the_rest() -> None:
    answers = Answers.of(plan(CELLS[0]), [here(CELLS[0].asking(("prefill_time",)))])
    assert answers.missing(CELLS[0]) == ("train_step_time",)
    assert answers.status(CELLS[0]) == "pending"
    assert answers.pending() == [CELLS[0].asking(("train_step_time",))]


def test_another_version_of_a_metric_is_pending() -> None:
    version = registry.metric("language_modelling", "train_step_time").version
    old = envelope(
        CELLS[0],
        timed("train_step_time", 1.0, version=version + 1),
        timed("prefill_time", 1.0),
        environment=HERE,
    )
    assert Answers.of(plan(CELLS[0]), [old]).missing(CELLS[0]) == ("train_step_time",)


def test_a_failure_after_an_answer_takes_nothing_away() -> None:
    answers = Answers.of(plan(CELLS[0]), [here(CELLS[0]), here(CELLS[0], "failed", at=9)])
    assert answers.status(CELLS[0]) == "finished"
    assert answers.pending() == []


@pytest.mark.parametrize("status", ["failed", "lost"])
def test_attempts_are_bounded_per_limits_and_code(status: Status) -> None:
    tries = [here(CELLS[0], status, at=float(n)) for n in range(MAX_ATTEMPTS)]
    assert not Answers.of(plan(CELLS[0]), tries[:-1]).exhausted(CELLS[0])
    answers = Answers.of(plan(CELLS[0]), tries)
    assert answers.exhausted(CELLS[0])
    assert answers.pending() == []
    assert answers.status(CELLS[0]) == status
    larger = replace(CELLS[0], limits=Limits(cell_seconds=9999))
    assert Answers.of(plan(larger), tries).pending() == [larger]
    other = [here(CELLS[0], status, at=float(n), source="old") for n in range(MAX_ATTEMPTS)]
    assert Answers.of(plan(CELLS[0]), other).pending() == [CELLS[0]]


def test_other_environments_are_counted_where_they_answer_alone() -> None:
    elsewhere = replace(HERE, driver="9")
    records = [
        here(CELLS[0]),
        envelope(CELLS[0], environment=elsewhere),
        envelope(CELLS[1], environment=elsewhere),
        envelope(CELLS[2], environment=elsewhere, status="failed"),
    ]
    answers = Answers.of(plan(*CELLS), records)
    assert answers.elsewhere() == 1
    assert [answers.status(one) for one in CELLS] == ["finished", "pending", "pending"]


def test_remarks_are_sentences_and_none_where_there_is_nothing() -> None:
    assert Answers.of(plan(*CELLS), [here(one) for one in CELLS]).remarks() == []
    records = [here(CELLS[0], source="old"), here(CELLS[1], "failed", source="old")]
    assert Answers.of(plan(*CELLS), records).remarks() == [
        "1 cell answered by other source code than today's"
    ]
    assert cells(12_000) == "12,000 cells"


def test_the_environment_of_the_nodes_decides_not_that_of_the_driver() -> None:
    nodes = replace(HERE, device_name="another processor")
    records = [envelope(CELLS[0], environment=nodes), here(CELLS[1])]
    answers = Answers.of(plan(*CELLS), records, {"cpu:1": nodes})
    assert [answers.status(one) for one in CELLS] == ["finished", "pending", "pending"]
    assert answers.elsewhere() == 1


def test_a_device_that_is_not_here_is_as_the_newest_record_has_it() -> None:
    """`status` and `plan` on a laptop, of a sweep whose cells run on a cluster's GPUs."""
    device = "nvidia-h100-80gb-hbm3"
    there = [replace(HERE, device=device, driver=driver) for driver in ("1", "2")]
    cells_there = [replace(one, device=device) for one in CELLS]
    records = [
        envelope(cells_there[0], environment=there[0], at=1),
        envelope(cells_there[1], environment=there[1], at=2),
    ]
    answers = Answers.of(plan(*cells_there), records)
    assert [answers.status(one) for one in cells_there] == ["pending", "finished", "pending"]
    assert expected_environments(["cpu:1"], records) == {"cpu:1": HERE}
