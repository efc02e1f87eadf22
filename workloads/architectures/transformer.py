"""Causal multi-head softmax attention: the transformer's mixer.

Idea: every token looks back at all tokens before it, and at itself. Its query is compared with
their keys, and softmax(q . k / sqrt(head width)) says how much of each one's value it takes.
Nothing is compressed: the past is kept token by token, so that recall is exact and the cost grows
with the context. Papers: Vaswani et al. 2017, "Attention Is All You Need"; fewer key-value heads
than query heads, shared by consecutive groups (Ainslie et al. 2023, "GQA"). Positions: by rotation
of q and k (`rope`; Su et al. 2021, "RoFormer") in the half-split layout (i pairs with i + width/2),
base 10,000; by a bias that falls linearly with distance (`alibi`; Press et al. 2022); or none
(`nope`), where causality alone tells places apart (Kazemnejad et al. 2023).

Cost: a token costs 8 d^2 FLOPs of projections and 4 d for each token it sees, in training as in
decoding: linear in the context for one token, quadratic for a whole one. Training keeps 5 d to 7 d
numbers a token, linear in the context (`materialised` 5 d and heads times T, quadratic). Decoding
holds the key-value cache, 2 d numbers for every token seen, times kv_heads / heads, and reads all
of it at each step.

Kernels: `scaled_dot_product_attention`: flash attention on a CPU, flash or memory-efficient
attention on an NVIDIA GPU; none keeps a T x T matrix. ALiBi as it is usually given to such kernels,
an added mask of heads x T x T numbers, would; here its bias is four more columns of q and k, at
(width + 4) / width of the cost. With `attention: materialised` softmax(q k^T) is a T x T matrix for
each head, kept for backward: attention before flash kernels, whose memory is often quoted as
attention's own. The cache is allocated once and written in place; a step attends to its filled
part, and a prefill that continues one masks 256 queries at a time.

Left out: absolute positions, added to the embedding by the original, which is outside a mixer;
dropout on the weights, as no mixer here drops within itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workloads import attention, plugins
from workloads.attention import HeadsMixer, KeyValueCache
from workloads.mixer import put_token
from workloads.ops.attention import (
    ALIBI_COLUMNS,
    alibi_slopes,
    attend,
    attend_as_matrix,
    attend_token,
)
from workloads.plugins import Architecture

POSITIONS = ("rope", "alibi", "nope")
FORMS = ("fused", "materialised")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: attention heads a layer; each is d_model / heads wide, which must be even for `rope`.
    kv_heads: key-value heads, a divisor of heads; 0 means as many. position: `rope`, `alibi` or
    `nope`. attention: `fused`, or `materialised` for the T x T matrix in memory."""

    heads: int = 4
    kv_heads: int = 0
    position: str = "rope"
    attention: str = "fused"

    def __post_init__(self) -> None:
        attention.check(self, POSITIONS)
        if self.attention not in FORMS:
            raise ValueError(plugins.unknown("attention", self.attention, FORMS))


class Attention(HeadsMixer):
    """Token t lies in slot t of the cache. Raises ValueError where d_model does not split into
    `heads` heads of even width."""

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__(d_model, options)
        self.biased = options.position == "alibi"
        self.as_matrix = options.attention == "materialised"

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self._attend(*self.project(x, 0)))

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValueCache:
        return self.empty_cache(batch_size, max_len, max_len, device, dtype)

    def prefill(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        start, end = state.length, state.length + x.shape[1]
        q, k, v = self.project(x, start)
        state.keys[:, :, start:end] = k.transpose(1, 2)
        state.values[:, :, start:end] = v.transpose(1, 2)
        if start:
            k, v = (t[:, :, :end].transpose(1, 2) for t in (state.keys, state.values))
        return self.merge(self._attend(q, k, v)), KeyValueCache(state.keys, state.values, end)

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        now, end = state.length, state.length + 1
        q, k, v = self.project_token(x, now)
        put_token(state.keys, now, k)
        put_token(state.values, now, v)
        mixed = attend_token(
            q,
            state.keys[:, :, :end],
            state.values[:, :, :end],
            slopes=self._slopes(q),
            as_matrix=self.as_matrix,
        )
        return self.merge(mixed), KeyValueCache(state.keys, state.values, end)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        form = attend_as_matrix if self.as_matrix else attend
        return form(q, k, v, slopes=self._slopes(q))

    def _slopes(self, q: Tensor) -> Tensor | None:
        return alibi_slopes(self.heads, q.device, q.dtype) if self.biased else None


def _wider(d_model: int, options: Options) -> float:
    """Columns of a head in the kernel, over its width."""
    folded = options.position == "alibi" and options.attention == "fused"
    return 1 + ALIBI_COLUMNS * options.heads / d_model if folded else 1.0


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """Of T keys (T + 1) / 2 are visible on average; as a matrix all are multiplied."""
    keys = seq_len if options.attention == "materialised" else (seq_len + 1) / 2
    return attention.flops(d_model, options, keys, wider=_wider(d_model, options))


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """The mixer's input and output; the kernel's q, k, v and output, or the matrix in its place."""
    share = attention.kv_share(options)
    if options.attention == "materialised":
        return d_model * (3 + 2 * share) + options.heads * seq_len
    if options.position == "alibi":
        return d_model * (2 + (2 + 2 * share) * _wider(d_model, options)) + options.heads
    return attention.saved_elements(d_model, options)


def _implementation(options: Options, device_type: str) -> str:
    if options.attention == "materialised":
        return "torch matmul and softmax, T x T matrix"
    return f"torch SDPA ({attention.sdpa_kernel(device_type)})"


ARCHITECTURE = Architecture(
    title="transformer",
    version=2,
    options=Options,
    mixer=Attention,
    parameters=attention.parameters,
    state_bytes=attention.state_bytes,
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=_implementation,
    kernel_class=lambda options, device_type: (
        "fused" if options.attention == "fused" else "materialised"
    ),
    width_multiple=attention.width_multiple,
    heads=lambda options: options.heads,
    position=lambda options: str(options.position),
    family="attention",
    code_options=("attention",),
)
