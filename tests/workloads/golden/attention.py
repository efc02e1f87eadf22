"""Golden attention: rotary positions, key-value heads in consecutive groups, causal or in a window.

The files hold q, k and v heads first, before rotation. Our mixers are given them in place of their
projections, so that rotation, grouping, cache and output are driven as a model drives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.workloads.decoding import decode
from workloads import plugins, registry
from workloads.ops.attention import rotary_tables, rotate

Case = tuple[str, Callable[[torch.dtype], tuple[Tensor, Tensor]]]


def knows(json_data: dict[str, Any], name: str) -> bool:
    return {"q", "k", "v", "o_causal"} <= set(json_data.get("shapes", ()))


def cases(json_data: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Case]:
    """Every output `o_causal` and `o_windowW` in each of the forms, and the rotated `q_rope` and
    `k_rope` where the file has them; without those, positions are taken to be absent."""
    keys = set(json_data["shapes"])
    position = "rope" if "q_rope" in keys else "nope"
    for name in sorted(keys & {"q_rope", "k_rope"}):
        yield name, _rotation(arrays, name)
    for name in sorted(keys):
        window = re.fullmatch(r"o_window(\d+)", name)
        if window:
            chosen: list[tuple[str, dict[str, Any]]] = [
                ("sliding_window", {"window": int(window[1])})
            ]
        elif name == "o_causal":
            forms = ("fused", "materialised")
            chosen = [("transformer", {"attention": form}) for form in forms]
            chosen.append(("sliding_window", {"window": json_data["shapes"][name][2]}))
        else:
            continue
        for architecture, options in chosen:
            for label, chunks in _splits(json_data["shapes"][name][2]).items():
                switches = ",".join(f"{key}={value}" for key, value in options.items())
                case = _mixing(arrays, name, architecture, {**options, "position": position})
                yield f"{name} {architecture}({switches}) {label}", _bind(case, chunks)


def _splits(length: int) -> dict[str, tuple[int, ...] | None]:
    """Prefill of each chunk, then steps to the end; None is the parallel form."""
    return {
        "parallel": None,
        "prefill": (length,),
        "prefill in three": (1, length // 2, length - 1 - length // 2),
        "prefill then steps": (length // 2,),
        "steps": (),
    }


def _rotation(
    arrays: Mapping[str, np.ndarray], name: str
) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = _heads(arrays, name.removesuffix("_rope"), dtype)
        tables = rotary_tables(x.shape[-1], x.shape[1], x.device, dtype)
        cos, signed_sin = (table[: x.shape[1], None] for table in tables)
        return rotate(x, cos, signed_sin), _heads(arrays, name, dtype)

    return run


def _mixing(
    arrays: Mapping[str, np.ndarray], name: str, architecture: str, options: dict[str, Any]
) -> Callable[[torch.dtype, tuple[int, ...] | None], tuple[Tensor, Tensor]]:
    def run(dtype: torch.dtype, chunks: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
        q, k, v = (_heads(arrays, key, dtype) for key in ("q", "k", "v"))
        plugin = registry.load("architectures", architecture)
        heads = {"heads": q.shape[2], "kv_heads": k.shape[2]}
        mixer = plugin.mixer(
            q.shape[2] * q.shape[3], plugins.build_options(plugin.options, {**heads, **options})
        )
        assert mixer is not None
        for projection in ("qkv", "out"):  # the file begins after the one, ends before the other
            mixer.add_module(projection, nn.Identity())
        qkv = torch.cat([x.flatten(2) for x in (q, k, v)], -1)
        with torch.no_grad():
            output = mixer(qkv) if chunks is None else decode(mixer, qkv, chunks)[0]
        return output, _heads(arrays, name, dtype).flatten(2)

    return run


def _bind(
    case: Callable[[torch.dtype, tuple[int, ...] | None], tuple[Tensor, Tensor]],
    chunks: tuple[int, ...] | None,
) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
    return lambda dtype: case(dtype, chunks)


def _heads(arrays: Mapping[str, np.ndarray], key: str, dtype: torch.dtype) -> Tensor:
    """(B, T, heads, width) from the file's (B, heads, T, width)."""
    return torch.from_numpy(np.asarray(arrays[key])).transpose(1, 2).to(dtype)
