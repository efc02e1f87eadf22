"""The plug-in families and how a name becomes a plug-in: the folder is the registry, loading is
lazy.

A file `workloads/FAMILY/NAME.py` exports one typed constant (`ARCHITECTURE`, `TASK` or `METRIC`).
Folders named in the environment variable WORKLOADS_PLUGINS (separated like PATH, each with
sub-folders `architectures/`, `tasks/`, `metrics/`) are searched after our own, so a plug-in can
live outside this repository. A single file there is an architecture by itself: its name carries a
hash of its content, `mine@1a2b3c4d`, so that a changed file is another architecture.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    from workloads.tasks.data import TrainingData
    from workloads.train import TrainedModel

Family = Literal["architectures", "tasks", "metrics"]
Work = Literal["nothing", "training_steps", "traced_training_step", "prefills", "decoding_steps"]
"""What taking a metric's samples costs, so that a cell's time can be predicted before it runs."""
_CHOICE = re.compile(r"(?P<name>[\w@.-]+)(?:\((?P<options>.*)\))?")
_VARIABLE = "WORKLOADS_PLUGINS"
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
    parameters(d_model, options) -> how many parameters the mixer has, by arithmetic.
    state_bytes(d_model, options, seq_len, element_bytes) -> bytes that one sequence's decoding
        state holds after `seq_len` tokens.
    flops_per_token(d_model, options, seq_len) -> forward multiply-adds x 2, mean over the positions
        of the context.
    saved_elements_per_token(d_model, options, seq_len) -> elements kept per token for backward, a
        prediction.
    implementation(options, device_type) -> which code runs, as `torch.nn.LSTM (oneDNN)`. Raises
        Unsupported where the fast kernel is missing.
    width_multiple(options) -> what d_model must be a multiple of.
    layers(options, num_layers) -> the (name, options) of each layer's own architecture, for a stack
        of several mixers; such an architecture has no mixer of its own, and what is said per layer
        is asked of those.
    residual: False where layers follow each other bare, without norms, residual stream and MLPs.
    family: its kin (`attention`, `recurrent network`, ...), which figures give one hue.
    matched: False only where the asked size does not apply: the shell alone, which is measured for
        what all others share and is no candidate among winners.
    """

    title: str
    version: int
    options: type
    mixer: Callable[[int, Any], Mixer | None]
    parameters: Callable[[int, Any], int]
    state_bytes: Callable[[int, Any, int, int], int]
    flops_per_token: Callable[[int, Any, int], float]
    saved_elements_per_token: Callable[[int, Any, int], float]
    implementation: Callable[[Any, str], str]
    width_multiple: Callable[[Any], int] = lambda options: 1
    layers: Callable[[Any, int], Sequence[tuple[str, Mapping[str, Scalar]]]] | None = None
    residual: bool = True
    family: str = "other"
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
    known without data. prepare(options, folder) returns what is learnt from: prepared tokens, which
    it writes into `folder` once (idempotent, safe against a concurrent twin), or what generates
    them. `metrics` are its quality metrics, by name.
    """

    title: str
    version: int
    options: type
    token_unit: Callable[[Any], str]
    vocab_size: Callable[[Any], int]
    prepare: Callable[[Any, Path], TrainingData]
    metrics: Mapping[str, Metric] = field(default_factory=dict)


def register_file(path: str | Path) -> str:
    """Make a user's own file known as an architecture, here and in processes started from now on;
    its name.

    Raises:
        UnknownPlugin: there is no such file, it cannot be imported, or it exports no ARCHITECTURE.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UnknownPlugin(f"{path}: there is no such file (a path is taken from where you are)")
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


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown architecture 'mamba3'. Did you mean 'mamba2'? Known: ...`, with near names where
    there are any."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}"


def parsed(text: str) -> tuple[str, dict[str, Scalar]]:
    """`name(key=value, key=value)` -> the name and its options, for what has no YAML around it.

    Raises:
        ValueError: it is not written so.
    """
    found = _CHOICE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a name, nor a name(option=value)")
    options: dict[str, Scalar] = {}
    for pair in filter(None, map(str.strip, (found["options"] or "").split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: {pair!r} is not option=value")
        options[key.strip()] = _value(value.strip())
    return found["name"], options


def _value(text: str) -> Scalar:
    if text in ("true", "false", "True", "False"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


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
