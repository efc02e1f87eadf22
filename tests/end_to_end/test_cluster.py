"""A sweep over a real cluster of several nodes: one is killed, one is added, one is not fit, and
then the head is lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.nap_sweep import nap_sweep
from tests.end_to_end.sweep_process import SweepProcess
from tests.ray_cluster import ROOT, RayCluster, ray_cluster

pytestmark = pytest.mark.slow

PATIENCE = 240.0
"""For what a machine of two cores does with a whole cluster on it."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("cluster"), 3, slots=1) as one:
        yield one


def changed_source(folder: Path, file: str, more: str) -> Path:
    """A copy of this code in which one file has more at its end."""
    for package in ("orchestrator", "workloads"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    with (folder / file).open("a") as changed:
        changed.write(more)
    return folder


def waiting_source(folder: Path, asked: Path) -> Path:
    """A copy of this code whose nodes, asked what they are, leave a file and say nothing."""
    more = f"""

def examine(device):
    import pathlib, time
    pathlib.Path({str(asked)!r}).touch()
    time.sleep({PATIENCE})
"""
    return changed_source(folder, "orchestrator/scheduler/survey.py", more)


@pytest.fixture(scope="module")
def other_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this code in which the workloads differ."""
    root = tmp_path_factory.mktemp("other")
    return changed_source(root, "workloads/timing.py", "\n# changed\n")


def sweep_on(cluster: RayCluster, folder: Path, seconds: float, seeds: int) -> SweepProcess:
    text = nap_sweep(
        "naps",
        "Is every cell answered once, whatever happens to the nodes?",
        seconds=seconds,
        seeds=seeds,
        gate=folder / "gate",
    )
    return SweepProcess(folder, text, "--address", cluster.address, **cluster.environment)


def records(folder: Path) -> list[dict[str, Any]]:
    files = folder.glob("results/naps/journal/[!.]*.json")
    return [json.loads(file.read_text()) for file in files]


def answered_on(folder: Path) -> Counter[str]:
    """Finished records by the node that made them."""
    return Counter(
        one["node"].partition("-")[2]
        for one in records(folder)
        if one["record"]["status"] == "finished"
    )


def name(node: Any) -> str:
    """What records call a node, beside its machine."""
    return hashlib.sha256(node.node_id.encode()).hexdigest()[:8]


def begun(gate: Path, node: Any) -> Path:
    """The file that a node leaves once a cell of it stands at the gate."""
    return Path(f"{gate}.{node.all_processes['raylet'][0].process.pid}")


def test_a_node_of_other_source_is_refused_before_anything_is_written(
    cluster: RayCluster, other_source: Path, tmp_path: Path
) -> None:
    (stranger,) = cluster.add(PYTHONPATH=str(other_source))
    try:
        code, out, errors = sweep_on(cluster, tmp_path, 0.1, 1).end(PATIENCE)
    finally:
        cluster.kill(stranger)
    assert (code, out) == (2, "")
    assert "these nodes do not run the code of this driver" in errors
    assert errors.count("127.0.0.1: has source") == 1
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


@pytest.mark.exhaustive
def test_a_node_that_dies_while_it_is_asked_what_it_is_is_left_out(
    cluster: RayCluster, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    source = waiting_source(tmp_path / "source", asked)
    (dying,) = cluster.add(PYTHONPATH=str(source))
    sweep = sweep_on(cluster, tmp_path, 0.1, 1)
    sweep.patience = PATIENCE
    try:
        sweep.wait_for(asked.exists)
    finally:
        cluster.kill(dying)
    code, out, errors = sweep.end(PATIENCE)
    assert (code, errors) == (0, ""), out
    assert len(records(tmp_path)) == 2


def test_every_cell_is_answered_once_whatever_happens_to_the_nodes(
    cluster: RayCluster, other_source: Path, tmp_path: Path
) -> None:
    """Three nodes; one is killed, one joins that runs other code, and one that is as the first."""
    gate, first = tmp_path / "gate", {name(node) for node in cluster.nodes}
    gate.touch()
    sweep = sweep_on(cluster, tmp_path, 1.0, 15)
    sweep.patience = PATIENCE
    sweep.wait_for(lambda: all(begun(gate, node).exists() for node in cluster.nodes))
    gate.unlink()
    sweep.wait_for(lambda: first == set(answered_on(tmp_path)))
    gate.touch()
    victim = cluster.nodes[0]
    cluster.kill(victim)
    killed_at = time.time()
    (stranger,) = cluster.add(PYTHONPATH=str(other_source))
    (fourth,) = cluster.add()
    sweep.wait_for(begun(gate, fourth).exists)
    gate.unlink()
    code, out, errors = sweep.end(PATIENCE)
    cluster.kill(stranger)

    assert (code, errors) == (0, ""), out
    made = records(tmp_path)
    assert set(Counter(one["record"]["id"] for one in made).values()) == {1}
    assert len(made) == 30 and {one["record"]["status"] for one in made} == {"finished"}
    where = answered_on(tmp_path)
    assert set(where) == {*first, name(fourth)}, where
    ends = [
        one["record"]["started_at"] + one["record"]["seconds"]
        for one in made
        if one["node"].endswith(name(victim))
    ]
    assert max(ends) <= killed_at
    assert out.count("a node that joined runs no cells of this sweep: it has source") == 1


@pytest.mark.exhaustive
def test_a_head_that_is_lost_while_it_is_joined_is_one_sentence_too(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked = tmp_path / "asked"
    source = waiting_source(tmp_path / "source", asked)
    with ray_cluster(tmp_path_factory.mktemp("short-lived"), 0) as cluster:
        cluster.add(PYTHONPATH=str(source))
        sweep = sweep_on(cluster, tmp_path, 0.1, 1)
        sweep.patience = PATIENCE
        sweep.wait_for(asked.exists)
        cluster.kill_head()
        code, _, errors = sweep.end(PATIENCE)
    assert code == 1 and errors.count("went away while it was being joined") == 1, errors
    assert "Traceback" not in errors and sweep.left_behind() == []


def test_where_no_cluster_is_there_is_one_sentence(tmp_path: Path) -> None:
    text = nap_sweep("naps", "Is anybody there?", seconds=0.1, seeds=1)
    sweep = SweepProcess(tmp_path, text, "--address", "127.0.0.1:9")
    code, out, errors = sweep.end(PATIENCE)
    assert (code, out) == (2, "") and errors.count("\n") == 1
    assert "127.0.0.1:9: cannot be joined as a Ray cluster" in errors


@pytest.mark.exhaustive
def test_a_lost_head_is_one_sentence_and_loses_nothing(cluster: RayCluster, tmp_path: Path) -> None:
    sweep = sweep_on(cluster, tmp_path, 3.0, 60)
    sweep.patience = PATIENCE
    sweep.wait_for(lambda: len(records(tmp_path)) > 5)
    cluster.kill_head()
    code, out, errors = sweep.end(PATIENCE)
    assert code == 1, errors
    print(errors)
    (sentence,) = errors.splitlines()
    assert "the Ray cluster's head at 127.0.0.1" in sentence
    assert sentence.endswith("what was answered is kept, and the same command goes on")
    kept = sum(answered_on(tmp_path).values())
    assert kept > 5 and f"{120 - kept} cells have no answer" in out
    assert sweep.left_behind() == []
