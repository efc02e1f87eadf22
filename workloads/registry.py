"""How a name becomes a plug-in: the folder is the registry, loading is lazy.

A file `workloads/FAMILY/NAME.py` exports one typed constant (`ARCHITECTURE`, `TASK` or `METRIC`).
Folders named in the environment variable WORKLOADS_PLUGINS (separated like PATH, each with
sub-folders `architectures/`, `tasks/`, `metrics/`) are searched after our own, so a plug-in can
live outside this repository. A single file there is an architecture by itself: its name carries a
hash of its content, `mine@1a2b3c4d`, so that a changed file is another architecture.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, overload

from workloads.cell import Scalar
from workloads.plugins import Architecture, Metric, Task, build_options, unknown

Family = Literal["architectures", "tasks", "metrics"]
_VARIABLE = "WORKLOADS_PLUGINS"
_CONSTANT = {"architectures": "ARCHITECTURE", "tasks": "TASK", "metrics": "METRIC"}


class UnknownPlugin(ValueError):
    """No file of that name in the family's folders; the message suggests near names and lists the
    known ones."""


def register_file(path: str | Path) -> str:
    """Make a user's own file known as an architecture, here and in processes started from now on;
    its name.

    Raises:
        UnknownPlugin: there is no such file, its path cannot stand in WORKLOADS_PLUGINS, it cannot
            be imported, or it exports no ARCHITECTURE.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UnknownPlugin(f"{path}: there is no such file (a path is taken from where you are)")
    if os.pathsep in str(file):
        raise UnknownPlugin(
            f"{path}: its full path, {file}, holds {os.pathsep!r}, which separates the paths in "
            f"{_VARIABLE}: rename or move it"
        )
    known = _elsewhere()
    if file not in known:
        os.environ[_VARIABLE] = os.pathsep.join(map(str, [*known, file]))
    name = _name_of(file)
    try:
        plugin = getattr(_module("architectures", name), _CONSTANT["architectures"], None)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise UnknownPlugin(f"{path}: cannot be imported: {why}") from error
    if not isinstance(plugin, Architecture):
        raise UnknownPlugin(f"{path}: exports no ARCHITECTURE, an instance of Architecture")
    return name


def _elsewhere() -> list[Path]:
    """Folders and files of plug-ins beside our own."""
    return [Path(entry) for entry in os.environ.get(_VARIABLE, "").split(os.pathsep) if entry]


def _folders(family: Family) -> list[Path]:
    others = [path for path in _elsewhere() if path.suffix != ".py"]
    return [root / family for root in (Path(__file__).parent, *others)]


def _files(family: Family) -> dict[str, Path]:
    """Single files by name; they are architectures."""
    if family != "architectures":
        return {}
    files = [path for path in _elsewhere() if path.suffix == ".py" and path.is_file()]
    return {_name_of(path): path for path in files}


def _name_of(path: Path) -> str:
    return f"{path.stem}@{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


def names(family: Family) -> list[str]:
    """Every plug-in's name in the family, sorted. Reads folders, imports nothing."""
    found = {
        path.stem
        for folder in _folders(family)
        for path in folder.glob("*.py")
        if not path.stem.startswith("_") and _exports_constant(path, _CONSTANT[family])
    }
    return sorted(found | set(_files(family)))


@cache
def _exports_constant(path: Path, constant: str) -> bool:
    """A file beside the plug-ins that exports no constant is shared arithmetic, not a plug-in."""
    return f"\n{constant}" in path.read_text(encoding="utf-8")


@overload
def load(family: Literal["architectures"], name: str) -> Architecture: ...
@overload
def load(family: Literal["tasks"], name: str) -> Task: ...
@overload
def load(family: Literal["metrics"], name: str) -> Metric: ...
def load(family: Family, name: str) -> Architecture | Task | Metric:
    """The plug-in of that name.

    Raises:
        UnknownPlugin: no such file; says what is near and what there is.
    """
    module = _loaded(family, name, os.environ.get(_VARIABLE, ""))
    plugin: Architecture | Task | Metric = getattr(module, _CONSTANT[family])
    return plugin


def has_option(architecture: str, name: str) -> bool:
    """Whether the architecture has an option of that name. Raises UnknownPlugin."""
    return name in {one.name for one in fields(load("architectures", architecture).options)}


@cache
def _loaded(family: Family, name: str, elsewhere: str) -> ModuleType:
    """The module of that name, once for each setting of the variable."""
    if name not in names(family):
        raise UnknownPlugin(unknown(family.rstrip("s"), name, names(family)))
    return _module(family, name)


def _module(family: Family, name: str) -> ModuleType:
    ours, *others = _folders(family)
    if (ours / f"{name}.py").exists():
        return importlib.import_module(f"workloads.{family}.{name}")
    path = _files(family).get(name) or next(
        folder / f"{name}.py" for folder in others if (folder / f"{name}.py").exists()
    )
    qualified = f"workloads_plugins.{family}.{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[qualified]
            raise
    return sys.modules[qualified]


def stack(
    name: str, options: Mapping[str, Scalar], num_layers: int
) -> list[tuple[Architecture, Any]]:
    """The architecture and options of each layer of a model."""
    architecture = load("architectures", name)
    built = build_options(architecture.options, options)
    if architecture.layers is None:
        return [(architecture, built)] * num_layers
    layers = []
    for below, given in architecture.layers(built, num_layers):
        layer = load("architectures", below)
        layers.append((layer, build_options(layer.options, given)))
    return layers


def metric(task: str, name: str) -> Metric:
    """The metric of that name: the task's own quality metric, else a measured one. Raises
    UnknownPlugin."""
    own = load("tasks", task).metrics
    return own[name] if name in own else load("metrics", name)
