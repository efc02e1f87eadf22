"""The device a cell runs on: opened by its class, with the arithmetic that everything here assumes.

float32 means float32: TF32 and bfloat16 are off in matrix products, convolutions and recurrent
layers of cuDNN and oneDNN, and products of bfloat16 are added up in float32. On a CPU numbers too
small to be normal are zero: a gate that has closed, or an optimiser's moment that has faded, would
else slow the same operation down.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from workloads.cell import Cell, Scalar
from workloads.environment import device_slug, is_cpu, threads_of
from workloads.plugins import Unsupported


def open_device(cell: Cell) -> torch.device:
    """The cell's device, ready: thread count, precision of products, memory limit of an
    accelerator.

    Raises:
        Unsupported: this machine has no such accelerator, or torch cannot use it.
    """
    torch.set_num_threads(threads_of(cell.device))
    if is_cpu(cell.device):
        set_products("cpu")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unsupported(
            f"{cell.device}: torch {torch.__version__} finds no CUDA device here; install a CUDA "
            "build of torch, or run this cell where the device is"
        )
    device = torch.device("cuda", 0)
    name = device_slug(torch.cuda.get_device_name(device))
    if name != cell.device:
        raise Unsupported(
            f"{cell.device}: the first device here is {name}; say `device: {name}` in the sweep, "
            "or choose the other one with CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(device)
    set_products("cuda")
    _limit_memory(device, cell.limits.memory_bytes)
    return device


def set_products(device_type: str) -> None:
    """How a device of this type multiplies and adds up, in this process."""
    for kernels in _float32_kernels(device_type):
        kernels.fp32_precision = "ieee"
    if device_type == "cpu":
        # oneDNN's own default, where torch asks it for nothing in particular.
        os.environ.pop("ONEDNN_DEFAULT_FPMATH_MODE", None)
        return
    products: Any = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = False
    products.allow_fp16_reduced_precision_reduction = False


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormal numbers are zero within, in this thread and in those it starts, where the processor
    can do so; torch's own way after."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within, `scaled_dot_product_attention` has its fused kernels alone, on every device: it would
    fall back on the T x T matrix without a word."""
    before = torch.backends.cuda.math_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_math_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_math_sdp(before)


def _flushes_denormals() -> bool:
    tiny = torch.full((1,), torch.finfo(torch.float32).tiny)
    return bool(tiny / 2 == 0)


def seed(device: torch.device, value: int) -> None:
    """Seed what draws on this device. `torch.manual_seed` would, on a CPU, note for every
    accelerator that might ever come where it was called from, for milliseconds."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def _float32_kernels(device_type: str) -> tuple[Any, ...]:
    """What may round float32 to TF32 or bfloat16: matrix products, convolutions, recurrent layers.
    cuDNN's own switch does not reach the last two in torch 2.11, and both start with TF32 on."""
    if device_type == "cpu":
        onednn: Any = torch.backends.mkldnn
        return onednn.matmul, onednn.conv, onednn.rnn
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _reduces_sums() -> bool:
    """Whether products of bfloat16 may be added up in bfloat16 (split-K kernels of cuBLAS)."""
    products: Any = torch.backends.cuda.matmul
    return bool(products.allow_bf16_reduced_precision_reduction)


def _limit_memory(device: torch.device, limit: int | None) -> None:
    """Allocations beyond the cell's limit fail as if the device were full."""
    total = torch.cuda.get_device_properties(device).total_memory
    share = 1.0 if limit is None else min(1.0, limit / total)
    torch.cuda.set_per_process_memory_fraction(share, device)


@contextmanager
def memory_limited(device: torch.device, limit: int, after: int | None) -> Iterator[None]:
    """An accelerator's allocator gives no more than `limit` bytes within, then `after` again."""
    _limit_memory(device, limit)
    try:
        yield
    finally:
        _limit_memory(device, after)


def facts(device: torch.device) -> dict[str, Scalar]:
    """How this process computes: threads, how float32 products are rounded (`ieee`, `tf32`,
    `bf16`), and on a CPU what becomes of denormal numbers (`flushed`, `kept`)."""
    roundings = {kernels.fp32_precision for kernels in _float32_kernels(device.type)}
    computing: dict[str, Scalar] = {
        "num_threads": torch.get_num_threads(),
        "float32_products": ", ".join(sorted(roundings)),
    }
    if device.type == "cpu":
        return {**computing, "denormals": "flushed" if _flushes_denormals() else "kept"}
    return {
        **computing,
        "bfloat16_sums": "reduced" if _reduces_sums() else "float32",
        "device_uuid": str(torch.cuda.get_device_properties(device).uuid),
        "device_memory": torch.cuda.get_device_properties(device).total_memory,
        "cuda": torch.version.cuda,
    }
