"""Mamba-1's selective scan and Mamba-2's SSD, with the softplus, the skip and the gate that their
files take in.

Mamba-1's arrays are channels first, (B, C, T); the states of both are (..., channels, N), the
transpose of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.workloads.golden.driving import Arrays, Case, Form, Tensors, recurrence
from workloads.ops import gated_linear, selective_scan

Op = Callable[..., tuple[Tensor, Tensor]]
FIRST = ("u", "delta", "A", "Bm", "Cm", "D", "z", "delta_bias")
SECOND = ("x", "dt", "A", "Bm", "Cm", "D", "dt_bias")
OUTPUTS = ("out", "y", "o")
STATES = ("last_state", "S", "state", "h")


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    return {"A", "Bm", "Cm"} <= set(arrays) and bool({"u", "x"} & set(arrays))


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    """Outputs and last states of all three forms, from zero and from the file's state, then the
    gradients where the file has them."""
    second = "x" in arrays
    model, inputs = (_mamba2, SECOND) if second else (_mamba1, FIRST)
    forms = {label: Form(partial(model, op), chunked) for label, op, chunked in _forms(second)}
    yield from recurrence(arrays, forms, inputs=inputs, results=(*OUTPUTS, *STATES))


def _forms(second: bool) -> list[tuple[str, Op, bool]]:
    """Mamba-1's chunks are of memory alone: inside one it is the plain recurrence."""
    if not second:
        return [
            ("parallel", selective_scan.selective_scan, False),
            ("reference", selective_scan.selective_scan_reference, False),
            ("steps", _stepped_selective_scan, False),
        ]
    return [
        ("chunked", gated_linear.gated_linear_attention, True),
        ("reference", gated_linear.gated_linear_attention_reference, False),
        ("steps", _stepped_gated_linear, False),
    ]


def _results(output: Tensor, state: Tensor) -> Tensors:
    return dict.fromkeys(OUTPUTS, output) | dict.fromkeys(STATES, state)


def _start(start: Tensors) -> Tensor | None:
    return next((state.transpose(-1, -2) for state in start.values()), None)


def _mamba1(op: Op, arrays: Tensors, start: Tensors) -> Tensors:
    u, dt, b, c = (arrays[name].transpose(1, 2) for name in ("u", "delta", "Bm", "Cm"))
    if "delta_bias" in arrays:
        dt = dt + arrays["delta_bias"]
    y, state = op(u, F.softplus(dt), arrays["A"], b, c, initial_state=_start(start))
    if "D" in arrays:
        y = y + arrays["D"] * u
    if "z" in arrays:
        y = y * F.silu(arrays["z"].transpose(1, 2))
    return _results(y.transpose(1, 2), state.transpose(-1, -2))


def _mamba2(op: Op, arrays: Tensors, start: Tensors) -> Tensors:
    x, dt = arrays["x"], arrays["dt"]
    dt = F.softplus(dt + arrays["dt_bias"] if "dt_bias" in arrays else dt)
    v, heads = x * dt[..., None], x.shape[2]
    b, c = (
        m if m.shape[2] in (1, heads) else m.repeat_interleave(heads // m.shape[2], 2)
        for m in (arrays["Bm"], arrays["Cm"])
    )
    y, state = op(c, b, v, dt * arrays["A"], scale=1.0, initial_state=_start(start))
    if "D" in arrays:
        y = y + arrays["D"][:, None] * x
    return _results(y, state.transpose(-1, -2))


def _stepped_selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    state = u.new_zeros(u.shape[0], a.shape[1], u.shape[2])
    state = state if initial_state is None else initial_state
    outputs = []
    for u_t, dt_t, b_t, c_t in zip(*(x.unbind(1) for x in (u, dt, b, c)), strict=True):
        y, state = selective_scan.selective_scan_step(u_t, dt_t, a, b_t, c_t, state=state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def _stepped_gated_linear(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, scale: float, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    state = state if initial_state is None else initial_state
    outputs = []
    for q_t, k_t, v_t, g_t in zip(*(x.unbind(1) for x in (q, k, v, g)), strict=True):
        y, state = gated_linear.gated_linear_attention_step(
            q_t, k_t, v_t, g_t, scale=scale, state=state
        )
        outputs.append(y)
    return torch.stack(outputs, 1), state
