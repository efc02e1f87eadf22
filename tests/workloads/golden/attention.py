"""Golden attention: key-value heads in consecutive groups, causal or in a window, with rotary
positions, linear biases or none.

The files hold q, k and v heads first, before rotation. Our mixers are given them in place of their
projections, so that rotation, grouping, cache and output are driven as a model drives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.workloads.decoding import decode
from tests.workloads.golden.driving import Arrays, Case, Pair
from workloads import plugins, registry
from workloads.ops.attention import alibi_slopes, rotary_tables, rotate

POSITIONS = ("rope", "nope", "alibi")
SLOPES = ("slopes", "alibi_slopes")


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    """q, k and v heads first, and an output called by what is visible or how places are told."""
    held, title = set(arrays), str(note.get("name", name))
    told = "attention" in title and "linear" not in title and "o" in held and "S" not in held
    named = any(_variant(array, note, arrays) for array in held if array != "o")
    return {"q", "k", "v"} <= held and (named or told)


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    """Every output `o_causal`, `o_windowW`, `o_nope`, `o_alibi`, or several of these words, in each
    of the forms, its gradients, and the rotated `q_rope` and `k_rope` where the file has them."""
    for name in ("q_rope", "k_rope"):
        if name in arrays:
            yield Case(name, partial(_rotation, arrays, name))
    for name in SLOPES:
        if name in arrays:
            yield Case(name, partial(_slopes, arrays, name))
    outputs = [name for name in arrays if _variant(name, note, arrays)]
    for name in outputs:
        chosen = _variant(name, note, arrays)
        length = arrays.shape(name)[2]
        for architecture, options in chosen:
            switches = ",".join(f"{key}={value}" for key, value in options.items())
            label = f"{name} {architecture}({switches})"
            mix = partial(_mixed, arrays, name, architecture, options)
            for form, chunks in _splits(length).items():
                yield Case(f"{label} {form}", partial(mix, chunks))
            for raw in "qkv":
                suffix = name.removeprefix("o")
                plain = len(outputs) == 1 or name == "o_causal"
                for array in {f"d{raw}{suffix}"} | ({f"d{raw}"} if plain else set()):
                    if array in arrays and "w" in arrays:
                        run = partial(_gradient, arrays, array, raw, architecture, options)
                        yield Case(f"{label} {array}", run)


def _variant(name: str, note: dict[str, Any], arrays: Arrays) -> list[tuple[str, dict[str, Any]]]:
    """The architectures that compute an output of this name, none where it has other words."""
    output, *words = name.split("_")
    if output != "o":
        return []
    position = str(note.get("position", ""))
    if position not in POSITIONS:
        rotated = "q_rope" in arrays or "rope" in str(note.get("name"))
        position = "rope" if rotated else "nope"
    window = 0
    for word in words:
        sized = re.fullmatch(r"(?:window|swa|w)(\d*)", word)
        if word in POSITIONS:
            position = word
        elif sized and (sized[1] or "window" in note):
            window = int(sized[1] or note["window"])
        elif word not in ("causal", "full", "gqa", "mha", "mqa"):
            return []
    if window:
        chosen = [("sliding_window", {"window": window, "position": position})]
        return chosen if position != "alibi" else []
    forms: list[tuple[str, dict[str, Any]]] = [
        ("transformer", {"attention": form, "position": position})
        for form in ("fused", "materialised")
    ]
    if position != "alibi":
        whole = {"window": arrays.shape("q")[2], "position": position}
        forms.append(("sliding_window", whole))
    return forms


def _splits(length: int) -> dict[str, tuple[int, ...] | None]:
    """Prefill of each chunk, then steps to the end; None is the parallel form."""
    return {
        "parallel": None,
        "prefill": (length,),
        "prefill in three": (1, length // 2, length - 1 - length // 2),
        "prefill then steps": (length // 2,),
        "steps": (),
    }


def _rotation(arrays: Arrays, name: str, dtype: torch.dtype) -> Pair:
    x = _heads(arrays, name.removesuffix("_rope"), dtype)
    tables = rotary_tables(x.shape[-1], x.shape[1], x.device, dtype)
    cos, signed_sin = (table[: x.shape[1], None] for table in tables)
    return rotate(x, cos, signed_sin), _heads(arrays, name)


def _slopes(arrays: Arrays, name: str, dtype: torch.dtype) -> Pair:
    expected = arrays.tensor(name).flatten()
    return alibi_slopes(len(expected), expected.device, dtype), expected


def _mixed(
    arrays: Arrays,
    name: str,
    architecture: str,
    options: dict[str, Any],
    chunks: tuple[int, ...] | None,
    dtype: torch.dtype,
) -> Pair:
    inputs = [_heads(arrays, key, dtype) for key in "qkv"]
    mixer, qkv = _mixer(inputs, architecture, options)
    with torch.no_grad():
        output = mixer(qkv) if chunks is None else decode(mixer, qkv, chunks)[0]
    return output, _heads(arrays, name).flatten(2)


def _gradient(
    arrays: Arrays,
    array: str,
    raw: str,
    architecture: str,
    options: dict[str, Any],
    dtype: torch.dtype,
) -> Pair:
    """Of sum(w o), by the parallel form."""
    inputs = [_heads(arrays, key, dtype).requires_grad_() for key in "qkv"]
    mixer, qkv = _mixer(inputs, architecture, options)
    loss = (mixer(qkv) * _heads(arrays, "w", dtype).flatten(2)).sum()
    (found,) = torch.autograd.grad(loss, inputs["qkv".index(raw)])
    return found, _heads(arrays, array)


def _mixer(inputs: list[Tensor], architecture: str, options: dict[str, Any]) -> tuple[Any, Tensor]:
    """A mixer without its projections: the file begins after the one, ends before the other."""
    q, k, _ = inputs
    plugin = registry.load("architectures", architecture)
    heads = {"heads": q.shape[2], "kv_heads": k.shape[2]}
    mixer = plugin.mixer(
        q.shape[2] * q.shape[3], plugins.build_options(plugin.options, {**heads, **options})
    )
    assert mixer is not None
    for projection in ("qkv", "out"):
        mixer.add_module(projection, nn.Identity())
    return mixer, torch.cat([x.flatten(2) for x in inputs], -1)


def _heads(arrays: Arrays, key: str, dtype: torch.dtype | None = None) -> Tensor:
    """(B, T, heads, width) from the file's (B, heads, T, width)."""
    return arrays.tensor(key, dtype).transpose(1, 2)
