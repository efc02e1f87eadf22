"""Mamba-1's selective scan and Mamba-2's SSD, with the softplus, the skip and the gate that their
files take in.

Mamba-1's arrays are channels first, (B, C, T); the states of both are (..., channels, N), the
transpose of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops import gated_linear, selective_scan

Case = Callable[[torch.dtype], tuple[Tensor, Tensor]]
Form = Callable[..., tuple[Tensor, Tensor]]
Model = Callable[[Form, dict[str, Tensor], Tensor | None], tuple[Tensor, Tensor]]
STARTS = ("S0", "h0")


def knows(note: dict[str, Any], name: str) -> bool:
    return any(str(called).startswith("mamba") for called in (note.get("name", ""), name))


def cases(note: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Case]]:
    """Outputs and last states of all three forms, from zero and from the file's state, then the
    gradients where the file has them."""
    second = "y" in arrays or "x" in arrays
    model = _mamba2 if second else _mamba1
    forms = _forms(second)
    results = [("y", "S")] if second else [("out", "last_state")]
    results += [(f"{y}_from_{start}", f"{s}_from_{start}") for y, s in results for start in STARTS]
    for label, form in forms.items():
        for names in results:
            start = next((name for name in STARTS if names[0].endswith(name)), None)
            for at, array in enumerate(names):
                if array in arrays:
                    yield (
                        f"{label} {array}",
                        partial(_forward, partial(model, form), arrays, at, array, start),
                    )
        for array in arrays:
            if f"d{array}" in arrays:
                yield f"{label} d{array}", partial(_gradient, partial(model, form), arrays, array)


def _forms(second: bool) -> dict[str, Form]:
    if not second:
        return {
            "chunked": selective_scan.selective_scan,
            "reference": selective_scan.selective_scan_reference,
            "stepped": _stepped_selective_scan,
        }
    return {
        "chunked": gated_linear.gated_linear_attention,
        "reference": gated_linear.gated_linear_attention_reference,
        "stepped": _stepped_gated_linear,
    }


def _tensors(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(array)).to(dtype) for name, array in arrays.items()}


def _forward(
    model: Callable[[dict[str, Tensor], Tensor | None], tuple[Tensor, Tensor]],
    arrays: Mapping[str, np.ndarray],
    at: int,
    array: str,
    start: str | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    tensors = _tensors(arrays, dtype)
    return model(tensors, None if start is None else tensors[start])[at], tensors[array]


def _gradient(
    model: Callable[[dict[str, Tensor], Tensor | None], tuple[Tensor, Tensor]],
    arrays: Mapping[str, np.ndarray],
    array: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    tensors = _tensors(arrays, dtype)
    tensors[array].requires_grad_()
    loss = (model(tensors, None)[0] * tensors["w"]).sum()
    (found,) = torch.autograd.grad(loss, [tensors[array]])
    return found, tensors[f"d{array}"]


def _mamba1(form: Form, arrays: dict[str, Tensor], start: Tensor | None) -> tuple[Tensor, Tensor]:
    u, dt, b, c = (arrays[name].transpose(1, 2) for name in ("u", "delta", "Bm", "Cm"))
    dt = F.softplus(dt + arrays["delta_bias"] if "delta_bias" in arrays else dt)
    initial = None if start is None else start.transpose(-1, -2)
    y, state = form(u, dt, arrays["A"], b, c, initial_state=initial)
    if "D" in arrays:
        y = y + arrays["D"] * u
    if "z" in arrays:
        y = y * F.silu(arrays["z"].transpose(1, 2))
    return y.transpose(1, 2), state.transpose(-1, -2)


def _mamba2(form: Form, arrays: dict[str, Tensor], start: Tensor | None) -> tuple[Tensor, Tensor]:
    x, dt = arrays["x"], arrays["dt"]
    dt = F.softplus(dt + arrays["dt_bias"] if "dt_bias" in arrays else dt)
    initial = None if start is None else start.transpose(-1, -2)
    v = x * dt[..., None]
    y, state = form(
        arrays["Cm"], arrays["Bm"], v, dt * arrays["A"], scale=1.0, initial_state=initial
    )
    if "D" in arrays:
        y = y + arrays["D"][:, None] * x
    return y, state.transpose(-1, -2)


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
