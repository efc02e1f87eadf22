"""How a model's operations are launched: one by one (`eager`), as kernels that torch's compiler
made of them (`compiled`: TorchInductor; Ansel et al. 2024, "PyTorch 2"), or recorded once and
launched together (`graph`: CUDA graphs).

Building is slow and untimed: it falls into the calls that warm up, and its products are kept in one
folder of the machine (`TORCHINDUCTOR_CACHE_DIR`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from workloads.cell import Execution
from workloads.plugins import Unsupported

P = ParamSpec("P")
R = TypeVar("R")


def ready(function: Callable[P, R], execution: Execution, device: torch.device) -> Callable[P, R]:
    """`function`, to be run that way on that device. What torch cannot trace (its own nn.LSTM and
    nn.GRU among it) runs eagerly within: `breaks` counts that. What cannot be built is said by its
    calls, as one of `not_built()`.

    Raises:
        Unsupported: this machine lacks what that way needs; says what.
    """
    if execution == "eager":
        return function
    if execution == "graph":
        if device.type != "cuda":
            raise Unsupported("graph: CUDA graphs need an NVIDIA GPU")
        return torch.compile(function, backend="cudagraphs")
    _check_compilers(device)
    from torch._dynamo import config as tracing
    from torch._inductor import config as building

    # In this process: others, started for it, would outlive the cell and share its cores.
    building.compile_threads = 1
    # Else what was built too often would go on eagerly, under the compiler's name.
    tracing.fail_on_recompile_limit_hit = True
    return torch.compile(function)


def breaks() -> int:
    """How often torch's compiler met what it cannot trace, in this process."""
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def not_built() -> tuple[type[Exception], ...]:
    """What torch raises where it cannot build a function."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, FailOnRecompileLimitHit, InductorError


def _check_compilers(device: torch.device) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise Unsupported("compiled: needs the package triton; torch's CUDA builds bring it")
        return
    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        raise Unsupported("compiled: needs a C++ compiler; install g++") from None
