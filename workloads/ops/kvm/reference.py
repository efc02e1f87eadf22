"""Key-value means as the formulas read: one token after another, one row after another. For tests.

Goldstein and Cheah 2026, arXiv 2605.09877. Shares with the fast form nothing but the growth law.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workloads.ops.kvm.state import Learned, Method


@dataclass(slots=True)
class Absorbed:
    """What one chunk did, per batch item and head: the sums after it (B, H, M, D), the scales (B,
    H, M), and the tokens of the chunk that became rows, and the rows of the others, in order."""

    keys: Tensor
    values: Tensor
    scales: Tensor
    appended: list[list[int]]
    merged: list[list[int]]


@dataclass(slots=True)
class _Rows:
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    appended: list[int] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)
    read: tuple[Tensor, Tensor] | None = None


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, *, method: Method, learned: Learned
) -> tuple[Tensor, list[Absorbed]]:
    """q, k (normalised, rotated), v (B, H, T, D) and gate (B, H, T) -> (B, H, T, D), and the state
    after each chunk that entered it."""
    batch, heads, length, _ = q.shape
    growth = method.growth
    tau_window, tau_state = (
        torch.ones(heads, dtype=q.dtype) if t is None else t
        for t in (learned.window_temperature, learned.state_temperature)
    )
    states = [_Rows() for _ in range(batch * heads)]
    log, outputs = [], []
    for t in range(length):
        begin = growth.covered(t + 1)
        if begin > growth.covered(t):
            for i, state in enumerate(states):
                b, h = divmod(i, heads)
                gates = torch.ones_like(k[b, h, :, 0]) if gate is None else gate[b, h]
                chunk = slice(begin - growth.chunk, begin)
                _absorb(state, k[b, h, chunk], v[b, h, chunk], gates[chunk], begin, method, learned)
            log.append(_snapshot(states, batch, heads))
        rows = []
        for i, state in enumerate(states):
            b, h = divmod(i, heads)
            keys, values = tau_window[h] * k[b, h, begin : t + 1], v[b, h, begin : t + 1]
            if begin:
                assert state.read is not None
                keys = torch.cat((tau_state[h] * state.read[0], keys))
                values = torch.cat((state.read[1], values))
            logits = keys @ q[b, h, t] / q.shape[-1] ** 0.5
            rows.append(logits.softmax(0) @ values)
        outputs.append(torch.stack(rows).view(batch, heads, -1))
    return torch.stack(outputs, 2), log


def _norm(x: Tensor, learned: Learned) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / deviation * learned.weight + learned.bias


def _absorb(
    state: _Rows,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    covered: int,
    method: Method,
    learned: Learned,
) -> None:
    one = torch.ones_like(gates[0])
    turned = torch.zeros_like(k[:, : method.rotary])
    tokens = _norm(torch.cat((turned, k[:, method.rotary :]), -1), learned)
    made = len(state.keys)
    more = method.growth.rows(covered) - made
    novel = [0.0] * len(tokens)
    if made:
        novel = (tokens @ _norm(torch.stack(state.keys), learned).mT).amax(-1).tolist()
    state.appended = sorted(sorted(range(len(tokens)), key=lambda j: (novel[j], j))[:more])
    for j in state.appended:
        weight = gates[j] if method.append_gate and made else one
        state.keys.append(weight * tokens[j])
        state.values.append(weight * v[j])
        state.scales.append((weight * v[j]).norm() if method.value_radius else one)
    similarity = (tokens @ _norm(torch.stack(state.keys), learned).mT).tolist()
    state.merged = []
    for j, token in enumerate(tokens):
        if j not in state.appended:
            near = similarity[j][method.sink :]
            to = method.sink + near.index(max(near))
            state.merged.append(to)
            state.keys[to] = state.keys[to] + gates[j] * token
            state.values[to] = state.values[to] + gates[j] * v[j]
            if not method.value_radius:
                state.scales[to] = state.scales[to] + one
    values, scales = torch.stack(state.values), torch.stack(state.scales)[:, None]
    if method.value_radius:
        values = values / values.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        state.read = (_norm(torch.stack(state.keys), learned), scales * values)
    else:
        state.read = (_norm(torch.stack(state.keys), learned), values / scales)


def _snapshot(states: list[_Rows], batch: int, heads: int) -> Absorbed:
    def stacked(rows: list[list[Tensor]]) -> Tensor:
        flat = torch.stack([torch.stack(row) for row in rows])
        return flat.view(batch, heads, *flat.shape[1:])

    return Absorbed(
        stacked([state.keys for state in states]),
        stacked([state.values for state in states]),
        stacked([state.scales for state in states]),
        [list(state.appended) for state in states],
        [list(state.merged) for state in states],
    )
