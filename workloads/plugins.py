"""What a plug-in exports: an architecture, a task or a metric, as one typed constant.

A file `workloads/FAMILY/NAME.py`, or a user's own, exports `ARCHITECTURE`, `TASK` or `METRIC`;
`registry.py` finds it by its name. Here is all that such a file needs to say what it is.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workloads.cell import Scalar
from workloads.ends import Ends
from workloads.measurement import Better, Measurement, Reason, Scale

if TYPE_CHECKING:
    from workloads.mixer import Mixer
    from workloads.objectives import Objective
    from workloads.subject import Subject
    from workloads.tasks.data import TrainingData
    from workloads.train import TrainedModel

Axis = Literal["seq_len", "batch_size"]
Work = Literal[
    "nothing",
    "training_steps",
    "traced_training_step",
    "prefills",
    "decoding_steps",
    "generations",
    "training_limit",
    "prefill_limit",
    "decoding_limit",
    "export",
]
"""What taking a metric's samples costs, so that a cell's time can be predicted before it runs. A
limit is searched along the axis that its metric ignores."""


Code = Literal["parallel", "step", "both", "graph"]


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
    kernel_class(options, device_type) -> what kind of code that is, for two are compared fairly
        where both are of one kind: `fused` (one kernel of a library over the sequence), `chunked`
        (matrix products over chunks in plain torch), `sequential` (small operations token by
        token), `materialised` (the whole T x T matrix), `none`; None where it does not say.
    calls_per_token(options, device_type) -> how many small operations each token of a sequence
        waits for in the parallel form, a prediction; 0 where no loop goes over tokens.
    arithmetic(options, precision, device_type) -> in what a training step of that precision
        computes the mixer.
    width_multiple(options) -> what d_model must be a multiple of.
    heads(options) -> how many heads share d_model: the solver of widths gives each a multiple of 8
        channels where it can, as kernels like them.
    layers(options, num_layers) -> the (name, options) of each layer's own architecture, for a stack
        of several mixers; such an architecture has no mixer of its own, and what is said per layer
        is asked of those.
    position(options) -> the position encoding that decides how it reads contexts longer than it was
        trained at; None where order is in the recurrence itself.
    residual: False where layers follow each other bare, without norms, residual stream and MLPs.
    family: its kin (`attention`, `recurrent network`, ...), which figures give one hue.
    code_options: names of options that choose among codes for the same numbers, so that two labels
        that differ in them alone are one method.
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
    kernel_class: Callable[[Any, str], str | None] = lambda options, device_type: None
    calls_per_token: Callable[[Any, str], float] = lambda options, device_type: 0.0
    arithmetic: Callable[[Any, str, str], str] = lambda options, precision, device_type: precision
    width_multiple: Callable[[Any], int] = lambda options: 1
    heads: Callable[[Any], int] = lambda options: 1
    layers: Callable[[Any, int], Sequence[tuple[str, Mapping[str, Scalar]]]] | None = None
    position: Callable[[Any], str | None] = lambda options: None
    residual: bool = True
    family: str = "other"
    code_options: tuple[str, ...] = ()
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
    ignores: axes of the sweep that it does not depend on; it is taken at their smallest value only.
    by_execution: taken in every mode of execution that a sweep names (`Subject.executed`); what is
    not is taken in eager mode.
    capped: measured under the cell's cap of memory, so that another cap asks for it anew.
    code: which of a model's codes it times: the `parallel` form (training, prefill), the `step`
    form (decoding), `both` one after the other, or a `graph` of ONNX Runtime.
    once: makes ready a single call of what is timed, to see how busy it keeps an accelerator.
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
    ignores: tuple[Axis, ...] = ()
    by_execution: bool = False
    capped: bool = False
    code: Code = "parallel"
    once: Callable[[Subject], Callable[[], object]] | None = None
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

    token_unit(options) -> what a length counts (`bytes`, `BPE tokens`, `hours`). ends(options) ->
    what enters the model and what leaves it, known without data. prepare(options, folder) returns
    what is learnt from: prepared arrays, which it writes into `folder` once (idempotent, safe
    against a concurrent twin), or what generates them. objective(options) -> the loss that is
    trained on; without it, the cross-entropy of classes. missing(options) -> why it has no data
    here, with the command that mends it; None where it has. `metrics` are its quality metrics, by
    name.
    """

    title: str
    version: int
    options: type
    token_unit: Callable[[Any], str]
    ends: Callable[[Any], Ends]
    prepare: Callable[[Any, Path], TrainingData]
    objective: Callable[[Any], Objective] | None = None
    missing: Callable[[Any], str | None] = lambda options: None
    metrics: Mapping[str, Metric] = field(default_factory=dict)


def is_by_length(metric: str) -> bool:
    """Whether a task's metric goes through the cell's `eval_seq_len`: such a one is called so."""
    return metric.endswith("_by_length")


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


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown architecture 'mamba3'. Did you mean 'mamba2'? Known: ...`, with near names where
    there are any."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}"


def element_bytes(precision: str) -> int:
    """Bytes of one activation or state element: 4 in float32, 2 in bfloat16."""
    return {"float32": 4, "bfloat16": 2}[precision]
