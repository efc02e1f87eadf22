"""The spine: resuming is set difference, whatever interrupted it, and failures are bounded.

A simulated world executes, and everything else is real: plan, journal, answers, predictions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import answers as answers_of
from orchestrator import sweep
from orchestrator.answers import Answers
from orchestrator.cost import cost_model
from orchestrator.expand import expand
from orchestrator.journal import MAX_ATTEMPTS, Journal
from orchestrator.plan import Plan
from orchestrator.provenance import Source
from orchestrator.spec.load import LoadedSpec, validated
from orchestrator.spec.strict_yaml import parse
from orchestrator.sweep import Execute, run_sweep
from tests.orchestrator.sweep_files import changed
from tests.simulated_world import Law, SimulatedWorld
from workloads import environment
from workloads.cell import Cell
from workloads.measurement import Measurement
from workloads.record import RunRecord

HERE = environment.describe("cpu:1")
LAWS = {"lstm": Law(linear=1e-5), "gru": Law(), "transformer": Law(quadratic=1e-8)}


def plan_of(changes: dict[str, Any] | None = None) -> Plan:
    text = json.dumps(changed(changes or {}))
    return expand(LoadedSpec(path="x.yaml", spec=validated("x.yaml", parse(text)), text=text))


@dataclass
class Sweep:
    """A sweep's folder, with what was executed, notified and watched in it."""

    folder: Path
    executed: list[Cell] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)
    notified: int = 0
    on_disk: list[int] = field(default_factory=list)
    interrupt_after: int | None = None
    clock: float = 1_700_000_000.0
    epoch: int = 0

    def run(self, plan: Plan, execute: Execute | None = None) -> Answers:
        self.executed = []
        self.epoch += 1
        journal = Journal(self.folder)
        return run_sweep(
            plan,
            journal,
            self._noting(execute or answered),
            epoch=self.epoch,
            model=cost_model("cpu:1", self.folder / "cache"),
            follower=self,
            watcher=self,
        )

    def _noting(self, execute: Execute) -> Execute:
        def noting(cells: Sequence[Cell]) -> Iterator[tuple[Cell, RunRecord]]:
            for cell, record in execute(cells):
                self.executed.append(cell)
                self.clock += 1
                yield cell, replace(record, started_at=self.clock)

        return noting

    def notify(self) -> None:
        self.notified += 1
        self.on_disk.append(len(list(self.folder.glob("*.json"))))

    def say(self, text: str) -> None:
        raise AssertionError(text)

    def answered(self, cell: Cell, record: RunRecord) -> None:
        self.watched.append(cell.id)
        if len(self.watched) == self.interrupt_after:
            raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "journal")


def answered(cells: Sequence[Cell]) -> Iterator[tuple[Cell, RunRecord]]:
    return SimulatedWorld(laws=LAWS, environment=HERE).execute(cells)


def changing(change: Callable[[RunRecord], RunRecord]) -> Execute:
    """An executor whose records are changed before they are handed on."""

    def execute(cells: Sequence[Cell]) -> Iterator[tuple[Cell, RunRecord]]:
        for cell, record in answered(cells):
            yield cell, change(record)

    return execute


def failed(record: RunRecord) -> RunRecord:
    """The LSTM's cells fail."""
    if record.cell.label != "lstm":
        return record
    return replace(record, status="failed", measurements=(), message="it broke")


def timed_out(record: RunRecord) -> RunRecord:
    """The GRU's steps take too long."""

    def cut(measurement: Measurement) -> Measurement:
        late = record.cell.label == "gru" and measurement.metric == "train_step_time"
        return replace(measurement, samples=(), reason="timeout") if late else measurement

    return replace(record, measurements=tuple(map(cut, record.measurements)))


def ids(cells: Sequence[Cell]) -> set[str]:
    return {cell.id for cell in cells}


def test_every_cell_is_answered_once_in_the_order_of_the_plan(folder: Sweep) -> None:
    plan = plan_of()
    answers = folder.run(plan)
    assert folder.executed == list(plan.cells)
    assert folder.watched == [cell.id for cell in plan.cells]
    assert answers.counts() == {"finished": len(plan.cells)}
    assert answers.pending() == []


def test_nothing_hears_of_a_record_before_it_is_on_disk(folder: Sweep) -> None:
    folder.run(plan_of())
    assert folder.on_disk == list(range(1, len(folder.watched) + 1))


def test_the_same_command_again_runs_nothing(folder: Sweep) -> None:
    folder.run(plan_of())
    folder.run(plan_of())
    assert folder.executed == []


@pytest.mark.parametrize("after", [1, 7, 41])
def test_an_interrupt_loses_nothing(folder: Sweep, after: int) -> None:
    plan = plan_of()
    folder.interrupt_after = after
    with pytest.raises(KeyboardInterrupt):
        folder.run(plan)
    first = ids(folder.executed)
    assert len(first) == after
    folder.run(plan)
    assert ids(folder.executed) == ids(plan.cells) - first
    assert len(Journal(folder.folder).read()) == len(plan.cells)


def test_an_executor_that_breaks_loses_nothing(folder: Sweep) -> None:
    def breaking(cells: Sequence[Cell]) -> Iterator[tuple[Cell, RunRecord]]:
        for number, answer in enumerate(answered(cells)):
            if number == 5:
                raise RuntimeError("the engine stopped")
            yield answer

    with pytest.raises(RuntimeError, match="the engine stopped"):
        folder.run(plan_of(), breaking)
    answers = folder.run(plan_of())
    assert len(folder.executed) == len(plan_of().cells) - 5
    assert answers.pending() == []


def test_more_rounds_and_contexts_run_only_what_is_new(folder: Sweep) -> None:
    few, many = plan_of(), plan_of({"measure.rounds": 4, "measure.seq_len": [64, 96, 128]})
    folder.run(few)
    folder.run(many)
    assert ids(folder.executed) == ids(many.cells) - ids(few.cells)


def test_one_more_metric_runs_that_metric_alone(folder: Sweep) -> None:
    folder.run(plan_of())
    metrics = ["train_step_time", "state_bytes", "prefill_time", "peak_memory"]
    answers = folder.run(plan_of({"measure.metrics": metrics}))
    assert {cell.round for cell in folder.executed} == {0, 1, 2}
    for cell in folder.executed:
        new = ("prefill_time", "peak_memory") if cell.round == 0 else ("prefill_time",)
        assert cell.metrics == new
    assert answers.pending() == []


def test_fewer_metrics_and_other_order_run_nothing(folder: Sweep) -> None:
    folder.run(plan_of())
    folder.run(plan_of({"measure.metrics": ["state_bytes"]}))
    folder.run(plan_of({"measure.seq_len": [128, 64], "architectures": ["transformer", "lstm"]}))
    assert folder.executed == []


def test_a_failure_is_tried_three_times_and_then_left_alone(folder: Sweep) -> None:
    plan = plan_of()
    of_lstm = [cell for cell in plan.cells if cell.label == "lstm"]
    for attempt in range(1, MAX_ATTEMPTS + 1):
        answers = folder.run(plan, changing(failed))
        tried = folder.executed if attempt > 1 else of_lstm
        assert ids(tried) == ids(of_lstm)
        assert answers.counts()["failed"] == len(of_lstm)
    answers = folder.run(plan, changing(failed))
    assert folder.executed == []
    assert all(answers.exhausted(cell) for cell in of_lstm)
    assert answers.remarks() == [
        f"{len(of_lstm)} cells failed as often as allowed; other code or limits start anew"
    ]
    attempts = [
        one.attempt for one in Journal(folder.folder).read() if one.record.cell.id == of_lstm[0].id
    ]
    assert attempts == [1, 2, 3]


def test_a_retry_that_finishes_answers(folder: Sweep) -> None:
    folder.run(plan_of(), changing(failed))
    answers = folder.run(plan_of())
    assert answers.counts() == {"finished": len(plan_of().cells)}
    folder.run(plan_of())
    assert folder.executed == []


def test_changed_limits_start_anew(folder: Sweep) -> None:
    for _ in range(MAX_ATTEMPTS + 1):
        folder.run(plan_of(), changing(failed))
    larger = plan_of({"limits": {"cell_seconds": 900}})
    for _ in range(MAX_ATTEMPTS):
        folder.run(larger, changing(failed))
        assert {cell.label for cell in folder.executed} == {"lstm"}
    folder.run(larger, changing(failed))
    assert folder.executed == []


def test_changed_code_starts_anew(folder: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(MAX_ATTEMPTS + 1):
        folder.run(plan_of(), changing(failed))
    source = Source(commit=None, dirty=None, hash="mended")
    for module in (answers_of, sweep):
        monkeypatch.setattr(module.provenance, "source", lambda: source)
    answers = folder.run(plan_of())
    assert {cell.label for cell in folder.executed} == {"lstm"}
    others = sum(cell.label != "lstm" for cell in plan_of().cells)
    assert answers.remarks() == [f"{others} cells answered by other source code than today's"]


def test_a_limit_that_was_reached_is_asked_again_only_with_more_of_it(folder: Sweep) -> None:
    folder.run(plan_of(), changing(timed_out))
    folder.run(plan_of(), changing(timed_out))
    assert folder.executed == []
    folder.run(plan_of({"limits": {"cell_seconds": 60}}), changing(timed_out))
    assert folder.executed == []
    folder.run(plan_of({"limits": {"cell_seconds": 6000}}))
    assert {cell.label for cell in folder.executed} == {"gru"}
    assert {cell.metrics for cell in folder.executed} == {("train_step_time",)}


def test_another_environment_is_asked_for_itself(folder: Sweep) -> None:
    elsewhere = replace(HERE, device_name="another processor")
    folder.run(plan_of(), changing(lambda record: replace(record, environment=elsewhere)))
    answers = Answers.of(plan_of(), Journal(folder.folder).read())
    assert len(answers.pending()) == len(plan_of().cells)
    assert answers.remarks() == [
        f"{len(plan_of().cells)} cells answered in another environment only; they are kept apart"
    ]
    assert not folder.run(plan_of()).remarks()
    assert len(folder.executed) == len(plan_of().cells)


def test_every_record_carries_what_was_predicted(folder: Sweep) -> None:
    folder.run(plan_of())
    for envelope in Journal(folder.folder).read():
        assert envelope.prediction is not None
        assert envelope.prediction.seconds > 0
        assert envelope.sweep == "made"
        assert envelope.spec_hash == plan_of().spec_hash
