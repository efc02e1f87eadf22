"""The golden files of the mLSTM's cell, through every form of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workloads.ops.mlstm import Memory, mlstm, mlstm_reference, mlstm_step

Form = Callable[..., tuple[Tensor, Memory]]
Compare = Callable[[torch.dtype], tuple[Tensor, Tensor]]

_INPUTS = ("q", "k", "v", "i", "f")
_RESULTS = ("h", "C", "n", "m")
_START = ("C0", "n0", "m0")


def knows(json_data: Mapping[str, Any], name: str) -> bool:
    """Files of the stabilised cell: outputs h, and a last state of C, n and m."""
    return "mlstm" in name and {*_INPUTS, *_RESULTS} <= set(json_data.get("shapes", ()))


def cases(
    json_data: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Compare]]:
    """Outputs and last states from an empty memory; the same as `h_from_C0` and so on from C0, n0,
    m0, and gradients of sum(w h), where a file has them."""
    given = {key: torch.from_numpy(arrays[key]) for key in json_data["shapes"]}
    for name, form in _FORMS.items():
        for what in _RESULTS:
            yield f"{what} ({name})", partial(_result, form, given, what, what)
            if f"{what}_from_C0" in given:
                key = f"{what}_from_C0"
                yield f"{key} ({name})", partial(_result, form, given, what, key)
        for what in _INPUTS:
            if f"d{what}" in given:
                yield f"d{what} ({name})", partial(_gradient, form, given, what)


def _stepwise(
    *inputs: Tensor, scale: float, initial_state: Memory | None = None
) -> tuple[Tensor, Memory]:
    """A third of the tokens in chunks, then steps."""
    first = max(1, inputs[0].shape[1] // 3)
    output, state = mlstm(*(x[:, :first] for x in inputs), scale=scale, initial_state=initial_state)
    outputs = list(output.unbind(1))
    for token in zip(*(x[:, first:].unbind(1) for x in inputs), strict=True):
        output, state = mlstm_step(*token, scale=scale, state=state)
        outputs.append(output)
    return torch.stack(outputs, 1), state


_FORMS: dict[str, Form] = {"chunked": mlstm, "reference": mlstm_reference, "steps": _stepwise}


def _run(
    form: Form, inputs: list[Tensor], start: Memory | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, C, n, m in the files' shapes: there m is (B, H, 1)."""
    output, last = form(*inputs, scale=inputs[0].shape[-1] ** -0.5, initial_state=start)
    return output, last.matrix, last.normaliser, last.scale[..., None]


def _result(
    form: Form, given: Mapping[str, Tensor], what: str, key: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    start = None
    if key != what:
        matrix, normaliser, m = (given[name].to(dtype) for name in _START)
        start = Memory(matrix, normaliser, m.reshape(normaliser.shape[:2]))
    with torch.no_grad():
        found = _run(form, [given[name].to(dtype) for name in _INPUTS], start)
    return found[_RESULTS.index(what)], given[key]


def _gradient(
    form: Form, given: Mapping[str, Tensor], what: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    inputs = [given[name].to(dtype).requires_grad_() for name in _INPUTS]
    loss = (_run(form, inputs, None)[0] * given["w"].to(dtype)).sum()
    return torch.autograd.grad(loss, inputs[_INPUTS.index(what)])[0], given[f"d{what}"]
