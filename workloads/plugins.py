"""The plug-in families and how a name becomes a plug-in: the folder is the registry, loading is
lazy.

A file `workloads/FAMILY/NAME.py` exports one typed constant (`ARCHITECTURE`, `TASK` or `METRIC`).
Folders named in the environment variable WORKLOADS_PLUGINS (separated like PATH, each with
sub-folders `architectures/`, `tasks/`, `metrics/`) are searched after our own, so a plug-in can
live outside this repository.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, overload

from workloads.cell import Scalar
from workloads.measurement import Better, Measurement, Reason, Scale

if TYPE_CHECKING:
    from workloads.mixer import Mixer
    from workloads.subject import Subject
    from workloads.tasks.data import TaskData
    from workloads.train import TrainedModel

Family = Literal["architectures", "tasks", "metrics"]
Work = Literal["nothing", "training_steps", "traced_training_step", "prefills", "decoding_steps"]
"""What taking a metric's samples costs, so that a cell's time can be predicted before it runs."""
_CONSTANT = {"architectures": "ARCHITECTURE", "tasks": "TASK", "metrics": "METRIC"}


class UnknownPlugin(ValueError):
    """No file of that name in the family's folders; the message suggests near names and lists the
    known ones."""


class Unsupported(RuntimeError):
    """Raised by a plug-in that cannot do what a cell asks on this device; becomes the reason
    `unsupported`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A sequence mixer, with what must be known before it runs. Costs are of one layer's mixer.

    title: its name for people.
    options: a frozen dataclass of plain values with defaults, what the YAML may set.
    mixer(d_model, options) -> Mixer, or None for the shell without a mixer.
    state_bytes(d_model, options, seq_len, element_bytes) -> bytes that one sequence's decoding
        state holds after `seq_len` tokens.
    flops_per_token(d_model, options, seq_len) -> forward multiply-adds x 2, mean over the positions
        of the context.
    saved_elements_per_token(d_model, options, seq_len) -> elements kept per token for backward, a
        prediction.
    implementation(options, device_type) -> which code runs, as `torch.nn.LSTM (oneDNN)`. Raises
        Unsupported where the fast kernel is missing.
    width_multiple(options) -> what d_model must be a multiple of.
    matched: False only where the asked size does not apply: the shell alone, which is measured for
        what all others share and is no candidate among winners.
    """

    title: str
    version: int
    options: type
    mixer: Callable[[int, Any], Mixer | None]
    state_bytes: Callable[[int, Any, int, int], int]
    flops_per_token: Callable[[int, Any, int], float]
    saved_elements_per_token: Callable[[int, Any, int], float]
    implementation: Callable[[Any, str], str]
    width_multiple: Callable[[Any], int] = lambda options: 1
    matched: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measured quantity. `measure(subject)` returns raw samples in `unit`; it may raise what
    torch raises.

    deterministic: without noise, so it is taken in the first round only and holds for every round.
    scale: compared by log `ratio`, or by `difference` where bounded or possibly zero.
    turn: when it is taken among a cell's metrics, lower first: what needs a fresh process before
    the others, what leaves traces in it after them.
    work: what taking its samples costs, for predictions.
    Task metrics (quality) have `evaluate` instead, called once after training; timed and memory
    metrics `measure`.
    """

    title: str
    version: int
    unit: str
    better: Better = "smaller"
    scale: Scale = "ratio"
    deterministic: bool = False
    turn: int = 0
    work: Work = "nothing"
    measure: Callable[[Subject], tuple[float, ...]] | None = None
    evaluate: Callable[[TrainedModel], Evaluation] | None = None

    def measurement(
        self,
        name: str,
        samples: Iterable[float] = (),
        *,
        steps: Iterable[int] | None = None,
        coordinate: str | None = None,
        at: Iterable[float] | None = None,
        reason: Reason | None = None,
        detail: str | None = None,
    ) -> Measurement:
        """A measurement of this metric under its file's name."""
        return Measurement(
            metric=name,
            version=self.version,
            unit=self.unit,
            title=self.title,
            better=self.better,
            scale=self.scale,
            deterministic=self.deterministic,
            samples=tuple(map(float, samples)),
            steps=None if steps is None else tuple(steps),
            coordinate=coordinate,
            at=None if at is None else tuple(map(float, at)),
            reason=reason,
            detail=detail,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a task's metric found: one value, or a curve over `coordinate` (position, distance, ...)
    at `at`."""

    samples: tuple[float, ...]
    coordinate: str | None = None
    at: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task: what is learnt, from which data, judged how.

    token_unit(options) -> what a length counts (`bytes`, `BPE tokens`). vocab_size(options) is
    known without data. prepare(options, folder) writes the prepared tokens into `folder` once
    (idempotent, safe against a concurrent twin) and returns them as memory maps. `metrics` are its
    quality metrics, by name.
    """

    title: str
    version: int
    options: type
    token_unit: Callable[[Any], str]
    vocab_size: Callable[[Any], int]
    prepare: Callable[[Any, Path], TaskData]
    metrics: Mapping[str, Metric] = field(default_factory=dict)


def _folders(family: Family) -> list[Path]:
    roots = [
        Path(__file__).parent,
        *map(Path, filter(None, os.environ.get("WORKLOADS_PLUGINS", "").split(os.pathsep))),
    ]
    return [root / family for root in roots]


def names(family: Family) -> list[str]:
    """Every plug-in's name in the family, sorted. Reads folders, imports nothing."""
    found = {
        path.stem
        for folder in _folders(family)
        for path in folder.glob("*.py")
        if not path.stem.startswith("_") and _exports_constant(path, _CONSTANT[family])
    }
    return sorted(found)


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
    return _loaded(family, name, os.environ.get("WORKLOADS_PLUGINS", ""))


@cache
def _loaded(family: Family, name: str, folders: str) -> Architecture | Task | Metric:
    """`load`, once for each setting of the plug-ins' folders."""
    if name not in names(family):
        raise UnknownPlugin(unknown(family.rstrip("s"), name, names(family)))
    plugin: Architecture | Task | Metric = getattr(_module(family, name), _CONSTANT[family])
    return plugin


def _module(family: Family, name: str) -> ModuleType:
    ours, *others = _folders(family)
    if (ours / f"{name}.py").exists():
        return importlib.import_module(f"workloads.{family}.{name}")
    path = next(folder / f"{name}.py" for folder in others if (folder / f"{name}.py").exists())
    qualified = f"workloads_plugins.{family}.{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]


def metric(task: str, name: str) -> Metric:
    """The metric of that name: the task's own quality metric, else a measured one. Raises
    UnknownPlugin."""
    own = load("tasks", task).metrics
    return own[name] if name in own else load("metrics", name)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown architecture 'mamba3'. Did you mean 'mamba2'? Known: ...`, with near names where
    there are any."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}"


def build_options(options_type: type, given: Mapping[str, Scalar]) -> Any:
    """The plug-in's options with defaults filled in. The YAML border has checked names and types
    before.

    Raises:
        ValueError: an unknown option, or a value that the plug-in's own `__post_init__` refuses.
    """
    known = [f.name for f in dataclasses.fields(options_type)]
    for name in given:
        if name not in known:
            raise ValueError(unknown("option", name, known))
    return options_type(**given)


def element_bytes(precision: str) -> int:
    """Bytes of one activation or state element: 4 in float32, 2 in bfloat16."""
    return {"float32": 4, "bfloat16": 2}[precision]
