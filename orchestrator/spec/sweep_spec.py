"""`SweepSpec`: what a sweep file says, as frozen models that refuse unknown keys and convert no
types."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from orchestrator.spec.choices import Choice, Strict, chooser
from orchestrator.spec.sentences import TAG, shorten, shown
from workloads import environment
from workloads.cell import RECIPE, Execution, Optimiser

TUNED_OPTIONS = ("forget_bias",)
"""Options of architectures that may be searched for."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_DEVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_NO_CLASS = ("cuda", "gpu", "mps", "tpu", "xpu", "rocm")


def _distinct(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("is empty; name at least one value")
    twice = [str(value) for value, times in Counter(values).items() if times > 1]
    if twice:
        raise ValueError(f"lists {shorten(twice)} twice")
    return values


def _pair(values: list[Any]) -> list[Any]:
    if len(values) != 2:
        raise ValueError(f"must be [low, high], not {shown(values)}")
    return values


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            "must be 1 to 100 lower-case letters, digits, - and _, a letter or digit first, "
            f"not {shown(text)}"
        )
    return text


def _question(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    if not text.replace("\n", " ").isprintable():
        raise ValueError(f"must be plain text, not {shown(text)}")
    return text


def _device(text: str) -> str:
    if text.startswith("cpu") and text != "cpu":
        raise ValueError(f"threads are written {{cpu: {{threads: 4}}}}, not {shown(text)}")
    if text in _NO_CLASS or not _DEVICE.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is no device class: auto, cpu, {{cpu: {{threads: 8}}}}, or an "
            "accelerator's own, which `python -m orchestrator doctor` prints"
        )
    return text


def _branch(value: Any) -> str:
    """Which branch of a union of a plain value and a mapping is meant, so that faults are of that
    branch alone."""
    return f"{TAG}mapping" if isinstance(value, (dict, OnCpu)) else f"{TAG}plain"


_PLAIN, _MAPPING = Tag(f"{TAG}plain"), Tag(f"{TAG}mapping")
_PAIR = Field(json_schema_extra={"minItems": 2, "maxItems": 2})
_SET = Field(json_schema_extra={"minItems": 1, "uniqueItems": True})

Length = Annotated[int, Field(ge=1, le=100_000_000)]
Lengths = Annotated[list[Length], AfterValidator(_distinct), _SET]
Tokens = Annotated[int, Field(ge=1, le=10**15)]
Size = Annotated[int, Field(ge=1, le=10**12)]
Sizes = Annotated[
    list[Size],
    BeforeValidator(_listed, json_schema_input_type=Size | list[Size]),
    AfterValidator(_distinct),
    _SET,
]
Replicates = Annotated[int, Field(ge=1, le=1000)]
Names = Annotated[list[str], AfterValidator(_distinct), _SET]
Executions = Annotated[list[Execution], AfterValidator(_distinct), _SET]
Rate = Annotated[float, Field(gt=0, le=1000)]
DeviceName = Annotated[
    str,
    AfterValidator(_device),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^(?!cpu.)(?!({'|'.join(_NO_CLASS)})$){_DEVICE.pattern}$",
        }
    ),
]
ArchitectureChoice = Annotated[Any, AfterValidator(chooser("architectures", labelled=True))]
TaskChoice = Annotated[Any, AfterValidator(chooser("tasks", labelled=False))]


class Model(Strict):
    """`parameters`: non-embedding, matched within 2 %; a list is an axis. With `d_model` given they
    may be left out. The switches hold for every architecture alike."""

    parameters: Sizes | None = None
    num_layers: Annotated[int, Field(ge=1, le=1000)]
    d_model: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    short_conv: bool = False
    mlp: bool = True
    tied_head: bool = False

    def sizes(self) -> list[int]:
        """The sizes asked for; 0 where `d_model` alone decides."""
        return [0] if self.parameters is None else self.parameters

    def shell(self) -> dict[str, bool | int]:
        """The switches and the width that differ from their defaults."""
        default = Model(num_layers=1)
        names = ("d_model", "short_conv", "mlp", "tied_head")
        return {n: getattr(self, n) for n in names if getattr(self, n) != getattr(default, n)}


class Threads(Strict):
    """How many threads of the CPU a cell uses."""

    threads: Annotated[int, Field(ge=1, le=1024)]


class OnCpu(Strict):
    """`device: {cpu: {threads: 8}}`."""

    cpu: Threads


class Measure(Strict):
    """Timed cells. Exactly one of `batch_size` and `batch_tokens`. `execution`: how the model's
    operations are launched, an axis of the metrics that time them."""

    seq_len: Lengths
    batch_size: Lengths | None = None
    batch_tokens: Lengths | None = None
    execution: Executions = Field(default=["eager"])
    rounds: Replicates = 5
    metrics: Names


class Range(Strict):
    """From `low` to `high`, searched on a logarithmic scale."""

    low: Rate
    high: Rate

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


class Share(Range):
    """A range of shares."""

    high: Annotated[float, Field(gt=0, lt=1)]


class Tune(Strict):
    """Every label's settings are searched for, by equal means, before it is trained for the
    comparison: the learning rate, and of the optimiser's settings and `forget_bias`, where an
    architecture has that option, those that have a range. A search has so many trials, the last
    of them of so many `tokens`, at each length of `seq_len` (default: both ends of
    `train.seq_len`). `metric` is what they are judged by (default: `validation_loss` where train
    asks for it, else its first)."""

    learning_rate: Range
    weight_decay: Range | None = None
    clip_norm: Range | None = None
    dropout: Share | None = None
    forget_bias: Range | None = None
    trials: Annotated[int, Field(ge=4, le=1000)] = 8
    tokens: Tokens
    seq_len: Lengths | None = None
    metric: str | None = None

    def searched(self, trained: Sequence[int]) -> list[int]:
        """The lengths with a search of their own, of those that are trained at."""
        return sorted(self.seq_len or {min(trained), max(trained)})

    def space(self) -> dict[str, tuple[float, float]]:
        """The ranges by name."""
        names = ("learning_rate", *RECIPE, *TUNED_OPTIONS)
        ranges = {name: getattr(self, name) for name in names}
        return {name: one.ends for name, one in ranges.items() if one is not None}


class OptimiserSpec(Strict):
    """How every architecture alike is optimised: AdamW's weight decay, the norm that the gradient
    of an update is clipped to, and the share of what each mixer and MLP adds that is dropped."""

    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Optimiser().weight_decay
    clip_norm: Rate = Optimiser().clip_norm
    dropout: Annotated[float, Field(ge=0, lt=1)] = Optimiser().dropout

    def different(self) -> dict[str, float]:
        """What differs from the defaults."""
        default = Optimiser()
        values = {name: getattr(self, name) for name in RECIPE}
        return {name: v for name, v in values.items() if v != getattr(default, name)}


class Train(Strict):
    """Cells that learn. `tokens_per_update` is the same at every length. `eval_seq_len`: further
    lengths at which metrics by length (`accuracy_by_length`) evaluate what was trained.
    `carry_state`: each update goes on where the last one ended, with the state it left; only
    architectures whose state does not grow can."""

    seq_len: Lengths
    eval_seq_len: Lengths | None = None
    carry_state: bool = False
    tokens: Tokens
    tokens_per_update: Tokens
    seeds: Replicates = 5
    learning_rate: (
        Annotated[
            Annotated[Rate, _PLAIN] | Annotated[dict[str, Rate], _MAPPING], Discriminator(_branch)
        ]
        | None
    ) = None
    optimiser: OptimiserSpec = OptimiserSpec()
    metrics: Names

    def judged_by(self, tune: Tune) -> str:
        """The metric that tuning goes by."""
        usual = "validation_loss" if "validation_loss" in self.metrics else self.metrics[0]
        return tune.metric or usual


class LimitsSpec(Strict):
    """What one cell may use: wall time, and memory over the process's own start. `device_hours`
    bounds the sweep as a whole, over all its attempts: no part of a cell."""

    cell_seconds: Annotated[float, Field(gt=0, le=10**7)] = 600.0
    memory_bytes: Annotated[int, Field(ge=1, le=10**15)] | None = None
    device_hours: Annotated[float, Field(gt=0, le=10**7)] | None = None


class PrimarySpec(Strict):
    """The comparison that the report opens with."""

    challenger: str
    metric: str
    batch_size: Length | None = None


class Compare(Strict):
    """Every other label is compared with `baseline`; `zone` is the range of interest."""

    baseline: str
    zone: Annotated[list[Length], AfterValidator(_pair), _PAIR]
    primary: PrimarySpec | None = None


class SweepSpec(Strict):
    """One sweep file. Required: name, question, architectures, task, model, compare, and at least
    one of measure and train."""

    name: Annotated[
        str,
        AfterValidator(_name),
        WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"}),
    ]
    question: Annotated[str, Field(max_length=1000), AfterValidator(_question)]
    architectures: Annotated[list[ArchitectureChoice], Field(min_length=1)]
    task: TaskChoice
    model: Model
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, WithJsonSchema({"enum": ["float32", "bfloat16"]})
    ] = None
    device: Annotated[
        Annotated[DeviceName, _PLAIN] | Annotated[OnCpu, _MAPPING], Discriminator(_branch)
    ] = "auto"
    measure: Measure | None = None
    train: Train | None = None
    tune: Tune | None = None
    limits: LimitsSpec = LimitsSpec()
    compare: Compare

    def device_class(self) -> str:
        """The cells' device class: `cpu:THREADS`, or an accelerator's slug. Opens no device."""
        if isinstance(self.device, OnCpu):
            return f"cpu:{self.device.cpu.threads}"
        if self.device == "auto":
            return environment.default_device()
        return "cpu:1" if self.device == "cpu" else self.device

    def choices(self) -> list[Choice]:
        """The architectures, as the validator has read them."""
        return list(self.architectures)

    def count(self) -> int:
        """How many cells the file asks for."""
        points = len(self.architectures) * len(self.model.sizes())
        cells = 0
        if self.measure is not None:
            batches = len(self.measure.batch_size or self.measure.batch_tokens or ())
            cells += points * len(self.measure.seq_len) * batches * self.measure.rounds
            cells *= len({*self.measure.execution, "eager"})
        if self.train is not None:
            cells += points * len(self.train.seq_len) * self.train.seeds
        if self.train is not None and self.tune is not None:
            searched = len(self.tune.searched(self.train.seq_len))
            cells += points * (2 * self.tune.trials * searched + 3 * len(self.train.seq_len))
        return cells
