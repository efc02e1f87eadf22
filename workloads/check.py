"""The dry build: what can fail without a device fails here, on torch's meta device, once for each
distinct model.

A user's mistake raises ValueError; what an architecture cannot do on the cell's device is said in
`Built.unsupported`, because such a cell is planned and answered with that reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from workloads import plugins, registry, sizing
from workloads.cell import Cell
from workloads.ends import Ends
from workloads.environment import is_cpu
from workloads.model import (
    Backbone,
    ModelShape,
    dtype_of,
    non_embedding_parameters,
    total_parameters,
)

DRY_TOKENS = 8
"""Length of the dry forward: fused recurrent networks take milliseconds a token on meta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a cell's model will be. `parameters` are non-embedding; `implementation` is the code
    that will run, None where `unsupported` says why there is none; `arithmetic` is that of a
    training step's mixers."""

    shape: ModelShape
    parameters: int
    total_parameters: int
    implementation: str | None = None
    kernel_class: str | None = None
    arithmetic: str | None = None
    unsupported: str | None = None


def check(cell: Cell) -> Built:
    """The model of a cell, built and run once at a short length without data or device.

    Raises:
        ValueError: unknown names or options, values that do not go together, or a size that cannot
        be matched (sizing.CannotMatch).
    """
    device_type = "cpu" if is_cpu(cell.device) else "cuda"
    return _built(sizing.shape_for(cell), cell.precision, device_type)


def _nothing(ends: Ends, dtype: torch.dtype) -> Tensor:
    """Inputs that say nothing, a few positions long."""
    if ends.vocab_size:
        return torch.zeros(1, DRY_TOKENS, dtype=torch.int64)
    return torch.zeros(1, DRY_TOKENS, ends.features, dtype=dtype)


@cache
def _built(shape: ModelShape, precision: str, device_type: str) -> Built:
    dtype = dtype_of(precision)
    with torch.device("meta"), torch.no_grad():
        model = Backbone(shape).to(dtype)
        model(_nothing(shape.ends, dtype))
    architecture = registry.load("architectures", shape.architecture)
    options = plugins.build_options(architecture.options, shape.options)
    implementation = unsupported = None
    try:
        implementation = architecture.implementation(options, device_type)
    except plugins.Unsupported as gap:
        unsupported = str(gap)
    return Built(
        shape=shape,
        parameters=non_embedding_parameters(model),
        total_parameters=total_parameters(model),
        implementation=implementation,
        kernel_class=architecture.kernel_class(options, device_type),
        arithmetic=architecture.arithmetic(options, precision, device_type),
        unsupported=unsupported,
    )
