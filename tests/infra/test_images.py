"""The images' recipes: they lint, what they copy is there and gets through, and what they and the
manifests start takes the options that it is given."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from ray.scripts.scripts import start

from tests.infra import manifests
from tests.infra.manifests import DOCKERFILES, IMAGES, INFRA, ROOT


def name(path: Path) -> str:
    return path.name


def test_there_are_two() -> None:
    assert [path.name for path in DOCKERFILES] == ["mlflow.Dockerfile", "sweep.Dockerfile"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    linter = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert linter is not None
    done = subprocess.run([linter, str(dockerfile)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def let_through(dockerfile: Path) -> list[str]:
    """What the file beside a Dockerfile lets into its build."""
    lines = Path(f"{dockerfile}.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return [rule.removeprefix("!") for rule in rules if rule.startswith("!")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_what_is_copied_is_there_and_nothing_else_gets_in(dockerfile: Path) -> None:
    copies = [shlex.split(a) for word, a in manifests.instructions(dockerfile) if word == "COPY"]
    sources = {source for words in copies for source in words[:-1]}
    assert sources == set(let_through(dockerfile))
    assert all((ROOT / source).exists() for source in sources)
    assert not any(fnmatch.fnmatch("infra/secrets.env", rule) for rule in sources)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_nothing_runs_as_root(dockerfile: Path) -> None:
    words = [word for word, _ in manifests.instructions(dockerfile)]
    assert dict(manifests.instructions(dockerfile))["USER"] == "1000:1000"
    assert words.index("USER") < words.index("CMD")
    assert "RUN" not in words[words.index("USER") :]


def options(command: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in command if word.startswith("--")}


def source_of_mlflow() -> str:
    """MLflow's command line and its variables; read, since importing them takes many seconds."""
    found = importlib.util.find_spec("mlflow")
    assert found is not None and found.origin is not None
    files = ("cli/__init__.py", "utils/cli_args.py", "environment_variables.py")
    return "".join((Path(found.origin).parent / file).read_text() for file in files)


def test_the_mlflow_server_has_its_options() -> None:
    asked = options(manifests.image_command("mlflow"))
    assert {"--app-name", "--allowed-hosts", "--backend-store-uri", "--serve-artifacts"} <= asked
    source = source_of_mlflow()
    assert {option for option in asked if not re.search(rf'"{option}[/"]', source)} == set()


def test_mlflow_reads_the_variables_that_it_is_given() -> None:
    files = [*DOCKERFILES, INFRA / "compose.yaml", *manifests.KUBERNETES.glob("*.yaml")]
    text = "\n".join(path.read_text() for path in files)
    given = set(re.findall(r"\b(MLFLOW_[A-Z_]+)\b", text))
    source = source_of_mlflow()
    assert given
    assert {name for name in given if f'"{name}"' not in source} == set()


def test_hosts_are_those_by_which_the_server_is_called() -> None:
    command = manifests.image_command("mlflow")
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    assert "*" not in hosts
    called = re.findall(
        r"http://(mlflow:\d+)",
        (INFRA / "compose.yaml").read_text()
        + (manifests.KUBERNETES / "raycluster.yaml").read_text(),
    )
    assert called and set(called) <= set(hosts)
    (published,) = manifests.compose()["services"]["mlflow"]["ports"]
    assert published.rpartition(":")[0] in hosts


@pytest.mark.parametrize("command", manifests.ray_starts())
def test_ray_takes_its_options(command: str) -> None:
    known = {text for parameter in start.params for text in parameter.opts}
    assert options(shlex.split(command)) <= known


def test_kuberay_passes_on_what_ray_takes() -> None:
    known = {text for parameter in start.params for text in parameter.opts}
    (cluster,) = manifests.objects_of("RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    assert {f"--{key}" for group in groups for key in group["rayStartParams"]} <= known


def test_the_sweep_of_the_job_is_in_the_image() -> None:
    (job,) = manifests.objects_of("RayJob")
    path = next(word for word in shlex.split(job["spec"]["entrypoint"]) if word.endswith(".yaml"))
    assert ("COPY", "sweeps /sweeps") in manifests.instructions(IMAGES / "sweep.Dockerfile")
    assert (ROOT / path.removeprefix("/")).exists()
