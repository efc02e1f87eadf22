"""A sweep whose cells cost next to nothing, executed and recorded as `sweep` does it: what remains
is the price of a cell's logistics."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator import runtime
from orchestrator.cost import cost_model
from orchestrator.journal import Journal
from orchestrator.plan import Comparison, Plan
from orchestrator.recorder import Recorder, Subject
from orchestrator.sweep import run_sweep
from workloads import environment
from workloads.cell import Cell
from workloads.record import RunRecord


def trivial_cell(seed: int) -> Cell:
    """One update over four tokens, and one evaluation that returns a constant."""
    return Cell(
        kind="train",
        architecture="none",
        architecture_version=1,
        label="none",
        task="instant",
        task_version=1,
        size=1000,
        num_layers=1,
        precision="float32",
        device="cpu:1",
        seq_len=4,
        seed=seed,
        tokens=4,
        tokens_per_update=4,
        learning_rate=1e-3,
        metrics=("one",),
    )


def plan_of(cells: int) -> Plan:
    return Plan(
        name="trivial",
        question="What does a cell cost beside its own work?",
        spec_hash="0" * 12,
        spec_yaml="",
        token_unit="tokens",
        cells=tuple(trivial_cell(seed) for seed in range(cells)),
        labels=("none",),
        comparison=Comparison(baseline="none", zone=(4, 4)),
    )


class Clock:
    """Watches a sweep: when each cell was answered."""

    def __init__(self) -> None:
        self.answered_at: list[float] = []

    def answered(self, cell: Cell, record: RunRecord) -> None:
        assert record.status == "finished", record.message
        self.answered_at.append(time.monotonic())

    def say(self, text: str) -> None:
        print(text)


def run(cells: int, database: Path, slots: int) -> tuple[list[float], float]:
    """Run so many cells; when each was answered, and when the store had them all."""
    runtime.set_ray_environment()
    from orchestrator.scheduler import ray_started, run_on_ray

    plan, clock = plan_of(cells), Clock()
    folder = database.parent / "results"
    journal = Journal(folder / "journal")
    subject = Subject(
        uri=f"sqlite:///{database}",
        name=plan.name,
        question=plan.question,
        spec_hash=plan.spec_hash,
        journal=str(journal.folder),
        results=str(folder),
        lease=1,
    )
    recorder = Recorder(subject, print)
    recorder.start()

    with ray_started(environment.cores()[:slots]) as session:
        answers = run_sweep(
            plan,
            journal,
            lambda pending: run_on_ray(pending, session, peak_bytes=lambda cell: 100 << 20),
            epoch=1,
            model=cost_model("cpu:1", folder),
            follower=recorder,
            watcher=clock,
        )
        # Before Ray goes down, whose end is as little a cell's cost as its start.
        behind = recorder.close(300)
        recorded = time.monotonic()
    recorder.stop()
    assert answers.counts()["finished"] == cells
    assert behind == 0, f"{behind} cells are not in the store"
    return clock.answered_at, recorded
