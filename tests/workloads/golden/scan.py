"""minGRU and minLSTM files: pre-activations in, hidden states out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workloads.architectures.min_gru import gates, log_decay
from workloads.ops.scan import linear_scan, linear_scan_reference

Case = Callable[[torch.dtype], tuple[Tensor, Tensor]]
Form = Callable[..., tuple[Tensor, Tensor]]
PRE_ACTIVATIONS = {"gru": ("z_pre", "h_pre"), "lstm": ("f_pre", "i_pre", "h_pre")}


def knows(note: dict[str, Any], name: str) -> bool:
    return any(str(called).startswith("mingru") for called in (note.get("name", ""), name))


def cases(note: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Case]]:
    """The hidden states of all forms, from zero and from the file's state, and the last of them;
    gradients of sum(w h) where the file has them, called d(input)."""
    for form in (linear_scan, linear_scan_reference, _stepped):
        for cell, names in PRE_ACTIVATIONS.items():
            for array, start in ((f"min{cell}", None), (f"min{cell}_from_h0", "h0")):
                if array in arrays:
                    label = f"{form.__name__.strip('_')} {array}"
                    for at, what in enumerate(("", ", last state")):
                        yield label + what, partial(_states, form, arrays, cell, array, start, at)
            for wanted in names:
                if "w" in arrays and f"d{wanted}" in arrays:
                    label = f"{form.__name__.strip('_')} min{cell} d{wanted}"
                    yield label, partial(_gradient, form, arrays, cell, wanted)
    for cell, names in PRE_ACTIVATIONS.items():
        if all(name in arrays for name in names):
            yield f"log decay of min{cell}", partial(_decay, arrays, cell)


def _inputs(arrays: Mapping[str, np.ndarray], cell: str, dtype: torch.dtype) -> list[Tensor]:
    return [torch.from_numpy(arrays[name]).to(dtype) for name in PRE_ACTIVATIONS[cell]]


def _states(
    form: Form,
    arrays: Mapping[str, np.ndarray],
    cell: Any,
    array: str,
    start: str | None,
    at: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    decay, added = gates(cell, torch.cat(_inputs(arrays, cell, dtype), -1))
    initial = None if start is None else torch.from_numpy(arrays[start]).to(dtype)
    expected = torch.from_numpy(arrays[array]).to(dtype)
    found = form(decay, added, initial_state=initial)[at]
    return found, expected[:, -1] if at else expected


def _gradient(
    form: Form, arrays: Mapping[str, np.ndarray], cell: Any, wanted: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    inputs = [x.requires_grad_() for x in _inputs(arrays, cell, dtype)]
    states, _ = form(*gates(cell, torch.cat(inputs, -1)))
    loss = (states * torch.from_numpy(arrays["w"]).to(dtype)).sum()
    (found,) = torch.autograd.grad(loss, inputs[PRE_ACTIVATIONS[cell].index(wanted)])
    return found, torch.from_numpy(arrays[f"d{wanted}"]).to(dtype)


def _decay(
    arrays: Mapping[str, np.ndarray], cell: Any, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What the GPU's kernel is given, against what the formula of the file's note says."""
    gate = {name: torch.from_numpy(arrays[name]).to(dtype) for name in PRE_ACTIVATIONS[cell]}
    opened = {name: torch.sigmoid(x) for name, x in gate.items()}
    if cell == "gru":
        expected = 1 - opened["z_pre"]
    else:
        expected = opened["f_pre"] / (opened["f_pre"] + opened["i_pre"])
    return log_decay(cell, torch.cat(list(gate.values()), -1)).exp(), expected


def _stepped(
    decay: Tensor, added: Tensor, *, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token through the parallel form, which continues from a state."""
    state = initial_state
    outputs = []
    for t in range(added.shape[1]):
        now = slice(t, t + 1)
        output, state = linear_scan(decay[:, now], added[:, now], initial_state=state)
        outputs.append(output)
    assert state is not None
    return torch.cat(outputs, 1), state
