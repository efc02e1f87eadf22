"""The MLflow store of a sweep: one parent run, and one child run per answered cell and environment,
exactly one however often the sweep was killed.

Nothing here keeps an active run or a queue: every call names its run, and returns when the store
has it. Every step may be repeated, since params never change, metrics keep their original times
and the tag of `record.json` is written after the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from orchestrator import artifact_path, child_run, durable, sqlite_file
from orchestrator.child_run import PARENT_TAG, RECORD_FILE, RECORD_TAG, RECORDS_TAG
from orchestrator.errors import StoreError
from orchestrator.journal import Merged
from orchestrator.ledger import Entry, Group, Ledger
from orchestrator.provenance import Envelope
from workloads.cell import canonical_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_STORE = "sqlite:///mlflow.db"
RESULTS = ("tables", "plots", "report.html")
"""What of a results folder becomes an artifact of the parent run."""

# Read by MLflow when it is imported; a user's own setting wins. A store that is down should be
# known to be down within seconds: what is not recorded now is recorded later.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_PARENT_KIND = "sweep"
_READERS = 8


Medians = Mapping[str, Sequence[tuple[int, float]]]
"""Curves over context by name (`train_step_time/lstm/batch 8`): length in tokens, value."""


class Described(Protocol):
    """What the store says of a sweep: a `Plan`, or less."""

    @property
    def name(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def spec_hash(self) -> str: ...


class RunStore(Protocol):
    """Where a sweep's runs are kept; `MlflowStore` says what each method does. All but `behind` may
    raise StoreError, and may be called again."""

    def begin(self, sweep: Described) -> None: ...

    def behind(self, merged: Sequence[Merged]) -> list[Merged]: ...

    def write(self, merged: Sequence[Merged]) -> None: ...

    def end(self) -> None: ...

    def finish(self, sweep: Described, medians: Medians, results: Path) -> None: ...

    def records(self) -> list[Envelope]: ...


def resolve_uri(explicit: str | None) -> str:
    """The store's URI: the one given, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the working
    directory. A relative SQLite path becomes absolute.

    Raises:
        StoreError: a file store, which MLflow no longer writes.
    """
    uri = explicit or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise StoreError(
            f"{uri}: MLflow no longer writes to plain folders. Name a database, such as "
            f"{DEFAULT_STORE}, or a server, such as http://127.0.0.1:5000"
        )
    database = sqlite_file.database(uri)
    if database is None:
        return uri
    _, mark, query = uri.partition("?")
    return f"{sqlite_file.PREFIX}{database}{mark}{query}"


class MlflowStore:
    """One sweep in one MLflow store. `damaged` says, per run id, why `records` left a run out.

    Every method raises `StoreError` where the store cannot be reached or refuses.
    """

    def __init__(self, uri: str, sweep: str, results: Path) -> None:
        self.uri = uri
        self.sweep = sweep
        self.damaged: dict[str, str] = {}
        self._found: dict[Group, str] = {}
        self._database = sqlite_file.database(uri)
        self._ledgers = results / "mlflow"
        self._ledger = Ledger(self._ledgers, uri)
        self._client: MlflowClient | None = None
        self._unsynced: Path | None = None

    @property
    def address(self) -> str:
        """The URI as it may be shown: without a password."""
        return re.sub(r"//[^/@]*@", "//***@", self.uri)

    def begin(self, sweep: Described) -> None:
        """Find or create the experiment and the parent run, and mend what a killed driver left
        RUNNING."""
        with self._explained():
            self._ledger = Ledger(self._ledgers, self.uri)
            experiment = self._experiment()
            parent = self._parent(experiment, sweep)
            if (self._ledger.experiment, self._ledger.parent) != (experiment, parent):
                self._ledger.start(experiment, parent, dict(self._recorded(experiment, parent)))
            self._mend()

    def behind(self, merged: Sequence[Merged]) -> list[Merged]:
        """Those cells whose newest records are not in the store yet; asks the ledger only."""
        entries = self._ledger.entries
        held = ((one, entries.get(_group(one))) for one in merged)
        return [
            one for one, entry in held if entry is None or entry.revision != child_run.revision(one)
        ]

    def run_ids(self) -> dict[Group, str]:
        """The run of each recorded cell and environment: of the ledger, else as `records` found."""
        return self._found | {group: e.run_id for group, e in self._ledger.entries.items()}

    def write(self, merged: Sequence[Merged]) -> None:
        """Bring the runs of these cells up to date, after `begin`. What was written before an error
        stays written and is known to be."""
        groups = [_group(one) for one in merged]
        suspects = self._ledger.unsure.intersection(groups)
        done: dict[Group, Entry] = {}
        with self._explained():
            self._ledger.intend(groups)
            try:
                for group, one in zip(groups, merged, strict=True):
                    run_id = self._write_run(one, group in suspects)
                    done[group] = Entry(run_id, child_run.revision(one))
            except Exception:
                self._ledger.forget(set(groups) - set(done))
                raise
            finally:
                self._checkpoint()
                self._ledger.confirm(done)

    def end(self) -> None:
        """The sweep stopped: nothing stays RUNNING. Its parent is KILLED until `finish` says
        better."""
        with self._explained():
            self._mend()
            self._connected().set_terminated(self._ledger.parent, "KILLED")
            self._checkpoint()

    def finish(self, sweep: Described, medians: Medians, results: Path) -> None:
        """Give the parent run the medians as curves over context, and tables, plots and report as
        artifacts, and end it FINISHED.

        Medians that are there already are not sent again.
        """
        self.begin(sweep)
        with self._explained():
            client, parent = self._connected(), self._ledger.parent
            for name in RESULTS:
                path = results / name
                if path.is_dir():
                    client.log_artifacts(parent, str(path), name)
                elif path.exists():
                    client.log_artifact(parent, str(path))
            self._log_medians(medians)
            client.set_terminated(parent, "FINISHED")
            self._checkpoint()

    def records(self) -> list[Envelope]:
        """Every record of the sweep from MLflow alone, each checked against its SHA-256. No run
        is changed, and a SQLite file that is not there is not made."""
        self.damaged = {}
        if self._database is not None and not self._database.exists():
            return []
        with self._explained():
            experiment = self._connected().get_experiment_by_name(self.sweep)
            if experiment is None:
                return []
            runs = self._search(experiment.experiment_id, "attributes.status != 'RUNNING'")
            children = [run for run in runs if "cell_id" in run.data.tags]
            self._found = {
                (run.data.tags["cell_id"], run.data.tags["environment"]): run.info.run_id
                for run in children
                if "environment" in run.data.tags
            }
            with ThreadPoolExecutor(_READERS) as pool:
                return [one for found in pool.map(self._read_run, children) for one in found]

    def _connected(self) -> MlflowClient:
        """The client. The first call imports MLflow and may create a database (seconds each)."""
        if self._client is None:
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient

            logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
            if self._database is None:
                self._client = MlflowClient(self.uri)
            else:
                sqlite_file.write_ahead(self._database)
                with sqlite_file.alone(self._database):
                    if not self._database.exists():
                        # MLflow can neither use nor finish tables that a kill left half made.
                        with sqlite_file.appearing(self._database) as unfinished:
                            MlflowClient(f"{sqlite_file.PREFIX}{unfinished}").search_experiments()
                    self._client = MlflowClient(self.uri)
                    # A copy of the file alone, without its log, should have MLflow's tables.
                    sqlite_file.checkpoint(self._database)
        elif self._database is not None and not self._database.exists():
            raise StoreError(f"{self.uri}: the database was removed while it was in use")
        return self._client

    def _experiment(self) -> str:
        client = self._connected()
        found = client.get_experiment_by_name(self.sweep)
        if found is None:
            place = None
            if self._database is not None:
                place = (self._database.parent / "mlruns" / self.sweep).as_uri()
            return str(client.create_experiment(self.sweep, artifact_location=place))
        if found.lifecycle_stage == "deleted":
            raise StoreError(
                f"{self.address}: the experiment {self.sweep!r} was deleted. Bring it back with "
                f"`MLFLOW_TRACKING_URI={self.address} mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or give the sweep another name"
            )
        return str(found.experiment_id)

    def _parent(self, experiment: str, sweep: Described) -> str:
        from mlflow.entities import RunTag

        client = self._connected()
        said = {"spec_hash": sweep.spec_hash, "mlflow.note.content": sweep.question}
        filter_ = f"tags.kind = '{_PARENT_KIND}'"
        found = sorted(self._search(experiment, filter_), key=lambda run: run.info.start_time)
        if not found:
            tags = {"kind": _PARENT_KIND, "mlflow.runName": sweep.name, **said}
            return str(client.create_run(experiment, tags=tags).info.run_id)
        parent = next((r for r in found if r.info.run_id == self._ledger.parent), found[0])
        run_id = str(parent.info.run_id)
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in said.items()])
        if parent.info.status != "RUNNING":
            client.update_run(run_id, "RUNNING")
        return run_id

    def _recorded(self, experiment: str, parent: str) -> Iterator[tuple[Group, Entry]]:
        """The child runs of the experiment. One whose record was never completed, or whose parent
        is gone, has no revision, so that it is written again."""
        for run in self._search(experiment, ""):
            tags = run.data.tags
            if "cell_id" in tags and "environment" in tags:
                revision = tags.get(RECORDS_TAG, "") if tags.get(PARENT_TAG) == parent else ""
                yield (tags["cell_id"], tags["environment"]), Entry(run.info.run_id, revision)

    def _search(self, experiment: str, filter_: str) -> Iterator[Run]:
        token = None
        while True:
            page = self._connected().search_runs(
                [experiment], filter_, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _mend(self) -> None:
        """End children left RUNNING: as their record says where it is complete, else KILLED."""
        running = list(self._search(self._ledger.experiment, "attributes.status = 'RUNNING'"))
        for run in running:
            tags = run.data.tags
            if run.info.run_id != self._ledger.parent and "cell_id" in tags:
                said = tags.get("status", "") if RECORD_TAG in tags else ""
                status = child_run.RUN_STATUS.get(said, "KILLED")
                self._connected().set_terminated(run.info.run_id, status)

    def _write_run(self, merged: Merged, suspected: bool) -> str:
        from mlflow.entities import Metric, Param, RunTag

        client = self._connected()
        run, tags = self._run(merged, suspected)
        run_id = str(run.info.run_id)
        record = child_run.record_json(merged)
        self._store_record(run, record)
        complete = {
            **tags,
            RECORDS_TAG: child_run.revision(merged),
            RECORD_TAG: child_run.sha256(record),
        }
        client.log_batch(
            run_id,
            metrics=[
                Metric(point.key, point.value, point.timestamp, point.step)
                for point in child_run.points(merged)
            ],
            params=[Param(key, value) for key, value in child_run.params(merged.cell).items()],
            tags=[RunTag(key, value) for key, value in complete.items()],
        )
        end = child_run.milliseconds(merged.newest.finished_at)
        client.set_terminated(run_id, child_run.RUN_STATUS[merged.status], end)
        return run_id

    def _run(self, merged: Merged, suspected: bool) -> tuple[Run, dict[str, str]]:
        """The cell's run, with the tags that it does not have yet: all where it is an old one."""
        client, group = self._connected(), _group(merged)
        identity = child_run.identity(*group, self._ledger.parent)
        tags = {**child_run.tags(merged), **identity}
        entry = self._ledger.entries.get(group)
        if entry is not None:
            return client.get_run(entry.run_id), tags
        if suspected:
            filter_ = f"tags.cell_id = '{group[0]}' and tags.environment = '{group[1]}'"
            found = next(self._search(self._ledger.experiment, filter_), None)
            if found is not None:
                return found, tags
        started = min(envelope.record.started_at for envelope in merged.envelopes)
        run = client.create_run(self._ledger.experiment, child_run.milliseconds(started), tags)
        return run, {}

    def _store_record(self, run: Run, content: bytes) -> None:
        folder = artifact_path.local_folder(run.info.artifact_uri)
        if folder is None:
            self._connected().log_text(run.info.run_id, content.decode(), RECORD_FILE)
            return
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_whole(folder / RECORD_FILE, content)
        self._unsynced = folder

    def _read_run(self, run: Run) -> list[Envelope]:
        try:
            expected = run.data.tags.get(RECORD_TAG)
            if expected is None:
                raise ValueError("was never written completely")
            return child_run.read_record(self._content(run), expected)
        except (ValueError, OSError) as error:
            self.damaged[run.info.run_id] = str(error)
            return []

    def _content(self, run: Run) -> bytes:
        folder = artifact_path.local_folder(run.info.artifact_uri)
        if folder is not None:
            return artifact_path.find(folder, RECORD_FILE, self._database).read_bytes()
        with tempfile.TemporaryDirectory() as there:
            client = self._connected()
            return Path(client.download_artifacts(run.info.run_id, RECORD_FILE, there)).read_bytes()

    def _log_medians(self, medians: Medians) -> None:
        from mlflow.entities import Metric, RunTag

        client, parent = self._connected(), self._ledger.parent
        digest = child_run.sha256(canonical_json(medians).encode())
        run = client.get_run(parent)
        if run.data.tags.get("medians_sha256") == digest:
            return
        now = child_run.milliseconds(time.time())
        metrics = [
            Metric(child_run.metric_key(name), value, now, step)
            for name, curve in medians.items()
            for step, value in curve
        ]
        client.log_batch(parent, metrics=metrics)
        client.log_batch(parent, tags=[RunTag("medians_sha256", digest)])

    def _checkpoint(self) -> None:
        """Put on disk the records' files and what SQLite has only in its log, before the ledger
        says that it is there."""
        if self._unsynced is not None:
            durable.sync(self._unsynced)
            self._unsynced = None
        if self._database is not None:
            sqlite_file.checkpoint(self._database)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what MLflow and what lies under it raise into a StoreError of one line."""
        try:
            yield
        except StoreError:
            raise
        except _failures() as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise StoreError(f"{self.address}: {lines[0][:500]}") from error


def _group(merged: Merged) -> Group:
    return merged.cell.id, merged.environment.fingerprint


def _failures() -> tuple[type[Exception], ...]:
    """What a store that is down, damaged or unwilling raises; those of `requests` are OSErrors."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError
