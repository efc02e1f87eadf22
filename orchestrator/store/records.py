"""Every record of a sweep, read back from MLflow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator import child_run, sqlite_file
from orchestrator.child_run import RECORD_FILE, RECORD_TAG
from orchestrator.ledger import Group
from orchestrator.provenance import Envelope
from orchestrator.store.artifacts import Artifacts
from orchestrator.store.connection import Connection

if TYPE_CHECKING:
    from mlflow.entities import Run

_READERS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """What was read: the records of each run by its record's SHA-256, the run of each cell and
    environment, and by its id why a run was left out."""

    by_digest: Mapping[str, Sequence[Envelope]] = field(default_factory=dict)
    run_ids: Mapping[Group, str] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)

    @property
    def envelopes(self) -> list[Envelope]:
        return [envelope for found in self.by_digest.values() for envelope in found]


def read(connection: Connection, artifacts: Artifacts, sweep: str, before: Found) -> Found:
    """All there is, each record checked against its SHA-256; what was read `before` and is the same
    is not fetched again. No run is changed, and a SQLite file that is not there is not made."""
    database = connection.database
    if database is not None and not sqlite_file.may_hold(database, sweep):
        return Found()
    experiment = connection.client().get_experiment_by_name(sweep)
    if experiment is None:
        return Found()
    runs = connection.search(experiment.experiment_id, "")
    children = [run for run in runs if "cell_id" in run.data.tags and _has_ended(run)]
    run_ids = {
        (run.data.tags["cell_id"], run.data.tags["environment"]): run.info.run_id
        for run in children
        if "environment" in run.data.tags
    }
    by_digest: dict[str, Sequence[Envelope]] = {}
    damaged: dict[str, str] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        contents = pool.map(lambda run: _read_run(artifacts, run, before), children)
        for run, content in zip(children, contents, strict=True):
            if isinstance(content, str):
                damaged[run.info.run_id] = content
            else:
                by_digest[run.data.tags[RECORD_TAG]] = content
    return Found(by_digest, run_ids, damaged)


def _has_ended(run: Run) -> bool:
    """Not a run that its writer is, or was when it was killed, only making; one that has its
    record's digest has its record, too."""
    return run.info.status != "RUNNING" or RECORD_TAG in run.data.tags


def _read_run(artifacts: Artifacts, run: Run, before: Found) -> Sequence[Envelope] | str:
    """The records of a run, or why they cannot be read."""
    try:
        expected = run.data.tags.get(RECORD_TAG)
        if expected is None:
            raise ValueError("was never written completely")
        if expected in before.by_digest:
            return before.by_digest[expected]
        return child_run.read_record(artifacts.read(run, RECORD_FILE), run.data.tags)
    except (ValueError, OSError) as error:
        return str(error)
