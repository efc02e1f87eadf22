"""What a layer of key-value means holds and computes, by arithmetic."""

from __future__ import annotations

from typing import Protocol

from workloads.ops.kvm.growth import Growth
from workloads.ops.kvm.reading import PREFIXES


class Options(Protocol):
    """heads: how many d_model is split into. growth: the rows' law. The others: what is switched
    on."""

    @property
    def heads(self) -> int: ...
    @property
    def growth(self) -> Growth: ...
    @property
    def merge_gate(self) -> bool: ...
    @property
    def temperatures(self) -> bool: ...
    @property
    def token_shift(self) -> bool: ...


def parameters(d_model: int, options: Options) -> int:
    gate = options.heads * d_model if options.merge_gate else 0
    temperatures = 2 * options.heads if options.temperatures else 0
    shift = 3 * d_model if options.token_shift else 0
    return 4 * d_model**2 + 6 * d_model // options.heads + gate + temperatures + shift


def state_bytes(d_model: int, options: Options, seq_len: int, element_bytes: int) -> int:
    """Rows: two sums, a scale and the two factors they are read by, in float32 at least. Window:
    two rows of the model's elements, and gates."""
    growth, exact = options.growth, max(4, element_bytes)
    rows, window = growth.rows(growth.covered(seq_len)), min(seq_len, growth.span)
    gates = options.heads * exact if options.merge_gate else 0
    shift = 3 * d_model * element_bytes if options.token_shift else 0
    state = rows * (2 * d_model + 3 * options.heads) * exact
    return state + window * (2 * d_model * element_bytes + gates) + shift


def flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """4 maps of d x d and the gate; plain causal attention to the first window; then each chunk's
    tokens against the most rows and a whole window, as the batched form pads; and the likeness of
    each absorbed token to the rows, old and new."""
    growth = options.growth
    total = seq_len * (
        8.0 * d_model**2 + (2 * d_model * options.heads if options.merge_gate else 0)
    )
    early = min(seq_len, growth.span)
    total += early * 2.0 * d_model * (early + 1)
    covered = growth.covered(seq_len)
    total += 4.0 * d_model * _read(options, seq_len)
    for before in range(growth.chunk, covered, growth.chunk):
        rows, after = growth.rows(before), growth.rows(before + growth.chunk)
        if after - rows < growth.chunk:
            total += growth.chunk * 2.0 * d_model * after
    return total / seq_len


def saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """Measured with saved-tensor hooks: projections, normalised and rotated queries and keys; then,
    per token that is summarised, its memory key and padded copies, the sums and normalised rows of
    a state for each chunk, and the rows and windows as attended to."""
    growth = options.growth
    covered = growth.covered(seq_len)
    rows = growth.rows(covered)
    merged = rows < covered
    held = 3.0 * d_model * rows * (covered / growth.chunk if merged else 1)
    blocks = growth.chunk if merged else PREFIXES * growth.chunk
    attended = 2.0 * d_model * _read(options, seq_len) / blocks
    summarised = covered * (6.3 * d_model + 10 * options.heads)
    each = (8.2 + 3 * options.token_shift - (not options.temperatures)) * d_model
    return each + 5.5 * options.heads + (held + attended + summarised) / seq_len


def _read(options: Options, seq_len: int) -> float:
    """Rows and window tokens that the tokens after the first window attend to, summed over those
    tokens, with what the batched form masks."""
    growth = options.growth
    covered = growth.covered(seq_len)
    if growth.rows(covered) < covered:
        return float(covered * (growth.rows(covered) + growth.span))
    block, total = PREFIXES * growth.chunk, 0.0
    for first in range(0, covered, block):
        last = min(first + block, covered)
        total += (last - first) * (last + (last - first) + growth.span - growth.chunk)
    return total
