"""What a layer with cached memories holds and computes, by arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workloads.ops.gated_linear import chunk_length
from workloads.ops.memory_caching.mixers import CONVOLUTION, EXPAND, STATE_WIDTH
from workloads.ops.memory_caching.read import ROWS
from workloads.ops.memory_caching.weights import Caching


@dataclass(frozen=True, slots=True)
class Costs:
    """parameters of one layer; the rest per sequence of `seq_len` tokens. state_bytes(seq_len,
    element_bytes), flops_per_token(seq_len), saved_elements_per_token(seq_len)."""

    parameters: int
    state_bytes: Callable[[int, int], int]
    flops_per_token: Callable[[int], float]
    saved_elements_per_token: Callable[[int], float]


def _seen(caching: Caching, seq_len: int) -> tuple[float, int]:
    """Cached memories that a token is multiplied with, mean over the context, and columns of the
    weights, of which those ahead are 0."""
    segments = -(-seq_len // caching.segment)
    if caching.logarithmic:
        columns = (segments - 1).bit_length()
        return float(columns), columns
    group = max(1, ROWS // caching.segment)
    products = [min(n - n % group + group, segments) - 1 for n in range(segments)]
    mean = sum(products) * min(caching.segment, seq_len) / seq_len
    return mean, segments - 1


def _matrix(
    caching: Caching, heads: int, key_heads: int, dk: int, dv: int, decays: bool
) -> tuple[Callable[[int, int], int], Callable[[int], float], Callable[[int], float]]:
    """State bytes, FLOPs and the elements saved by cached reads, of the memories alone."""
    dv += caching.normalised
    checkpoint = caching.start == "checkpoint"

    def state_bytes(seq_len: int, element_bytes: int) -> int:
        memories = caching.slots(seq_len) + 1
        summary = key_heads * dk * caching.gated
        return memories * (heads * dk * dv + summary) * max(4, element_bytes)

    def flops(seq_len: int) -> float:
        width = min(caching.segment, seq_len)
        chunk = chunk_length(width, dk, dv)
        chunks = -(-width // chunk)
        inside = key_heads * 2.0 * chunk * dk + heads * (2.0 * chunk * dv + 2.0 * dk * dv)
        # Padded to whole chunks, and those to whole segments.
        inside *= -(-seq_len // width) * chunks * chunk / seq_len
        mean, columns = _seen(caching, seq_len)
        carried = (checkpoint and seq_len > width) + (chunks > 1) + 0.0
        logits = 2.0 * heads * columns * dk * (caching.gated + caching.normalised)
        own = 2.0 * heads * dk * dv
        # A step reads the online memory in place of the products inside a segment.
        local = max(inside + carried * own, own)
        return local + logits + 2.0 * heads * mean * dk * dv

    def reads(seq_len: int) -> float:
        """As counted: scaled queries, running keys, connector and weights, where any is cached."""
        _, columns = _seen(caching, seq_len)
        if not columns:
            return 0.0
        wide = 2.6 * caching.gated + 0.5 + 0.4 * checkpoint
        if caching.normalised:
            wide *= 0.5
        rows = 1.4 * columns * heads * dk if caching.logarithmic else 0.0
        vectors = (heads + key_heads) * dk + heads * dv
        states = (0.5 + 2 * decays * checkpoint) * heads * dk * dv / caching.segment
        return wide * vectors + rows + heads * columns + states

    return state_bytes, flops, reads


def linear(d: int, heads: int, caching: Caching, decay: bool, output_norm: bool) -> Costs:
    """CachedLinear."""
    dh = d // heads
    maps = (4 + caching.gated) * d * d + decay * d * heads
    state, inside, kept = _matrix(caching, heads, heads, dh, dh, decay)
    chunk = chunk_length(caching.segment, dh, dh + caching.normalised)
    return Costs(
        parameters=maps + decay * heads + output_norm * dh,
        state_bytes=state,
        flops_per_token=lambda seq_len: 2.0 * maps + inside(seq_len),
        saved_elements_per_token=lambda seq_len: (
            (6.6 + caching.gated + 0.4 * output_norm + 3 * decay + 6 * caching.normalised) * d
            + chunk * (1 + heads * decay)
            + 36
            + kept(seq_len)
        ),
    )


def mamba2(d: int, heads: int, caching: Caching) -> Costs:
    """CachedMamba2."""
    inner = EXPAND * d
    channels = inner + 2 * STATE_WIDTH
    made = inner + channels + heads + heads * STATE_WIDTH * caching.gated
    maps = d * made + inner * d
    memories, inside, kept = _matrix(caching, heads, 1, STATE_WIDTH, inner // heads, True)
    chunk = chunk_length(caching.segment, STATE_WIDTH, inner // heads + caching.normalised)
    history = (CONVOLUTION - 1) * channels
    return Costs(
        parameters=maps + channels * (CONVOLUTION + 1) + 3 * heads + inner,
        state_bytes=lambda seq_len, size: memories(seq_len, size) + history * size,
        flops_per_token=lambda seq_len: 2.0 * maps + inside(seq_len),
        saved_elements_per_token=lambda seq_len: (
            d + made + 4 * channels + 11 * inner + chunk * (heads + 1) + kept(seq_len)
        ),
    )


def recurrence(d: int, base: str, caching: Caching, read: str) -> Costs:
    """CachedRecurrence."""
    gates, vectors, kept = (4, 2, 17.2) if base == "lstm" else (3, 1, 2.0)
    keys = caching.gated * 2 * d * d
    again = 0
    if read == "gate":
        again = 4 if caching.rule == "soup" else 1
    redone = {0: 0.0, 1: 3.0, 4: 18.0}[again] + 32.0 / caching.segment * (again > 0)

    def state_bytes(seq_len: int, element_bytes: int) -> int:
        slots = caching.slots(seq_len)
        summaries = caching.gated * (slots + 1) * d * max(4, element_bytes)
        return (slots + vectors) * d * element_bytes + summaries

    def flops(seq_len: int) -> float:
        columns = _seen(caching, seq_len)[1]
        reads = 2.0 * columns * d * (1 + caching.gated)
        return 4.0 * d * d * (gates + again) + 2.0 * keys + reads

    return Costs(
        parameters=2 * gates * d * (d + 1) + keys,
        state_bytes=state_bytes,
        flops_per_token=flops,
        saved_elements_per_token=lambda seq_len: (
            (kept + 3 * caching.gated + redone) * d + 3.0 * _seen(caching, seq_len)[1]
        ),
    )
