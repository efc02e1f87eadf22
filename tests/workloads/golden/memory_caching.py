"""Memory caching's golden cases: every switch is read from the JSON, every form computes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.workloads.decoding import decode
from tests.workloads.golden.driving import Arrays, Case, Pair
from workloads.ops.memory_caching.cache import empty_cache
from workloads.ops.memory_caching.matrix import memory_caching, memory_caching_step
from workloads.ops.memory_caching.recurrence import CachedRecurrence
from workloads.ops.memory_caching.reference import (
    memory_caching_reference,
    segment_starts,
    vector_caching_reference,
)
from workloads.ops.memory_caching.vector import Trace, vector_caching
from workloads.ops.memory_caching.weights import Caching

_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
_RULES = {
    "rm": "residual",
    "residual": "residual",
    "grm": "gated",
    "gate": "gated",
    "soup": "soup",
    "ssc": "sparse",
    "sparse": "sparse",
    "post": "average",
    "average": "average",
    "avg": "average",
    "uniform": "average",
    "mean": "average",
}
"""The beginnings of the words that say a rule; the first such word of a name does."""
_HIDDEN = ("h", "hidden", "base")
"""Words for the read of a hidden vector. Any other is that of a cell under the output gate."""
_SEGMENT, _HEADS = 8, 2
"""Those of the specification's files, where a file does not say."""


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    """By the file's stem, or by arrays that no other file has."""
    return name.startswith("memory_caching") or "w/W_u" in arrays


def unused(note: dict[str, Any], arrays: Arrays) -> dict[str, str]:
    """Weights that no case of the file needs, as it may hold a part of the cases, and why."""
    held = [
        _filled(name, said, note, arrays)
        for name, said in note["cases"].items()
        if {f"{name}/y", f"{name}/gamma"} & set(arrays)
    ]
    kinds, decays = [case.get("cell") for case in held], any(case["decay"] for case in held)
    reasons = {} if decays else dict.fromkeys(("w/W_a", "w/b_a"), "no case decays")
    if not any(name.endswith("/y") for name in arrays):
        reasons["w/W_o"] = "the file has gates without outputs"
    for kind in ("lstm", "gru"):
        if kind not in kinds:
            parts = (f"w/{kind}_{part}" for part in ("W_ih", "W_hh", "b_ih", "b_hh"))
            reasons |= dict.fromkeys(parts, f"no case has a {kind}")
    if None not in kinds:
        reasons |= {f"w/W_{part}": "no case has a matrix memory" for part in "qvo"}
    return reasons


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    """Each case, and its gates where the file has them, in the parallel form, as steps, after a
    split in mid-segment, and in the reference form.

    All are held to float32's own rounding: the file's specification asks 1e-5 of every form.
    """
    for name, given in note["cases"].items():
        case = _filled(name, given, note, arrays)
        forms: tuple[str, ...] = ("parallel", "reference")
        if case["lengths"] is None:
            forms = (*forms, "split", "step")
        compute, weigh = (_vector, _vector_gates) if "cell" in case else (_matrix, _gates)
        for form in forms:
            if f"{name}/y" in arrays:
                yield Case(f"{name}-{form}", partial(_compared, compute, case, arrays, name, form))
            if f"{name}/gamma" in arrays and ("cell" not in case or form == "parallel"):
                yield Case(f"{name}-gates-{form}", partial(weigh, case, arrays, name, form))


def _compared(
    compute: Callable[..., Tensor],
    case: dict[str, Any],
    arrays: Arrays,
    name: str,
    form: str,
    dtype: torch.dtype,
) -> Pair:
    with torch.no_grad():
        return compute(case, arrays, form, dtype), arrays.tensor(f"{name}/y")


def _filled(
    name: str, given: Mapping[str, Any], note: dict[str, Any], arrays: Arrays
) -> dict[str, Any]:
    """The case with what it leaves out: the words of its name, then the method's defaults."""
    words, length = name.lower().split("_"), arrays.shape("x")[1]
    case = dict(given)
    case["rule"] = _rule(str(case["agg"]).lower().split("_") if case.get("agg") else words)
    if "cell" not in case and words[0] in ("lstm", "gru"):
        case["cell"] = words[0]
    alone = any(word.startswith("ind") for word in words)
    checkpointed = any(word.startswith(("ckpt", "check")) for word in words)
    default = "checkpoint" if checkpointed or ("cell" in case and not alone) else "independent"
    start = str(case.get("init") or default)
    case["start"] = "independent" if start.startswith("ind") else "checkpoint"
    heads = note.get("heads") or (arrays.shape("w/W_a")[0] if "w/W_a" in arrays else _HEADS)
    case["heads"] = case.get("heads") or heads
    case["pool"] = case.get("pool") or ("sum" if "sum" in words else "mean")
    case["top_k"] = case.get("topk") or case.get("top_k") or _number("ssc|sparse|top|k", words) or 2
    case["decay"] = bool(case.get("decay", "decay" in words))
    case["norm"] = bool(case.get("norm", "norm" in words))
    usual = length if "base" in words else note.get("segment") or _SEGMENT
    case["C"] = case.get("C") or _number("seg|segment|c", words) or usual
    case["read"] = _read(case, words)
    case["lengths"] = case.get("lengths") or case.get("segments") or case.get("segment_lengths")
    logarithmic = str(case.get("segmentation", "log" if "log" in words else "")).startswith("log")
    if case["lengths"] is None and logarithmic:
        # The file's logarithmic split is that of the whole length into its powers of two.
        case["lengths"] = [1 << bit for bit in reversed(range(length.bit_length()))
                           if length >> bit & 1]  # fmt: skip
    return case


def _rule(words: list[str]) -> str:
    found = (rule for word in words for start, rule in _RULES.items() if word.startswith(start))
    return next(found, "gated")


def _number(starts: str, words: list[str]) -> int:
    """Of a word such as `ssc2` or `seg1`, 0 without one."""
    found = (re.fullmatch(rf"(?:{starts})(\d+)", word) for word in words)
    return next((int(match[1]) for match in found if match), 0)


def _read(case: dict[str, Any], words: list[str]) -> str:
    """What a vector memory answers with: as the JSON says, or the word after the cell's. A GRU has
    its hidden vector alone."""
    if case.get("cell") != "lstm":
        return "hidden"
    said = str(case.get("read") or (words[1] if len(words) > 1 else "h")).lower()
    other = said.startswith(("ind", "ckpt", "check", "seg", *_RULES)) and said != "gate"
    return "hidden" if said in _HIDDEN or other else "gate"


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
    x = arrays.tensor("x", dtype)
    q, k, v, u = (
        torch.unflatten(x @ arrays.tensor(f"w/W_{name}", dtype).mT, -1, (case["heads"], -1))
        for name in "qkvu"
    )
    if case["norm"]:
        q, k = F.elu(q) + 1, F.elu(k) + 1
    log_decay = None
    if case["decay"]:
        bias = arrays.tensor("w/b_a", dtype)
        log_decay = F.logsigmoid(x @ arrays.tensor("w/W_a", dtype).mT + bias)
    return q, k, v, u, log_decay


def _matrix(case: dict[str, Any], arrays: Arrays, form: str, dtype: torch.dtype) -> Tensor:
    inputs = _projected(case, arrays, dtype)
    output = _mixed(case, inputs, _caching(case, arrays.shape("x")[2]), form)
    return output.flatten(-2) @ arrays.tensor("w/W_o", dtype).mT


def _mixed(case: dict[str, Any], inputs: _Inputs, caching: Caching, form: str) -> Tensor:
    lengths = case["lengths"]
    if form == "reference":
        return memory_caching_reference(*inputs, caching, scale=1.0, lengths=lengths)[0]
    if form == "parallel":
        return memory_caching(*inputs, caching, scale=1.0, lengths=lengths)[0]
    return _continued(inputs, caching, 0 if form == "step" else caching.segment + 3)


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


def _gates(case: dict[str, Any], arrays: Arrays, name: str, form: str, dtype: torch.dtype) -> Pair:
    """Column i is segment i's weight, the online one in its own column.

    A form returns outputs alone. So each segment's first token writes that segment's unit vector
    under a key that all queries read as 1 and no gate sees, and all others write nothing: then an
    output is the weights themselves, or with checkpoints their sums from a segment on.
    """
    expected = arrays.tensor(f"{name}/gamma")
    q, k, v, u, _ = _projected(case, arrays, dtype)
    caching = _caching({**case, "norm": False}, arrays.shape("x")[2])
    if form == "reference":
        _, gates = memory_caching_reference(
            q, k, v, u, None, caching, scale=1.0, lengths=case["lengths"]
        )
        found = torch.zeros_like(expected, dtype=dtype)
        for t, weights in enumerate(gates):
            found[:, t, :, : len(weights)] = torch.stack(weights, -1)
        return found, expected
    first = sorted(segment_starts(q.shape[1], caching.segment, case["lengths"]))
    marks = q.new_zeros(*v.shape[:3], expected.shape[-1])
    marks[:, first, :, list(range(len(first)))] = 1
    read, unseen = torch.ones_like(q[..., :1]), torch.zeros_like(q[..., :1])
    inputs = (
        torch.cat((torch.zeros_like(q), read), -1),
        torch.cat((k, read), -1),
        marks,
        torch.cat((u, unseen), -1),
        None,
    )
    found = _mixed(case, inputs, caching, form)
    if caching.start == "checkpoint":
        found = found - F.pad(found[..., 1:], (0, 1))
    return found, expected


def _vector(case: dict[str, Any], arrays: Arrays, form: str, dtype: torch.dtype) -> Tensor:
    x = arrays.tensor("x", dtype)
    width, kind = x.shape[2], case["cell"]
    caching = _caching(case, width)
    mixer = CachedRecurrence(width, kind, caching, case["read"]).to(dtype)
    names = [f"w/{kind}_{part}" for part in ("W_ih", "W_hh", "b_ih", "b_hh")]
    for parameter, name in zip(mixer.rnn.all_weights[0], names, strict=True):
        parameter.copy_(arrays.tensor(name, dtype))
    keys = torch.cat([arrays.tensor(f"w/W_{name}", dtype) for name in "ku"])
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


def _vector_gates(
    case: dict[str, Any], arrays: Arrays, name: str, form: str, dtype: torch.dtype
) -> Pair:
    """As `_gates`, (B, T, segments), by hidden vectors that say which segment they are of."""
    expected = arrays.tensor(f"{name}/gamma")
    x = arrays.tensor("x", dtype)
    caching = _caching(case, x.shape[2])
    k, u = (x @ arrays.tensor(f"w/W_{part}", dtype).mT for part in "ku")
    starts = segment_starts(x.shape[1], caching.segment, case["lengths"])
    segment = torch.tensor([*accumulate(int(t in starts) for t in range(x.shape[1]))]) - 1
    units = torch.eye(expected.shape[-1], dtype=dtype)
    hidden = units[segment].expand(x.shape[0], -1, -1)
    ends = units[: len(starts)].expand(x.shape[0], -1, -1)
    trace = Trace(hidden, ends, None, None, (hidden[:, -1], None))
    found, _ = vector_caching(trace, k, u, caching, lengths=case["lengths"])
    return found.reshape(expected.shape), expected


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
