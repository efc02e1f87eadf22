"""`infra/README.md` says what is so: its commands are ours, its files exist, its links resolve."""

from __future__ import annotations

import re
import shlex

import pytest

from orchestrator.cli import parser
from orchestrator.spec import load_spec
from tests.infra import manifests
from tests.infra.manifests import INFRA, ROOT

GUIDE = (INFRA / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every command of the page and of the job, continued lines joined."""
    blocks = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    (job,) = manifests.objects_of("RayJob")
    return [line.removeprefix("$ ") for line in lines] + [job["spec"]["entrypoint"]]


OURS = [line for line in commands() if "-m orchestrator" in line]


def arguments(line: str) -> list[str]:
    """What our program gets: what follows its name, up to the shell's own signs."""
    after = line.partition("-m orchestrator")[2].partition("'")[0]
    words = shlex.split(after)
    stops = [words.index(sign) for sign in (">", "&") if sign in words]
    return words[: min(stops, default=len(words))]


def test_there_are_commands() -> None:
    assert len(OURS) >= 5


@pytest.mark.parametrize("line", OURS)
def test_our_commands_are_ours(line: str) -> None:
    parsed = parser().parse_args(arguments(line))
    # The parser would take a part of an option's name for the whole.
    written = {word for word in arguments(line) if word.startswith("--")}
    assert written <= {f"--{name.replace('_', '-')}" for name in vars(parsed)}
    if "my_sweep" not in parsed.sweep:
        assert load_spec(ROOT / "sweeps" / parsed.sweep.rpartition("/")[2]).spec


def test_what_goes_to_a_cluster_names_its_device_and_its_results() -> None:
    jobs = [line for line in OURS if "--address auto" in line]
    assert len(jobs) == 3
    for line in jobs:
        parsed = parser().parse_args(arguments(line))
        assert parsed.results == "/data/results"
    assert load_spec(ROOT / "sweeps" / "context_scaling_gpu.yaml").spec.device != "auto"


def test_links_resolve() -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", GUIDE)
    headings = re.findall(r"^#+ (.+)$", GUIDE, re.MULTILINE)
    places = {f"#{heading.lower().replace(' ', '-')}" for heading in headings}
    assert targets and set(targets) <= places


def test_paths_it_names_exist() -> None:
    named = set(re.findall(r"(?<![\w/])((?:infra|sweeps|tests)/[\w./]+\w)", GUIDE))
    made = {"infra/secrets.env", "infra/kubernetes/secrets.env", "sweeps/my_sweep.yaml"}
    assert named > made
    assert {path for path in named - made if not (ROOT / path).exists()} == set()


def test_it_warns_of_open_ports() -> None:
    assert "An open Ray port is remote code execution" in GUIDE
