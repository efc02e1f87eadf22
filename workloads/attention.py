"""What the attention architectures share: their heads' options, projections, cache and costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from workloads import plugins
from workloads.mixer import Mixer, MixerState
from workloads.ops.attention import rotary_tables, rotate


class HeadOptions(Protocol):
    """heads: query heads. kv_heads: key-value heads, 0 for as many. position: `rope` or another
    form, which leaves the projections as they are."""

    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def position(self) -> str: ...


def check(options: HeadOptions, positions: tuple[str, ...]) -> None:
    """Raises ValueError for heads that do not group, or a position not among `positions`."""
    if options.heads < 1:
        raise ValueError(f"heads must be at least 1, not {options.heads}")
    if options.kv_heads < 0 or (options.kv_heads and options.heads % options.kv_heads):
        raise ValueError(
            f"kv_heads must divide heads ({options.heads}), or be 0 for as many, "
            f"not {options.kv_heads}"
        )
    if options.position not in positions:
        raise ValueError(plugins.unknown("position", options.position, positions))


def kv_share(options: HeadOptions) -> float:
    """Width of all keys over d_model: key-value heads for each query head."""
    return (options.kv_heads or options.heads) / options.heads


def kv_width(d_model: int, options: HeadOptions) -> int:
    """Width of one token's keys, and of its values."""
    return d_model // options.heads * (options.kv_heads or options.heads)


def parameters(d_model: int, options: HeadOptions) -> int:
    """The maps to queries, keys and values, and the output map."""
    return 2 * d_model**2 + 2 * d_model * kv_width(d_model, options)


def state_bytes(d_model: int, options: HeadOptions, tokens: int, element_bytes: int) -> int:
    """Keys and values of so many tokens."""
    return 2 * kv_width(d_model, options) * tokens * element_bytes


def flops(d_model: int, options: HeadOptions, keys: float, *, wider: float = 1.0) -> float:
    """The maps, then q k^T and the weighted sum over `keys` tokens, in a kernel whose heads are
    `wider` times theirs."""
    return 2.0 * parameters(d_model, options) + 4.0 * d_model * keys * wider


def saved_elements(d_model: int, options: HeadOptions) -> float:
    """Kept for backward per token where one kernel takes the projections as they are: the mixer's
    input, the projections, what is rotated of them, and the kernel's output."""
    share = kv_share(options)
    rotated = 1 + share if options.position == "rope" else 0.0
    return d_model * (3.1 + 2 * share + rotated)


def width_multiple(options: HeadOptions) -> int:
    """Heads of equal width; rotation turns pairs, so that one must be even."""
    return options.heads * (2 if options.position == "rope" else 1)


def sdpa_kernel(device_type: str) -> str:
    """What `scaled_dot_product_attention` runs there."""
    return "flash" if device_type == "cpu" else "fused, torch's choice"


@dataclass(slots=True)
class KeyValueCache(MixerState):
    """keys (rotated where positions are rotary), values: (B, kv_heads, slots, head width), written
    in place; `length` tokens have come so far."""

    keys: Tensor
    values: Tensor
    length: int


class HeadsMixer(Mixer):
    """A mixer on grouped heads: (B, T, D) -> q (B, T, heads, width), k and v (B, T, kv_heads,
    width), and back. Raises ValueError where d_model does not split into such heads."""

    def __init__(self, d_model: int, options: HeadOptions) -> None:
        super().__init__()
        multiple = width_multiple(options)
        if d_model % multiple:
            even = "of even width " if options.position == "rope" else ""
            raise ValueError(
                f"{options.heads} heads {even}need a d_model that is a multiple of {multiple}, "
                f"not {d_model}"
            )
        self.heads, self.kv_heads = options.heads, options.kv_heads or options.heads
        self.head_dim = d_model // options.heads
        self.rotates = options.position == "rope"
        kv_width = self.kv_heads * self.head_dim
        self.qkv = nn.Linear(d_model, d_model + 2 * kv_width, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) at positions from `start` -> q and k, rotated where positions are rotary, and
        v."""
        length = x.shape[1]
        qkv = self.qkv(x).view(x.shape[0], length, -1, self.head_dim)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), 2)
        if self.rotates:
            tables = rotary_tables(self.head_dim, start + length, x.device, qkv.dtype)
            cos, signed_sin = (table[start : start + length, None] for table in tables)
            qk = rotate(qk, cos, signed_sin)
        q, k = qk.split((self.heads, self.kv_heads), -2)
        return q, k, v

    def project_token(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D) -> q (B, heads, width), k and v (B, kv_heads, width)."""
        qkv = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), 1)
        if self.rotates:
            cos, signed_sin = rotary_tables(self.head_dim, position + 1, x.device, qkv.dtype)
            at = slice(position, position + 1)
            qk = rotate(qk, cos[at], signed_sin[at])
        q, k = qk.split((self.heads, self.kv_heads), -2)
        return q, k, v

    def empty_cache(
        self, batch_size: int, slots: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValueCache:
        """Room for `slots` tokens out of `max_len`."""
        shape = (batch_size, self.kv_heads, slots, self.head_dim)
        if self.rotates:  # so that no step has to grow them
            rotary_tables(self.head_dim, max_len, device, dtype)
        return KeyValueCache(
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(shape, device=device, dtype=dtype),
            0,
        )

    def merge(self, mixed: Tensor) -> Tensor:
        """(..., heads, width) -> (..., D), through the output map."""
        out: Tensor = self.out(mixed.flatten(-2))
        return out
