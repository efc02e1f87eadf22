"""The parent run of a sweep, under which MLflow shows the sweep's child runs."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator import child_run
from orchestrator.errors import StoreError
from orchestrator.store.connection import Connection
from orchestrator.store.run_store import Described, Medians
from workloads.cell import canonical_json

RESULTS = ("tables", "plots", "report.html")
"""What of a results folder becomes an artifact of the parent run."""

_KIND = "sweep"


def experiment_of(connection: Connection, sweep: str) -> str:
    """The experiment of that sweep, created where there is none; its id.

    Raises:
        StoreError: it was deleted.
    """
    client = connection.client()
    found = client.get_experiment_by_name(sweep)
    if found is None:
        place = None
        if connection.database is not None:
            place = (connection.database.parent / "mlruns" / sweep).as_uri()
        return str(client.create_experiment(sweep, artifact_location=place))
    if found.lifecycle_stage == "deleted":
        raise StoreError(
            f"{connection.address}: the experiment {sweep!r} was deleted. Bring it back with "
            f"`MLFLOW_TRACKING_URI={connection.address} mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or give the sweep another name"
        )
    return str(found.experiment_id)


def running(connection: Connection, experiment: str, sweep: Described, known: str) -> str:
    """The sweep's parent run, RUNNING, created where there is none; its id. Of several, the one
    `known` before, else the oldest."""
    from mlflow.entities import RunTag

    client = connection.client()
    said = {"spec_hash": sweep.spec_hash, "mlflow.note.content": sweep.question}
    parents = connection.search(experiment, f"tags.kind = '{_KIND}'")
    found = sorted(parents, key=lambda run: run.info.start_time)
    if not found:
        tags = {"kind": _KIND, "mlflow.runName": sweep.name, **said}
        return str(client.create_run(experiment, tags=tags).info.run_id)
    parent = next((run for run in found if run.info.run_id == known), found[0])
    run_id = str(parent.info.run_id)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in said.items()])
    if parent.info.status != "RUNNING":
        client.update_run(run_id, "RUNNING")
    return run_id


def log_results(connection: Connection, parent: str, results: Path) -> None:
    """Make tables, plots and report of a results folder artifacts of the parent run."""
    client = connection.client()
    for name in RESULTS:
        path = results / name
        if path.is_dir():
            client.log_artifacts(parent, str(path), name)
        elif path.exists():
            client.log_artifact(parent, str(path))


def log_medians(connection: Connection, parent: str, medians: Medians) -> None:
    """Give the parent run the medians as curves over context, unless it has these already."""
    from mlflow.entities import Metric, RunTag

    client = connection.client()
    digest = child_run.sha256(canonical_json(medians).encode())
    tags = client.get_run(parent).data.tags
    if tags.get("medians_sha256") == digest:
        return
    # MLflow shows the latest; a clock that was set back must not make them older than the former.
    now = max(child_run.milliseconds(time.time()), int(tags.get("medians_at", 0)) + 1)
    metrics = [
        Metric(child_run.metric_key(name), value, now, step)
        for name, curve in medians.items()
        for step, value in curve
    ]
    client.log_batch(parent, metrics=metrics)
    said = {"medians_at": str(now), "medians_sha256": digest}
    client.log_batch(parent, tags=[RunTag(key, value) for key, value in said.items()])
