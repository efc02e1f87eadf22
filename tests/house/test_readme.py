"""The README says what is so: its commands exist, its links resolve, its sweep file plans."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.cli import parser
from orchestrator.expand import expand
from orchestrator.plots import plot
from orchestrator.spec import load_spec
from workloads import registry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target for target in targets if not target.startswith("http")]
    assert [target for target in local if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_it_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:orchestrator|workloads|sweeps|tests|infra)/[\w./]+)`", text)
    written = [path for path in named if "NAME" not in path]
    assert written or page == "CHANGELOG.md"
    assert [path for path in written if not (ROOT / path).exists()] == []


def test_every_verb_is_described_and_exists() -> None:
    described = set(re.findall(r"`python -m orchestrator (\w+)", README))
    choices = next(a.choices for a in parser()._actions if a.dest == "verb")
    assert choices is not None
    assert described == set(choices)


def test_its_commands_of_make_are_targets() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"\$ make (\w+)", README)) | set(re.findall(r"`make (\w+)", README))
    assert used and used <= targets


def test_its_sweep_file_plans(tmp_path: Path) -> None:
    (example,) = _blocks("yaml")
    path = tmp_path / "readme.yaml"
    path.write_text(example, encoding="utf-8")
    plan = expand(load_spec(path))
    assert plan.cells


def test_its_sweep_file_is_the_one_that_make_sweep_runs(tmp_path: Path) -> None:
    (example,) = _blocks("yaml")
    path = tmp_path / "readme.yaml"
    path.write_text(example, encoding="utf-8")
    ours = expand(load_spec(ROOT / "sweeps" / "context_scaling.yaml"))
    assert [cell.id for cell in expand(load_spec(path)).cells] == [cell.id for cell in ours.cells]


def test_architectures_it_names_exist() -> None:
    (example,) = _blocks("yaml")
    listed = re.search(r"^architectures: \[([^\]]+)\]", example, re.MULTILINE)
    assert listed is not None
    assert set(listed.group(1).split(", ")) <= set(registry.names("architectures"))


def test_tables_it_names_are_written() -> None:
    from orchestrator.analysis.schema import SCHEMAS

    section = README[README.index("tables/*.parquet") :].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert named == set(SCHEMAS)


def test_every_plot_has_a_file_that_draws() -> None:
    for name in plot.names():
        assert callable(plot.load(name).draw)
