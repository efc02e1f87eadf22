"""The sweep file: what is measured, validated at the border with all faults in one message.

`load_spec` reads a file, `SweepSpec` is what it says. Names are checked against the plug-ins,
options against the plug-in's own typed options; types are strict (`true`, `64.0` and `'64'` are no
integers). Run as a module, it prints the JSON Schema that stands beside the sweeps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)

from orchestrator import strict_yaml
from orchestrator.errors import SpecError
from workloads import environment, plugins
from workloads.cell import Scalar, canonical_json
from workloads.plugins import Family

Precision = Literal["float32", "bfloat16"]
_Fault = tuple[strict_yaml.Place, str]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _distinct(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("is empty; name at least one value")
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"lists {', '.join(twice)} twice")
    return values


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Length = Annotated[int, Field(ge=1, le=100_000_000)]
Lengths = Annotated[list[Length], AfterValidator(_distinct)]
Names = Annotated[list[str], AfterValidator(_distinct)]
DeviceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A plug-in chosen in the file: its name, the options given, and for architectures a label."""

    name: str
    options: Mapping[str, Scalar]
    label: str


def _choice(family: Family, *, labelled: bool) -> Callable[[Any], Choice]:
    """A validator for `name` or `{name: {option: value}}`."""

    def validate(value: Any) -> Choice:
        if isinstance(value, str):
            name, given = value, {}
        elif isinstance(value, dict) and len(value) == 1:
            name, given = next(iter(value.items()))
            given = {} if given is None else given
        else:
            raise ValueError(
                "must be a name, or one name with its options: {name: {option: value}}"
            )
        if not isinstance(given, dict):
            raise ValueError(f"{name}: options must be a mapping, not {given!r}")
        given = dict(given)
        label = given.pop("label", None) if labelled else None
        if label is not None and not (isinstance(label, str) and label.strip()):
            raise ValueError(f"{name}.label: must be text")
        options = _checked_options(family, name, given)
        return Choice(name=name, options=options, label=label or default_label(name, options))

    return validate


def default_label(name: str, options: Mapping[str, Scalar]) -> str:
    """The architecture with its options, as text: `kvm(state=sqrt)`."""
    text = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name}({text})" if text else name


def _checked_options(family: Family, name: str, given: dict[str, Any]) -> dict[str, Scalar]:
    """The options that differ from the plug-in's defaults. Raises ValueError naming each fault."""
    plugin = plugins.load(family, name)  # type: ignore[call-overload]  # one family at a time
    faults = []
    known = [f.name for f in dataclasses.fields(plugin.options)]
    for key in given:
        if key not in known:
            faults.append(f"{name}: {plugins.unknown('option', key, known)}")
    try:
        values = _options_model(plugin.options)(**{k: v for k, v in given.items() if k in known})
        plugin.options(**values.model_dump())
    except ValidationError as error:
        faults += [f"{name}.{'.'.join(map(str, e['loc']))}: {_sentence(e)}" for e in error.errors()]
    except ValueError as error:
        faults.append(f"{name}: {error}")
    if faults:
        raise ValueError("; ".join(faults))
    default = dataclasses.asdict(plugin.options())
    return {key: value for key, value in given.items() if value != default[key]}


@cache
def _options_model(options: type) -> type[BaseModel]:
    """A strict model of a plug-in's options dataclass; the plug-ins themselves know no pydantic."""
    hints = typing.get_type_hints(options)
    fields: dict[str, Any] = {
        f.name: (hints[f.name], f.default) for f in dataclasses.fields(options)
    }
    return create_model(options.__name__, __base__=_Strict, **fields)


ArchitectureChoice = Annotated[Any, AfterValidator(_choice("architectures", labelled=True))]
TaskChoice = Annotated[Any, AfterValidator(_choice("tasks", labelled=False))]


class Model(_Strict):
    """`parameters`: non-embedding, matched within 2 %; a list is an axis."""

    parameters: Annotated[Lengths, BeforeValidator(_listed)]
    num_layers: Annotated[int, Field(ge=1, le=1000)]


class CpuDevice(_Strict):
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


class Measure(_Strict):
    """Timed cells. Exactly one of `batch_size` and `batch_tokens`."""

    seq_len: Lengths
    batch_size: Lengths | None = None
    batch_tokens: Lengths | None = None
    rounds: Annotated[int, Field(ge=1, le=1000)] = 5
    metrics: Names


class Train(_Strict):
    """Cells that learn. `tokens_per_update` is the same at every length."""

    seq_len: Lengths
    tokens: Length
    tokens_per_update: Length
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    learning_rate: PositiveFloat | dict[str, PositiveFloat]
    metrics: Names


class LimitsSpec(_Strict):
    cell_seconds: PositiveFloat = 600.0
    memory_bytes: Annotated[int, Field(ge=1)] | None = None


class PrimarySpec(_Strict):
    challenger: str
    metric: str
    batch_size: Length | None = None


class Compare(_Strict):
    baseline: str
    zone: Annotated[list[Length], Field(min_length=2, max_length=2)]
    primary: PrimarySpec | None = None


class SweepSpec(_Strict):
    """One sweep file. Required: name, question, architectures, task, model, compare, and at least
    one of measure and train."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]
    question: Annotated[str, Field(min_length=1)]
    architectures: Annotated[list[ArchitectureChoice], Field(min_length=1)]
    task: TaskChoice
    model: Model
    precision: Precision = "float32"
    device: DeviceName | dict[Literal["cpu"], CpuDevice] = "auto"
    measure: Measure | None = None
    train: Train | None = None
    limits: LimitsSpec = LimitsSpec()
    compare: Compare

    def device_class(self) -> str:
        """The cells' device class: `cpu:THREADS`, or an accelerator's slug. Opens no device."""
        if isinstance(self.device, dict):
            return f"cpu:{self.device['cpu'].threads}"
        if self.device == "auto":
            return environment.default_device()
        return "cpu:1" if self.device == "cpu" else self.device


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSpec:
    """A valid sweep file: what it says, its own text, and a hash of its meaning."""

    path: str
    spec: SweepSpec
    text: str

    @property
    def hash(self) -> str:
        """12 hex digits over the content; comments and key order do not matter."""
        content = self.spec.model_dump(mode="json", serialize_as_any=True)
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]


def load_spec(path: str | Path) -> LoadedSpec:
    """Read and validate a sweep file.

    Raises:
        SpecError: every fault, each with its line, its place and the near or valid choices.
    """
    path = Path(path)
    try:
        text = strict_yaml.read_text(path)
        document = strict_yaml.parse(text)
    except strict_yaml.YamlFault as fault:
        raise SpecError(str(path), [str(fault)]) from None
    if not isinstance(document.data, dict):
        raise SpecError(str(path), ["must be a mapping with the keys name, question, ..."])
    faults: list[_Fault] = []
    spec: SweepSpec | None = None
    try:
        spec = SweepSpec.model_validate(document.data)
    except ValidationError as error:
        faults += [_fault(e) for e in error.errors()]
    faults += _cross_faults(_valid_parts(document.data), document.data)
    if spec is None or faults:
        raise SpecError(str(path), _in_order(faults, document.lines))
    return LoadedSpec(path=str(path), spec=spec, text=text)


def _valid_parts(data: dict[str, Any]) -> dict[str, Any]:
    """Every top-level key that is right by itself, validated, so that faults between keys are
    found in the same pass as faults inside others."""
    parts = {}
    for name, info in SweepSpec.model_fields.items():
        adapter: TypeAdapter[Any] = TypeAdapter(
            Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        )
        try:
            parts[name] = adapter.validate_python(data[name], strict=True)
        except (KeyError, ValidationError):
            continue
    return parts


def _cross_faults(parts: Mapping[str, Any], data: Mapping[str, Any]) -> list[_Fault]:
    """Faults between keys: labels that are not there, metrics of the wrong part."""
    faults: list[_Fault] = []
    measure = parts.get("measure")
    choices: Sequence[Choice] = parts.get("architectures", ())
    if "architectures" in parts:
        faults += _label_faults(choices)
        faults += _reference_faults(parts, choices)
    if measure is not None and (measure.batch_size is None) == (measure.batch_tokens is None):
        faults.append((("measure",), "needs either batch_size or batch_tokens"))
    if not data.get("measure") and not data.get("train"):
        faults.append(((), "has neither a `measure` nor a `train` part"))
    if "task" in parts:
        for kind in ("measure", "train"):
            # From the text as it stands: a fault elsewhere in the part hides none here.
            asked = data[kind].get("metrics") if isinstance(data.get(kind), dict) else None
            if isinstance(asked, list):
                faults += _metric_faults(kind, asked, parts["task"].name)
    return faults


def _metric_faults(kind: str, asked: Iterable[Any], task: str) -> list[_Fault]:
    known = {
        "measure": plugins.names("metrics"),
        "train": sorted(plugins.load("tasks", task).metrics),
    }
    faults: list[_Fault] = []
    other = "train" if kind == "measure" else "measure"
    for i, name in enumerate(asked):
        if name in known[kind] or not isinstance(name, str):
            continue
        if name in known[other]:
            message = f"{name!r} belongs under {other}.metrics"
        else:
            message = plugins.unknown("metric", name, known[kind])
        faults.append(((kind, "metrics", i), message))
    return faults


def _label_faults(choices: Sequence[Choice]) -> list[_Fault]:
    faults: list[_Fault] = []
    seen: dict[str, int] = {}
    for i, choice in enumerate(choices):
        if choice.label in seen:
            message = (
                f"{choice.label!r} is already architectures[{seen[choice.label]}]; "
                "give one of them a `label:` of its own"
            )
            faults.append((("architectures", i), message))
        seen.setdefault(choice.label, i)
    return faults


def _reference_faults(parts: Mapping[str, Any], choices: Sequence[Choice]) -> list[_Fault]:
    """What `compare` and `learning_rate` name must be labels, or an architecture's name."""
    faults: list[_Fault] = []
    known = list(dict.fromkeys([c.label for c in choices] + [c.name for c in choices]))
    train, compare, measure = (parts.get(name) for name in ("train", "compare", "measure"))
    if train is not None and isinstance(train.learning_rate, dict):
        given = train.learning_rate
        for name in given:
            if name != "default" and name not in known:
                place = ("train", "learning_rate", name)
                faults.append((place, plugins.unknown("architecture", name, ["default", *known])))
        bare = [c.label for c in choices if not {"default", c.label, c.name} & set(given)]
        if bare:
            message = f"no rate for {', '.join(bare)} and no `default`"
            faults.append((("train", "learning_rate"), message))
    if compare is None:
        return faults
    if compare.zone[0] >= compare.zone[1]:
        faults.append((("compare", "zone"), "must be [low, high] with low below high"))
    named = [(("compare", "baseline"), compare.baseline)]
    if compare.primary is not None:
        named.append((("compare", "primary", "challenger"), compare.primary.challenger))
        faults += _primary_faults(compare, choices, measure, train)
    for place, name in named:
        if name not in known:
            faults.append((place, plugins.unknown("architecture", name, known)))
        elif len({c.label for c in choices if name in (c.label, c.name)}) > 1 and not any(
            c.label == name for c in choices
        ):
            faults.append((place, f"{name!r} names several; use a label of {', '.join(known)}"))
    return faults


def _primary_faults(
    compare: Compare, choices: Sequence[Choice], measure: Measure | None, train: Train | None
) -> list[_Fault]:
    faults: list[_Fault] = []
    primary = compare.primary
    assert primary is not None
    asked = [m for part in (measure, train) if part is not None for m in part.metrics]
    if asked and primary.metric not in asked:
        place = ("compare", "primary", "metric")
        faults.append((place, plugins.unknown("metric of this sweep", primary.metric, asked)))
    sizes = measure.batch_size if measure is not None else None
    if sizes and primary.batch_size is not None and primary.batch_size not in sizes:
        place = ("compare", "primary", "batch_size")
        known = ", ".join(map(str, sizes))
        faults.append((place, f"{primary.batch_size} is not in measure.batch_size ({known})"))
    if resolve_label(compare.baseline, choices) == resolve_label(primary.challenger, choices):
        faults.append((("compare", "primary", "challenger"), "is the baseline itself"))
    return faults


def resolve_label(name: str, choices: Sequence[Choice]) -> str:
    """The label meant by a label or an architecture's name."""
    if any(choice.label == name for choice in choices):
        return name
    return next((choice.label for choice in choices if choice.name == name), name)


def _fault(error: Any) -> _Fault:
    """One pydantic error as a place in the file and a sentence."""
    place = tuple(part for part in error["loc"] if not _is_union_branch(part))
    return place, _sentence(error, place)


def _is_union_branch(part: str | int) -> bool:
    """Pydantic names the branch of a union it tried (`int`, `list[...]`, `dict[...]`)."""
    branches = ("int", "float", "str", "constrained-int", "constrained-float", "CpuDevice")
    return isinstance(part, str) and (part in branches or bool(re.match(r"[\w-]+\[", part)))


def _sentence(error: Any, place: strict_yaml.Place = ()) -> str:
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(place[:-1])
        return plugins.unknown("key", str(place[-1]), known) if place else "unknown key"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"must be lower-case letters, digits, - and _ only, not {given!r}"
    message = error["msg"].removeprefix("Input should be ")
    shown = json.dumps(given, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"must be {message}, not {shown}"


def _known_keys(place: strict_yaml.Place) -> list[str]:
    """The keys allowed at a place of the file."""
    model: type[BaseModel] = SweepSpec
    nested: dict[str | int, type[BaseModel]] = {
        "model": Model,
        "measure": Measure,
        "train": Train,
        "limits": LimitsSpec,
        "compare": Compare,
        "primary": PrimarySpec,
        "cpu": CpuDevice,
    }
    for part in place:
        model = nested.get(part, model)
    return list(model.model_fields)


def _in_order(faults: list[_Fault], lines: Mapping[strict_yaml.Place, int]) -> list[str]:
    """Faults as text in the order of the file, each once."""
    located = []
    for place, message in faults:
        known = place
        while known and known not in lines:
            known = known[:-1]
        line = lines.get(known, 1)
        located.append((line, f"line {line}: {_dotted(place)}: {message}"))
    return [text for _, text in sorted(dict.fromkeys(located), key=lambda item: item[0])]


def _dotted(place: strict_yaml.Place) -> str:
    """`architectures[2]`, `measure.seq_len[0]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a sweep file, with every plug-in's options, for editors."""
    schema = SweepSpec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Sweep file"
    properties = schema["properties"]
    properties["architectures"]["items"] = _choice_schema("architectures", labelled=True)
    properties["task"] = _choice_schema("tasks", labelled=False)
    return schema


def _choice_schema(family: Family, *, labelled: bool) -> dict[str, Any]:
    known = plugins.names(family)
    branches: list[dict[str, Any]] = [{"enum": known}]
    for name in known:
        plugin = plugins.load(family, name)  # type: ignore[call-overload]  # one family at a time
        options = _options_model(plugin.options).model_json_schema()
        if labelled:
            options.setdefault("properties", {})["label"] = {"type": "string"}
        branches.append(
            {"type": "object", "properties": {name: options}, "additionalProperties": False}
        )
    return {"oneOf": branches}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
