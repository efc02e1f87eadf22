"""No clock decides what is newest: one that jumps, either way, changes neither the order of records
nor what is drawn or shown."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.analysis.observations import observe
from orchestrator.journal import Journal, merge, merge_cell
from orchestrator.provenance import Envelope
from orchestrator.store import MlflowStore
from orchestrator.verbs.analyze import on_recorded_device
from tests.orchestrator import sweep_files
from tests.orchestrator.made_records import HERE, cell, envelope, plan, timed

ROOT = Path(__file__).parents[2]
JUMPS = pytest.mark.parametrize("jump", [-1e8, 0.0, 1e8], ids=["back", "none", "forward"])


@JUMPS
def test_records_are_ordered_by_driver_and_count(tmp_path: Path, jump: float) -> None:
    ordered = [
        envelope(cell(128), at=0, epoch=1, sequence=1),
        envelope(cell(256), at=jump, epoch=1, sequence=2),
        envelope(cell(512), at=jump + 1, epoch=1, sequence=10),
        envelope(cell(1024), at=2, epoch=2, sequence=1),
    ]
    journal = Journal(tmp_path)
    for one in reversed(ordered):
        journal.append(one)
    assert Journal(tmp_path).read() == ordered


def test_records_older_than_leases_come_first_and_by_their_times() -> None:
    new = envelope(cell(), at=-1e9, epoch=1, sequence=1)
    old = [envelope(cell(), at=at) for at in (5, 6)]
    for one in old:
        content = one.to_dict()
        del content["epoch"], content["sequence"]
        assert Envelope.from_dict(content) == one
    assert merge_cell([new, *reversed(old)]).envelopes == (*old, new)


@JUMPS
def test_the_newer_measurement_counts(jump: float) -> None:
    asked = cell(128, "train_step_time", "peak_memory")
    first = envelope(asked, at=0, epoch=1, sequence=1)
    second = envelope(asked, timed("peak_memory", 7.0), at=jump, epoch=1, sequence=2)
    failed = envelope(asked, status="failed", at=-jump, epoch=2, sequence=1)
    merged = merge_cell([failed, second, first])
    assert merged.measurements["peak_memory"].samples == (7.0,)
    assert merged.newest == failed
    assert merged.attempts == 1


@JUMPS
def test_the_environment_and_device_of_the_newest_records_are_drawn(
    tmp_path: Path, jump: float
) -> None:
    elsewhere = replace(HERE, device_name="another processor")
    sweep = plan(cell(128), cell(256))
    old = [envelope(one, at=0, epoch=1, sequence=n) for n, one in enumerate(sweep.cells)]
    other = replace(cell(256), device="cpu:3")
    new = envelope(cell(256), environment=elsewhere, at=jump, epoch=2, sequence=1)
    assert observe(sweep, [new, *old]).environment == elsewhere.fingerprint
    moved = envelope(other, at=jump, epoch=2, sequence=2)
    loaded = sweep_files.load(tmp_path, {"device": "auto"})
    assert on_recorded_device(loaded, [moved, new, *old]).device == "cpu:3"


@JUMPS
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_mlflow_shows_the_newer_value(database: Path, jump: float) -> None:
    first = envelope(cell(), timed("train_step_time", 0.5), at=0, epoch=1, sequence=1)
    second = envelope(cell(), timed("train_step_time", 0.25), at=jump, epoch=1, sequence=2)
    uri = f"sqlite:///{database}"
    store = MlflowStore(uri, "sweep", database.parent / "results")
    store.begin(plan())
    for seen in ([first], [first, second]):
        store.write(list(merge(seen).values()))
    client = MlflowClient(uri)
    runs = {run.data.tags.get("kind"): run for run in client.search_runs(["1"])}
    assert runs["measure"].data.metrics == {"train_step_time": 0.25}
    assert runs["measure"].info.end_time >= runs["measure"].info.start_time


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_mlflow_shows_the_newer_medians(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MlflowStore(f"sqlite:///{database}", "sweep", database.parent / "results")
    now = 1_700_000_000.0
    for clock, median in ((now, 0.5), (now - 1e6, 0.25)):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        store.finish(plan(), {"train_step_time/lstm": [(128, median)]}, database.parent)
    client = MlflowClient(f"sqlite:///{database}")
    (parent,) = client.search_runs(["1"], "tags.kind = 'sweep'")
    assert parent.data.metrics == {"train_step_time/lstm": 0.25}


SAYING_WHEN = {
    "orchestrator/isolation.py",
    "orchestrator/runtime.py",
    "orchestrator/scheduler/execution.py",
    "orchestrator/store/parent_run.py",
    "workloads/__main__.py",
}
"""Files that ask for the time of day, to say when something was, or how old a file is."""


def test_the_time_of_day_is_only_said() -> None:
    """Seconds and deadlines come from a clock that does not jump."""
    asking = {
        path.relative_to(ROOT).as_posix()
        for package in ("orchestrator", "workloads")
        for path in (ROOT / package).rglob("*.py")
        if any(_asks_for_the_time_of_day(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert asking <= SAYING_WHEN


def _asks_for_the_time_of_day(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) in (
        "time.time",
        "time.time_ns",
        "datetime.now",
    )
