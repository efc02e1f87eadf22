"""What no manifest may have: an open port, a password, a Ray without its token, needless rights."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.infra import manifests
from tests.infra.manifests import INFRA, ROOT, Manifest, Pod

PODS = manifests.pods()
SERVICES = manifests.compose()["services"]
OPEN_TO_ALL = 'a port on every interface: say "127.0.0.1:..."'
STORE = re.compile(r"^(MLFLOW|PG|POSTGRES|AWS)_?")


def pod_name(pod: Pod) -> str:
    return pod.name


# Ports


@pytest.mark.parametrize("name", SERVICES)
def test_compose_publishes_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        host, _, rest = port.rpartition(":")[0].partition(":")
        assert rest and ipaddress.ip_address(host).is_loopback, OPEN_TO_ALL
    assert "network_mode" not in SERVICES[name]
    assert not SERVICES[name].get("privileged")


def test_the_database_and_the_store_are_shut_in() -> None:
    networks = manifests.compose()["networks"]
    assert networks["database"] == networks["store"] == {"internal": True}
    on = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert {name for name in on if "database" in on[name]} == {"postgres", "mlflow"}
    assert {name for name in on if "store" in on[name]} == {"mlflow", "ray-head"}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items())


def rules(pod: Pod, direction: str) -> Iterator[Manifest]:
    """What the policies let in to a pod (`ingress`), or out of it (`egress`)."""
    for policy in manifests.objects_of("NetworkPolicy"):
        if selects(policy["spec"]["podSelector"], pod.labels):
            yield from policy["spec"].get(direction, [])


def test_nobody_speaks_by_default() -> None:
    (one,) = [
        policy["spec"]
        for policy in manifests.objects_of("NetworkPolicy")
        if policy["metadata"]["name"] == "deny-by-default"
    ]
    assert one == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("pod", PODS, ids=pod_name)
def test_who_is_let_in_and_where_is_said(pod: Pod) -> None:
    """No rule is for everyone, or for every port: a rule without `from` or `ports` would be."""
    let_in = list(rules(pod, "ingress"))
    assert let_in
    for rule in let_in:
        assert rule["from"] and rule["ports"]
        assert all("podSelector" in peer for peer in rule["from"])


@pytest.mark.parametrize("pod", PODS, ids=pod_name)
def test_where_it_may_speak_to_is_said(pod: Pod) -> None:
    """Ray's nodes may use every port among themselves; what they let in says which."""
    out = list(rules(pod, "egress"))
    assert out
    for rule in out:
        among_ray = [{"podSelector": {"matchLabels": {"ray.io/cluster": "sweep"}}}]
        assert rule["to"] and (rule.get("ports") or rule["to"] == among_ray)


def admits(rule: Manifest, port: int) -> bool:
    return any(one["port"] <= port <= one.get("endPort", one["port"]) for one in rule["ports"])


def reach(target: Pod, port: int) -> set[str]:
    """The pods of ours that the policies let in to a port of another."""
    return {
        pod.name
        for pod in PODS
        for rule in rules(target, "ingress")
        for peer in rule["from"]
        if admits(rule, port)
        and "namespaceSelector" not in peer
        and selects(peer["podSelector"], pod.labels)
    }


def pod(name: str) -> Pod:
    return next(one for one in PODS if one.name == name)


def test_only_who_must_reaches_a_port() -> None:
    nodes = {one.name for one in PODS if one.is_ray}
    assert reach(pod("postgres"), 5432) == {"mlflow"}
    assert reach(pod("mlflow"), 5000) == {"sweep head"}
    assert reach(pod("sweep head"), 6379) == nodes
    # Ray's client server runs what it is sent, and Ray has no switch for it.
    assert all(reach(one, 10001) == set() for one in PODS)


def test_no_service_is_reached_from_outside() -> None:
    for service in manifests.objects_of("Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    for cluster in manifests.objects_of("RayCluster"):
        assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not manifests.objects_of("Ingress")
    for one in PODS:
        assert not one.spec.get("hostNetwork")
        assert not any("hostPort" in port for c in one.containers for port in c.get("ports", []))


def test_the_launchers_head_listens_for_jobs_on_loopback() -> None:
    (command,) = [
        line for line in manifests.cluster()["head_start_ray_commands"] if "start" in line
    ]
    assert "--dashboard-host=127.0.0.1" in shlex.split(command)
    shut = "iptables -I INPUT -p tcp --dport 10001 ! -i lo -j DROP"
    assert any(shut in line for line in manifests.cluster()["initialization_commands"])
    # Without a group of one's own, Ray makes one that is open to SSH from everywhere.
    for kind in manifests.cluster()["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"]


# The token


@pytest.mark.parametrize("command", manifests.ray_starts())
def test_ray_is_started_in_token_mode(command: str) -> None:
    """In the command itself, or in the environment of the service whose command it is."""
    environments = [s["environment"] for s in SERVICES.values() if s.get("command") == command]
    if environments:
        for environment in environments:
            assert environment["RAY_AUTH_MODE"] == "token"
            assert environment["RAY_AUTH_TOKEN"].startswith("${auth_token:?")
    else:
        assert "RAY_AUTH_MODE=token" in shlex.split(command)


def test_every_way_to_start_ray_is_looked_at() -> None:
    assert len(manifests.ray_starts()) == 5


@pytest.mark.parametrize("pod", [one for one in PODS if one.is_ray], ids=pod_name)
def test_containers_of_ray_are_in_token_mode(pod: Pod) -> None:
    for container in pod.containers:
        said = {one["name"]: one for one in container["env"]}
        assert said["RAY_AUTH_MODE"]["value"] == "token"
        assert said["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "auth_token"


def test_the_operator_and_the_image_say_so_too() -> None:
    (cluster,) = manifests.objects_of("RayCluster")
    (generator,) = manifests.kustomization()["secretGenerator"]
    said = {"mode": "token", "secretName": generator["name"]}
    assert cluster["spec"]["authOptions"] == said
    assert manifests.image_environment("sweep")["RAY_AUTH_MODE"] == "token"
    assert "--env RAY_AUTH_MODE=token" in manifests.cluster()["docker"]["run_options"]


# Secrets


def references(node: object) -> Iterator[Manifest]:
    """Every reference to a key of a Secret, however deep."""
    if isinstance(node, dict):
        if "secretKeyRef" in node:
            yield node["secretKeyRef"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_secret_that_is_referred_to_is_made() -> None:
    (generator,) = manifests.kustomization()["secretGenerator"]
    assert manifests.kustomization()["generatorOptions"]["disableNameSuffixHash"]
    found = list(references(manifests.objects()))
    assert {one["name"] for one in found} == {generator["name"]}
    assert {one["key"] for one in found} == set(manifests.secret_names())


def test_compose_refuses_a_secret_that_is_not_set() -> None:
    names = set(manifests.secret_names())
    said = [(name, rest) for name, rest in manifests.variables(manifests.compose_text())]
    assert {name for name, _ in said} >= names
    for name, rest in said:
        assert rest.startswith(":?") if name in names else rest.startswith(":-"), name


SECRET = re.compile(r"passw|secret_key|token$|credential|access_key", re.IGNORECASE)
REFERENCE = re.compile(r"^\$\{\w+:\?|^~/")
"""What a secret may be in a file: a variable that has to be set, or a file of the user's own."""


def literals(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a manifest, with the name it goes by."""
    if isinstance(node, dict):
        if isinstance(node.get("name"), str) and isinstance(node.get("value"), str):
            yield node["name"], node["value"]
        for name, value in node.items():
            yield from literals(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from literals(value, key)
    elif isinstance(node, str):
        yield key, node


def every_literal() -> list[tuple[str, str]]:
    images = [manifests.image_environment(name) for name in ("sweep", "mlflow")]
    return list(
        literals(
            [
                manifests.compose(),
                manifests.cluster(),
                manifests.objects(),
                manifests.kustomization(),
                images,
            ]
        )
    )


def test_no_secret_is_written_down() -> None:
    assert any(SECRET.search(name) for name, _ in every_literal())
    for name, value in every_literal():
        if SECRET.search(name) and name != "RAY_AUTH_MODE":
            named = value in manifests.secret_names()
            assert named or REFERENCE.match(value), f"{name}: {value}"


MADE = ("secrets.env", "__pycache__")
FILES = [
    path for path in sorted(INFRA.rglob("*")) if path.is_file() and not set(MADE) & set(path.parts)
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_has_a_password_in_a_url_or_a_key_of_its_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"://[^/\s:@]+:[^/\s@$]+@", text)
    # What a file that is fetched must be, beside its name and version.
    text = re.sub(r"(?m)^\S+ \S+ [0-9a-f]{64}$", "", text)
    assert not re.search(r"\b[0-9a-f]{32,}\b|\bAKIA[0-9A-Z]{16}\b|PRIVATE KEY", text)
    assert "password1234" not in text


@pytest.mark.parametrize("pod", PODS, ids=pod_name)
def test_workers_know_nothing_of_the_store(pod: Pod) -> None:
    names = {one["name"] for container in pod.containers for one in container["env"]}
    of_store = {name for name in names if STORE.match(name)}
    driver = pod.labels.get("ray.io/node-type") == "head"
    assert bool(of_store) == (driver or not pod.is_ray)
    mounts = {m["name"] for container in pod.containers for m in container.get("volumeMounts", [])}
    assert "results" not in mounts or driver


def test_compose_and_the_launcher_tell_workers_nothing_of_the_store() -> None:
    for name, service in SERVICES.items():
        if "worker" in name:
            assert not [key for key in service["environment"] if STORE.match(key)]
            assert "volumes" not in service
    assert not STORE.search(" ".join(manifests.cluster()["worker_start_ray_commands"]))
    assert manifests.cluster()["docker"]["run_options"] == [
        "--ulimit nofile=65536:65536",
        "--env RAY_AUTH_MODE=token",
    ]


# Rights


@pytest.mark.parametrize("pod", PODS, ids=pod_name)
def test_pods_run_as_nobody_in_particular(pod: Pod) -> None:
    context = pod.spec["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod.containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
    # KubeRay gives the head an account of its own, for the autoscaler.
    if pod.labels.get("ray.io/node-type") != "head":
        assert pod.spec["automountServiceAccountToken"] is False


def test_the_namespace_refuses_anything_else() -> None:
    (namespace,) = manifests.objects_of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", [n for n in SERVICES if n != "postgres"])
def test_containers_of_compose_keep_no_rights(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
