"""The store's writer in its own process: it records what the journal has, says what is wrong, and
outlives its own death but not its driver's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import StoreError
from orchestrator.journal import Journal
from orchestrator.recorder import MAX_STARTS, Recorder, Subject
from orchestrator.store import MlflowStore
from tests.orchestrator.made_records import cell, envelope, timed

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")]

LENGTHS = (64, 128, 256, 512)


def subject_in(folder: Path, uri: str | None = None) -> Subject:
    return Subject(
        uri=uri or f"sqlite:///{folder / 'mlflow.db'}",
        name="sweep",
        question="Which?",
        spec_hash="0" * 12,
        journal=str(folder / "journal"),
        results=str(folder / "results"),
        lease=1,
    )


def write_records(folder: Path) -> None:
    journal = Journal(folder / "journal")
    for length in LENGTHS:
        journal.append(envelope(cell(seq_len=length), timed("train_step_time", 0.01)))


def statuses(folder: Path) -> list[str]:
    """Of the child runs in the store."""
    store = MlflowStore(f"sqlite:///{folder / 'mlflow.db'}", "sweep", folder / "other")
    client = store._connection.client()
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [run.info.status for run in runs if "cell_id" in run.data.tags]


def process_of(recorder: Recorder) -> subprocess.Popen[bytes]:
    assert recorder._process is not None
    return recorder._process


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, said: list[str]) -> Iterator[Recorder]:
    one = Recorder(subject_in(tmp_path), said.append)
    yield one
    one.stop()


def test_what_the_journal_has_is_in_the_store(
    tmp_path: Path, recorder: Recorder, said: list[str]
) -> None:
    recorder.start()
    write_records(tmp_path)
    recorder.notify()
    assert recorder.close(60) == 0
    assert statuses(tmp_path) == ["FINISHED"] * len(LENGTHS)
    assert len(recorder.run_ids()) == len(LENGTHS)
    report = tmp_path / "results" / "report.html"
    report.write_text("<p>")
    recorder.finish({"train_step_time/lstm": [(64, 0.1), (128, 0.2)]})
    store = MlflowStore(f"sqlite:///{tmp_path / 'mlflow.db'}", "sweep", tmp_path / "other")
    client = store._connection.client()
    parent = client.search_runs(["1"], "tags.kind = 'sweep'")[0]
    assert parent.info.status == "FINISHED"
    points = client.get_metric_history(parent.info.run_id, "train_step_time/lstm")
    assert [(point.step, point.value) for point in points] == [(64, 0.1), (128, 0.2)]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    assert said == []


def test_a_writer_that_dies_is_started_again(
    tmp_path: Path, recorder: Recorder, said: list[str]
) -> None:
    recorder.start()
    first = process_of(recorder)
    first.send_signal(signal.SIGKILL)
    first.wait()
    write_records(tmp_path)
    recorder.notify()
    assert recorder.close(60) == 0
    assert process_of(recorder).pid != first.pid
    assert statuses(tmp_path) == ["FINISHED"] * len(LENGTHS)
    assert said == []


def test_a_writer_that_keeps_dying_is_given_up_and_nothing_is_lost(
    tmp_path: Path, recorder: Recorder, said: list[str]
) -> None:
    write_records(tmp_path)
    recorder.start()
    killed: set[int] = set()
    deadline = time.monotonic() + 60
    while not said and time.monotonic() < deadline:
        process = process_of(recorder)
        if process.pid not in killed:
            killed.add(process.pid)
            process.kill()
        time.sleep(0.01)
    assert len(killed) == MAX_STARTS
    assert ["keeps dying" in text for text in said] == [True]
    assert recorder.close(60) == len(LENGTHS)
    with pytest.raises(StoreError, match="does not answer"):
        recorder.finish({})
    assert len(Journal(tmp_path / "journal").read()) == len(LENGTHS)


def test_a_store_that_cannot_be_reached_is_said_once(tmp_path: Path, said: list[str]) -> None:
    write_records(tmp_path)
    recorder = Recorder(subject_in(tmp_path, "http://127.0.0.1:9"), said.append)
    recorder.start()
    deadline = time.monotonic() + 60
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
    assert recorder.close(3) == len(LENGTHS)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        recorder.finish({})
    recorder.stop()
    assert len(said) == 1 and "recorded later" in said[0]


def test_the_writer_ends_with_a_killed_driver(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tests.orchestrator.test_recorder import Recorder, process_of, subject_in\n"
        "recorder = Recorder(subject_in(Path(sys.argv[1])), print)\n"
        "recorder.start(); print(process_of(recorder).pid, flush=True); time.sleep(60)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
