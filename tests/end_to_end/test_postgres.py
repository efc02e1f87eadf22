"""Sweeps recorded as in production: through MLflow's server with basic auth, started as its image
starts it, on a real PostgreSQL; and by a user who was granted nothing."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.errors import StoreRefused
from orchestrator.store import MlflowStore
from tests.end_to_end.sweep_process import ROOT, SweepProcess
from tests.mlflow_on_postgres import USER, Store, mlflow_on_postgres
from tests.orchestrator.made_records import plan

SWEEP = """
name: {name}
question: Does a sweep reach a store that asks for a password?
architectures: [none, {{ballast: {{bytes: 8}}}}]
task: instant
model: {{parameters: [2_000], num_layers: 1}}
measure:
  seq_len: [4, 8]
  batch_size: [1]
  rounds: {rounds}
  metrics: [tally, pause]
compare: {{baseline: none, zone: [4, 8]}}
"""
CELLS_A_ROUND = 4
# Errors and answers in one stream, in the order in which a person sees them.
TOGETHER = ["sh", "-c", 'exec "$@" 2>&1', "sh", sys.executable, "-m", "orchestrator"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with mlflow_on_postgres(tmp_path_factory.mktemp("store")) as one:
        yield one


class Sweep:
    """One sweep in a folder of its own, called as often as one likes."""

    def __init__(self, folder: Path, name: str, rounds: int = 2) -> None:
        self.folder, self.name = folder, name
        self.text = SWEEP.format(name=name, rounds=rounds)
        self.cells = CELLS_A_ROUND * rounds
        self.said: list[str] = []
        self.titles: set[str] = set()

    def start(self, variables: Mapping[str, str], *options: str) -> SweepProcess:
        tally = str(self.folder / "tally")
        return SweepProcess(
            self.folder,
            self.text,
            "--inline",
            *options,
            command=TOGETHER,
            WORKLOADS_TALLY=tally,
            **variables,
        )

    def run(self, variables: Mapping[str, str], *options: str) -> tuple[int, str]:
        """Exit code and all that was said."""
        process = self.start(variables, *options)
        while process.process.poll() is None and self.answered() < self.cells:
            self.look(process)
        return self.end(process)

    def look(self, process: SweepProcess) -> bool:
        """Read the titles of the sweep's processes, its own if it was not told the password."""
        for pid in {process.process.pid, *process.watch()}:
            try:
                self.titles.add(Path(f"/proc/{pid}/cmdline").read_text())
            except OSError:
                continue
        return True

    def end(self, process: SweepProcess) -> tuple[int, str]:
        code, out, _ = process.end(150)
        self.said.append(out)
        return code, out

    def verb(self, *words: str, folder: Path | None = None, **variables: str) -> str:
        """What another verb says; it must end well."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=folder or self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "WORKLOADS_PLUGINS": str(ROOT / "tests/plugins"),
                "WORKLOADS_CACHE": str(self.folder / "cache"),
                **variables,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.said += [done.stdout, done.stderr]
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def answered(self) -> int:
        return len(list(self.folder.glob(f"results/{self.name}/journal/[!.]*.json")))

    def executed(self) -> Counter[str]:
        return Counter((self.folder / "tally").read_text().split())

    def check_recorded(self, client: MlflowClient) -> list[Run]:
        """One FINISHED run for each cell and one for all, none RUNNING, and nothing ran twice; the
        cells' runs."""
        experiment = client.get_experiment_by_name(self.name)
        assert experiment is not None
        runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
        assert Counter(run.info.status for run in runs) == {"FINISHED": self.cells + 1}
        of_cells = [run for run in runs if "cell_id" in run.data.tags]
        assert {run.data.tags["cell_id"] for run in of_cells} == set(self.executed())
        assert Counter(self.executed().values()) == {1: self.cells}
        return of_cells

    def check_secret(self, *secret: str) -> None:
        """No secret in what was said, in any file or in any process's title."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        texts = {str(path): path.read_bytes() for path in files}
        texts |= {f"said {n}": text.encode() for n, text in enumerate(self.said)}
        texts |= {f"title {n}": text.encode() for n, text in enumerate(self.titles)}
        assert len(self.titles) > 1 and len(files) > self.cells
        for word in secret:
            for form in (word, base64.b64encode(f"{USER}:{word}".encode()).decode()):
                assert [where for where, text in texts.items() if form.encode() in text] == []


@pytest.fixture
def client(store: Store, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The account's own."""
    for name, value in store.variables().items():
        monkeypatch.setenv(name, value)
    return MlflowClient(store.server.uri)


def test_an_ordinary_user_records_a_sweep_and_reads_it_back(
    store: Store, client: MlflowClient, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path, "whole", rounds=1)
    code, out = sweep.run(store.variables())
    assert code == 0
    assert not [line for line in out.splitlines() if line.startswith(store.server.uri)]
    runs = sweep.check_recorded(client)

    # It is all in PostgreSQL, and the files are where only the server can get at them.
    assert all(run.info.run_id in store.rows("runs") for run in runs)
    assert len(list(store.server.artifacts.rglob("record.json"))) == sweep.cells
    assert not list(tmp_path.rglob("record.json"))
    assert {urllib.parse.urlsplit(run.info.artifact_uri).scheme for run in runs} == {
        "mlflow-artifacts"
    }
    where = f"/get-artifact?path=record.json&run_uuid={runs[0].info.run_id}"
    assert store.server.status(where) == 401
    assert store.server.status(where, USER, store.password) == 200

    elsewhere = tmp_path / "another machine"
    elsewhere.mkdir()
    (elsewhere / "sweep.yaml").write_text(sweep.text)
    sweep.verb("analyze", "sweep.yaml", folder=elsewhere, **store.variables())
    tables = sorted(tmp_path.glob("results/whole/tables/*.parquet"))
    assert len(tables) > 3
    for path in tables:
        other = elsewhere / path.relative_to(tmp_path)
        assert pq.read_table(path).equals(pq.read_table(other)), path.name

    sweep.check_secret(store.password, store.postgres.password, store.admin)
    for table in store.tables():
        assert store.password not in store.rows(table)
        assert store.postgres.password not in store.rows(table)
    for log in store.folder.glob("*.log"):
        assert store.password not in log.read_text()


@pytest.mark.exhaustive
def test_database_and_server_are_killed_and_come_back(
    store: Store, client: MlflowClient, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path, "killed", rounds=24)
    process = sweep.start(store.variables())

    def recorded() -> int:
        texts = [path.read_text() for path in tmp_path.glob("results/killed/mlflow/*.jsonl")]
        return sum(text.count('"runs"') for text in texts)

    def go_on(cells: int) -> None:
        """Wait until so many more are answered: with the store down, the sweep does not wait."""
        goal = sweep.answered() + cells
        process.wait_for(lambda: sweep.answered() >= goal)

    process.wait_for(lambda: recorded() > 1)
    store.postgres.kill()
    go_on(6)
    store.postgres.start()
    before = recorded()
    process.wait_for(lambda: recorded() > before)
    store.server.kill()
    go_on(6)
    assert sweep.answered() < sweep.cells, "the sweep was over before the server came back"
    store.server.start()
    code, out = sweep.end(process)
    assert code == 0
    assert len([line for line in out.splitlines() if line.startswith(store.server.uri)]) == 1
    sweep.check_recorded(client)
    read = MlflowStore(store.server.uri, "killed", tmp_path / "another machine")
    assert len(read.records()) == sweep.cells and read.damaged == {}


@pytest.mark.exhaustive
def test_who_is_refused_is_told_at_once_and_recorded_later(
    store: Store, client: MlflowClient, tmp_path: Path
) -> None:
    sweep, wrong = Sweep(tmp_path, "refused"), secrets.token_hex(16)
    uri = store.server.uri
    to_set = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    refusals = {
        f"{uri}: refuses the user 'sweeps', or their password; {to_set}": (USER, wrong),
        f"{uri}: refuses the user 'nobody', or their password; {to_set}": ("nobody", wrong),
        f"{uri}: lets nobody in without a user and a password; {to_set}": ("", ""),
    }
    for sentence, who in refusals.items():
        code, out = sweep.run(store.variables(*who))
        assert code == 0 and "report: results/refused/report.html" in out
        # Before anything is run, and once: the end only says what is still to be done.
        first, *others = [line for line in out.splitlines() if line.startswith(uri)]
        assert first.startswith(sentence) and others == []
        assert "The sweep goes on; its records are kept" in first
        if "1 of 8 cells" in out:
            assert out.index(first) < out.index("1 of 8 cells")
        assert f"the results are not in the store yet: {sentence}" in out
        assert "8 cells are not in the store yet; the next command records them" in out
    assert sentence in sweep.verb("doctor", **store.variables(*who))
    assert client.get_experiment_by_name("refused") is None

    code, out = sweep.run(store.variables())
    assert code == 0 and "not in the store" not in out
    sweep.check_recorded(client)
    sweep.check_secret(wrong, store.password)
    said = sweep.verb("doctor", **store.variables())
    assert any(line.startswith("ok") and line.endswith(uri) for line in said.splitlines())


def test_a_name_that_the_server_does_not_go_by_is_no_wrong_password(
    store: Store, client: MlflowClient, tmp_path: Path
) -> None:
    other = f"localhost:{store.server.port}"
    with pytest.raises(StoreRefused) as refused:
        MlflowStore(f"http://{other}", "sweep", tmp_path).records()
    said = str(refused.value)
    assert said.startswith(f"http://{other}: does not go by the name {other}")
    assert "--allowed-hosts" in said and "password" not in said


def test_a_user_in_the_address_is_not_shown(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in store.variables():
        monkeypatch.delenv(name, raising=False)
    host, wrong = store.server.host, secrets.token_hex(16)
    with pytest.raises(StoreRefused) as refused:
        MlflowStore(f"http://{USER}:{wrong}@{host}", "sweep", tmp_path).records()
    assert str(refused.value).startswith(f"http://***@{host}: refuses the user in its address")
    assert wrong not in str(refused.value)
    assert MlflowStore(f"http://{USER}:{store.password}@{host}", "none", tmp_path).records() == []


def test_an_experiment_of_somebody_else_may_be_read_only(
    store: Store, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", store.admin)
    MlflowStore(store.server.uri, "sweep", tmp_path / "theirs").begin(plan())
    for name, value in store.variables().items():
        monkeypatch.setenv(name, value)
    ours = MlflowStore(store.server.uri, "sweep", tmp_path / "ours")
    assert ours.records() == []
    with pytest.raises(StoreRefused, match=r"'sweeps' may not write there .* MANAGE"):
        ours.begin(plan())


@pytest.mark.exhaustive
def test_a_database_without_a_server_keeps_its_password_too(store: Store, tmp_path: Path) -> None:
    sweep, wrong = Sweep(tmp_path, "direct"), secrets.token_hex(16)
    store.postgres.create("direct")
    address = f"postgresql://***@127.0.0.1:{store.postgres.port}/direct"
    code, out = sweep.run({}, "--tracking-uri", store.postgres.uri(wrong, "direct"))
    assert code == 0
    (first,) = [line for line in out.splitlines() if line.startswith(address)]
    assert "password authentication failed" in first
    assert f"store: {address}" in out
    variables = {"MLFLOW_TRACKING_URI": store.postgres.uri(store.postgres.password, "direct")}
    code, out = sweep.run(variables)
    assert code == 0 and f"store: {address}" in out
    assert "not in the store" not in out
    statuses = [row.split(",")[6] for row in store.rows("runs", "direct").splitlines()]
    assert Counter(statuses) == {"FINISHED": sweep.cells + 1}
    assert address in sweep.verb("doctor", **variables)
    # The first command named it to everyone on the machine, and to its own children not again.
    sweep.titles = {title for title in sweep.titles if f"//mlflow:{wrong}@" not in title}
    sweep.check_secret(wrong, store.postgres.password)
    assert not any(wrong in store.rows(table, "direct") for table in store.tables("direct"))
