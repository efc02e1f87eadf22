"""How large a model a cell asks for, and what it will cost: widths solved for an exact number of
parameters, then FLOPs and bytes by arithmetic.

FLOPs count a multiply-add as 2, matrix multiplications only. Bytes are of tensors, as the allocator
would hand them out; they are predictions, which the report grades against what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from workloads import plugins
from workloads.cell import Cell, Scalar
from workloads.model import ModelShape

TOLERANCE = 0.02
"""How far the non-embedding parameters may lie from what was asked, relative."""
_PREFERRED = 0.01
_ROUND_WIDTHS = (16, 8, 4, 2, 1)
_Key = tuple[tuple[str, Scalar], ...]


class CannotMatch(ValueError):
    """No width gives this architecture the parameters asked for at this depth."""


def shape_for(cell: Cell) -> ModelShape:
    """The model of a cell, its non-embedding parameters within 2 % of `cell.size` at exactly
    `cell.num_layers` layers.

    Raises:
        CannotMatch: the size is too small (or the mixer too large) for that depth.
        ValueError: unknown architecture, task or option, or an option's value refused.
    """
    return _shape(
        cell.architecture,
        _key(cell.options),
        cell.size,
        cell.num_layers,
        _vocab_size(cell.task, _key(cell.task_options)),
    )


@cache
def parameters(shape: ModelShape) -> int:
    """Non-embedding parameters, exactly those of the built model: mixers, MLPs and norms."""
    fixed, per_width = _parameter_parts(
        shape.architecture, _key(shape.options), shape.d_model, shape.num_layers
    )
    return fixed + per_width * shape.mlp_width


@cache
def total_parameters(shape: ModelShape) -> int:
    """All parameters: with the embedding and the untied head."""
    return parameters(shape) + 2 * shape.vocab_size * shape.d_model


@cache
def flops_per_token(shape: ModelShape, seq_len: int) -> float:
    """Forward FLOPs for one token, mean over the positions of a context of `seq_len` tokens; MLPs
    and head included."""
    architecture, options = _plugin(shape.architecture, _key(shape.options))
    mixer = architecture.flops_per_token(shape.d_model, options, seq_len)
    mlp = 4 * shape.d_model * shape.mlp_width
    return shape.num_layers * (mixer + mlp) + 2.0 * shape.d_model * shape.vocab_size


def train_step_flops(shape: ModelShape, batch_size: int, seq_len: int) -> float:
    """FLOPs of one training step: forward, and twice that for the gradients of inputs and weights
    (Kaplan et al. 2020, section 2.1)."""
    return 3.0 * batch_size * seq_len * flops_per_token(shape, seq_len)


@cache
def state_bytes(shape: ModelShape, seq_len: int, element_bytes: int) -> int:
    """Bytes that the decoding state of one sequence holds after `seq_len` tokens, all layers."""
    architecture, options = _plugin(shape.architecture, _key(shape.options))
    return shape.num_layers * architecture.state_bytes(
        shape.d_model, options, seq_len, element_bytes
    )


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
    the vocabulary at once: log-softmax, its gradient, and that of the logits. One pass makes the
    step; gradients accumulated over several would add 4 bytes a parameter.
    """
    element = plugins.element_bytes(precision)
    architecture, options = _plugin(shape.architecture, _key(shape.options))
    mixer = architecture.saved_elements_per_token(shape.d_model, options, seq_len)
    has_mixer = (
        _mixer_parameters(shape.architecture, _key(shape.options), shape.d_model) is not None
    )
    norms = shape.num_layers * (1 + has_mixer) + 1
    matrices = shape.num_layers * (mixer + shape.d_model + 2 * shape.mlp_width) + shape.d_model
    token = element * matrices + 4 * 2 * norms * shape.d_model + 4 * 3 * shape.vocab_size
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
def _shape(name: str, key: _Key, size: int, num_layers: int, vocab_size: int) -> ModelShape:
    architecture, options = _plugin(name, key)
    multiple = architecture.width_multiple(options)
    d_model = _reference_width(size, num_layers, multiple)
    mlp_width = 4 * d_model
    if architecture.matched:
        step = math.lcm(16, multiple)
        d_model, mlp_width = _matched_widths(name, key, size, num_layers, d_model, step)
    return ModelShape(
        architecture=name,
        options=dict(key),
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        mlp_width=mlp_width,
    )


def _matched_widths(
    name: str, key: _Key, size: int, num_layers: int, reference: int, step: int
) -> tuple[int, int]:
    """d_model and MLP width that meet the size: the widest d_model, from `reference` down in steps,
    that leaves the MLP at least half as wide. Raises CannotMatch."""
    for d_model in range(reference, 0, -step):
        fixed, per_width = _parameter_parts(name, key, d_model, num_layers)
        width = _solve_width(size, fixed, per_width)
        if width is not None and 2 * width >= d_model:
            return d_model, width
    fixed, per_width = _parameter_parts(name, key, step, num_layers)
    smallest = fixed + per_width * step // 2
    raise CannotMatch(
        f"{size:,} parameters are too few for {num_layers} layers of {name}: the smallest model "
        f"there (d_model {step}) has {smallest:,}"
    )


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


@cache
def _parameter_parts(name: str, key: _Key, d_model: int, num_layers: int) -> tuple[int, int]:
    """Non-embedding parameters that do not depend on the MLP's width, and how many one unit of
    width adds."""
    mixer = _mixer_parameters(name, key, d_model)
    layer = d_model if mixer is None else mixer + 2 * d_model  # with the norms
    return num_layers * layer + d_model, num_layers * 2 * d_model


@cache
def _mixer_parameters(name: str, key: _Key, d_model: int) -> int | None:
    """Parameters of one mixer, counted on the meta device; None where there is no mixer."""
    architecture, options = _plugin(name, key)
    with torch.device("meta"):
        mixer = architecture.mixer(d_model, options)
    return None if mixer is None else sum(p.numel() for p in mixer.parameters())


@cache
def _plugin(name: str, key: _Key) -> tuple[plugins.Architecture, Any]:
    architecture = plugins.load("architectures", name)
    return architecture, plugins.build_options(architecture.options, dict(key))


@cache
def _vocab_size(task_name: str, key: _Key) -> int:
    task = plugins.load("tasks", task_name)
    return task.vocab_size(plugins.build_options(task.options, dict(key)))


def _key(options: Mapping[str, Scalar]) -> _Key:
    """Options as something that caches can hold."""
    return tuple(sorted(options.items()))
