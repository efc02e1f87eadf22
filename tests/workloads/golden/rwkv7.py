"""RWKV-7's WKV files: r, w_log, k, v, a, b."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workloads.ops.rwkv7 import wkv7, wkv7_reference, wkv7_step

Case = Callable[[torch.dtype], tuple[Tensor, Tensor]]
Form = Callable[..., tuple[Tensor, Tensor]]
INPUTS = ("r", "w_log", "k", "v", "a", "b")


def knows(note: dict[str, Any], name: str) -> bool:
    """By the note's name or the file's."""
    return any(str(called).startswith("rwkv7_wkv") for called in (note.get("name", ""), name))


def cases(note: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Case]]:
    """Outputs and last states of all three forms, from zero and from the file's state, then the
    gradients where the file has them."""
    for form in (wkv7, _stepped, wkv7_reference):
        label = form.__name__.strip("_")
        scaled = partial(form, scale=note.get("scale", 1.0))
        for suffix, start in (("", None), ("_from_S0", "S0")):
            for at, array in enumerate(("o", "S")):
                if array + suffix in arrays:
                    yield (
                        f"{label} {array}{suffix}",
                        partial(_forward, scaled, arrays, at, array + suffix, start),
                    )
        for array in INPUTS:
            if f"d{array}" in arrays:
                yield f"{label} d{array}", partial(_gradient, scaled, arrays, array)


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.asarray(array)).to(dtype)


def _forward(
    form: Form,
    arrays: Mapping[str, np.ndarray],
    at: int,
    expected: str,
    start: str | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    inputs = [_tensor(arrays[array], dtype) for array in INPUTS]
    state = None if start is None else _tensor(arrays[start], dtype)
    return form(*inputs, initial_state=state)[at], _tensor(arrays[expected], dtype)


def _gradient(
    form: Form, arrays: Mapping[str, np.ndarray], array: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    inputs = {name: _tensor(arrays[name], dtype).requires_grad_() for name in INPUTS}
    output, _ = form(*inputs.values())
    loss = (output * _tensor(arrays["w_loss"], dtype)).sum()
    (found,) = torch.autograd.grad(loss, [inputs[array]])
    return found, _tensor(arrays[f"d{array}"], dtype)


def _stepped(
    *inputs: Tensor, scale: float, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    v = inputs[3]
    state = initial_state
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], inputs[2].shape[-1], v.shape[-1])
    outputs = []
    for token in zip(*(x.unbind(1) for x in inputs), strict=True):
        output, state = wkv7_step(*token, scale=scale, state=state)
        outputs.append(output)
    return torch.stack(outputs, 1), state
