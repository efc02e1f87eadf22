"""Every file of a plug-in family exports its constant and says of itself what the house asks."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.plots.plot import Plot
from workloads import registry
from workloads.plugins import Architecture, Metric, Task
from workloads.registry import Family

ROOT = Path(__file__).parents[2]
CONSTANTS: dict[str, tuple[str, type, int]] = {
    "workloads/architectures": ("ARCHITECTURE", Architecture, 40),
    "workloads/tasks": ("TASK", Task, 40),
    "workloads/metrics": ("METRIC", Metric, 15),
    "orchestrator/plots": ("PLOT", Plot, 15),
}
"""By folder: the constant, its type, and the words its docstring has at least."""
EXPORTING = [
    pytest.param(folder, path, id=f"{folder}/{path.stem}")
    for folder, (constant, _, _) in CONSTANTS.items()
    for path in sorted((ROOT / folder).glob("*.py"))
    if f"\n{constant}" in path.read_text()
]


def module_of(folder: str, path: Path) -> ModuleType:
    return importlib.import_module(f"{folder.replace('/', '.')}.{path.stem}")


@pytest.mark.parametrize("folder", CONSTANTS)
def test_every_family_has_members(folder: str) -> None:
    assert any(param.values[0] == folder for param in EXPORTING)


@pytest.mark.parametrize(("folder", "path"), EXPORTING)
def test_a_plug_in_exports_its_typed_constant(folder: str, path: Path) -> None:
    constant, kind, _ = CONSTANTS[folder]
    assert isinstance(getattr(module_of(folder, path), constant), kind)


@pytest.mark.parametrize(("folder", "path"), EXPORTING)
def test_a_plug_in_says_what_it_is(folder: str, path: Path) -> None:
    words = (inspect.getdoc(module_of(folder, path)) or "").split()
    assert len(words) >= CONSTANTS[folder][2], f"{len(words)} words: {' '.join(words)}"


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("name", registry.names("architectures"))
def test_an_architecture_says_what_kind_of_code_it_is(name: str, device_type: str) -> None:
    architecture = registry.load("architectures", name)
    said = architecture.kernel_class(architecture.options(), device_type)
    assert said is not None
    assert set(said.split(" + ")) <= {"fused", "chunked", "sequential", "materialised", "none"}


@pytest.mark.parametrize("family", ["architectures", "tasks", "metrics"])
def test_the_folder_is_the_registry(family: Family) -> None:
    """Beside the plug-ins only shared arithmetic lies, which some file imports by its name."""
    constant = CONSTANTS[f"workloads/{family}"][0]
    folder = ROOT / "workloads" / family
    exporting = {p.stem for p in folder.glob("*.py") if f"\n{constant}" in p.read_text()}
    assert set(registry.names(family)) >= exporting
    others = {path.stem for path in folder.glob("*.py")} - exporting - {"__init__"}
    code = "".join(path.read_text() for path in (ROOT / "workloads").rglob("*.py"))
    for other in others:
        imported = rf"^from workloads\.{family}(\.{other} import| import .*\b{other}\b)"
        assert re.search(imported, code, re.MULTILINE), f"nobody imports {other}, no plug-in"


@pytest.mark.parametrize("family", ["architectures", "tasks"])
def test_options_are_frozen_plain_and_have_defaults(family: Family) -> None:
    for name in registry.names(family):
        options = module_of(f"workloads/{family}", Path(f"{name}.py")).Options
        assert dataclasses.is_dataclass(options)
        assert options.__dataclass_params__.frozen, name
        hints = typing.get_type_hints(options)
        for field in dataclasses.fields(options):
            value = getattr(options(), field.name)
            words = isinstance(value, tuple) and all(isinstance(word, str) for word in value)
            plain = value is None or type(value) in (str, int, float, bool)
            assert plain or words, f"{name}.{field.name}"
            assert field.name != "label", f"{name}: `label` is the sweep file's own word"
            assert field.name in hints


def test_what_chooses_the_code_is_an_option() -> None:
    for name in registry.names("architectures"):
        architecture = registry.load("architectures", name)
        known = {field.name for field in dataclasses.fields(architecture.options)}
        assert set(architecture.code_options) <= known, name


def test_metrics_of_tasks_and_of_files_have_names_of_their_own() -> None:
    measured = set(registry.names("metrics"))
    for task in registry.names("tasks"):
        quality = registry.load("tasks", task).metrics
        assert not measured & set(quality), task
        assert all(metric.evaluate is not None for metric in quality.values()), task
    assert all(registry.load("metrics", name).measure is not None for name in measured)
