"""Which code computes an op: the seam between a mixer and its kernels.

An op is a function: queries, keys, values, gates and an initial state in, outputs and the final
state out. Each has up to three backends.

- `reference`: the loop as the formula reads, one token after another. For tests, which call it as
  the function `..._reference`; asked for as a backend it is refused, so that it is never timed as
  the architecture.
- `torch`: chunked matrix products in plain torch; what a CPU runs.
- `fla`: the Triton kernels of `fla-core` (the extra `gpu`); what an NVIDIA GPU runs. A cell whose
  kernel is missing is `unsupported`, never run on the slow form. Each kernel is compared with the
  torch form, outputs and (where it trains) gradients, on a small input before its first use in a
  process. Decoding steps are plain torch on every device.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from workloads.ops.precision import without_autocast
from workloads.plugins import Unsupported, unknown

Form = Callable[..., tuple[Tensor, Tensor]]
"""An op with all but its tensors settled: tensors in, output and final state out."""
Backend = Literal["torch", "fla"]
"""The backends that a mixer may run."""
SmallInputs = Callable[[torch.device, torch.dtype], Sequence[Tensor]]
_BACKENDS = get_args(Backend)
_KERNEL_PACKAGE = "fla-core"
_MEND = "install the extra `gpu` (pip install 'sequence-sweep-orchestrator[gpu]')"
_TOLERANCE = 2e-2
"""Relative norm within which a kernel in bfloat16 agrees with our own form in float32."""
_checked: set[tuple[object, ...]] = set()
refused: dict[tuple[object, ...], str] = {}
"""What a kernel said when it refused this device or this Triton."""


def check_backend(backend: str) -> None:
    """Raises ValueError for anything but a backend that may run as the architecture, so that no
    other word silently means torch; names the known ones."""
    if backend == "reference":
        raise ValueError(
            "the reference form of an op is for tests and is never timed as the architecture: call "
            f"its ..._reference function. Known backends: {', '.join(_BACKENDS)}"
        )
    if backend not in _BACKENDS:
        raise ValueError(unknown("backend", backend, _BACKENDS))


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


def kernel_class(options: Any, device_type: str) -> str:
    """What `Architecture.kernel_class` says of an op: chunks in plain torch on a CPU, else fla's
    kernel."""
    return "chunked" if device_type == "cpu" else "fused"


def kernel(path: str) -> Any:
    """The fla function at `module:name`, as `fla.ops.gla:chunk_gla`. Raises Unsupported."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"{path}: {error}; {_MEND}") from error


def check_once(name: str, fast: Form, own: Form, small_inputs: SmallInputs, like: Tensor) -> None:
    """Compare a kernel with our own form on a small input in the dtype and on the device of `like`,
    the first time in this process: outputs and final state and, where gradients are wanted, those
    of every input.

    Raises:
        Unsupported: the kernel refuses this device or this Triton (fla's guard against wrong
        gradients names the version that mends it); again at every later call.
        RuntimeError: they differ by more than a relative norm of 2 %; names what differs.
    """
    gradients = torch.is_grad_enabled()
    key = (name, like.device, like.dtype, gradients)
    if key in refused:
        raise Unsupported(refused[key])
    if key in _checked:
        return
    try:
        with without_autocast(like):
            _compare(name, fast, own, small_inputs, like, gradients)
    except RuntimeError as error:
        if "Triton" not in str(error):
            raise
        refused[key] = f"{name}: {error}"
        raise Unsupported(refused[key]) from error
    _checked.add(key)


def _compare(
    name: str, fast: Form, own: Form, small_inputs: SmallInputs, like: Tensor, gradients: bool
) -> None:
    device, dtype = like.device, like.dtype
    with torch.set_grad_enabled(gradients), torch.inference_mode(False):
        inputs = [x.detach() for x in small_inputs(device, dtype)]
        found = _results(fast, inputs, gradients)
        expected = _results(own, [x.float() for x in inputs], gradients)
    for what, one, other in zip(_names(len(found)), found, expected, strict=True):
        scale = other.norm().item() or 1.0
        error = (one.float() - other).norm().item() / scale
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"{name} disagrees with our own form: {what} by {error:.1e} of its norm "
                f"({dtype}, {device}); it is not timed"
            )


def _results(form: Form, inputs: Sequence[Tensor], gradients: bool) -> list[Tensor]:
    """Output, final state and, where wanted, the gradient of each input."""
    if not gradients:
        return list(form(*inputs))
    leaves = [x.clone().requires_grad_() for x in inputs]
    output, state = form(*leaves)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(output.shape, generator=generator).to(output)
    torch.autograd.backward((output * weight).sum())
    found = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return [output.detach(), state.detach(), *found]


def _names(results: int) -> list[str]:
    return ["output", "final state", *(f"gradient of input {i}" for i in range(results - 2))]
