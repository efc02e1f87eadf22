"""Memory caching's golden cases: every switch is read from the JSON, every form computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.workloads.decoding import decode
from workloads.ops.memory_caching.cache import empty_cache
from workloads.ops.memory_caching.matrix import memory_caching, memory_caching_step
from workloads.ops.memory_caching.recurrence import CachedRecurrence
from workloads.ops.memory_caching.reference import (
    memory_caching_reference,
    vector_caching_reference,
)
from workloads.ops.memory_caching.weights import Caching

Arrays = Mapping[str, np.ndarray]
_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
Check = Callable[[torch.dtype], tuple[Tensor, Tensor]]
_RULES = {"grm": "gated", "rm": "residual", "ssc": "sparse", "post_average": "average"}
_AVERAGES = ("average", "uniform", "mean", "avg", "post")
_SEGMENT = 8


def knows(json_data: dict[str, Any], name: str) -> bool:
    """By the file's stem, or by arrays that no other file has."""
    return name.startswith("memory_caching") or "w/W_u" in json_data.get("arrays", {})


def cases(json_data: dict[str, Any], arrays: Arrays) -> Iterator[tuple[str, Check]]:
    """Each case in the parallel form, as steps, after a split in mid-segment, and in the reference
    form; gates where the file has them."""
    for name, given in json_data["cases"].items():
        if f"{name}/y" not in arrays:
            continue
        case = _filled(name, given, json_data, arrays["x"].shape[1])
        forms: tuple[str, ...] = ("parallel", "reference")
        if case["lengths"] is None:
            forms = (*forms, "split", "step")
        compute = _vector if "cell" in case else _matrix
        for form in forms:
            yield f"{name}-{form}", partial(_compared, compute, case, arrays, name, form)
        if f"{name}/gamma" in arrays:
            yield f"{name}-gates", partial(_gates, case, arrays, name)


def _compared(
    compute: Callable[..., Tensor],
    case: dict[str, Any],
    arrays: Arrays,
    name: str,
    form: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return compute(case, arrays, form, dtype), _tensor(arrays, f"{name}/y", dtype)


def _tensor(arrays: Arrays, name: str, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.asarray(arrays[name])).to(dtype)


def _filled(
    name: str, given: Mapping[str, Any], json_data: dict[str, Any], length: int
) -> dict[str, Any]:
    """The case with what it leaves out: the words of its name, then the method's defaults."""
    words = name.split("_")
    case = dict(given)
    agg = str(case.get("agg", next((w for w in ("residual", "soup", "ssc") if w in words), "grm")))
    agg = "average" if agg in _AVERAGES or name.startswith("post_average") else agg
    case["rule"] = _RULES.get(agg, agg)
    start = str(case.get("init", "independent" if "ind" in words else "checkpoint"))
    case["start"] = "independent" if start.startswith("ind") else "checkpoint"
    case["pool"] = case.get("pool", "mean")
    case["top_k"] = case.get("topk") or 2
    case["decay"], case["norm"] = bool(case.get("decay")), bool(case.get("norm"))
    case["C"] = case.get("C") or json_data.get("segment") or _SEGMENT
    default_read = "gate" if {"gate", "cell"} & set(words) else "hidden"
    read = str(case.get("read") or default_read)
    case["read"] = "hidden" if read.startswith("h") else "gate"
    case["lengths"] = case.get("lengths") or case.get("segments") or case.get("segment_lengths")
    if case["lengths"] is None and str(case.get("segmentation")).startswith("log"):
        # The file's logarithmic split is that of the whole length into its powers of two.
        case["lengths"] = [1 << bit for bit in reversed(range(length.bit_length()))
                           if length >> bit & 1]  # fmt: skip
    return case


def _caching(case: dict[str, Any], width: int) -> Caching:
    scale = case.get("gate_scale") or (width**-0.5 if "cell" in case else 1.0)
    return Caching(
        rule=case["rule"],
        segment=case["C"],
        start=case["start"],
        pool=case["pool"],
        top_k=case["top_k"],
        gate_scale=scale,
        normalised=case["norm"],
    )


def _projected(case: dict[str, Any], arrays: Arrays, dtype: torch.dtype) -> _Inputs:
    x = _tensor(arrays, "x", dtype)
    heads = arrays["w/W_a"].shape[0]
    q, k, v, u = (
        torch.unflatten(x @ _tensor(arrays, f"w/W_{name}", dtype).mT, -1, (heads, -1))
        for name in "qkvu"
    )
    if case["norm"]:
        q, k = F.elu(q) + 1, F.elu(k) + 1
    log_decay = None
    if case["decay"]:
        bias = _tensor(arrays, "w/b_a", dtype)
        log_decay = F.logsigmoid(x @ _tensor(arrays, "w/W_a", dtype).mT + bias)
    return q, k, v, u, log_decay


def _matrix(case: dict[str, Any], arrays: Arrays, form: str, dtype: torch.dtype) -> Tensor:
    inputs = _projected(case, arrays, dtype)
    caching, lengths = _caching(case, arrays["x"].shape[2]), case["lengths"]
    if form == "reference":
        output, _ = memory_caching_reference(*inputs, caching, scale=1.0, lengths=lengths)
    elif form == "parallel":
        output, _ = memory_caching(*inputs, caching, scale=1.0, lengths=lengths)
    else:
        output = _continued(inputs, caching, 0 if form == "step" else caching.segment + 3)
    return output.flatten(-2) @ _tensor(arrays, "w/W_o", dtype).mT


def _continued(inputs: _Inputs, caching: Caching, first: int) -> Tensor:
    """Prefill of `first` tokens and then of the rest, or steps alone."""
    q, _, v, *_ = inputs
    batch, length, heads, width = v.shape
    widths = q.shape[-1], width
    state = empty_cache(caching, batch, heads, heads, widths, length, v.device, v.dtype)
    if first >= length:
        return memory_caching(*inputs, caching, scale=1.0)[0]
    outputs = []
    for cut in (slice(0, first), slice(first, length)) if first else ():
        output, after = memory_caching(*_part(inputs, cut), caching, scale=1.0, cache=state)
        assert after is not None
        state = after
        outputs.append(output)
    for t in range(0 if first else length):
        output, state = memory_caching_step(*_part(inputs, t), caching, scale=1.0, cache=state)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1)


def _part(inputs: _Inputs, at: slice | int) -> _Inputs:
    q, k, v, u, decay = inputs
    return q[:, at], k[:, at], v[:, at], u[:, at], None if decay is None else decay[:, at]


def _gates(
    case: dict[str, Any], arrays: Arrays, name: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Column i is segment i's weight, the online one in its own column."""
    expected = _tensor(arrays, f"{name}/gamma", dtype)
    inputs = _projected(case, arrays, dtype)
    caching = _caching(case, arrays["x"].shape[2])
    _, gates = memory_caching_reference(*inputs, caching, scale=1.0, lengths=case["lengths"])
    actual = torch.zeros_like(expected)
    for t, weights in enumerate(gates):
        actual[:, t, :, : len(weights)] = torch.stack(weights, -1)
    return actual, expected


def _vector(case: dict[str, Any], arrays: Arrays, form: str, dtype: torch.dtype) -> Tensor:
    x = _tensor(arrays, "x", dtype)
    width, kind = x.shape[2], case["cell"]
    caching = _caching(case, width)
    mixer = CachedRecurrence(width, kind, caching, case["read"]).to(dtype)
    names = [f"w/{kind}_{part}" for part in ("W_ih", "W_hh", "b_ih", "b_hh")]
    for parameter, name in zip(mixer.rnn.all_weights[0], names, strict=True):
        parameter.copy_(_tensor(arrays, name, dtype))
    keys = torch.cat([_tensor(arrays, f"w/W_{name}", dtype) for name in "ku"])
    if mixer.gate is not None:
        mixer.gate.weight.copy_(keys)
    if form == "parallel":
        return mixer.forward(x, case["lengths"])
    if form == "reference":
        k, u = (x @ keys.mT).chunk(2, -1)
        cell = partial(_cell, mixer)
        return vector_caching_reference(
            x, k, u, cell, caching, read=case["read"], lengths=case["lengths"]
        )
    cut = min(caching.segment + 3, x.shape[1])
    chunks = (cut, x.shape[1] - cut) if form == "split" else ()
    return decode(mixer, x, filter(None, chunks))[0]


def _cell(
    mixer: CachedRecurrence, x: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    weights = mixer.rnn.all_weights[0]
    if not mixer.has_cell:
        hidden = torch.gru_cell(x, state[0], *weights)
        return hidden, hidden, hidden
    w_ih, w_hh, b_ih, b_hh = weights
    i, f, g, out = (x @ w_ih.mT + b_ih + state[0] @ w_hh.mT + b_hh).chunk(4, -1)
    cells = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return out.sigmoid() * cells.tanh(), cells, out.sigmoid()
