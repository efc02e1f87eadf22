"""The MLflow store on a real SQLite database: one run per cell however often the writer dies,
everything in it, nothing left RUNNING, and all records back from it alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator import follower
from orchestrator.child_run import CURVE_POINTS, sha256
from orchestrator.errors import LeaseLost, StoreError
from orchestrator.follower import StoreWriter
from orchestrator.journal import Journal, Merged, merge
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from orchestrator.store import MlflowStore, resolve_uri
from tests.orchestrator.made_records import HERE, cell, curve, envelope, plan, timed
from workloads.cell import Limits
from workloads.record import Status

# MLflow's own use of SQLAlchemy, not ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

LENGTHS = (128, 256, 512)


def store_of(database: Path) -> MlflowStore:
    return MlflowStore(f"sqlite:///{database}", "sweep", database.parent / "results")


def merged_of(*envelopes: Envelope) -> list[Merged]:
    return list(merge(envelopes).values())


def runs_of(database: Path, sweep: str = "sweep") -> list[Run]:
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def children_of(database: Path) -> list[Run]:
    return [run for run in runs_of(database) if "mlflow.parentRunId" in run.data.tags]


def parent_of(database: Path) -> Run:
    (parent,) = [run for run in runs_of(database) if "mlflow.parentRunId" not in run.data.tags]
    return parent


def written(database: Path, *envelopes: Envelope) -> MlflowStore:
    """A store that has these records."""
    store = store_of(database)
    store.begin(plan())
    store.write(merged_of(*envelopes))
    return store


# -- what a run says -----------------------------------------------------------------------------


def test_a_child_run_holds_what_the_contract_lists(database: Path) -> None:
    one = envelope(cell(512, "train_step_time", "peak_memory"))
    written(database, one)
    (run,) = children_of(database)
    parent = parent_of(database)
    tags = run.data.tags
    assert run.info.status == "FINISHED"
    assert run.info.start_time == round(one.record.started_at * 1000)
    assert run.info.end_time == round(one.finished_at * 1000)
    assert run.data.metrics == {"train_step_time": 0.5, "peak_memory": 0.5}
    assert run.data.params["seq_len"] == "512"
    assert run.data.params["options.state"] == "sqrt"
    assert not {"metrics", "limits", "learning_rate"} & set(run.data.params)
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    expected = {
        "cell_id": one.record.cell.id,
        "kind": "measure",
        "spec_hash": "5bec",
        "status": "finished",
        "reason": "",
        "environment": HERE.fingerprint,
        "git_commit": "c0ffee",
        "git_dirty": "False",
        "device_name": "a processor",
        "schema": "1",
    }
    assert {name: tags[name] for name in expected} == expected
    record = Path(run.info.artifact_uri.removeprefix("file://")) / "record.json"
    assert record.is_relative_to(database.parent / "mlruns")
    assert tags["record_sha256"] == sha256(record.read_bytes())
    assert Envelope.from_dict(json.loads(record.read_bytes())) == one
    assert parent.data.tags["spec_hash"] == "5bec"


@pytest.mark.parametrize(
    ("status", "expected"), [("finished", "FINISHED"), ("failed", "FAILED"), ("lost", "KILLED")]
)
def test_how_a_cell_ended_is_how_its_run_ends(
    database: Path, status: Status, expected: str
) -> None:
    written(database, envelope(cell(), status=status))
    (run,) = children_of(database)
    assert run.info.status == expected
    assert run.data.tags["status"] == status


def test_a_limit_reached_is_a_result_without_a_number(database: Path) -> None:
    written(database, envelope(cell(), timed("train_step_time", reason="out_of_memory")))
    (run,) = children_of(database)
    assert run.info.status == "FINISHED"
    assert run.data.tags["reason"] == "out_of_memory"
    assert run.data.metrics == {}


def test_a_curve_keeps_its_steps_and_is_thinned_to_its_last_point(database: Path) -> None:
    short = curve("loss", (10, 20, 30), 3.0, 2.0, 1.0)
    steps = tuple(range(7, 7 + 10 * 3000, 10))
    long = curve("validation_loss", steps, *(1.0 / step for step in steps))
    written(database, envelope(cell(128, "loss", "validation_loss"), short, long))
    (run,) = children_of(database)
    client = MlflowClient(f"sqlite:///{database}")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((one.step, one.value) for one in history) == [(10, 3.0), (20, 2.0), (30, 1.0)]
    sent = client.get_metric_history(run.info.run_id, "validation_loss")
    assert len(sent) == CURVE_POINTS
    assert {steps[0], steps[-1]} <= {one.step for one in sent} <= set(steps)


def test_long_messages_are_shortened_not_refused(database: Path) -> None:
    failed = envelope(cell(), status="failed")
    long = replace(failed, record=replace(failed.record, message="x" * 20_000))
    store = written(database, long)
    (run,) = children_of(database)
    assert len(run.data.tags["message"]) <= 8000
    assert store.records() == [long]


# -- one run per cell ----------------------------------------------------------------------------


def test_replaying_everything_adds_nothing(database: Path) -> None:
    records = [envelope(cell(128, "loss"), curve("loss", (1, 2), 0.5, 0.25))]
    written(database, *records)
    shutil.rmtree(database.parent / "results")
    written(database, *records)
    store = written(database, *records)
    (run,) = children_of(database)
    history = MlflowClient(f"sqlite:///{database}").get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.25)]
    assert store.behind(merged_of(*records)) == []


def test_later_records_of_a_cell_update_its_run(database: Path) -> None:
    asked = cell(128, "train_step_time", "peak_memory")
    failed = envelope(asked, status="failed", at=1)
    first = envelope(asked.asking(("train_step_time",)), at=2)
    second = envelope(asked.asking(("peak_memory",)), at=3)
    limits = replace(asked, limits=Limits(cell_seconds=9), metrics=("decode_time",))
    third = envelope(limits, at=4)
    store = store_of(database)
    store.begin(plan())
    seen: list[Envelope] = []
    for one, status in ((failed, "FAILED"), (first, "FINISHED"), (second, "FINISHED")):
        seen.append(one)
        store.write(merged_of(*seen))
        (run,) = children_of(database)
        assert run.info.status == status
    store.write(merged_of(*seen, third))
    (run,) = children_of(database)
    assert set(run.data.metrics) == {"train_step_time", "peak_memory", "decode_time"}
    assert run.data.tags["limits.cell_seconds"] == "9"
    assert store_of(database).records() == [failed, first, second, third]


def test_an_environment_of_its_own_has_a_run_of_its_own(database: Path) -> None:
    elsewhere = replace(HERE, driver="570.1")
    written(database, envelope(cell()), envelope(cell(), environment=elsewhere))
    assert len(children_of(database)) == 2


def test_a_second_driver_adopts_what_the_first_made(database: Path) -> None:
    written(database, envelope(cell(128)))
    again = store_of(database)
    again.begin(plan())
    again.write(merged_of(envelope(cell(256))))
    assert len(children_of(database)) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in children_of(database)} == {
        parent_of(database).info.run_id
    }


def test_a_second_run_that_a_driver_began_when_it_was_cut_off_goes(database: Path) -> None:
    one = envelope(cell())
    store = written(database, one)
    (run,) = children_of(database)
    tags = {name: run.data.tags[name] for name in ("cell_id", "environment", "mlflow.parentRunId")}
    MlflowClient(f"sqlite:///{database}").create_run(run.info.experiment_id, tags=tags)
    assert len(children_of(database)) == 2
    store.begin(plan())
    assert [left.info.run_id for left in children_of(database)] == [run.info.run_id]


def test_a_record_is_there_while_it_is_replaced(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the file was replaced and before its digest was said, either one is known."""
    first = envelope(cell(), status="failed", at=1)
    store = written(database, first)
    second = envelope(cell(), at=2)

    def cut_off(*arguments: object) -> None:
        raise OSError("cut off")

    monkeypatch.setattr("orchestrator.store.cell_runs.child_run.times", cut_off)
    with pytest.raises(StoreError, match="cut off"):
        store.write(merged_of(first, second))
    assert store_of(database).records() == [first, second]


def test_a_torn_ledger_is_read_up_to_the_tear(database: Path) -> None:
    records = [envelope(cell(length)) for length in LENGTHS]
    written(database, *records)
    (ledger,) = (database.parent / "results" / "mlflow").glob("*.jsonl")
    ledger.write_bytes(ledger.read_bytes()[:-30])
    store = store_of(database)
    store.begin(plan())
    assert len(store.behind(merged_of(*records))) == 3
    store.write(merged_of(*records))
    assert len(children_of(database)) == 3
    assert store_of(database).behind(merged_of(*records)) == []


def test_a_ledger_damaged_in_the_middle_is_made_anew_from_the_store(database: Path) -> None:
    records = [envelope(cell(length)) for length in LENGTHS]
    written(database, *records)
    (ledger,) = (database.parent / "results" / "mlflow").glob("*.jsonl")
    lines = ledger.read_bytes().splitlines()
    ledger.write_bytes(b"\n".join([lines[0], b"{garbage", *lines[2:]]) + b"\n")
    store = store_of(database)
    store.begin(plan())
    assert store.behind(merged_of(*records)) == []


def test_a_new_database_at_the_same_path_is_noticed(
    database: Path, empty_database: Path, tmp_path: Path
) -> None:
    records = [envelope(cell(length)) for length in LENGTHS]
    journal = Journal(tmp_path / "journal")
    for one in records:
        journal.append(one)
    assert _record(database, journal) == "0 left"
    for old in (*database.parent.glob("mlflow.db*"),):
        old.unlink()
    shutil.copy(empty_database, database)
    assert _record(database, journal) == "0 left"
    assert len(children_of(database)) == 3


def test_children_of_a_deleted_parent_move_to_the_new_one(database: Path) -> None:
    records = merged_of(*(envelope(cell(length)) for length in LENGTHS))
    written(database, *(one.newest for one in records))
    gone = parent_of(database).info.run_id
    MlflowClient(f"sqlite:///{database}").delete_run(gone)
    store = store_of(database)
    store.begin(plan())
    store.write(store.behind(records))
    parent = parent_of(database).info.run_id
    assert parent != gone
    tags = [run.data.tags for run in children_of(database)]
    assert [one["mlflow.parentRunId"] for one in tags] == [parent] * 3


def test_a_run_deleted_by_hand_is_made_anew_when_its_cell_has_news(database: Path) -> None:
    asked = cell(128, "train_step_time", "peak_memory")
    first = envelope(asked.asking(("train_step_time",)), at=1)
    store = written(database, first)
    (run,) = children_of(database)
    MlflowClient(f"sqlite:///{database}").delete_run(run.info.run_id)
    news = merged_of(first, envelope(asked.asking(("peak_memory",)), at=2))
    with pytest.raises(StoreError):
        store.write(news)
    store.begin(plan())
    store.write(news)
    (made,) = children_of(database)
    assert made.info.run_id != run.info.run_id
    assert set(made.data.metrics) == {"train_step_time", "peak_memory"}


def test_a_deleted_experiment_is_refused_with_the_mend(database: Path) -> None:
    written(database, envelope(cell()))
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(StoreError) as caught:
        store_of(database).begin(plan())
    mend = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    assert mend in str(caught.value)
    assert f"sqlite:///{database}" in str(caught.value)
    client.restore_experiment(experiment.experiment_id)
    store_of(database).begin(plan())


# -- a writer killed at every boundary -----------------------------------------------------------

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from orchestrator import durable, follower, lease
from orchestrator.follower import StoreWriter
from orchestrator.journal import Journal
from orchestrator.results import Results
from orchestrator.store import MlflowStore
from tests.orchestrator.made_records import plan

def killing(function):
    def wrapped(*arguments, **options):
        boundary()
        result = function(*arguments, **options)
        boundary()
        return result
    return wrapped

def boundary():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def record(database):
    for name in ("create_experiment", "create_run", "log_batch", "set_terminated", "update_run"):
        setattr(MlflowClient, name, killing(getattr(MlflowClient, name)))
    os.fsync, Path.rename = killing(os.fsync), killing(Path.rename)
    durable.sync, lease._write = killing(durable.sync), killing(lease._write)
    results, journal = database.parent / "results", Journal(database.parent / "journal")
    follower.GATHER_SECONDS = 0.0
    with Results(results).locked() as held:
        held.exceed(3)
        store = MlflowStore(f"sqlite:///{database}", "sweep", results, held.check)
        writer = StoreWriter(store, journal, plan(), results, print, held.check)
        writer.start()
        assert writer.close(60) == 0

for argument in sys.argv[1:]:
    database, _, number = argument.rpartition(":")
    left = int(number)
    if (child := os.fork()) == 0:
        record(Path(database))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
    if status == 0:
        break
"""


def _kill(*at: tuple[Path, int]) -> list[int]:
    """How writers ended that were to die at the given boundary of a write to the given database,
    each in a process of its own, up to the first that came to its end."""
    command = [sys.executable, "-c", KILLED_AT, *(f"{path}:{number}" for path, number in at)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=paths, check=True)
    return [int(line) for line in done.stdout.split()]


def _record(database: Path, journal: Journal) -> str:
    """What a new writer says it left, in this process."""
    said: list[str] = []
    store = store_of(database)
    writer = StoreWriter(store, journal, plan(), database.parent / "results", said.append)
    writer.start()
    left = writer.close(60)
    return "; ".join([f"{left} left", *said])


def _check_whole(database: Path, records: list[Envelope]) -> None:
    children = children_of(database)
    assert len({run.data.tags["cell_id"] for run in children}) == len(children) == len(records)
    assert {run.info.status for run in runs_of(database)} <= {"FINISHED", "FAILED", "KILLED"}
    store = store_of(database)
    assert sorted(one.key for one in store.records()) == sorted(one.key for one in records)
    assert store.damaged == {}
    client = MlflowClient(f"sqlite:///{database}")
    for run in children:
        assert len(client.get_metric_history(run.info.run_id, "train_step_time")) == 1
    parent_of(database)


@pytest.mark.slow
def test_a_writer_killed_at_every_boundary_leaves_nothing_twice_and_nothing_lost(
    empty_database: Path, tmp_path: Path
) -> None:
    records = [envelope(cell(length)) for length in LENGTHS[:2]]
    databases = [tmp_path / str(number) / "mlflow.db" for number in range(60)]
    for database in databases:
        database.parent.mkdir()
        shutil.copy(empty_database, database)
        for one in records:
            Journal(database.parent / "journal").append(one)
    ends = _kill(*((database, number) for number, database in enumerate(databases, start=1)))
    assert ends[-1] == 0
    assert set(ends[:-1]) == {-signal.SIGKILL}
    assert len(ends) > 20
    for number, _ in enumerate(ends):
        database = databases[number]
        assert _record(database, Journal(database.parent / "journal")) == "0 left", number
        _check_whole(database, records)


def test_a_writer_killed_again_and_again_gets_there(database: Path) -> None:
    records = [envelope(cell(length)) for length in LENGTHS]
    journal = Journal(database.parent / "journal")
    for one in records:
        journal.append(one)
    assert _kill((database, 9), (database, 13), (database, 17)) == [-signal.SIGKILL] * 3
    assert _record(database, journal) == "0 left"
    _check_whole(database, records)


# -- the parent run ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_while_the_database_is_made_leaves_it_to_be_made(tmp_path: Path) -> None:
    """MLflow makes its tables one by one: some of them would be no database, and for ever."""
    script = (
        "import sys; from pathlib import Path; from orchestrator.store import MlflowStore; "
        "from tests.orchestrator.made_records import plan; "
        "MlflowStore(sys.argv[1], 'sweep', Path(sys.argv[2])).begin(plan())"
    )
    database = tmp_path / "mlflow.db"
    maker = subprocess.Popen(
        [sys.executable, "-c", script, f"sqlite:///{database}", str(tmp_path / "results")],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    until(lambda: any(file.stat().st_size for file in tmp_path.glob(".mlflow.db.*.new")))
    maker.kill()
    maker.wait()
    assert not database.exists()
    store_of(database).begin(plan())
    assert parent_of(database).info.status == "RUNNING"
    assert list(tmp_path.glob(".mlflow.db.*")) == []


def test_at_the_end_the_parent_has_curves_over_context_and_the_results(database: Path) -> None:
    store = written(database, envelope(cell()))
    results = database.parent / "results"
    for name in ("tables/cells.parquet", "plots/memory.svg", "report.html", "journal/x.json"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(name)
    medians = {"train_step_time/kvm (state=sqrt)/batch 8": [(128, 0.5), (256, 0.75)]}
    store.end()
    assert parent_of(database).info.status == "KILLED"
    store.finish(plan(), medians, results)
    store_of(database).finish(plan(), medians, results)
    parent = parent_of(database)
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in runs_of(database)} == {"FINISHED"}
    client = MlflowClient(f"sqlite:///{database}")
    (key,) = parent.data.metrics
    assert key.startswith("train_step_time/kvm") and not set(key) & set("@%()[]=,")
    history = client.get_metric_history(parent.info.run_id, key)
    assert [(one.step, one.value) for one in history] == [(128, 0.5), (256, 0.75)]
    found = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert found == {"tables", "plots", "report.html"}


def test_a_parent_is_running_while_its_sweep_does(database: Path) -> None:
    store = written(database, envelope(cell()))
    assert parent_of(database).info.status == "RUNNING"
    store.finish(plan(), {}, database.parent / "results")
    store_of(database).begin(replace(plan(), spec_hash="0ther"))
    parent = parent_of(database)
    assert parent.info.status == "RUNNING"
    assert parent.data.tags["spec_hash"] == "0ther"


# -- reading back --------------------------------------------------------------------------------


def test_records_come_back_from_mlflow_alone_also_from_a_copied_folder(
    database: Path, tmp_path: Path
) -> None:
    records = [envelope(cell(length), at=length) for length in LENGTHS]
    records.append(envelope(cell(1024), status="failed", at=2000))
    store = written(database, *records)
    store.finish(plan(), {}, database.parent / "results")
    there = tmp_path / "usb stick"
    there.mkdir()
    for name in database.parent.glob("mlflow.db*"):
        shutil.copy(name, there)
    shutil.move(database.parent / "mlruns", there / "mlruns")
    copied = MlflowStore(f"sqlite:///{there / 'mlflow.db'}", "sweep", tmp_path / "nowhere")
    assert sorted(copied.records(), key=lambda one: one.finished_at) == records
    assert copied.damaged == {}


def test_a_damaged_record_is_named_and_the_rest_come_back(database: Path) -> None:
    records = [envelope(cell(length)) for length in LENGTHS]
    store = written(database, *records)
    runs = {run.data.tags["cell_id"]: run for run in children_of(database)}
    files = [
        Path(runs[one.record.cell.id].info.artifact_uri.removeprefix("file://")) / "record.json"
        for one in records
    ]
    files[0].write_bytes(files[0].read_bytes().replace(b"0.25", b"0.24"))
    files[1].unlink()
    assert store.records() == [records[2]]
    first, second = (runs[one.record.cell.id].info.run_id for one in records[:2])
    assert "SHA-256" in store.damaged[first]
    assert "not there" in store.damaged[second]


def test_reading_what_is_not_there_makes_nothing(tmp_path: Path, database: Path) -> None:
    assert MlflowStore(f"sqlite:///{tmp_path / 'no.db'}", "sweep", tmp_path).records() == []
    assert not (tmp_path / "no.db").exists()
    assert store_of(database).records() == []


# -- where the store is --------------------------------------------------------------------------


def test_the_store_is_the_one_named_else_the_environments_else_beside_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:///a/b.db?timeout=3") == f"sqlite:///{tmp_path}/a/b.db?timeout=3"
    assert resolve_uri("sqlite:////srv/b.db") == "sqlite:////srv/b.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_uri(None) == "http://tracking:5000"
    assert resolve_uri("postgresql://db/mlflow") == "postgresql://db/mlflow"


@pytest.mark.parametrize("uri", ["./mlruns", "/srv/mlruns", "file:///srv/mlruns"])
def test_a_plain_folder_is_refused_with_the_mend(uri: str) -> None:
    with pytest.raises(StoreError, match=r"sqlite:///mlflow\.db"):
        resolve_uri(uri)


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    store = MlflowStore("https://me:secret@tracking.org/path", "sweep", tmp_path)
    assert store.address == "https://***@tracking.org/path"


# -- the thread that follows ---------------------------------------------------------------------


class FlakyStore:
    """A store of our own that can be down, or refuse one cell: the seam, doubled."""

    def __init__(self, refused: str = "") -> None:
        self.down = False
        self.refused = refused
        self.tries = 0
        self.written: dict[str, Merged] = {}
        self.ended = False

    def begin(self, plan: Plan) -> None:
        self.tries += 1
        if self.down:
            raise StoreError("store: connection refused")

    def behind(self, merged: Sequence[Merged]) -> list[Merged]:
        return [one for one in merged if self.written.get(one.cell.id) != one]

    def write(self, merged: Sequence[Merged]) -> None:
        for one in merged:
            self.begin(plan())
            if one.cell.id == self.refused:
                raise StoreError("store: bad value")
            self.written[one.cell.id] = one

    def end(self) -> None:
        self.ended = True

    def finish(
        self, plan: Plan, medians: Mapping[str, Sequence[tuple[int, float]]], results: Path
    ) -> None:
        raise AssertionError("a writer does not finish a sweep")

    def records(self) -> list[Envelope]:
        raise AssertionError("a writer does not read the store")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GATHER_SECONDS", "FIRST_PAUSE_SECONDS", "LAST_PAUSE_SECONDS"):
        monkeypatch.setattr(follower, name, 0.01)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_that_is_down_holds_nobody_up_and_catches_up(tmp_path: Path, quick: None) -> None:
    journal, store, said = Journal(tmp_path / "journal"), FlakyStore(), list[str]()
    store.down = True
    writer = StoreWriter(store, journal, plan(), tmp_path, said.append)
    writer.start()
    for length in LENGTHS:
        journal.append(envelope(cell(length)))
        writer.notify()
    until(lambda: store.tries >= 3)
    assert len(said) == 1 and "connection refused" in said[0]
    store.down = False
    until(lambda: len(store.written) == 3)
    store.down = True
    journal.append(envelope(cell(1024)))
    assert writer.close(0.3) == 1
    assert len(said) == 1
    assert not store.ended


def test_one_cell_that_is_refused_keeps_no_other_waiting(tmp_path: Path, quick: None) -> None:
    journal, said = Journal(tmp_path / "journal"), list[str]()
    store = FlakyStore(refused=cell(256).id)
    for length in LENGTHS:
        journal.append(envelope(cell(length)))
    writer = StoreWriter(store, journal, plan(), tmp_path, said.append)
    writer.start()
    assert writer.close(20) == 1
    assert set(store.written) == {cell(128).id, cell(512).id}
    assert len(said) == 1 and "bad value" in said[0]
    assert store.ended


def test_what_is_appended_before_close_is_recorded(tmp_path: Path) -> None:
    journal, store = Journal(tmp_path / "journal"), FlakyStore()
    writer = StoreWriter(store, journal, plan(), tmp_path, print)
    writer.start()
    journal.append(envelope(cell()))
    assert writer.close(20) == 0
    assert len(store.written) == 1


def test_a_second_writer_waits_for_the_first(tmp_path: Path, quick: None) -> None:
    journal, store, said = Journal(tmp_path / "journal"), FlakyStore(), list[str]()
    journal.append(envelope(cell()))
    first = StoreWriter(store, journal, plan(), tmp_path, print)
    first.start()
    until(lambda: len(store.written) == 1)
    other = FlakyStore()
    second = StoreWriter(other, journal, plan(), tmp_path, said.append)
    second.start()
    until(lambda: bool(said))
    assert other.written == {}
    assert first.close(20) == 0
    assert second.close(20) == 0


def test_an_idle_writer_whose_sweep_was_taken_over_ends_and_touches_nothing(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "CHECK_SECONDS", 0.01)
    journal, store, said, lost = (
        Journal(tmp_path / "journal"),
        FlakyStore(),
        list[str](),
        list[int](),
    )
    journal.append(envelope(cell()))

    def allowed() -> None:
        if lost:
            raise LeaseLost("another driver has taken over")

    first = StoreWriter(store, journal, plan(), tmp_path, said.append, allowed)
    first.start()
    until(lambda: len(store.written) == 1)
    lost.append(1)
    # It would keep the new driver's writer waiting.
    second = StoreWriter(FlakyStore(), journal, plan(), tmp_path, print)
    second.start()
    assert second.close(20) == 0
    assert first.close(20) == 0
    assert (store.ended, said) == (False, [])


# -- speed ---------------------------------------------------------------------------------------


def test_recording_three_hundred_cells(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ("train_step_time", "peak_memory", "prefill_time", "decode_time", "state_bytes")
    records = merged_of(*(envelope(cell(128 + index, *metrics)) for index in range(300)))
    store = store_of(database)
    store.begin(plan())
    wall, cpu = time.perf_counter(), time.process_time()
    store.write(records)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with capsys.disabled():
        print(f"\n{wall / 0.3:.1f} ms of wall time, {cpu / 0.3:.1f} ms of CPU time per cell")
    assert len(children_of(database)) == 300
    assert all(math.isfinite(value) for value in children_of(database)[0].data.metrics.values())
