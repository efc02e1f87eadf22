"""One sweep in one MLflow store, from the parent run's begin to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator import child_run
from orchestrator.journal import Merged
from orchestrator.ledger import Entry, Group, Ledger
from orchestrator.provenance import Envelope
from orchestrator.store import cell_runs, parent_run, records
from orchestrator.store.artifacts import Artifacts
from orchestrator.store.connection import Connection
from orchestrator.store.run_store import Described, Medians


class MlflowStore:
    """One sweep in one MLflow store: a `RunStore`.

    Every method but `behind` and `run_ids` raises `StoreError` where the store cannot be reached or
    refuses. `allowed` is called before each call of the store, and raises where this process may
    not write any more.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        results: Path,
        allowed: Callable[[], object] = lambda: None,
    ) -> None:
        self.uri = uri
        self._sweep = sweep
        self._connection = Connection(uri, allowed)
        self._artifacts = Artifacts(self._connection)
        self._ledgers, self._allowed = results / "mlflow", allowed
        self._ledger = Ledger(self._ledgers, self.address, allowed)
        self._found = records.Found()

    @property
    def address(self) -> str:
        """The URI as it may be shown: without a password."""
        return self._connection.address

    @property
    def damaged(self) -> Mapping[str, str]:
        """Why `records` left a run out, by the run's id."""
        return self._found.damaged

    @property
    def met(self) -> bool:
        """Whether this results folder was ever recorded in this store."""
        return bool(self._ledger.experiment)

    def begin(self, sweep: Described) -> None:
        """Find or create the experiment and the parent run, and mend what a killed driver left
        RUNNING."""
        with self._connection.explained():
            self._ledger = ledger = Ledger(self._ledgers, self.address, self._allowed)
            experiment = parent_run.experiment_of(self._connection, self._sweep)
            parent = parent_run.running(self._connection, experiment, sweep, ledger.parent)
            if (ledger.experiment, ledger.parent) != (experiment, parent):
                found = cell_runs.recorded(self._connection, experiment, parent)
                ledger.start(experiment, parent, dict(found))
            cell_runs.mend(self._connection, ledger)

    def behind(self, merged: Sequence[Merged]) -> list[Merged]:
        """Those cells whose newest records are not in the store yet; asks the ledger only."""
        entries = self._ledger.entries
        held = ((one, entries.get(cell_runs.group_of(one))) for one in merged)
        return [
            one for one, entry in held if entry is None or entry.revision != child_run.revision(one)
        ]

    def run_ids(self) -> dict[Group, str]:
        """The run of each recorded cell and environment: of the ledger, else as `records` found."""
        known = {group: entry.run_id for group, entry in self._ledger.entries.items()}
        return {**self._found.run_ids, **known}

    def write(self, merged: Sequence[Merged]) -> None:
        """Bring the runs of these cells up to date, after `begin`. What was written before an error
        stays written and is known to be."""
        groups = [cell_runs.group_of(one) for one in merged]
        suspects = self._ledger.unsure.intersection(groups)
        done: dict[Group, Entry] = {}
        with self._connection.explained():
            self._ledger.intend(groups)
            try:
                for group, one in zip(groups, merged, strict=True):
                    run_id = cell_runs.write(
                        self._connection, self._artifacts, self._ledger, one, group in suspects
                    )
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
        with self._connection.explained():
            cell_runs.mend(self._connection, self._ledger)
            self._connection.client().set_terminated(self._ledger.parent, "KILLED")
            self._checkpoint()

    def finish(self, sweep: Described, medians: Medians, results: Path) -> None:
        """Give the parent run the medians as curves over context, and tables, plots and report as
        artifacts, and end it FINISHED.

        Medians that are there already are not sent again.
        """
        self.begin(sweep)
        with self._connection.explained():
            parent = self._ledger.parent
            parent_run.log_results(self._connection, parent, results)
            parent_run.log_medians(self._connection, parent, medians)
            self._connection.client().set_terminated(parent, "FINISHED")
            self._checkpoint()

    def records(self) -> list[Envelope]:
        """Every record of the sweep from MLflow alone, each checked against its SHA-256; asked
        again, only what is new is fetched. No run is changed, and a SQLite file that is not there
        is not made."""
        with self._connection.explained():
            found = records.read(self._connection, self._artifacts, self._sweep, self._found)
        self._found = found
        return found.envelopes

    def _checkpoint(self) -> None:
        """Put on disk the records' files and what SQLite has only in its log, before the ledger
        says that it is there."""
        self._artifacts.sync()
        self._connection.checkpoint()
