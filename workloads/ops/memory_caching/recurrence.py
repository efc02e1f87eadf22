"""The recurrent mixers with cached memories: torch's LSTM or GRU, its states at segment ends kept.

Independent segments are folded into the batch, so that a context takes as many sequential steps as
one segment has tokens (and a started or a short one beside); checkpointed ones run through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import recurrent
from workloads.mixer import INIT_STD, Mixer
from workloads.ops.memory_caching.vector import (
    Trace,
    VectorCache,
    empty_cache,
    vector_caching,
    vector_caching_step,
)
from workloads.ops.memory_caching.weights import Caching, Layout

_State = tuple[Tensor, Tensor | None]


class CachedRecurrence(Mixer):
    """Hidden width d_model, no output projection; `gate` makes the pooled key and the connector,
    each d_model wide."""

    def __init__(
        self,
        d_model: int,
        base: Literal["lstm", "gru"],
        caching: Caching,
        read: Literal["hidden", "gate"] = "hidden",
    ) -> None:
        super().__init__()
        self.d_model, self.caching, self.read = d_model, caching, read
        module = nn.LSTM if base == "lstm" else nn.GRU
        self.rnn: nn.RNNBase = module(d_model, d_model, batch_first=True)
        self.has_cell = base == "lstm"
        self.gate = nn.Linear(d_model, 2 * d_model, bias=False) if caching.gated else None

    def initialise(self, residual_scale: float) -> None:
        """The recurrence as the plain ones here: forget gates open."""
        recurrent.initialise(self.rnn)
        if self.has_cell:
            with torch.no_grad():
                b_ih = self.rnn.all_weights[0][2]
                b_ih[self.d_model : 2 * self.d_model] = 1.0
        if self.gate is not None:
            nn.init.normal_(self.gate.weight, std=INIT_STD)

    def forward(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """lengths: uneven segments in place of the option's."""
        layout = Layout.of(x.shape[1], 0, self.caching.segment, lengths)
        trace = self._trace(x, None, layout)
        k, u = self._keys(x)
        return vector_caching(trace, k, u, self.caching, lengths=lengths)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> VectorCache:
        return empty_cache(
            self.caching, batch_size, self.d_model, self.has_cell, max_len, device, dtype
        )

    def prefill(self, x: Tensor, state: VectorCache) -> tuple[Tensor, VectorCache]:
        layout = Layout.of(x.shape[1], state.length, self.caching.segment, None)
        trace = self._trace(x, (state.hidden, state.cell), layout)
        k, u = self._keys(x)
        output, cache = vector_caching(trace, k, u, self.caching, cache=state)
        assert cache is not None
        return output, cache

    def step(self, x: Tensor, state: VectorCache) -> tuple[Tensor, VectorCache]:
        weights, out_gate, cell = self.rnn.all_weights[0], None, None
        if state.cell is None:
            hidden = torch.gru_cell(x, state.hidden, *weights)
        elif self.read == "hidden":
            hidden, cell = torch.lstm_cell(x, (state.hidden, state.cell), *weights)
        else:
            i, f, g, out_gate = self._gates(x, state.hidden, slice(None)).chunk(4, -1)
            out_gate = out_gate.sigmoid()
            cell = f.sigmoid() * state.cell + i.sigmoid() * g.tanh()
            hidden = out_gate * cell.tanh()
        k, u = self._keys(x)
        return vector_caching_step(hidden, cell, out_gate, k, u, self.caching, cache=state)

    def _keys(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.gate is None:
            return None, None
        k, u = self.gate(x).chunk(2, -1)
        return k, u

    def _trace(self, x: Tensor, start: _State | None, layout: Layout) -> Trace:
        hidden, last, ends = self._hidden(x, start, layout)
        if self.read == "hidden":
            return Trace(hidden, ends, None, None, last)
        first = torch.zeros_like(hidden[:, :1]) if start is None else start[0][:, None]
        previous = torch.cat((first.to(hidden.dtype), hidden[:, :-1]), 1)
        if self.caching.start == "independent":
            fresh = [p for n in layout.pieces for p in (0.0, *[1.0] * (n - 1))]
            fresh[0] = 1.0  # the open segment goes on from `start`, which is empty in a new one
            previous = previous * torch.tensor(fresh, device=x.device, dtype=x.dtype)[:, None]
        if self.caching.rule != "soup":
            rows = slice(3 * self.d_model, 4 * self.d_model)
            return Trace(hidden, ends, self._gates(x, previous, rows).sigmoid(), None, last)
        i, f, g, out_gate = self._gates(x, previous, slice(None)).chunk(4, -1)
        cell = ends.new_zeros(ends[:, :1].shape) if start is None else start[1]
        assert cell is not None
        before = cell.reshape(ends[:, :1].shape)
        if self.caching.start == "checkpoint":
            before = torch.cat((before, ends[:, :-1]), 1)
        else:
            before = F.pad(before, (0, 0, 0, ends.shape[1] - 1))
        kept, written = layout.lay(f.sigmoid(), 1.0), layout.lay(i.sigmoid() * g.tanh())
        cells = layout.gather(_scan(kept, written, before))
        return Trace(hidden, ends, out_gate.sigmoid(), cells, last)

    def _gates(self, x: Tensor, hidden: Tensor, rows: slice) -> Tensor:
        """The LSTM's gates before their functions, in the order i, f, g, o, from hidden vectors
        that are known."""
        w_ih, w_hh, b_ih, b_hh = (w[rows] for w in self.rnn.all_weights[0])
        return F.linear(x, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh)

    def _hidden(
        self, x: Tensor, start: _State | None, layout: Layout
    ) -> tuple[Tensor, _State, Tensor]:
        """Hidden vectors (B, T, D), the last state, and the memories at segment ends (B, N, D)."""
        pieces, independent = layout.pieces, self.caching.start == "independent"
        if len(pieces) == 1 or (not independent and self.read == "hidden"):
            hidden, last = self._run(x, start)
            if self.read == "gate":
                assert last[1] is not None
                return hidden, last, last[1][:, None]
            at = torch.tensor(pieces, device=x.device).cumsum(0) - 1
            return hidden, last, hidden[:, at]
        outputs, ends, state = [], [], start
        whole = layout.lengths is None and independent
        # Full segments in the middle run as one batch; what is started or short runs by itself.
        first = int(layout.front > 0)
        middle = sum(n == layout.width for n in pieces[first:]) if whole else 0
        sizes = [*pieces[:first], *([middle * layout.width] if middle else []),
                 *pieces[first + middle :]]  # fmt: skip
        for index, part in enumerate(x.split_with_sizes(sizes, 1)):
            if middle and index == first:
                folded, (h, c) = self._run(part.reshape(-1, layout.width, self.d_model), None)
                outputs.append(folded.reshape(part.shape))
                kept = torch.unflatten(h if self.read == "hidden" else _known(c), 0, (-1, middle))
                ends.append(kept)
                hidden_end = torch.unflatten(h, 0, (-1, middle))[:, -1]
                cell_end = None if c is None else torch.unflatten(c, 0, (-1, middle))[:, -1]
                state = hidden_end, cell_end
                continue
            hidden, state = self._run(part, None if independent and index else state)
            outputs.append(hidden)
            ends.append((state[0] if self.read == "hidden" else _known(state[1]))[:, None])
        assert state is not None
        return torch.cat(outputs, 1), state, torch.cat(ends, 1)

    def _run(self, x: Tensor, start: _State | None) -> tuple[Tensor, _State]:
        """The module over x (B, T, D), from zeros where there is no start."""
        if not self.has_cell:
            hidden, last = recurrent.run(
                self.rnn, x, None if start is None else start[0][None].contiguous()
            )
            return hidden, (last[0], None)
        given = None
        if start is not None:
            given = start[0][None].contiguous(), _known(start[1])[None].contiguous()
        hidden, (last, cell) = recurrent.run(self.rnn, x, given)
        return hidden, (last[0], cell[0])


def _known(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _scan(kept: Tensor, written: Tensor, before: Tensor) -> Tensor:
    """c_t = kept_t c_(t-1) + written_t inside each segment, by doubling.

    kept, written: (B, N, C, D), before: (B, N, D) -> (B, N, C, D), in float32 or wider.
    """
    dtype = torch.promote_types(kept.dtype, torch.float32)
    kept, written = kept.to(dtype), written.to(dtype)
    first = written[:, :, :1] + kept[:, :, :1] * before.to(dtype)[:, :, None]
    cells = torch.cat((first, written[:, :, 1:]), 2)
    reach = 1
    while reach < kept.shape[2]:
        later = cells[:, :, reach:] + kept[:, :, reach:] * cells[:, :, :-reach]
        cells = torch.cat((cells[:, :, :reach], later), 2)
        kept = torch.cat((kept[:, :, :reach], kept[:, :, reach:] * kept[:, :, :-reach]), 2)
        reach *= 2
    return cells
