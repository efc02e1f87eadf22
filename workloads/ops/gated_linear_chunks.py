"""The chunked products of gated linear attention, and what they cost.

The chunked form is that of Sun et al. 2023 (RetNet) and Yang et al. 2024 (GLA): the tokens of a
chunk see each other through a masked C x C matrix and all before it through the state, which is
carried from chunk to chunk.

No form divides by a decay and every factor is at most 1, so that nothing overflows however strong
the decay. Decays per channel are applied by doubling: in a block of 2h tokens the later half sees
the earlier through q times the decays since the middle and k times the decays up to it; then both
grow to the whole block. After log2(C) rounds q and k hold the factors that the pass from chunk to
chunk needs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32
"""Most tokens in a chunk, a power of two; twice it for states wider than 64 x 64, whose pass from
chunk to chunk costs more than what it saves within them. Measured on one core, where 16 and 64
were at best as fast."""


def chunk_length(length: int, dk: int, dv: int, per_channel: bool = False) -> int:
    """Tokens a chunk for `length` tokens. Per channel a power of two; else equal chunks, so that
    little is padded at any length."""
    most = CHUNK if per_channel or dk + dv <= 4 * CHUNK else 2 * CHUNK
    if per_channel:
        return min(most, 1 << (length - 1).bit_length())
    return -(-length // -(-length // most))


def products_per_token(length: int, heads: int, dk: int, dv: int, per_channel: bool) -> float:
    """FLOPs of the torch form's matrix products for one of `length` tokens, from no state, with
    keys of its own in every head: multiply-adds x 2, the padding of the last chunk included."""
    chunk = chunk_length(length, dk, dv, per_channel)
    count = -(-length // chunk)
    within = (chunk - 1) * dk if per_channel else 2 * chunk * dk
    write_and_read = 2 * dk * dv * (1 if count == 1 else 2)
    each = within + 2 * chunk * dv + write_and_read
    return heads * each * (count * chunk / length)


def saved_per_token(length: int, heads: int, dk: int, dv: int, decay_dims: int) -> float:
    """Elements that the torch form keeps for backward for one of `length` tokens, the inputs'
    copies in chunks included; decay_dims: how many dimensions the log decay has, 0 for none."""
    chunk = chunk_length(length, dk, dv, decay_dims == 4)
    count = -(-length // chunk)
    more = count > 1
    copies, within, states = 2 * dk + dv, chunk, more * dk * dv / chunk
    if decay_dims == 4:
        copies += dk * (4 + more + 2 * (chunk.bit_length() - 1))
    elif decay_dims:
        copies += dk * (1 + more)
    if decay_dims >= 3:
        states *= 2
    if decay_dims == 3:
        within *= 3
    return heads * (copies + within + states) * (count * chunk / length)


def per_head(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q, k: (B, H or 1, T, Dk); v: (B, H, T, Dv); log_decay: None, (H,) or (B, T, H). Returns (B,
    H, T, Dv) and the state."""
    length = v.shape[2]
    chunk = chunk_length(length, k.shape[3], v.shape[3])
    count = -(-length // chunk)
    q, k, v = (_in_chunks(x, count, chunk) for x in (q, k, v))
    within = q @ k.transpose(-1, -2)
    if log_decay is None:
        within = within.tril()
        since_start = until_end = across = None
    else:
        total = _cumulative(log_decay, length, count, chunk)
        future = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).triu(1)
        between = total[..., :, None] - total[..., None, :]
        within = within * between.masked_fill(future, -torch.inf).exp()
        since_start = total.exp()[..., None]
        until_end = (total[..., -1:] - total).exp()[..., None]
        across = since_start[..., -1:, :]
    output = within @ v
    if q.shape[1] == 1 < v.shape[1]:
        decayed = v if until_end is None else v * until_end
        before, state = _scan(_side_by_side(k.transpose(-1, -2), decayed), across, start)
        if before is not None:
            seen = _side_by_side(q, before)
            output = output + (seen if since_start is None else seen * since_start)
        output = output * scale
    else:
        decayed = k if until_end is None else k * until_end
        before, state = _scan(decayed.transpose(-1, -2) @ v, across, start)
        seen = q if since_start is None else q * since_start
        output = _add_product(output, seen, before, scale)
    return output.flatten(2, 3)[:, :, :length], state


def _cumulative(log_decay: Tensor, length: int, count: int, chunk: int) -> Tensor:
    """Sums of the log decays from each chunk's start: (H,) or (B, T, H) -> (B or 1, H, N or 1, C).

    The padding decays nothing, and so a fixed decay differs between chunks only where there is
    some."""
    missing = count * chunk - length
    if log_decay.ndim == 3:
        each = log_decay.transpose(1, 2)
    else:
        each = log_decay[None, :, None].expand(-1, -1, length if missing else chunk)
    if missing:
        each = F.pad(each, (0, missing))
    return each.reshape(*each.shape[:2], -1, chunk).cumsum(-1)


def _side_by_side(shared: Tensor, own: Tensor) -> Tensor:
    """shared (B, 1, N, I, J) @ own (B, H, N, J, D) -> (B, H, N, I, D): one product for all heads,
    whose matrices stand beside each other."""
    batch, heads, count, inner, width = own.shape
    wide = own.permute(0, 2, 3, 1, 4).reshape(batch, count, inner, heads * width)
    return (shared[:, 0] @ wide).view(batch, count, -1, heads, width).permute(0, 3, 1, 2, 4)


def per_channel(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `per_head`, with log_decay (B, H, T, Dk)."""
    length = v.shape[2]
    chunk = chunk_length(length, k.shape[3], v.shape[3], per_channel=True)
    count = -(-length // chunk)
    q, k = (x.expand(-1, v.shape[1], -1, -1) for x in (q, k))
    q, k, v, g = (_in_chunks(x, count, chunk) for x in (q, k, v, log_decay))
    decay = g.exp()
    raw_q, raw_k = q, k
    # blocks of one token: q sees the state before its own decay, k is not yet decayed
    q, k, across = (x.unsqueeze(-2) for x in (q * decay, k, decay))
    within = (raw_q * raw_k).sum(-1)[..., None, None]
    while q.shape[-2] < chunk:
        half = q.shape[-2]
        earlier_q, later_q = _pairs(q)
        earlier_k, later_k = _pairs(k)
        earlier, later = _pairs(across)
        first, second = _pairs(within)
        crossing = later_q @ earlier_k.transpose(-1, -2)
        upper = F.pad(first, (0, half))
        within = torch.cat((upper, torch.cat((crossing, second), -1)), -2)
        q = torch.cat((earlier_q, later_q * earlier), -2)
        k = torch.cat((earlier_k * later, later_k), -2)
        across = earlier * later
    q, k, within = q.squeeze(3), k.squeeze(3), within.squeeze(3)
    before, state = _scan(k.transpose(-1, -2) @ v, across.squeeze(3).transpose(-1, -2), start)
    output = _add_product(within @ v, q, before, scale)
    return output.flatten(2, 3)[:, :, :length], state


def _pairs(blocks: Tensor) -> tuple[Tensor, ...]:
    """(B, H, N, M, h, D) -> the even and the odd of the M blocks of h tokens."""
    return blocks.view(*blocks.shape[:3], -1, 2, *blocks.shape[4:]).unbind(4)


def _in_chunks(x: Tensor, count: int, chunk: int) -> Tensor:
    """(B, H, T, D) -> (B, H, count, chunk, D), filled with zeros at the end."""
    missing = count * chunk - x.shape[2]
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return x.reshape(*x.shape[:2], count, chunk, x.shape[3]).contiguous()  # once, not per product


def _scan(
    writes: Tensor, across: Tensor | None, start: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """The state before every chunk, and the last: writes (B, H, N, Dk, Dv), across a chunk's decay,
    broadcast to it -> (B, H, N, Dk, Dv), None where all are zero, and (B, H, Dk, Dv)."""
    state = start
    before, decays = [], None
    if across is not None:
        decays = across.expand(-1, -1, writes.shape[2], -1, -1).unbind(2)
    for chunk, write in enumerate(writes.unbind(2)):
        before.append(torch.zeros_like(write) if state is None else state)
        if state is None:
            state = write
        elif decays is None:
            state = state + write
        else:
            state = torch.addcmul(write, state, decays[chunk])
    assert state is not None
    return (None if start is None and len(before) == 1 else torch.stack(before, 2)), state


def _add_product(output: Tensor, left: Tensor, right: Tensor | None, scale: float) -> Tensor:
    """scale (output + left @ right), in one pass over the output; nothing is added where None."""
    if right is None:
        return output * scale
    flat = (x.flatten(0, 2) for x in (output, left, right))
    return torch.baddbmm(*flat, beta=scale, alpha=scale).view(*output.shape)
