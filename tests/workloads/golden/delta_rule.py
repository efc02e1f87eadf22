"""Delta rule files: without a decay, with one per head (`g`), or with one per key channel
(`gk`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workloads.ops.delta_rule import delta_rule, delta_rule_reference, delta_rule_step

Case = Callable[[torch.dtype], tuple[Tensor, Tensor]]
Form = Callable[..., tuple[Tensor, Tensor]]
FILES = ("delta_rule", "gated_delta_rule", "kda_channelwise_gated_delta")


def knows(note: dict[str, Any], name: str) -> bool:
    """By the note's name or the file's, as far as a longer name says which switches it holds."""
    return any(str(called).startswith(FILES) for called in (note.get("name", ""), name))


def cases(note: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Case]]:
    """Outputs and last states of all three forms, from zero and from the file's state, then the
    gradients where the file has them."""
    for form in (delta_rule, _stepped, delta_rule_reference):
        label = form.__name__.strip("_")
        scaled = partial(form, scale=note.get("scale", arrays["k"].shape[-1] ** -0.5))
        for suffix, start in (("", None), ("_from_S0", "S0")):
            for at, array in enumerate(("o", "S")):
                if array + suffix in arrays:
                    yield (
                        f"{label} {array}{suffix}",
                        partial(_forward, scaled, arrays, at, array + suffix, start),
                    )
        for array in _inputs(arrays):
            if f"d{array}" in arrays:
                yield f"{label} d{array}", partial(_gradient, scaled, arrays, array)


def _inputs(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The file's names of the inputs, and the ops' arguments that they are."""
    named = {"q": "q", "k": "k", "v": "v", "g": "log_decay", "gk": "log_decay", "beta": "beta"}
    return {array: argument for array, argument in named.items() if array in arrays}


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.asarray(array)).to(dtype)


def _run(
    form: Form, arrays: Mapping[str, np.ndarray], inputs: dict[str, Tensor], start: Tensor | None
) -> tuple[Tensor, Tensor]:
    named = {argument: inputs[array] for array, argument in _inputs(arrays).items()}
    named.setdefault("log_decay", None)  # type: ignore[arg-type]
    return form(**named, initial_state=start)


def _forward(
    form: Form,
    arrays: Mapping[str, np.ndarray],
    at: int,
    expected: str,
    start: str | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    inputs = {array: _tensor(arrays[array], dtype) for array in _inputs(arrays)}
    state = None if start is None else _tensor(arrays[start], dtype)
    return _run(form, arrays, inputs, state)[at], _tensor(arrays[expected], dtype)


def _gradient(
    form: Form, arrays: Mapping[str, np.ndarray], array: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    inputs = {name: _tensor(arrays[name], dtype).requires_grad_() for name in _inputs(arrays)}
    output, _ = _run(form, arrays, inputs, None)
    loss = (output * _tensor(arrays["w"], dtype)).sum()
    (found,) = torch.autograd.grad(loss, [inputs[array]])
    return found, _tensor(arrays[f"d{array}"], dtype)


def _stepped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    state = initial_state
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    outputs = []
    for t in range(v.shape[1]):
        decay = None if log_decay is None else log_decay[:, t]
        output, state = delta_rule_step(
            q[:, t], k[:, t], v[:, t], decay, beta[:, t], scale=scale, state=state
        )
        outputs.append(output)
    return torch.stack(outputs, 1), state
