"""MLflow in memory: what the store asks of an `MlflowClient`, with MLflow's real semantics, so that
thousands of sweeps can be recorded in seconds.

Params never change, tags are set, the same metric point is one however often it is sent, the
latest point is a metric's value, deleted runs are not found, pages come newest first.
`tests/orchestrator/test_mlflow_double.py` holds this client and the real one to one description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

_CLAUSE = re.compile(r"(attributes|tags)\.(\w+) (=|!=) '([^']*)'")


@dataclass(kw_only=True)
class Info:
    run_id: str
    experiment_id: str
    artifact_uri: str
    start_time: int
    status: str = "RUNNING"
    end_time: int | None = None
    lifecycle_stage: str = "active"


@dataclass(kw_only=True)
class Data:
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: set[tuple[str, int, int, float]] = field(default_factory=set)

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of each: of the greatest step, then time, then value."""
        return {key: value for key, _, _, value in sorted(self.points)}


@dataclass(kw_only=True)
class Run:
    info: Info
    data: Data


@dataclass(kw_only=True)
class Experiment:
    experiment_id: str
    name: str
    artifact_location: str
    lifecycle_stage: str = "active"


class Page(list[Run]):
    """Runs, and the token of the page after them."""

    token: str | None = None


class MlflowDouble:
    """A tracking server and its client in one. `artifacts` is the folder of all runs' files."""

    def __init__(self, artifacts: Path) -> None:
        self._artifacts = artifacts
        self.experiments: dict[str, Experiment] = {}
        self.runs: dict[str, Run] = {}
        self._made = 0

    def get_experiment_by_name(self, name: str) -> Experiment | None:
        return next((one for one in self.experiments.values() if one.name == name), None)

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        if self.get_experiment_by_name(name) is not None:
            raise MlflowException(f"Experiment(name={name}) already exists.")
        number = str(len(self.experiments) + 1)
        place = artifact_location or str(self._artifacts / number)
        self.experiments[number] = Experiment(
            experiment_id=number, name=name, artifact_location=place
        )
        return number

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        self._made += 1
        run_id = f"{self._made:032x}"
        location = self.experiments[experiment_id].artifact_location
        info = Info(
            run_id=run_id,
            experiment_id=experiment_id,
            artifact_uri=f"{location}/{run_id}/artifacts",
            start_time=self._made if start_time is None else start_time,
        )
        self.runs[run_id] = Run(info=info, data=Data(tags=dict(tags or {})))
        return self.get_run(run_id)

    def get_run(self, run_id: str) -> Run:
        """A copy, as it would come over the wire."""
        run = self._run(run_id)
        data = Data(
            params=dict(run.data.params), tags=dict(run.data.tags), points=set(run.data.points)
        )
        return Run(info=Info(**vars(run.info)), data=data)

    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        max_results: int = 1000,
        page_token: str | None = None,
    ) -> Page:
        found = [
            run
            for run in reversed(self.runs.values())
            if run.info.experiment_id in experiment_ids
            and run.info.lifecycle_stage == "active"
            and _passes(run, filter_string)
        ]
        found.sort(key=lambda run: (-run.info.start_time, run.info.run_id))
        start = int(page_token or 0)
        page = Page(self.get_run(run.info.run_id) for run in found[start : start + max_results])
        page.token = str(start + max_results) if start + max_results < len(found) else None
        return page

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> None:
        data = self._active(run_id).data
        for param in params:
            if data.params.get(param.key, param.value) != param.value:
                raise MlflowException(f"Changing param values is not allowed: {param.key}")
        data.params.update((param.key, param.value) for param in params)
        data.points.update((one.key, one.step, one.timestamp, one.value) for one in metrics)
        data.tags.update((tag.key, tag.value) for tag in tags)

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        points = sorted(point for point in self._run(run_id).data.points if point[0] == key)
        return [Metric(key, value, time, step) for key, step, time, value in points]

    def update_run(self, run_id: str, status: str | None = None) -> None:
        self._active(run_id).info.status = status or "RUNNING"

    def set_terminated(
        self, run_id: str, status: str | None = None, end_time: int | None = None
    ) -> None:
        info = self._active(run_id).info
        info.status, info.end_time = status or "FINISHED", end_time

    def delete_run(self, run_id: str) -> None:
        self._run(run_id).info.lifecycle_stage = "deleted"

    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        self._active(run_id)

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        self._active(run_id)

    def _run(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise MlflowException(f"Run with id={run_id} not found")
        return self.runs[run_id]

    def _active(self, run_id: str) -> Run:
        run = self._run(run_id)
        if run.info.lifecycle_stage != "active":
            raise MlflowException(f"The run {run_id} must be in the 'active' state.")
        return run


def _passes(run: Run, filter_string: str) -> bool:
    for clause in filter(None, filter_string.split(" and ")):
        parts = _CLAUSE.fullmatch(clause)
        assert parts is not None, f"the double does not know {clause!r}"
        family, key, comparison, value = parts.groups()
        held = run.data.tags.get(key) if family == "tags" else getattr(run.info, key)
        if held is None or (held == value) != (comparison == "="):
            return False
    return True
