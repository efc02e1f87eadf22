"""Golden files of gated linear attention: without a decay, fixed, per head, per channel, and
normalised.

A file belongs here by its arrays: `log_gamma` (H,), `g` (B, T, H) or `gk` (B, T, H, Dk) is the
decay, and `phi_q` says that the output is divided. `scale` and `feature_map` may stand in the JSON;
else they are Dk^-0.5, and elu where `phi_q` is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workloads.architectures.linear_attention import (
    features,
    normalised_linear_attention,
    normalised_linear_attention_step,
)
from workloads.ops.gated_linear import (
    gated_linear_attention,
    gated_linear_attention_reference,
    gated_linear_attention_step,
)

Case = tuple[str, Callable[[torch.dtype], tuple[Tensor, Tensor]]]
Form = Callable[..., tuple[Tensor, Tensor]]

_DECAYS = ("log_gamma", "g", "gk")
_NEEDED = {"q", "k", "v", "o"}
_KNOWN = {*_NEEDED, *_DECAYS, "w", "S0", "S", "o_from_S0", "S_from_S0", "phi_q", "phi_k", "z"}


def knows(json_data: dict[str, Any], name: str) -> bool:
    """Whether every array of the file has a meaning here."""
    arrays = set(json_data.get("shapes", ()))
    inputs = arrays - _gradients(arrays)
    return arrays >= _NEEDED and inputs <= _KNOWN and len(inputs & set(_DECAYS)) <= 1


def cases(json_data: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Case]:
    """Every stored output, state and gradient, by every form."""
    found = _normalised(json_data, arrays) if "phi_q" in arrays else _plain(json_data, arrays)
    for name, function, expected in found:
        yield name, _pair(function, torch.from_numpy(arrays[expected]))


def _gradients(arrays: set[str]) -> set[str]:
    return {name for name in arrays if name[:1] == "d" and name[1:] in arrays}


def _pair(
    function: Callable[[torch.dtype], Tensor], expected: Tensor
) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
    return lambda dtype: (function(dtype), expected.to(dtype))


def _stepped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    state = _start(initial_state, k, v.shape[3], v)
    outputs = []
    for t in range(v.shape[1]):
        decay = log_decay[:, t] if log_decay is not None and log_decay.ndim > 1 else log_decay
        output, state = gated_linear_attention_step(
            q[:, t], k[:, t], v[:, t], decay, scale=scale, state=state
        )
        outputs.append(output)
    return torch.stack(outputs, 1), state


def _split(form: Form) -> Form:
    """The form on the first 17 tokens, then on the rest from the state after them."""

    def split(*inputs: Tensor | None, initial_state: Tensor | None = None, **switches: Any) -> Any:
        outputs, state = [], initial_state
        for part in (slice(0, 17), slice(17, None)):
            cut = [x if x is None or x.ndim < 3 else x[:, part] for x in inputs]
            output, state = form(*cut, initial_state=state, **switches)
            outputs.append(output)
        return torch.cat(outputs, 1), state

    return split


def _start(initial_state: Tensor | None, k: Tensor, width: int, like: Tensor) -> Tensor:
    if initial_state is not None:
        return initial_state
    return like.new_zeros(k.shape[0], k.shape[2], k.shape[3], width)


_FORMS: dict[str, Form] = {
    "torch": gated_linear_attention,
    "torch in two parts": _split(gated_linear_attention),
    "reference": gated_linear_attention_reference,
    "step": _stepped,
}


def _plain(
    json_data: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Callable[[torch.dtype], Tensor], str]]:
    scale = float(json_data.get("scale", arrays["k"].shape[-1] ** -0.5))
    decay = next((name for name in _DECAYS if name in arrays), None)
    leaves = ("q", "k", "v", decay)

    def given(dtype: torch.dtype) -> list[Tensor | None]:
        return [
            None if n is None else torch.from_numpy(arrays[n]).to(dtype, copy=True) for n in leaves
        ]

    def run(form: Form, index: int, start: str | None, dtype: torch.dtype) -> Tensor:
        initial = None if start is None else torch.from_numpy(arrays[start]).to(dtype)
        return form(*given(dtype), scale=scale, initial_state=initial)[index]

    def gradient(form: Form, leaf: str, dtype: torch.dtype) -> Tensor:
        inputs = given(dtype)
        wanted = inputs[leaves.index(leaf)]
        assert wanted is not None
        wanted.requires_grad_()
        output, _ = form(*inputs, scale=scale)
        weights = torch.from_numpy(arrays["w"]).to(dtype)
        return torch.autograd.grad((weights * output).sum(), wanted)[0]

    for label, form in _FORMS.items():
        for index, stem in enumerate(("o", "S")):
            for start, name in ((None, stem), ("S0", f"{stem}_from_S0")):
                if name in arrays:
                    yield f"{label}: {name}", partial(run, form, index, start), name
        for name in sorted(_gradients(set(arrays))):
            yield f"{label}: {name}", partial(gradient, form, name[1:]), name


def _normalised_reference(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    ones = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    sums, state = gated_linear_attention_reference(
        q, k, ones, None, scale=1.0, initial_state=initial_state
    )
    return sums[..., :-1] / sums[..., -1:], state


def _normalised_stepped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    state, outputs = _start(None, k, v.shape[3] + 1, v), []
    for t in range(v.shape[1]):
        output, state = normalised_linear_attention_step(q[:, t], k[:, t], v[:, t], state)
        outputs.append(output)
    return torch.stack(outputs, 1), state


_NORMALISED_FORMS: dict[str, Form] = {
    "torch": normalised_linear_attention,
    "torch in two parts": _split(normalised_linear_attention),
    "reference": _normalised_reference,
    "step": _normalised_stepped,
}


def _normalised(
    json_data: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Callable[[torch.dtype], Tensor], str]]:
    feature_map = str(json_data.get("feature_map", "elu"))

    def phi(name: str, dtype: torch.dtype) -> Tensor:
        return features(torch.from_numpy(arrays[name]).to(dtype), feature_map)

    def run(form: Form, what: str, dtype: torch.dtype) -> Tensor:
        v = torch.from_numpy(arrays["v"]).to(dtype)
        output, state = form(phi("q", dtype), phi("k", dtype), v)
        z = state[..., -1].reshape(arrays["z"].shape) if "z" in arrays else state[..., -1]
        return {"o": output, "S": state[..., :-1], "z": z}[what]

    for raw in ("q", "k"):
        yield f"features: phi_{raw}", partial(phi, raw), f"phi_{raw}"
    for label, form in _NORMALISED_FORMS.items():
        for what in ("o", "S", "z"):
            if what in arrays:
                yield f"{label}: {what}", partial(run, form, what), what
