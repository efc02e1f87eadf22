"""Faults between the keys of a sweep file: labels that are not there, metrics of the wrong part.

They are read from the plain data, not from valid models, so that a fault inside one key hides none
between others; what cannot be read for a fault of its own is taken to be right here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.spec.choices import DEFAULT_RATE, Choice, chooser, resolve_label
from orchestrator.spec.sentences import Fault, shorten, shown, unknown
from orchestrator.spec.strict_yaml import Place
from orchestrator.spec.sweep_spec import TUNED_OPTIONS
from workloads import registry
from workloads.plugins import is_by_length


def faults_between_keys(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Every fault between keys that are readable by themselves."""
    subjects = _Subjects.of(data)
    yield from _label_faults(subjects)
    if "measure" not in data and "train" not in data:
        yield (), "has neither a `measure` nor a `train` part"
    yield from _model_faults(_mapping(data, "model"))
    yield from _batch_faults(_mapping(data, "measure"))
    yield from _metric_faults(data)
    yield from _rate_faults(data, subjects)
    yield from _tune_faults(data)
    yield from _tuned_option_faults(_mapping(data, "tune"), subjects)
    yield from _compare_faults(_mapping(data, "compare"), subjects)
    yield from _primary_faults(data)


@dataclass(slots=True)
class _Subjects:
    """The architectures of a file. `unread` are the words of those with a fault of their own."""

    choices: dict[int, Choice] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> _Subjects:
        subjects = cls()
        choose = chooser("architectures", labelled=True)
        for i, item in enumerate(_list(data, "architectures")):
            try:
                subjects.choices[i] = choose(item)
            except ValueError:
                subjects.unread |= set(_words(item))
        return subjects

    def known(self) -> list[str]:
        """Labels first, then names."""
        choices = self.choices.values()
        return list(dict.fromkeys([c.label for c in choices] + [c.name for c in choices]))

    def fault(self, name: Any) -> str | None:
        """Why this names no architecture of the sweep, or several."""
        if not isinstance(name, str) or name in self.unread or not self.choices:
            return None
        if name not in self.known():
            return unknown("label", name, self.known())
        meant = {c.label for c in self.choices.values() if name in (c.label, c.name)}
        if name not in meant and len(meant) > 1:
            return f"{name!r} names several; use a label: {shorten(sorted(meant))}"
        return None


def _label_faults(subjects: _Subjects) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for i, choice in subjects.choices.items():
        first = seen.setdefault(choice.label, i)
        if first != i:
            why = f"{choice.label!r} is architectures[{first}] already; give one a `label:`"
            yield ("architectures", i), why


def _model_faults(model: Mapping[str, Any]) -> Iterator[Fault]:
    if not model:
        return
    if "parameters" not in model and "d_model" not in model:
        yield ("model",), "needs parameters, or d_model, which then decides the size"
    if model.get("mlp") is False and "d_model" in model and "parameters" in model:
        why = "d_model alone decides the size where there is no mlp; leave one of the two out"
        yield ("model", "parameters"), why


def _batch_faults(measure: Mapping[str, Any]) -> Iterator[Fault]:
    given = [key for key in ("batch_size", "batch_tokens") if key in measure]
    if measure and not given:
        yield ("measure",), "needs batch_size or batch_tokens"
    if len(given) == 2:
        yield ("measure", "batch_tokens"), "batch_size is given too; choose one of the two"


def _metric_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    known = {"measure": registry.names("metrics")}
    try:
        task = chooser("tasks", labelled=False)(data.get("task"))
        known["train"] = sorted(registry.load("tasks", task.name).metrics)
    except ValueError:
        pass  # a fault of the task's own; which metrics it has is then not known
    for part, names in known.items():
        for i, name in enumerate(_list(_mapping(data, part), "metrics")):
            if not isinstance(name, str) or name in names:
                continue
            other = next((p for p in known if name in known[p]), None)
            if other:
                yield (part, "metrics", i), f"{name!r} belongs under {other}.metrics"
            else:
                yield (part, "metrics", i), unknown("metric", name, names)
    yield from _cap_faults(data)
    yield from _length_faults(_mapping(data, "train"), known.get("train", []))


def _cap_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """What is measured under a cap needs one."""
    for i, name in enumerate(_list(_mapping(data, "measure"), "metrics")):
        known = isinstance(name, str) and name in registry.names("metrics")
        if (
            known
            and registry.load("metrics", name).capped
            and not _mapping(data, "limits").get("memory_bytes")
        ):
            yield (
                ("measure", "metrics", i),
                f"{name!r} is measured under limits.memory_bytes: give it",
            )


def _length_faults(train: Mapping[str, Any], known: Sequence[str]) -> Iterator[Fault]:
    """Other lengths are for a metric that goes through them."""
    asked = [name for name in _list(train, "metrics") if isinstance(name, str)]
    if known and asked and train.get("eval_seq_len") and not any(map(is_by_length, asked)):
        by_length = [name for name in known if is_by_length(name)]
        has = f"this task has {shorten(by_length)}" if by_length else "this task has none"
        yield ("train", "eval_seq_len"), f"no metric asked for goes through lengths; {has}"


def _rate_faults(data: Mapping[str, Any], subjects: _Subjects) -> Iterator[Fault]:
    """Rates are given or searched for; what `learning_rate` names must be labels or names, and
    every architecture have a rate."""
    place: Place = ("train", "learning_rate")
    train = _mapping(data, "train")
    given = train.get("learning_rate")
    if train and "learning_rate" not in train and "tune" not in data:
        yield place, "is missing; give it, or a `tune` part that searches for it"
    if given is not None and "tune" in data:
        yield place, "is what `tune` searches for; leave one of the two out"
    if not isinstance(given, dict):
        return
    for name in given:
        # An architecture's own rate serves all its labels, so a name may mean several here.
        if name != DEFAULT_RATE and name not in subjects.known() and (why := subjects.fault(name)):
            yield (*place, name), why
    choices = subjects.choices.values()
    bare = [c.label for c in choices if not {DEFAULT_RATE, c.label, c.name} & set(given)]
    if bare:
        yield place, f"has no rate for {shorten(bare)} and no `{DEFAULT_RATE}`"


def _tune_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Ranges must be such, and what is searched for be neither fixed nor judged by nothing."""
    tune, train = _mapping(data, "tune"), _mapping(data, "train")
    if tune and "train" not in data:
        yield ("tune",), "is for a `train` part, which the file does not have"
    for name, value in tune.items():
        ends = [_mapping(tune, name).get(end) for end in ("low", "high")]
        numbers = [end for end in ends if isinstance(end, int | float)]
        if len(numbers) == 2 and numbers[0] >= numbers[1]:
            yield ("tune", name), f"must have low below high, not {numbers[0]} and {numbers[1]}"
        if isinstance(value, dict) and name in _mapping(train, "optimiser"):
            yield ("tune", name), "train.optimiser gives it too; leave one of the two out"
    trained = _list(train, "seq_len")
    untrained = [one for one in _list(tune, "seq_len") if one not in trained]
    if trained and untrained:
        yield (
            ("tune", "seq_len"),
            f"train.seq_len has no {shorten([str(one) for one in untrained])}",
        )
    metric, asked = tune.get("metric"), _list(train, "metrics")
    if isinstance(metric, str) and asked and metric not in asked:
        known = [name for name in asked if isinstance(name, str)]
        yield ("tune", "metric"), unknown("metric of train", metric, known)


def _tuned_option_faults(tune: Mapping[str, Any], subjects: _Subjects) -> Iterator[Fault]:
    """An option that is searched for must be one of somebody's, and given by nobody."""
    for name in (name for name in TUNED_OPTIONS if name in tune):
        having = [c for c in subjects.choices.values() if registry.has_option(c.name, name)]
        given = [choice.label for choice in having if name in choice.options]
        if subjects.choices and not having:
            yield ("tune", name), "no architecture here has this option"
        if given:
            yield ("tune", name), f"{shorten(given)} gives it too; leave one of the two out"


def _compare_faults(compare: Mapping[str, Any], subjects: _Subjects) -> Iterator[Fault]:
    baseline, challenger = compare.get("baseline"), _mapping(compare, "primary").get("challenger")
    if why := subjects.fault(baseline):
        yield ("compare", "baseline"), why
    zone = _list(compare, "zone")
    if len(zone) == 2 and all(type(end) is int for end in zone) and zone[0] >= zone[1]:
        yield ("compare", "zone"), f"must be [low, high] with low below high, not {zone}"
    place: Place = ("compare", "primary", "challenger")
    if why := subjects.fault(challenger):
        yield place, why
    elif isinstance(baseline, str) and isinstance(challenger, str):
        choices = list(subjects.choices.values())
        if resolve_label(baseline, choices) == resolve_label(challenger, choices):
            yield place, "is the baseline itself"


def _primary_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """The primary comparison must be of something that is measured."""
    primary = _mapping(_mapping(data, "compare"), "primary")
    measure, train = _mapping(data, "measure"), _mapping(data, "train")
    metric, size = primary.get("metric"), primary.get("batch_size")
    asked = [m for part in (measure, train) for m in _list(part, "metrics") if isinstance(m, str)]
    if isinstance(metric, str) and asked and metric not in asked:
        place: Place = ("compare", "primary", "metric")
        yield place, unknown("metric of this sweep", metric, dict.fromkeys(asked))
    elif isinstance(metric, str) and metric in _shares(data):
        place = ("compare", "primary", "metric")
        yield place, f"{shown(metric)} is passed or failed by a seed and is not compared"
    if type(size) is not int:
        return
    place = ("compare", "primary", "batch_size")
    sizes = _list(measure, "batch_size")
    if metric in _list(train, "metrics"):
        yield place, f"{shown(metric)} is a metric of training, which has no batch_size"
    elif "batch_tokens" in measure and not sizes:
        yield place, "measure asks for batch_tokens; leave it out"
    elif sizes and size not in sizes:
        yield place, f"{size} is not in measure.batch_size ({shorten([str(s) for s in sizes])})"


def _shares(data: Mapping[str, Any]) -> set[str]:
    """The task's metrics that a replicate passes or fails."""
    try:
        task = chooser("tasks", labelled=False)(data.get("task"))
    except ValueError:
        return set()  # a fault of the task's own
    metrics = registry.load("tasks", task.name).metrics
    return {name for name, metric in metrics.items() if metric.scale == "share"}


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []


def _words(item: Any) -> Iterator[str]:
    """The name and the label that an unreadable architecture may have meant."""
    if isinstance(item, str):
        yield item
    if isinstance(item, dict):
        for name, options in item.items():
            yield name
            if isinstance(options, dict) and isinstance(options.get("label"), str):
                yield options["label"]
