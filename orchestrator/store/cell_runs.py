"""The child runs of a sweep in MLflow, each of one cell in one environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator import child_run
from orchestrator.child_run import (
    NEXT_RECORD_TAG,
    PARENT_TAG,
    RECORD_FILE,
    RECORD_TAG,
    RECORDS_TAG,
)
from orchestrator.journal import Merged
from orchestrator.ledger import Entry, Group, Ledger
from orchestrator.store.artifacts import Artifacts
from orchestrator.store.connection import Connection

if TYPE_CHECKING:
    from mlflow.entities import Run


def group_of(merged: Merged) -> Group:
    """What the child run of these records is for."""
    return merged.cell.id, merged.environment.fingerprint


def recorded(connection: Connection, experiment: str, parent: str) -> Iterator[tuple[Group, Entry]]:
    """The child runs of the experiment. One whose record was never completed, that did not end as
    its record says, or whose parent is gone, has no revision, so that it is written again."""
    for run in connection.search(experiment, ""):
        tags = run.data.tags
        if "cell_id" in tags and "environment" in tags:
            ended = run.info.status == child_run.RUN_STATUS.get(tags.get("status", ""))
            whole = ended and tags.get(PARENT_TAG) == parent
            revision = tags.get(RECORDS_TAG, "") if whole else ""
            yield (tags["cell_id"], tags["environment"]), Entry(run.info.run_id, revision)


def mend(connection: Connection, ledger: Ledger) -> None:
    """End children left RUNNING: as their record says where it is complete, else KILLED. A second
    one of its cell, which only a driver cut off while it asked for it can have made, goes."""
    left = list(connection.search(ledger.experiment, "attributes.status = 'RUNNING'"))
    for run in left:
        tags = run.data.tags
        known = ledger.entries.get((tags.get("cell_id", ""), tags.get("environment", "")))
        if known is not None and known.run_id != run.info.run_id and RECORD_TAG not in tags:
            connection.client().delete_run(run.info.run_id)
        elif run.info.run_id != ledger.parent and "cell_id" in tags:
            said = tags.get("status", "") if RECORD_TAG in tags else ""
            status = child_run.RUN_STATUS.get(said, "KILLED")
            connection.client().set_terminated(run.info.run_id, status)


def write(
    connection: Connection, artifacts: Artifacts, ledger: Ledger, merged: Merged, suspected: bool
) -> str:
    """Bring the run of this cell up to date; its id. One that the ledger does not know is looked
    for in the store only where it is `suspected` to be there."""
    from mlflow.entities import Metric, Param, RunTag

    client = connection.client()
    run, tags = _run(connection, ledger, merged, suspected)
    run_id = str(run.info.run_id)
    record = child_run.record_json(merged)
    digest = child_run.sha256(record)
    if run.data.tags.get(RECORD_TAG, digest) != digest:
        client.log_batch(run_id, tags=[RunTag(NEXT_RECORD_TAG, digest)])
    artifacts.write(run, RECORD_FILE, record)
    complete = {**tags, RECORDS_TAG: child_run.revision(merged), RECORD_TAG: digest}
    client.log_batch(
        run_id,
        metrics=[
            Metric(point.key, point.value, point.timestamp, point.step)
            for point in child_run.points(merged)
        ],
        params=[Param(key, value) for key, value in child_run.params(merged.cell).items()],
        tags=[RunTag(key, value) for key, value in complete.items()],
    )
    end = child_run.times(merged)[merged.newest.key]
    client.set_terminated(run_id, child_run.RUN_STATUS[merged.status], end)
    return run_id


def _run(
    connection: Connection, ledger: Ledger, merged: Merged, suspected: bool
) -> tuple[Run, dict[str, str]]:
    """The cell's run, with the tags that it does not have yet: all where it is an old one."""
    client, group = connection.client(), group_of(merged)
    identity = child_run.identity(*group, ledger.parent)
    tags = {**child_run.tags(merged), **identity}
    entry = ledger.entries.get(group)
    if entry is not None:
        return client.get_run(entry.run_id), tags
    if suspected:
        filter_ = f"tags.cell_id = '{group[0]}' and tags.environment = '{group[1]}'"
        found = next(connection.search(ledger.experiment, filter_), None)
        if found is not None:
            return found, tags
    started = min(envelope.record.started_at for envelope in merged.envelopes)
    run = client.create_run(ledger.experiment, child_run.milliseconds(started), tags)
    return run, {}
