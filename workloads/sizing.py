"""How large a model a cell asks for, and what it will cost: widths solved for an exact number of
parameters, then FLOPs and bytes by arithmetic.

FLOPs count a multiply-add as 2, matrix multiplications only. Bytes are of tensors, as the allocator
would hand them out; they are predictions, which the report grades against what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from workloads import plugins, registry
from workloads.cell import Cell, Scalar
from workloads.ends import Ends
from workloads.model import SHORT_CONV_TOKENS, ModelShape

TOLERANCE = 0.02
"""How far the non-embedding parameters may lie from what was asked, relative."""
HEAD_WIDTH = 8
"""Of what a head's width is a multiple, where a size allows: kernels pad it to that."""
_NARROWEST = 0.75
"""Of the standard width, what heads of such widths may cost."""
_PREFERRED = 0.01
_ROUND_WIDTHS = (16, 8, 4, 2, 1)
_Key = tuple[tuple[str, Scalar], ...]


class CannotMatch(ValueError):
    """No width gives this architecture the parameters asked for at this depth."""


def shape_for(cell: Cell) -> ModelShape:
    """The model of a cell, its non-embedding parameters within 2 % of `cell.size` at exactly
    `cell.num_layers` layers: the MLP's width moves first, then `d_model`, with heads a multiple of
    8 wide where that is possible. A `d_model` that the cell fixes stays; with no size asked for (0)
    the MLP is then 4 times as wide.

    Raises:
        CannotMatch: the size is too small (or the mixer too large) for that depth.
        ValueError: unknown architecture, task or option, or an option's value refused.
    """
    return _shape(
        cell.architecture,
        _key(cell.options),
        cell.size,
        cell.num_layers,
        _ends(cell.task, _key(cell.task_options)),
        _key(cell.shell),
    )


@cache
def parameters(shape: ModelShape) -> int:
    """Non-embedding parameters, exactly those of the built model: mixers, MLPs and norms."""
    return _fixed_parameters(shape) + _parameters_per_width(shape) * shape.mlp_width


@cache
def total_parameters(shape: ModelShape) -> int:
    """All parameters: with the embedding and, where it has a matrix of its own, the head."""
    rows = shape.ends.entering + (0 if shape.tied_head else shape.ends.outputs)
    return parameters(shape) + rows * shape.d_model


@cache
def flops_per_token(shape: ModelShape, seq_len: int) -> float:
    """Forward FLOPs for one token, mean over the positions of a context of `seq_len` tokens; MLPs,
    short convolutions, head and the linear map of vectors included."""
    mixers = sum(a.flops_per_token(shape.d_model, o, seq_len) for a, o in _layers(shape))
    width = 2 * shape.mlp_width + (SHORT_CONV_TOKENS if shape.short_conv else 0)
    ends = shape.ends.features + shape.ends.outputs
    return mixers + 2.0 * shape.d_model * (shape.num_layers * width + ends)


@cache
def calls_per_token(shape: ModelShape, device_type: str) -> float:
    """Small operations that each token of a sequence waits for, one after another, all layers."""
    return sum(a.calls_per_token(o, device_type) for a, o in _layers(shape))


def train_step_flops(shape: ModelShape, batch_size: int, seq_len: int) -> float:
    """FLOPs of one training step: forward, and twice that for the gradients of inputs and weights
    (Kaplan et al. 2020, section 2.1)."""
    return 3.0 * batch_size * seq_len * flops_per_token(shape, seq_len)


@cache
def state_bytes(shape: ModelShape, seq_len: int, element_bytes: int) -> int:
    """Bytes that the decoding state of one sequence holds after `seq_len` tokens, all layers."""
    mixers = sum(a.state_bytes(shape.d_model, o, seq_len, element_bytes) for a, o in _layers(shape))
    if not shape.short_conv:
        return mixers
    history = (SHORT_CONV_TOKENS - 1) * shape.d_model * element_bytes
    return mixers + _mixing_layers(shape) * history


def model_bytes(shape: ModelShape, precision: str) -> int:
    """Bytes of the weights as they are held for inference."""
    return total_parameters(shape) * plugins.element_bytes(precision)


@cache
def train_peak_bytes(shape: ModelShape, batch_size: int, seq_len: int, precision: str) -> int:
    """Predicted bytes of tensors at the peak of a training step, reached where backward starts or,
    for few tokens, where the optimiser does.

    Weights, gradients and AdamW's two moments are float32 in every precision, 16 bytes a parameter;
    bfloat16 trains under autocast, whose copies take 2 more and which leaves norms and the residual
    stream in float32. Backward keeps 2 numbers of width d for each norm, the input and the hidden
    values of each MLP, and what the mixer says of itself. The loss holds three float32 tables over
    the outputs at once: log-softmax, its gradient, and that of the logits. One pass makes the
    step; gradients accumulated over several would add 4 bytes a parameter.
    """
    element = plugins.element_bytes(precision)
    mixers = sum(a.saved_elements_per_token(shape.d_model, o, seq_len) for a, o in _layers(shape))
    if shape.short_conv:
        mixers += 2 * _mixing_layers(shape) * shape.d_model
    mlps = shape.num_layers * (shape.d_model + 2 * shape.mlp_width) if shape.mlp_width else 0
    norms = _norms(shape)
    matrices = mixers + mlps + shape.d_model
    token = element * matrices + 4 * 2 * norms * shape.d_model + 4 * 3 * shape.ends.outputs
    total = total_parameters(shape)
    held = total * (12 if element == 4 else 14)
    return held + max(4 * total, math.ceil(batch_size * seq_len * token))


@cache
def inference_peak_bytes(shape: ModelShape, batch_size: int, seq_len: int, precision: str) -> int:
    """Predicted bytes of tensors at the peak of prefilling `seq_len` tokens: weights, states, and
    the widest moment of one layer: 11 d in a mixer's projections or 3 d and the MLP's hidden values
    twice, as traced on a CPU for the first four architectures."""
    element = plugins.element_bytes(precision)
    widest = max(11 * shape.d_model, 3 * shape.d_model + 2 * shape.mlp_width)
    state = state_bytes(shape, seq_len, element)
    return model_bytes(shape, precision) + batch_size * (state + seq_len * widest * element)


@cache
def _shape(name: str, key: _Key, size: int, num_layers: int, ends: Ends, shell: _Key) -> ModelShape:
    architecture = registry.load("architectures", name)
    switches = dict(shell)
    layers = registry.stack(name, dict(key), num_layers)
    multiple = math.lcm(*(layer.width_multiple(options) for layer, options in layers))
    liked = math.lcm(multiple, *(HEAD_WIDTH * layer.heads(options) for layer, options in layers))
    fixed_width = switches.get("d_model")
    has_mlp = bool(switches.get("mlp", True)) and architecture.residual
    reference = _reference_width(size, num_layers, liked)
    d_model = fixed_width if isinstance(fixed_width, int) else reference
    start = ModelShape(
        architecture=name,
        options=dict(key),
        ends=ends,
        d_model=d_model,
        num_layers=num_layers,
        mlp_width=4 * d_model if has_mlp else 0,
        short_conv=bool(switches.get("short_conv", False)),
        tied_head=bool(switches.get("tied_head", False)),
    )
    if size == 0 or not architecture.matched:
        return start
    if fixed_width is not None:
        return _with_width(start, size, [d_model])
    if has_mlp:
        plain = _reference_width(size, num_layers, multiple)
        widths = range(reference, math.ceil(_NARROWEST * plain) - 1, -math.lcm(16, liked))
        return _with_width(start, size, [*widths, *range(plain, 0, -math.lcm(16, multiple))])
    return _without_mlp(start, size, (math.lcm(16, liked), liked, math.lcm(16, multiple), multiple))


def _with_width(start: ModelShape, size: int, widths: Sequence[int]) -> ModelShape:
    """The MLP width that meets the size at the first d_model of `widths` that leaves the MLP at
    least half as wide. Raises CannotMatch."""
    if not start.mlp_width:  # a width that the sweep fixed, and nothing that could move
        if abs(parameters(start) - size) <= TOLERANCE * size:
            return start
        raise CannotMatch(
            f"{size:,} parameters: {start.num_layers} layers of {start.architecture} at d_model "
            f"{start.d_model} have {parameters(start):,}, and no MLP that could make up for it"
        )
    for d_model in widths:
        shape = replace(start, d_model=d_model, mlp_width=1)
        width = _solve_width(size, _fixed_parameters(shape), _parameters_per_width(shape))
        if width is not None and 2 * width >= d_model:
            return replace(shape, mlp_width=width)
    smallest = replace(start, d_model=widths[-1], mlp_width=widths[-1] // 2)
    raise _cannot_match(size, smallest)


def _without_mlp(start: ModelShape, size: int, steps: Sequence[int]) -> ModelShape:
    """The d_model that alone meets the size, a multiple of the first of `steps` with which one
    does. Raises CannotMatch."""
    nearest: list[ModelShape] = []
    for step in steps:
        low, high = 1, 2
        while parameters(replace(start, d_model=high * step)) < size:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if parameters(replace(start, d_model=middle * step)) < size:
                low = middle
            else:
                high = middle
        nearest = [replace(start, d_model=count * step) for count in (low, high)]
        best = min(nearest, key=lambda shape: abs(parameters(shape) - size))
        if abs(parameters(best) - size) <= TOLERANCE * size:
            return best
    have = " and ".join(f"{parameters(shape):,} (d_model {shape.d_model})" for shape in nearest)
    raise CannotMatch(
        f"{size:,} parameters: without an MLP, {start.num_layers} layers of {start.architecture} "
        f"come no nearer than {have}"
    )


def _cannot_match(size: int, smallest: ModelShape) -> CannotMatch:
    least = parameters(smallest)
    what = f"{smallest.num_layers} layers of {smallest.architecture}"
    if least > size:
        return CannotMatch(
            f"{size:,} parameters are too few for {what}: the smallest model there (d_model "
            f"{smallest.d_model}) has {least:,}"
        )
    return CannotMatch(f"{size:,} parameters: no width of {what} comes within 2 % of it")


def _reference_width(size: int, num_layers: int, multiple: int) -> int:
    """d_model of a standard block, 12 d^2 parameters a layer, rounded to a multiple of 16 below 256
    and of 64 above, and of what the architecture needs."""
    exact = math.sqrt(size / (12 * num_layers))
    grid = math.lcm(16 if exact < 256 else 64, multiple)
    return max(grid, round(exact / grid) * grid)


def _solve_width(size: int, fixed: int, per_width: int) -> int | None:
    """The MLP width that brings `fixed + per_width * width` to `size`: the roundest within 1 %,
    else the nearest if it is within 2 %, else None."""
    exact = (size - fixed) / per_width
    for multiple in _ROUND_WIDTHS:
        width = round(exact / multiple) * multiple
        error = abs(fixed + per_width * width - size) / size
        if width > 0 and error <= (_PREFERRED if multiple > 1 else TOLERANCE):
            return width
    return None


def _fixed_parameters(shape: ModelShape) -> int:
    """Non-embedding parameters that do not depend on the MLP's width."""
    mixers = sum(a.parameters(shape.d_model, o) for a, o in _layers(shape))
    convolutions = _mixing_layers(shape) * SHORT_CONV_TOKENS if shape.short_conv else 0
    return mixers + shape.d_model * (convolutions + _norms(shape))


def _parameters_per_width(shape: ModelShape) -> int:
    """Parameters that one unit of the MLPs' width adds."""
    return shape.num_layers * 2 * shape.d_model


def _norms(shape: ModelShape) -> int:
    """How many norms the shell has: before each mixer and each MLP, and the last one."""
    if not registry.load("architectures", shape.architecture).residual:
        return 1
    return _mixing_layers(shape) + (shape.num_layers if shape.mlp_width else 0) + 1


def _mixing_layers(shape: ModelShape) -> int:
    """How many layers have a mixer."""
    return sum(_mixes(architecture, options) for architecture, options in _layers(shape))


@cache
def _mixes(architecture: plugins.Architecture, options: Any) -> bool:
    with torch.device("meta"):
        width = math.lcm(16, architecture.width_multiple(options))
        return architecture.mixer(width, options) is not None


@cache
def _stack(name: str, key: _Key, num_layers: int) -> list[tuple[plugins.Architecture, Any]]:
    return registry.stack(name, dict(key), num_layers)


def _layers(shape: ModelShape) -> list[tuple[plugins.Architecture, Any]]:
    """Each layer's architecture and options."""
    return _stack(shape.architecture, _key(shape.options), shape.num_layers)


@cache
def _ends(task_name: str, key: _Key) -> Ends:
    task = registry.load("tasks", task_name)
    return task.ends(plugins.build_options(task.options, dict(key)))


def _key(options: Mapping[str, Scalar]) -> _Key:
    """Options as something that caches can hold."""
    return tuple(sorted(options.items()))
