"""The files of `infra/` as data: what compose, Kubernetes, Ray's launcher and the images say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"
IMAGES = INFRA / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
SECRETS_SCRIPT = INFRA / "secrets.sh"

Manifest = dict[str, Any]
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<word>[^}]*))?\}")


def secret_names() -> list[str]:
    """What `secrets.sh` makes."""
    loop = re.search(r"^for name in ([\w ]+); do$", SECRETS_SCRIPT.read_text(), re.MULTILINE)
    assert loop is not None
    return loop.group(1).split()


def constraints() -> dict[str, str]:
    """Every version that is stated, by name: packages, and what comes from no index."""
    text = (INFRA / "constraints.txt").read_text()
    return dict(re.findall(r"^(?:#: )?([\w.-]+)==(\S+)$", text, re.MULTILINE))


def compose_text() -> str:
    return (INFRA / "compose.yaml").read_text()


def compose() -> Manifest:
    """The compose file as it is written, variables included."""
    loaded: Manifest = yaml.safe_load(compose_text())
    return loaded


def variables(text: str) -> list[tuple[str, str]]:
    """Each variable of a compose file with what follows its name: `:-default`, `:?message`."""
    found = _VARIABLE.finditer(text)
    return [(one["name"], f"{one['kind'] or ''}{one['word'] or ''}") for one in found]


def interpolated(text: str, values: Mapping[str, str]) -> str:
    """The compose file as its client would see it."""
    return _VARIABLE.sub(lambda one: values.get(one["name"], one["word"] or ""), text)


def cluster() -> Manifest:
    """Ray's launcher's file."""
    loaded: Manifest = yaml.safe_load((INFRA / "ray" / "cluster.yaml").read_text())
    return loaded


def kustomization() -> Manifest:
    loaded: Manifest = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return loaded


def objects() -> list[Manifest]:
    """Every object of Kubernetes, the sweep's job included."""
    files = [*kustomization()["resources"], "rayjob.yaml"]
    return [one for file in files for one in yaml.safe_load_all((KUBERNETES / file).read_text())]


def objects_of(kind: str) -> list[Manifest]:
    return [one for one in objects() if one["kind"] == kind]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod's template with the labels that it will have; `is_ray` where it is a Ray node."""

    name: str
    labels: Mapping[str, str]
    spec: Manifest
    is_ray: bool = False

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]


def pods() -> list[Pod]:
    """Every pod that the manifests ask for. KubeRay labels its pods with the cluster and what they
    are in it."""
    return [*_plain_pods(), *(pod for one in objects_of("RayCluster") for pod in _ray_pods(one))]


def _plain_pods() -> Iterator[Pod]:
    for one in objects_of("Deployment") + objects_of("StatefulSet"):
        template = one["spec"]["template"]
        yield Pod(one["metadata"]["name"], template["metadata"]["labels"], template["spec"])


def _ray_pods(one: Manifest) -> Iterator[Pod]:
    name, spec = one["metadata"]["name"], one["spec"]
    groups = [("head", "head", spec["headGroupSpec"])]
    groups += [(g["groupName"], "worker", g) for g in spec["workerGroupSpecs"]]
    for group, role, described in groups:
        labels = {"ray.io/cluster": name, "ray.io/node-type": role}
        yield Pod(f"{name} {group}", labels, described["template"]["spec"], is_ray=True)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions with their arguments, comments left out and lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    parts = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, argument) for name, _, argument in parts]


def image_command(name: str) -> list[str]:
    """What an image starts."""
    command = dict(instructions(IMAGES / f"{name}.Dockerfile"))["CMD"]
    return [str(word) for word in json.loads(command)]


def image_environment(name: str) -> dict[str, str]:
    argument = dict(instructions(IMAGES / f"{name}.Dockerfile"))["ENV"]
    return dict(word.split("=", 1) for word in shlex.split(argument))


def ray_starts() -> list[str]:
    """Every command that starts Ray, other than KubeRay's own."""
    launcher = cluster()
    ours = launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"]
    services = compose()["services"].values()
    commands = ours + [service.get("command", "") for service in services]
    return [command for command in commands if "ray start" in command]
