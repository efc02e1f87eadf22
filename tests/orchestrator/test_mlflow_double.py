"""The double of MLflow's client says what the real one says of the same calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tests.mlflow_double import MlflowDouble

# MLflow's own use of SQLAlchemy, not ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(params=["real", "double"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "double":
        return MlflowDouble(tmp_path)
    return MlflowClient(f"sqlite:///{request.getfixturevalue('database')}")


@pytest.fixture
def experiment(client: Any, tmp_path: Path) -> str:
    return str(client.create_experiment("sweep", artifact_location=(tmp_path / "runs").as_uri()))


def test_an_experiment_is_found_by_its_name_and_is_there_once(client: Any) -> None:
    assert client.get_experiment_by_name("other") is None
    number = client.create_experiment("other")
    found = client.get_experiment_by_name("other")
    assert (found.experiment_id, found.lifecycle_stage) == (number, "active")
    with pytest.raises(MlflowException, match="already exists"):
        client.create_experiment("other")


def test_a_run_is_made_running_in_a_folder_of_its_own(
    client: Any, experiment: str, tmp_path: Path
) -> None:
    run = client.create_run(experiment, 5, {"kind": "measure", "mlflow.runName": "one"})
    other = client.create_run(experiment, tags={"mlflow.runName": "two"})
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("RUNNING", 5, None)
    assert run.data.tags["kind"] == "measure"
    folder = (tmp_path / "runs").as_uri()
    assert run.info.artifact_uri == f"{folder}/{run.info.run_id}/artifacts"
    assert other.info.artifact_uri != run.info.artifact_uri
    with pytest.raises(MlflowException, match="not found"):
        client.get_run("0" * 32)


def test_params_never_change_tags_do_and_what_is_replayed_is_there_once(
    client: Any, experiment: str
) -> None:
    run_id = client.create_run(experiment, tags={"a": "1"}).info.run_id
    for value in ("2", "3"):
        client.log_batch(
            run_id,
            metrics=[Metric("loss", 0.5, 100, 0), Metric("loss", 0.25, 100, 1)],
            params=[Param("seq_len", "64")],
            tags=[RunTag("a", value), RunTag("b", "4")],
        )
    with pytest.raises(MlflowException, match="not allowed"):
        client.log_batch(run_id, params=[Param("seq_len", "65")])
    data = client.get_run(run_id).data
    assert data.params == {"seq_len": "64"}
    assert (data.tags["a"], data.tags["b"]) == ("3", "4")
    history = client.get_metric_history(run_id, "loss")
    assert sorted((one.step, one.timestamp, one.value) for one in history) == [
        (0, 100, 0.5),
        (1, 100, 0.25),
    ]


@pytest.mark.parametrize(
    ("points", "latest"),
    [
        ([(0, 10, 1.0), (0, 20, 2.0)], 2.0),
        ([(0, 20, 2.0), (0, 10, 1.0)], 2.0),
        ([(1, 10, 1.0), (0, 20, 2.0)], 1.0),
        ([(0, 10, 1.0), (0, 10, 3.0), (0, 10, 2.0)], 3.0),
    ],
)
def test_the_value_of_a_metric_is_that_of_the_greatest_step_then_time_then_value(
    client: Any, experiment: str, points: list[tuple[int, int, float]], latest: float
) -> None:
    run_id = client.create_run(experiment).info.run_id
    for step, time, value in points:
        client.log_batch(run_id, metrics=[Metric("loss", value, time, step)])
    assert client.get_run(run_id).data.metrics == {"loss": latest}


def test_a_run_ends_is_reopened_and_may_be_written_after_its_end(
    client: Any, experiment: str
) -> None:
    run_id = client.create_run(experiment).info.run_id
    client.set_terminated(run_id, "KILLED", 70)
    assert client.get_run(run_id).info.status == "KILLED"
    assert client.get_run(run_id).info.end_time == 70
    client.log_batch(run_id, tags=[RunTag("late", "yes")])
    client.update_run(run_id, "RUNNING")
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["late"]) == ("RUNNING", "yes")
    client.set_terminated(run_id)
    assert client.get_run(run_id).info.status == "FINISHED"


def test_runs_are_found_by_what_the_store_asks_for_page_by_page_newest_first(
    client: Any, experiment: str
) -> None:
    other = client.create_experiment("another")
    client.create_run(other, tags={"kind": "sweep"})
    parent = client.create_run(experiment, 1, {"kind": "sweep"}).info.run_id
    children = [
        client.create_run(experiment, 10 + number, {"cell_id": str(number), "environment": "e"})
        for number in range(5)
    ]
    ids = [run.info.run_id for run in children]
    client.set_terminated(ids[3], "FINISHED")
    client.delete_run(ids[4])

    def found(filter_: str) -> list[str]:
        return [run.info.run_id for run in client.search_runs([experiment], filter_)]

    assert found("tags.kind = 'sweep'") == [parent]
    assert found("") == [ids[3], ids[2], ids[1], ids[0], parent]
    assert found("attributes.status = 'RUNNING'") == [ids[2], ids[1], ids[0], parent]
    assert found("attributes.status != 'RUNNING'") == [ids[3]]
    assert found("tags.cell_id = '2' and tags.environment = 'e'") == [ids[2]]
    assert found("tags.cell_id = '2' and tags.environment = 'other'") == []
    pages, token = [], None
    while True:
        page = client.search_runs([experiment], "", max_results=2, page_token=token)
        pages.append([run.info.run_id for run in page])
        token = page.token
        if not token:
            break
    assert pages == [[ids[3], ids[2]], [ids[1], ids[0]], [parent]]
    with pytest.raises(MlflowException, match="active"):
        client.log_batch(ids[4], tags=[RunTag("a", "b")])
