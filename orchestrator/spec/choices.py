"""A plug-in chosen in a sweep file: a name, or one name with its options, checked against the
plug-in's own typed options."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from orchestrator.spec.sentences import Fault, FaultsBelow, requirement, shown, unknown
from workloads import registry
from workloads.cell import Scalar

ChosenFamily = Literal["architectures", "tasks"]
DEFAULT_RATE = "default"
"""The key of `train.learning_rate` that is no label."""
MAX_LABEL = 60


class Strict(BaseModel):
    """Unknown keys are refused, types are not converted, numbers are finite, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A plug-in with the options that differ from its defaults, and its label on every axis."""

    name: str
    options: Mapping[str, Scalar]
    label: str


def chooser(family: ChosenFamily, *, labelled: bool) -> Callable[[Any], Choice]:
    """A validator for `name` or `{name: {option: value}}`; an architecture may be named by the path
    of a user's own file."""

    def choose(value: Any) -> Choice:
        if isinstance(value, Choice):
            return value
        name, given = _name_and_options(value)
        if family == "architectures" and name.endswith(".py"):
            name = registry.register_file(name)
        if name not in registry.names(family):
            raise ValueError(unknown(family.rstrip("s"), name, registry.names(family)))
        faults: list[Fault] = []
        label = given.pop("label", None) if labelled else None
        if label is not None and (why := _label_fault(label, name)):
            faults.append(((name, "label"), why))
        options, wrong = _checked_options(family, name, given)
        own = default_label(name, options)
        if label is None and own in registry.names("architectures") and own != name and labelled:
            faults.append(((name,), f"{own!r} is an architecture of ours; give yours a `label:`"))
        if faults := [*faults, *wrong]:
            raise FaultsBelow(faults)
        return Choice(name=name, options=options, label=label or own)

    return choose


def default_label(name: str, options: Mapping[str, Scalar]) -> str:
    """The architecture with its options, as text: `kvm(state=sqrt)`; a user's file by its stem."""
    name = name.partition("@")[0]
    text = ", ".join(f"{key}={_text(value)}" for key, value in sorted(options.items()))
    return f"{name}({text})" if text else name


def _text(value: Scalar) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def resolve_label(name: str, choices: Sequence[Choice]) -> str:
    """The label meant by a label or an architecture's name."""
    if any(choice.label == name for choice in choices):
        return name
    return next((choice.label for choice in choices if choice.name == name), name)


def _name_and_options(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(
            "must be a name, or one name with its options as in {name: {option: value}}, "
            f"not {shown(value)}"
        )
    name, given = next(iter(value.items()))
    if not isinstance(given, dict):
        raise FaultsBelow([((name,), f"must be a mapping of options, not {shown(given)}")])
    return name, dict(given)


def _label_fault(label: Any, name: str) -> str | None:
    """Why this cannot be a label. It stands in tables and plots, and other keys refer to it."""
    if not isinstance(label, str):
        return f"must be text, not {shown(label)}"
    if label != label.strip() or not label or not label.isprintable() or len(label) > MAX_LABEL:
        return f"must be one line of 1 to {MAX_LABEL} characters, not {shown(label)}"
    if label == DEFAULT_RATE:
        return f"{label!r} is what train.learning_rate calls the rate of all others"
    if label != name and label in registry.names("architectures"):
        return f"{label!r} is the name of another architecture"
    return None


def _checked_options(
    family: ChosenFamily, name: str, given: Mapping[str, Any]
) -> tuple[dict[str, Scalar], list[Fault]]:
    """The options that differ from the plug-in's defaults, and what is wrong with others."""
    options_type = options_of(family, name)
    default = dataclasses.asdict(options_type())
    faults: list[Fault] = [
        ((name, key), unknown("option", key, default)) for key in given if key not in default
    ]
    try:
        values = options_model(options_type)(**{k: v for k, v in given.items() if k in default})
        options = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.model_dump().items()
        }
        if family == "tasks" and options.get("path"):
            # Cells run elsewhere than the command.
            options["path"] = str(Path(str(options["path"])).expanduser().resolve())
        options_type(**options)
    except ValidationError as error:
        return {}, faults + _type_faults(name, error)
    except ValueError as error:
        return {}, [*faults, ((name,), str(error))]
    return {key: options[key] for key in given if options.get(key) != default.get(key)}, faults


def options_of(family: ChosenFamily, name: str) -> type:
    """The dataclass of a plug-in's options."""
    if family == "tasks":
        return registry.load("tasks", name).options
    return registry.load("architectures", name).options


def _type_faults(name: str, error: ValidationError) -> list[Fault]:
    """One sentence an option, also where it may be of several types."""
    by_option: dict[str, list[Any]] = {}
    for found in error.errors():
        by_option.setdefault(str(found["loc"][0]), []).append(found)
    return [
        (
            (name, option),
            f"must be {' or '.join(map(requirement, found))}, not {shown(found[0]['input'])}",
        )
        for option, found in by_option.items()
    ]


@cache
def options_model(options: type) -> type[BaseModel]:
    """A strict model of a plug-in's options dataclass; the plug-ins themselves know no pydantic.
    What is a tuple there is a list in YAML."""
    hints = typing.get_type_hints(options)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        kind, default = hints[field.name], field.default
        if kind == tuple[str, ...] and isinstance(default, tuple):
            kind, default = list[str], list(default)
        fields[field.name] = kind, default
    return create_model(options.__name__, __base__=Strict, **fields)
