"""Every manifest is what its reader takes: Kubernetes, KubeRay, Ray's launcher, compose."""

from __future__ import annotations

import copy
import json
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from compose_spec import PyCompose

from tests.infra import kuberay, manifests
from tests.infra.manifests import INFRA, KUBERNETES, Manifest, Pod

OBJECTS = [
    pytest.param(one, id=f"{one['kind']} {one['metadata'].get('name', 'sweep-')}")
    for one in manifests.objects()
]
STANDARD = [param for param in OBJECTS if not param.values[0]["apiVersion"].startswith("ray.io")]
OF_KUBERAY = [param for param in OBJECTS if param.values[0]["apiVersion"].startswith("ray.io")]
RELEASE = kubernetes_validate.latest_version()


def valid(one: Manifest) -> None:
    kubernetes_validate.validate(one, RELEASE, strict=True)


@pytest.mark.parametrize("one", STANDARD)
def test_objects_of_kubernetes_are_valid(one: Manifest) -> None:
    valid(one)


@pytest.mark.parametrize("one", OF_KUBERAY)
def test_objects_of_kuberay_have_its_fields(one: Manifest) -> None:
    jsonschema.validate(one, kuberay.SCHEMAS[one["kind"]])


@pytest.mark.parametrize(
    "pod", [pod for pod in manifests.pods() if pod.is_ray], ids=lambda p: p.name
)
def test_pods_of_kuberay_are_valid(pod: Pod) -> None:
    template = {"metadata": {"labels": dict(pod.labels)}, "spec": pod.spec}
    valid({"apiVersion": "v1", "kind": "PodTemplate", "template": template})


def test_a_mistake_in_an_object_is_found() -> None:
    (one,) = manifests.objects_of("StatefulSet")
    wrong = copy.deepcopy(one)
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="imagePolicy"):
        valid(wrong)
    (cluster,) = manifests.objects_of("RayCluster")
    cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        jsonschema.validate(cluster, kuberay.SCHEMAS["RayCluster"])


def test_kustomize_finds_all_files_and_only_secrets_are_missing() -> None:
    said = manifests.kustomization()
    there = {path.name for path in KUBERNETES.glob("*.yaml")}
    # The job is not a part of the cluster: one is made for each sweep.
    assert there - set(said["resources"]) == {"kustomization.yaml", "rayjob.yaml"}
    assert set(said["resources"]) <= there
    assert [generator["envs"] for generator in said["secretGenerator"]] == [["secrets.env"]]


def test_the_job_goes_to_the_cluster() -> None:
    (cluster,) = manifests.objects_of("RayCluster")
    (job,) = manifests.objects_of("RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["metadata"]["namespace"] == manifests.kustomization()["namespace"]


def test_claims_are_made_for_what_is_mounted() -> None:
    made = {one["metadata"]["name"] for one in manifests.objects_of("PersistentVolumeClaim")}
    volumes = [volume for pod in manifests.pods() for volume in pod.spec.get("volumes", [])]
    claims = [v["persistentVolumeClaim"] for v in volumes if "persistentVolumeClaim" in v]
    assert {claim["claimName"] for claim in claims} == made


def launcher_schema() -> Manifest:
    path = Path(ray.autoscaler.__path__[0]) / "ray-schema.json"
    loaded: Manifest = json.loads(path.read_text())
    return loaded


def test_the_launchers_file_is_valid() -> None:
    said = manifests.cluster()
    jsonschema.validate(said, launcher_schema())
    assert said["head_node_type"] in said["available_node_types"]
    wrong = {**said, "idle_timeout_minute": 5}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        jsonschema.validate(wrong, launcher_schema())


def test_the_head_launches_and_workers_may_be_taken_away() -> None:
    types = manifests.cluster()["available_node_types"]
    head = types.pop(manifests.cluster()["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["max_workers"] > worker["min_workers"] >= 1


def plain_compose() -> Manifest:
    """The compose file with its variables filled in and its anchors resolved."""
    values = {name: secrets.token_hex(8) for name in manifests.secret_names()}
    loaded: Manifest = yaml.safe_load(manifests.interpolated(manifests.compose_text(), values))
    return loaded


def written(said: Manifest, folder: Path) -> Path:
    path = folder / "compose.yaml"
    path.write_text(yaml.safe_dump(said))
    return path


def read_by_schema(path: Path) -> None:
    PyCompose.from_yaml(path.read_text())


def read_by_client(path: Path) -> None:
    command = [*CLIENT, "-f", str(path), "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)


def client() -> list[str]:
    """The client of compose that this machine has, if any."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            answer = subprocess.run([*command, "version"], capture_output=True, check=False)
            if answer.returncode == 0:
                return command
    return []


CLIENT = client()
READERS = [read_by_schema, read_by_client] if CLIENT else [read_by_schema]


@pytest.mark.parametrize("reader", READERS)
def test_the_compose_file_is_valid(reader: Callable[[Path], None], tmp_path: Path) -> None:
    reader(written(plain_compose(), tmp_path))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("change", "named"),
    [({"restrat": "no"}, "restrat"), ({"ports": ["127.0.0.1:x:5000"]}, "ort")],
)
def test_a_mistake_in_the_compose_file_is_found(
    reader: Callable[[Path], None], change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    wrong = plain_compose()
    wrong["services"]["mlflow"].update(change)
    with pytest.raises(ValueError, match=named):
        reader(written(wrong, tmp_path))


def test_services_name_what_is_there() -> None:
    said = manifests.compose()
    for service in said["services"].values():
        assert set(service["networks"]) <= set(said["networks"])
        assert set(service.get("depends_on", {})) <= set(said["services"])
        named = [
            volume for volume in service.get("volumes", []) if not volume.startswith((".", "/"))
        ]
        assert {volume.partition(":")[0] for volume in named} <= set(said["volumes"])
        if "build" in service:
            assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).exists()
