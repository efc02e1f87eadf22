"""Which code computes an op: the seam between a mixer and its kernels.

An op is a function: queries, keys, values, gates and an initial state in, outputs and the final
state out. Each has up to three backends.

- `reference`: the loop as the formula reads, one token after another. For tests; a mixer never runs
  it.
- `torch`: chunked matrix products in plain torch; what a CPU runs.
- `fla`: the Triton kernels of `fla-core` (the extra `gpu`); what an NVIDIA GPU runs. A cell whose
  kernel is missing is `unsupported`, never run on the slow form. Each kernel is compared with the
  torch form, outputs and gradients, on a small input before its first use in a process.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workloads.plugins import Unsupported

_KERNEL_PACKAGE = "fla-core"
_MEND = "install the extra `gpu` (pip install 'sequence-sweep-orchestrator[gpu]')"
_TOLERANCE = 2e-2
"""Relative norm within which a kernel in bfloat16 agrees with our own form in float32."""
_checked: set[tuple[str, torch.device, torch.dtype]] = set()


def implementation(own: str, kernel: str, device_type: str) -> str:
    """What `Architecture.implementation` says of an op: `own` on a CPU, else the fla kernel with
    its version.

    Raises:
        Unsupported: an accelerator without the kernel's package; says how to install it.
    """
    if device_type == "cpu":
        return own
    try:
        version = importlib.metadata.version(_KERNEL_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise Unsupported(
            f"{kernel} is not here: {_MEND}; a slower form is never timed in its place"
        ) from None
    return f"{_KERNEL_PACKAGE} {version} {kernel}"


def kernel(path: str) -> Any:
    """The fla function at `module:name`, as `fla.ops.gla:chunk_gla`. Raises Unsupported."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"{path}: {error}; {_MEND}") from error


def check_once(
    name: str,
    fast: Callable[..., tuple[Tensor, Tensor]],
    own: Callable[..., tuple[Tensor, Tensor]],
    small_inputs: Callable[[torch.device, torch.dtype], Sequence[Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Compare a kernel with our own form on a small input, the first time in this process: outputs,
    final state, and the gradients of every input.

    Raises:
        RuntimeError: they differ by more than a relative norm of 2 %; names what differs.
    """
    key = (name, device, dtype)
    if key in _checked:
        return
    with torch.enable_grad(), torch.inference_mode(False):
        inputs = [x.detach() for x in small_inputs(device, dtype)]
        found = _with_gradients(fast, inputs)
        expected = _with_gradients(own, [x.float() for x in inputs])
    for what, one, other in zip(_names(len(inputs)), found, expected, strict=True):
        scale = other.norm().item() or 1.0
        error = (one.float() - other).norm().item() / scale
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"{name} disagrees with our own form: {what} by {error:.1e} of its norm "
                f"({dtype}, {device}); it is not timed"
            )
    _checked.add(key)


def _with_gradients(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor]
) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    output, state = function(*leaves)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(output.shape, generator=generator).to(output)
    torch.autograd.backward((output * weight).sum())
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return [output.detach(), state.detach(), *gradients]


def _names(inputs: int) -> list[str]:
    return ["output", "final state", *(f"gradient of input {i}" for i in range(inputs))]
