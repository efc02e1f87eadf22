"""Golden files of gated linear attention: without a decay, fixed, per head, per channel, and
normalised.

A file belongs here by its arrays: `log_gamma` (H,), `g` (B, T, H) or `gk` (B, T, H, Dk) is the
decay. With `phi_q`, `z` or `z0` the output is divided, unless the file is called unnormalised.
`scale`, `feature_map` and `normalised` may stand in the JSON; else the scale is Dk^-0.5, and the
map elu where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.workloads.golden.driving import Arrays, Case, Form, Pair, Tensors, recurrence
from workloads.architectures.linear_attention import (
    EPSILON,
    features,
    normalised_linear_attention,
    normalised_linear_attention_step,
)
from workloads.ops.gated_linear import (
    gated_linear_attention,
    gated_linear_attention_reference,
    gated_linear_attention_step,
)

Op = Callable[..., tuple[Tensor, Tensor]]

_DECAYS = ("log_gamma", "g", "gk")
_OTHERS = {"beta", "i", "f", "r", "a", "b", "o_causal", "q_rope", "k_rope", "x"}
"""Arrays of other methods that have q, k and v too."""
_EPSILONS = 1e-9
"""Gradients of normalised attention, in float64. EPSILON is added to our divisor, fla adds it over
the scale (2.8 times as much at Dk = 8), others add nothing. That moves gradients by up to 1.2e-10
of the largest against a loop that adds nothing; outputs move by 1.7e-11."""


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    held = set(arrays)
    outputs = {array for array in held if array == "o" or array.startswith("o_from_")}
    queries = {"q", "k"} <= held or {"phi_q", "phi_k"} <= held
    return queries and "v" in held and bool(outputs) and not held & _OTHERS


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    """Every stored output, state and gradient, by every form, from zero and from the file's
    state."""
    divided = {"phi_q", "z", "z0"} & set(arrays) and "unnormalised" not in str(note.get("name"))
    mapped = "phi_q" in arrays or "feature_map" in note or bool(divided)
    feature_map = _feature_map(note) if mapped else "identity"
    for raw in "qk":
        if {raw, f"phi_{raw}"} <= set(arrays):
            yield Case(f"features: phi_{raw}", partial(_features, arrays, raw, feature_map))
    phi = partial(_mapped, feature_map)
    queries = [raw if raw in arrays else f"phi_{raw}" for raw in "qk"]
    if note.get("normalised", note.get("normalized", bool(divided))):
        normalised = recurrence(
            arrays,
            {
                label: Form(partial(_normalised, op, phi, note), chunked)
                for label, op, chunked in _NORMALISED
            },
            inputs=(*queries, "v"),
            results=("o", "S", "z"),
            start=partial(_normalised_start, arrays),
        )
        for case in normalised:
            yield replace(case, least=_EPSILONS) if ": d" in case.name else case
        return
    scale = float(note.get("scale", arrays.shape(queries[1])[-1] ** -0.5))
    yield from recurrence(
        arrays,
        {label: Form(partial(_plain, op, phi, scale), chunked) for label, op, chunked in _PLAIN},
        inputs=(*queries, "v", *_DECAYS),
        results=("o", "S"),
    )


def _feature_map(note: dict[str, Any]) -> str:
    """elu + 1 has several names."""
    said = str(note.get("feature_map", "relu" if "relu" in str(note.get("name")) else "elu"))
    return "elu" if said.lower().startswith("elu") else said.lower()


def _features(arrays: Arrays, raw: str, feature_map: str, dtype: torch.dtype) -> Pair:
    return features(arrays.tensor(raw, dtype), feature_map), arrays.tensor(f"phi_{raw}")


def _mapped(feature_map: str, inputs: Tensors, raw: str) -> Tensor:
    return inputs[f"phi_{raw}"] if raw not in inputs else features(inputs[raw], feature_map)


def _plain(
    op: Op,
    phi: Callable[[Tensors, str], Tensor],
    scale: float,
    inputs: Tensors,
    start: Tensors,
) -> Tensors:
    decay = next((inputs[name] for name in _DECAYS if name in inputs), None)
    output, state = op(
        phi(inputs, "q"),
        phi(inputs, "k"),
        inputs["v"],
        decay,
        scale=scale,
        initial_state=next(iter(start.values()), None),
    )
    return {"o": output, "S": state}


def _normalised_start(arrays: Arrays, name: str) -> tuple[str, ...]:
    """A state is S0 and z0, whichever of them a name says."""
    both = tuple(part for part in ("S0", "z0") if part in arrays)
    if name in ("S0", "z0", "state0", "state"):
        return both
    return (name,) if name in arrays else ()


def _normalised(
    op: Op,
    phi: Callable[[Tensors, str], Tensor],
    note: dict[str, Any],
    inputs: Tensors,
    start: Tensors,
) -> Tensors:
    k, v = phi(inputs, "k"), inputs["v"]
    initial = _joined(start, k, v, note) if start else None
    output, state = op(phi(inputs, "q"), k, v, initial_state=initial)
    return {"o": output, "S": state[..., :-1], "z": state[..., -1]}


def _joined(start: Tensors, k: Tensor, v: Tensor, note: dict[str, Any]) -> Tensor:
    """The state as the op holds it, z0 a column more of S0. The sum of no keys is zero, and so is
    z0 where neither an array nor the JSON has one."""
    shape = k.shape[0], v.shape[2], k.shape[3]
    matrices = (state for name, state in start.items() if name != "z0")
    memory = next(matrices, v.new_zeros(*shape, v.shape[3]))
    z = start.get("z0", torch.as_tensor(note.get("z0", 0.0), dtype=v.dtype))
    z = z.reshape(shape) if z.numel() == memory[..., 0].numel() else z.expand(shape)
    return torch.cat((memory, z[..., None]), -1)


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


def _split(op: Op) -> Op:
    """The op on the first tokens, not half of them, then on the rest from the state after them."""

    def split(*inputs: Tensor | None, initial_state: Tensor | None = None, **switches: Any) -> Any:
        outputs, state = [], initial_state
        assert inputs[0] is not None
        first = max(1, inputs[0].shape[1] * 17 // 37)
        for part in (slice(0, first), slice(first, None)):
            cut = [x if x is None or x.ndim < 3 else x[:, part] for x in inputs]
            output, state = op(*cut, initial_state=state, **switches)
            outputs.append(output)
        return torch.cat(outputs, 1), state

    return split


def _start(initial_state: Tensor | None, k: Tensor, width: int, like: Tensor) -> Tensor:
    if initial_state is not None:
        return initial_state
    return like.new_zeros(k.shape[0], k.shape[2], k.shape[3], width)


def _normalised_reference(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    ones = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    sums, state = gated_linear_attention_reference(
        q, k, ones, None, scale=1.0, initial_state=initial_state
    )
    return sums[..., :-1] / (sums[..., -1:] + EPSILON), state


def _normalised_stepped(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    state, outputs = _start(initial_state, k, v.shape[3] + 1, v), []
    for t in range(v.shape[1]):
        output, state = normalised_linear_attention_step(q[:, t], k[:, t], v[:, t], state)
        outputs.append(output)
    return torch.stack(outputs, 1), state


_PLAIN: list[tuple[str, Op, bool]] = [
    ("torch", gated_linear_attention, True),
    ("torch in two parts", _split(gated_linear_attention), True),
    ("reference", gated_linear_attention_reference, False),
    ("steps", _stepped, False),
]
_NORMALISED: list[tuple[str, Op, bool]] = [
    ("torch", normalised_linear_attention, True),
    ("torch in two parts", _split(normalised_linear_attention), True),
    ("reference", _normalised_reference, False),
    ("steps", _normalised_stepped, False),
]
