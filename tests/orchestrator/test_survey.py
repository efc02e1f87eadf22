"""What is said of a cluster's nodes before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.scheduler import survey
from orchestrator.scheduler.placement import NodeShape
from orchestrator.scheduler.survey import Surveyed, judged
from workloads import environment

HERE = environment.describe("cpu:1")
H100 = "nvidia-h100-80gb-hbm3"
ON_GPU = replace(HERE, device=H100, device_name="NVIDIA H100 80GB HBM3", driver="570.1")


def node(number: int, **fields: object) -> Surveyed:
    one = Surveyed(
        node_id=f"id{number}",
        address=f"10.0.0.{number}",
        shape=NodeShape(cpus=8, memory=1 << 34),
        code="c0de",
        commit="f" * 40,
        environment=HERE,
    )
    return replace(one, **fields)


def gpu(number: int, **fields: object) -> Surveyed:
    shape = NodeShape(cpus=8, memory=1 << 34, gpus=2, gpu_memory=1 << 36, kind="H100")
    content = {"shape": shape, "devices": (H100,), "environment": ON_GPU, **fields}
    return node(number, **content)


def test_nodes_that_are_alike_are_fit_and_a_head_without_cores_is_not_asked() -> None:
    head = node(0, shape=NodeShape(cpus=0, memory=1), code="other")
    assert judged([head, node(1), node(2)], "cpu:1", "c0de") == [node(1), node(2)]
    assert judged([node(1)], "cpu:16", "c0de") == [], "too few cores"


def test_other_source_and_silence_are_refused_in_one_message() -> None:
    nodes = [node(1), node(2, code="bad"), node(3, problem="ModuleNotFoundError: orchestrator")]
    with pytest.raises(UserError) as caught:
        judged(nodes, "cpu:1", "c0de")
    message = str(caught.value)
    assert "install the same version" in message and "10.0.0.1" not in message
    assert "10.0.0.2: has source bad (commit ffffffffffff), this driver has c0de" in message
    assert "10.0.0.3: ModuleNotFoundError" in message


def test_nodes_that_differ_are_named_by_group() -> None:
    other = replace(HERE, packages={**HERE.packages, "torch": "1.0"})
    with pytest.raises(UserError) as caught:
        judged([node(1), node(2, environment=other), node(3)], "cpu:1", "c0de")
    _, *groups = str(caught.value).splitlines()
    assert len(groups) == 2
    assert groups[0].strip().startswith("10.0.0.1, 10.0.0.3: ")
    assert "torch 1.0" in groups[1] and other.fingerprint in groups[1]


def test_only_nodes_of_the_class_count() -> None:
    a100 = gpu(3, devices=("nvidia-a100",), code="other")
    plain = node(1, code="other")
    assert judged([plain, gpu(2), a100], H100, "c0de") == [gpu(2)]
    assert judged([plain, a100], H100, "c0de") == []
    assert survey.classes([plain, a100]) == "nvidia-a100"
    assert survey.classes([plain]) == "no accelerator"


def test_the_code_is_that_of_plug_ins_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKLOADS_PLUGINS", raising=False)
    bare = survey.code_hash()
    plugin = tmp_path / "mine.py"
    plugin.write_text("ARCHITECTURE = 1\n")
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(plugin))
    one = survey.code_hash()
    plugin.write_text("ARCHITECTURE = 2\n")
    assert len({bare, one, survey.code_hash()}) == 3
    for name in ("here", "there"):
        (tmp_path / name / "tasks").mkdir(parents=True)
        (tmp_path / name / "tasks" / "t.py").write_text("TASK = 1\n")
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(tmp_path / "here"))
    here = survey.code_hash()
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(tmp_path / "there"))
    assert survey.code_hash() == here, "where a folder lies does not matter"


def test_the_smallest_gpu_counts() -> None:
    assert survey.smallest_memory("81559\n 40960\n") == 40960 << 20
    assert survey.smallest_memory("[N/A]\n") == 0


def test_a_node_says_what_it_is() -> None:
    said = survey.examine("cpu:1")
    assert environment.Environment.from_dict(said["environment"]) == HERE
    assert said["code"] == survey.code_hash()
    assert said["gpu_memory"] == 0
