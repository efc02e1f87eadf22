"""The live view: it follows a sweep from its records alone, and its pace is what they say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import provenance
from orchestrator.answers import Answers
from orchestrator.cost import DEFAULT_RATES, CostModel, Rates
from orchestrator.expand import expand
from orchestrator.journal import merge
from orchestrator.pace import WINDOW_SECONDS, pace
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from orchestrator.results import Results
from orchestrator.spec import load_spec
from orchestrator.store import MlflowStore
from orchestrator.verbs.status import Subject
from tests.orchestrator.made_records import NOON, envelope
from tests.orchestrator.sweep_files import write
from workloads import environment
from workloads.cell import Cell

MODEL = CostModel(rates=Rates(**DEFAULT_RATES["cpu"]), probed=False)


def record(cell: Cell, *, start: float, seconds: float, share: float = 1.0) -> Envelope:
    """A finished attempt that began `start` seconds after noon."""
    made = envelope(
        cell, environment=environment.describe(cell.device), source=provenance.source().hash
    )
    inner = replace(made.record, started_at=NOON + start, seconds=seconds, device_share=share)
    return replace(made, record=inner)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return expand(load_spec(write(tmp_path)))


def test_busy_devices_are_the_device_seconds_of_late_over_the_time_they_span(plan: Plan) -> None:
    cells = plan.cells
    # Two at once for 10 s, then one that held half a device for 10 s more.
    records = [
        record(cells[0], start=0, seconds=10),
        record(cells[1], start=0, seconds=10),
        record(cells[2], start=10, seconds=10, share=0.5),
    ]
    going = pace(Answers.of(plan, records), records, MODEL)
    assert going.busy == pytest.approx((10 + 10 + 5) / 20)
    assert going.seconds == pytest.approx(20)


def test_what_lies_before_the_window_does_not_count(plan: Plan) -> None:
    old = record(plan.cells[0], start=-5 * WINDOW_SECONDS, seconds=4 * WINDOW_SECONDS)
    late = [
        record(plan.cells[1], start=-0.5 * WINDOW_SECONDS, seconds=WINDOW_SECONDS),
        record(plan.cells[2], start=-2 * WINDOW_SECONDS, seconds=2.2 * WINDOW_SECONDS),
    ]
    going = pace(Answers.of(plan, [old, *late]), [old, *late], MODEL)
    assert going.seconds == pytest.approx(WINDOW_SECONDS)
    assert going.busy == pytest.approx(1.0 + 0.7)


def test_time_to_go_is_what_is_left_at_that_pace_and_nothing_in_the_end(plan: Plan) -> None:
    half = [record(cell, start=5 * i, seconds=10) for i, cell in enumerate(plan.cells[::2])]
    going = pace(Answers.of(plan, half), half, MODEL)
    assert going.busy is not None and going.seconds_to_go is not None
    left = sum(MODEL.predict(cell).seconds for cell in plan.cells[1::2])
    assert going.seconds_to_go == pytest.approx(left / going.busy)
    everything = [record(cell, start=i, seconds=1) for i, cell in enumerate(plan.cells)]
    assert pace(Answers.of(plan, everything), everything, MODEL).seconds_to_go == 0
    nothing = pace(Answers.of(plan, []), [], MODEL)
    assert nothing.busy is None and nothing.seconds_to_go is None


def test_records_from_elsewhere_are_seen_in_the_environment_of_the_newest(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    described = environment.describe(plan.cells[0].device)
    older, newer = (replace(described, driver=driver) for driver in ("older", "newer"))
    made = [(older, cell, 0.0) for cell in plan.cells[:5]]
    made += [(newer, cell, 100.0) for cell in plan.cells[:3]]
    records = []
    for where, cell, start in made:
        one = record(cell, start=start, seconds=1)
        records.append(replace(one, record=replace(one.record, environment=where)))
    results = Results.of(plan.name)
    store = MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", plan.name, results.folder)
    loaded = load_spec(tmp_path / "sweep.yaml")
    answers = Subject(loaded, results, results.journal(), store).answers(records)
    assert answers.counts()["finished"] == 3
    assert answers.environments[plan.cells[0].device] == newer


@pytest.fixture
def watching(tmp_path: Path, plan: Plan) -> Iterator[subprocess.Popen[str]]:
    """`status --watch` in another process, over a journal that holds half of the sweep, and a file
    that is no record."""
    journal = Results.of(plan.name, tmp_path / "results").journal()
    for i, cell in enumerate(plan.cells[::2]):
        journal.append(record(cell, start=i, seconds=1))
    (journal.folder / "damaged.json").write_text("{")
    command = [sys.executable, "-m", "orchestrator", "status", "sweep.yaml", "--watch"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        yield process
        process.kill()


def test_it_follows_the_journal_until_nothing_is_left(
    tmp_path: Path, plan: Plan, watching: subprocess.Popen[str]
) -> None:
    assert watching.stdout is not None and watching.stderr is not None
    first = watching.stdout.readline()
    assert first.startswith("21 of 42 cells, 1.0 devices busy over 21 s, ")
    assert first.endswith(" to go\n")
    journal = Results.of(plan.name, tmp_path / "results").journal()
    for i, cell in enumerate(plan.cells[1::2]):
        journal.append(record(cell, start=21 + i, seconds=1))
    rest = watching.stdout.read().splitlines()
    assert rest[-1] == "42 of 42 cells, nothing left to run"
    (left_out,) = watching.stderr.read().splitlines()
    assert left_out.startswith("left out: ") and "damaged.json" in left_out
    assert watching.wait(60) == 0
    assert not list(tmp_path.glob("*.db"))


def test_without_the_journal_it_follows_the_store_and_reads_only_what_is_new(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    half = [record(cell, start=i, seconds=1) for i, cell in enumerate(plan.cells[::2])]
    writer = MlflowStore(uri, plan.name, tmp_path / "elsewhere")
    writer.begin(plan)
    writer.write(list(merge(half).values()))

    loaded, results = load_spec(tmp_path / "sweep.yaml"), Results.of(plan.name)
    store = MlflowStore(uri, plan.name, results.folder)
    subject = Subject(loaded, results, results.journal(), store)
    found = store.records()
    assert subject.answers(found).counts() == {"finished": 21, "pending": 21}

    for path in (tmp_path / "mlruns").rglob("record.json"):
        path.unlink()  # what was read is not asked for again
    rest = [record(cell, start=21 + i, seconds=1) for i, cell in enumerate(plan.cells[1::2])]
    writer.write(list(merge(rest).values()))
    assert subject.answers(store.records()).counts() == {"finished": 42}
    assert not store.damaged
