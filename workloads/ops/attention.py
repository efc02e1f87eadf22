"""Softmax attention for grouped heads: causal, as a matrix, and one token at a time; positions.

Queries are (B, T, H, D), keys and values (B, S, H_kv, D): query head j reads key-value head j // (H
/ H_kv), consecutive groups (Ainslie et al. 2023, "GQA"). Where S > T the queries are the last T of
the S tokens. Scores are scaled by D^-0.5. On every device the products run in torch's
`scaled_dot_product_attention`, in one of its kernels that keep no T x S matrix.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from workloads.plugins import Unsupported

ROPE_BASE = 10_000.0
"""Wavelengths of rotary positions grow from 2 pi to 2 pi times this (Su et al. 2021)."""
QUERY_BLOCK = 256
"""Queries whose mask is built at a time where a context is continued: linear in the context."""
ALIBI_COLUMNS = 4
"""Columns that linear biases add to each head's queries, keys and values."""
_NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_NO_KERNEL = ("No available kernel", "No viable backend")
"""What torch says where all that may run refuse, or nothing may."""
_rotary: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
_slopes: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


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


def alibi_slopes(heads: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(heads,) slopes of Press et al. 2022, in float32 at least: 2^(-8 i / n) for i = 1..n where n
    is a power of two; else those of the power below, then every second one of the power above."""
    kept = torch.promote_types(dtype, torch.float32)
    key = (heads, device, kept)
    if key not in _slopes:
        with torch.inference_mode(False):
            below = 1 << (heads.bit_length() - 1)
            geometric = [2 ** (-8 * i / below) for i in range(1, below + 1)]
            between = [2 ** (-4 * i / below) for i in range(1, 2 * below, 2)]
            slopes = torch.tensor((geometric + between)[:heads], dtype=kept, device="cpu")
            _slopes[key] = slopes.to(device)
    return _slopes[key]


def attend(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None = None) -> Tensor:
    """Causal attention: (B, T, H, D), keys and values (B, S, H_kv, D) -> (B, T, H, D).

    slopes: (H,), added to each score as slope x (key's position - query's position), the linear
    biases of Press et al. 2022. From an empty context (S = T) no mask is made. Else masks of 256
    queries at a time, float with slopes.
    """
    if k.shape[1] == q.shape[1]:
        return sdpa(q, k, v, causal=True) if slopes is None else _biased(q, k, v, slopes)
    end, outputs = k.shape[1] - q.shape[1], []
    for block in torch.split(q, QUERY_BLOCK, 1):
        end += block.shape[1]
        distance = distance_behind(block.shape[1], end, q.device)
        mask = distance >= 0
        if slopes is not None:
            bias = -slopes[:, None, None] * distance
            mask = bias.masked_fill(~mask, -torch.inf).to(q.dtype)[None]
        outputs.append(sdpa(block, k[:, :end], v[:, :end], mask=mask))
    return torch.cat(outputs, 1)


def attend_as_matrix(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None = None) -> Tensor:
    """`attend` as it is written in papers: softmax(q k^T) is a (B, H, T, S) matrix in memory, kept
    for backward."""
    batch, rows, heads, width = q.shape
    seen, kv_heads = k.shape[1:3]
    mask = torch.full((rows, seen), -torch.inf, dtype=q.dtype, device=q.device)
    mask = mask.triu_(seen - rows + 1)
    if slopes is not None:
        bias = -slopes[:, None, None] * distance_behind(rows, seen, q.device)
        mask = (bias + mask).to(q.dtype)
    # A group's queries are more rows of one product: its keys are never repeated.
    grouped = (q * width**-0.5).transpose(1, 2).reshape(batch, kv_heads, -1, width)
    scores = (grouped @ k.permute(0, 2, 3, 1)).view(batch, heads, rows, seen)
    weights = scores.add_(mask).softmax(-1).to(v.dtype)
    mixed: Tensor = weights.view(batch, kv_heads, -1, seen) @ v.transpose(1, 2)
    return mixed.view(batch, heads, rows, width).transpose(1, 2)


def attend_token(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    slopes: Tensor | None = None,
    as_matrix: bool = False,
) -> Tensor:
    """One token's attention to all of a cache: (B, H, D), keys and values (B, H_kv, S, D) -> (B, H,
    D). With slopes the last key is the token itself. The queries of a group are rows of one
    product."""
    batch, heads, width = q.shape
    kv_heads, seen = keys.shape[1:3]
    rows = q.reshape(batch, kv_heads, -1, width)
    bias = None
    if slopes is not None:
        distance = distance_behind(1, seen, q.device)
        bias = (-slopes[:, None] * distance).to(q.dtype).view(1, kv_heads, -1, seen)
    if as_matrix:
        scores = (rows * width**-0.5) @ keys.transpose(2, 3)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        mixed: Tensor = weights.to(values.dtype) @ values
    else:
        with decoding_kernels(q):
            mixed = fused(rows, keys, values, attn_mask=bias)
    return mixed.reshape(batch, heads, width)


def _biased(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Linear biases without a mask, as columns of q and k whose product is slope x (j - i).

    The key's position is written in three digits of base 256, which bfloat16 holds exactly, up to
    16.7 million tokens; the query's share is one number, the same for its whole row, so its
    rounding cancels in the softmax. They come first, so that large terms cancel before q . k is
    added. The values are padded to the same width, which flash kernels ask for.
    """
    batch, length, _, width = q.shape
    position = torch.arange(length, device=q.device)
    digits = (position >> 16, (position >> 8) & 255, position & 255, torch.ones_like(position))
    of_keys = torch.stack(digits, -1).to(q.dtype)[:, None]
    fixed = slopes[:, None] * 256.0 ** torch.arange(2, -1, -1, device=q.device)
    of_queries = torch.cat(
        (
            fixed.expand(length, -1, -1),
            -(position.to(slopes.dtype)[:, None] * slopes)[..., None],
        ),
        -1,
    ).to(q.dtype)
    wide_q = torch.cat((of_queries.expand(batch, -1, -1, -1), q * width**-0.5), -1)
    wide_k = torch.cat((of_keys.expand(batch, -1, k.shape[2], -1), k), -1)
    wide_v = F.pad(v, (0, ALIBI_COLUMNS))
    return sdpa(wide_q, wide_k, wide_v, causal=True, scale=1.0)[..., :width]


def distance_behind(rows: int, seen: int, device: torch.device) -> Tensor:
    """(rows, seen): how many tokens before each query a key lies; the queries are the last `rows`
    of the `seen` tokens."""
    position = torch.arange(seen, device=device)
    return position[seen - rows :, None] - position


def fused(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """torch's attention of q (B, H, T, D) to k, v (B, H_kv, S, D), with its options.

    Raises:
        Unsupported: none of its fused kernels takes these here, and the one that keeps the T x S
        matrix is switched off, as within `device.fused_attention`.
    """
    try:
        return F.scaled_dot_product_attention(q, k, v, **options)
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_KERNEL):
            raise
        raise Unsupported(
            f"no fused attention kernel of torch takes heads of width {q.shape[-1]} in {q.dtype} "
            f"on {q.device.type} (`attention: materialised` is the matrix, under its own name)"
        ) from error


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """torch's attention in the layout (B, T, H, D), key-value heads shared by groups of query
    heads."""
    groups = q.shape[2] // k.shape[2]
    if groups > 1 and q.is_cuda and (mask is not None or q.dtype == torch.float32):
        # Only flash attention shares heads there; any other kernel would leave the T x S matrix.
        k, v = (x.repeat_interleave(groups, 2) for x in (k, v))
        groups = 1
    return fused(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=groups > 1,
    ).transpose(1, 2)


def decoding_kernels(x: Tensor) -> AbstractContextManager[None]:
    """On an NVIDIA GPU, torch's choice without cuDNN: that plans anew for every cache length, which
    is every token (tens of milliseconds each, on an H100 with torch 2.11)."""
    return sdpa_kernel(_NOT_CUDNN) if x.is_cuda else nullcontext()
