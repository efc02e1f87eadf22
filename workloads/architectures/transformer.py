"""Causal multi-head softmax attention with rotary positions: the transformer's mixer.

Idea: every token looks back at all tokens before it, weighted by softmax(q . k / sqrt(head
width)). Papers: Vaswani et al. 2017, "Attention Is All You Need"; positions by rotation of q and k
(Su et al. 2021, "RoFormer"), in the half-split layout (i pairs with i + width/2), base 10,000. A
token costs 8 d^2 FLOPs of projections and 4 d for each token it sees: linear in the context for one
token, quadratic for a whole one. The state, the key-value cache, is 2 d numbers for every token
seen.

Kernels: `scaled_dot_product_attention`: flash attention on a CPU, flash or memory-efficient
attention on an NVIDIA GPU; none keeps a T x T matrix. The cache is allocated once and written in
place; a step attends to its filled part.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from workloads.mixer import Mixer, MixerState
from workloads.plugins import Architecture

ROPE_BASE = 10_000.0

_NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: attention heads a layer; each is d_model / heads wide, which must be even."""

    heads: int = 4

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, not {self.heads}")


@dataclass(slots=True)
class KeyValueCache(MixerState):
    """keys (rotated), values: (B, heads, max_len, head width), of which `length` tokens are
    filled."""

    keys: Tensor
    values: Tensor
    length: int


_rotary: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}


def rotary_tables(
    head_dim: int, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and (-sin, sin) of every position's angles, each (at least `length`, head_dim).

    Computed once in float64 and kept for all layers, as they depend on the head's width alone;
    grown to the next power of two where a longer context comes.
    """
    key = (head_dim, device, dtype)
    tables = _rotary.get(key)
    if tables is None or tables[0].shape[0] < length:
        # Never inference tensors: the same tables serve training later.
        with torch.inference_mode(False):
            exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
            position = torch.arange(
                1 << (length - 1).bit_length(), dtype=torch.float64, device="cpu"
            )
            angle = position[:, None] * ROPE_BASE**-exponent
            cos, sin = angle.cos(), angle.sin()
            tables = (
                torch.cat((cos, cos), -1).to(device, dtype),
                torch.cat((-sin, sin), -1).to(device, dtype),
            )
        _rotary[key] = tables
    return tables


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turns each pair (i, i + width/2) of the last dimension by its position's angle: x cos + (x
    with its halves swapped) (-sin, sin). Half the time of joining rotated halves on a CPU."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


class Attention(Mixer):
    """Raises ValueError where d_model does not split into `heads` heads of even width."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        if d_model % (2 * heads):
            raise ValueError(
                f"{heads} heads of even width need a d_model that is a multiple of {2 * heads}, "
                f"not {d_model}"
            )
        self.heads, self.head_dim = heads, d_model // heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x, 0)
        return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValueCache:
        shape = (batch_size, self.heads, max_len, self.head_dim)
        rotary_tables(self.head_dim, max_len, device, dtype)  # so that no step has to grow them
        return KeyValueCache(
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(shape, device=device, dtype=dtype),
            0,
        )

    def prefill(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        start, end = state.length, state.length + x.shape[1]
        q, k, v = self._project(x, start)
        state.keys[:, :, start:end] = k
        state.values[:, :, start:end] = v
        if start == 0:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # new token i sees the `start` cached ones and the new ones up to itself
            seen = torch.ones(end - start, end, dtype=torch.bool, device=x.device).tril(start)
            keys, values = state.keys[:, :, :end], state.values[:, :, :end]
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        return self._merge(mixed), KeyValueCache(state.keys, state.values, end)

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        now, end = state.length, state.length + 1
        cos, signed_sin = rotary_tables(self.head_dim, end, x.device, x.dtype)
        qkv = self.qkv(x).view(-1, 3, self.heads, self.head_dim)
        q, k = rotate(qkv[:, :2], cos[now], signed_sin[now]).unbind(1)
        state.keys[:, :, now] = k
        state.values[:, :, now] = qkv[:, 2]
        keys, values = state.keys[:, :, :end], state.values[:, :, :end]
        with _decoding_kernels(x):
            mixed = F.scaled_dot_product_attention(q.unsqueeze(2), keys, values)
        out: Tensor = self.out(mixed.flatten(1))
        return out, KeyValueCache(state.keys, state.values, end)

    def _project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) at positions from `start` -> rotated q and k, and v, each (B, heads, T, head
        width)."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim)
        cos, signed_sin = (
            table[start : start + length, None, None]
            for table in rotary_tables(self.head_dim, start + length, x.device, qkv.dtype)
        )
        q, k = rotate(qkv[:, :, :2], cos, signed_sin).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), qkv[:, :, 2].transpose(1, 2)

    def _merge(self, mixed: Tensor) -> Tensor:
        """(B, heads, T, head width) -> (B, T, D), through the output map."""
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def _decoding_kernels(x: Tensor) -> AbstractContextManager[None]:
    """On an NVIDIA GPU, torch's choice without cuDNN: that plans anew for every cache length, which
    is every token (tens of milliseconds each, on an H100 with torch 2.11)."""
    return sdpa_kernel(_NOT_CUDNN) if x.is_cuda else nullcontext()


ARCHITECTURE = Architecture(
    title="transformer",
    version=1,
    options=Options,
    mixer=lambda d_model, options: Attention(d_model, options.heads),
    state_bytes=lambda d_model, options, seq_len, element_bytes: (
        2 * d_model * seq_len * element_bytes
    ),
    # 4 maps of d x d, then q k^T and the weighted sum over (T + 1) / 2 visible tokens on average
    flops_per_token=lambda d_model, options, seq_len: (
        8.0 * d_model**2 + 2.0 * d_model * (seq_len + 1)
    ),
    saved_elements_per_token=lambda d_model, options, seq_len: 7.1 * d_model,
    implementation=lambda options, device_type: (
        "torch SDPA (flash)" if device_type == "cpu" else "torch SDPA (fused, torch's choice)"
    ),
    width_multiple=lambda options: 2 * options.heads,
)
