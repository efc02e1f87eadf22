"""One version of each thing: what `infra/constraints.txt` states is what every file says."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.infra import kuberay, manifests
from tests.infra.manifests import DOCKERFILES, INFRA, ROOT

VERSIONS = manifests.constraints()
PROJECT = (ROOT / "pyproject.toml").read_text()
OURS = re.search(r'^version = "(.+)"$', PROJECT, re.MULTILINE)
assert OURS is not None
TAGS = {
    "sweep-orchestrator": OURS.group(1),
    "sweep-mlflow": VERSIONS["mlflow"],
    "postgres": f"{VERSIONS['postgres']}-bookworm",
}
"""The tag that each image has wherever it is named."""
FILES = [
    path
    for path in sorted([*INFRA.rglob("*.yaml"), *INFRA.rglob("*.md"), *DOCKERFILES])
    if path.is_file()
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def images() -> list[str]:
    """Every image that something would run."""
    services = manifests.compose()["services"].values()
    containers = [one for pod in manifests.pods() for one in pod.containers]
    launcher = manifests.cluster()["docker"]["image"]
    return [*(one["image"] for one in [*services, *containers]), launcher]


@pytest.mark.parametrize("image", sorted(set(images())))
def test_an_image_that_runs_has_the_stated_version(image: str) -> None:
    repository, _, tag = image.rpartition(":")
    assert tag == TAGS[repository.rpartition("/")[2]]


def test_every_image_is_run_somewhere() -> None:
    assert {one.rpartition(":")[0].rpartition("/")[2] for one in images()} == set(TAGS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_wherever_an_image_is_named_it_has_its_version(path: Path) -> None:
    for repository, tag in re.findall(
        r"\b(sweep-orchestrator|sweep-mlflow|postgres):([0-9][\w.-]*)", path.read_text()
    ):
        assert tag == TAGS[repository]


def test_kustomize_tags_the_images_with_their_versions() -> None:
    tags = {one["name"]: one["newTag"] for one in manifests.kustomization()["images"]}
    assert tags == {name: tag for name, tag in TAGS.items() if name.startswith("sweep-")}


def test_kuberay_is_told_the_version_of_ray() -> None:
    (one,) = manifests.objects_of("RayCluster")
    assert one["spec"]["rayVersion"] == VERSIONS["ray"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_images_are_built_on_the_stated_python(dockerfile: Path) -> None:
    said = re.findall(r"^ARG PYTHON=(\S+)$", dockerfile.read_text(), re.MULTILINE)
    assert said == [VERSIONS["python"]]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_images_take_their_packages_from_the_constraints(dockerfile: Path) -> None:
    runs = [text for word, text in manifests.instructions(dockerfile) if word == "RUN"]
    installs = [text for text in runs if "pip install" in text]
    assert installs
    for text in installs:
        assert re.search(r"--constraint \S*constraints\.txt", text), text
        assert "==" not in text, f"a version of its own: {text}"


def test_the_operator_is_the_one_whose_fields_are_checked() -> None:
    assert VERSIONS["kuberay"] == kuberay.VERSION
    guide = (INFRA / "README.md").read_text()
    assert re.findall(r"kuberay-operator --version (\S+)", guide) == [VERSIONS["kuberay"]]
    cluster = (manifests.KUBERNETES / "raycluster.yaml").read_text()
    assert re.findall(r"KubeRay (\d[\d.]*\d)", cluster) == [VERSIONS["kuberay"]]


@pytest.mark.parametrize("package", ["ray", "mlflow", "torch"])
def test_what_is_tested_here_is_what_is_stated(package: str) -> None:
    assert metadata.version(package).partition("+")[0] == VERSIONS[package]


@pytest.mark.parametrize("package", ["ray", "mlflow", "torch", "optuna", "pandas", "pyarrow"])
def test_the_package_allows_the_stated_version(package: str) -> None:
    asked = [Requirement(one) for one in metadata.requires("sequence-sweep-orchestrator") or ()]
    of_it = [one for one in asked if one.name == package]
    assert of_it
    assert all(VERSIONS[package] in one.specifier for one in of_it)


def test_nothing_is_stated_twice() -> None:
    lines = (INFRA / "constraints.txt").read_text().splitlines()
    stated = [line.removeprefix("#: ").partition("==")[0].lower() for line in lines if "==" in line]
    assert len(stated) == len(set(stated))
