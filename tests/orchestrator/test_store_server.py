"""The MLflow store on a real tracking server over HTTP: down at the start, killed in the middle,
down at the end, and back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator import follower
from orchestrator.errors import StoreError
from orchestrator.follower import StoreWriter
from orchestrator.journal import Journal, merge
from orchestrator.store import MlflowStore
from tests.mlflow_server import Server, until
from tests.orchestrator.made_records import cell, envelope, plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


@pytest.fixture
def server(database: Path) -> Iterator[Server]:
    one = Server(database)
    yield one
    one.kill()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "GATHER_SECONDS", 0.1)
    monkeypatch.setattr(follower, "FIRST_PAUSE_SECONDS", 0.2)


class Sweep:
    """A sweep's journal and writer, as a driver would hold them."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.journal = Journal(folder / "journal")
        self.store = MlflowStore(uri, "sweep", folder)
        self.said: list[str] = []
        self.writer = StoreWriter(self.store, self.journal, plan(), folder, self.said.append)
        self.writer.start()

    def measure(self, *lengths: int) -> None:
        for length in lengths:
            self.journal.append(envelope(cell(length)))
            self.writer.notify()

    def recorded(self) -> bool:
        return not self.store.behind(list(merge(self.journal.read()).values()))


def statuses(uri: str) -> list[str]:
    """The children's statuses, after checking that there is one run per cell and one parent."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    cells = [run.data.tags["cell_id"] for run in runs if "cell_id" in run.data.tags]
    assert len(set(cells)) == len(cells) == len(runs) - 1
    return [run.info.status for run in runs if "cell_id" in run.data.tags]


def test_a_sweep_whose_server_comes_and_goes(server: Server, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "results", server.uri)
    sweep.measure(128, 256)
    until(lambda: bool(sweep.said))
    assert server.uri in sweep.said[0]

    server.start()
    until(lambda: sweep.recorded())

    sweep.measure(*range(300, 340))
    until(lambda: len(statuses(server.uri)) > 5)
    server.kill()
    sweep.measure(512)
    time.sleep(0.5)
    server.start()
    until(lambda: len(statuses(server.uri)) == 43)
    assert sweep.writer.close(60) == 0
    assert len(sweep.said) == 1
    assert statuses(server.uri) == ["FINISHED"] * 43

    results = tmp_path / "results"
    (results / "report.html").write_text("<p>which?</p>")
    sweep.store.finish(plan(), {"train_step_time/lstm/batch 8": [(128, 0.5)]}, results)
    elsewhere = MlflowStore(server.uri, "sweep", tmp_path / "another machine")
    records = Journal(results / "journal").read()
    assert sorted(elsewhere.records(), key=lambda one: one.key) == sorted(
        records, key=lambda one: one.key
    )
    assert elsewhere.damaged == {}


def test_what_a_server_missed_at_the_end_the_next_command_records(
    server: Server, tmp_path: Path
) -> None:
    server.start()
    sweep = Sweep(tmp_path / "results", server.uri)
    sweep.measure(128)
    until(lambda: sweep.recorded())
    server.kill()
    sweep.measure(256, 512)
    began = time.monotonic()
    assert sweep.writer.close(3) == 2
    assert time.monotonic() - began < 10
    with pytest.raises(StoreError, match="127"):
        sweep.store.finish(plan(), {}, tmp_path)

    server.start()
    shutil.rmtree(tmp_path / "results" / "mlflow")
    again = Sweep(tmp_path / "results", server.uri)
    assert again.writer.close(60) == 0
    assert again.said == []
    assert statuses(server.uri) == ["FINISHED"] * 3
