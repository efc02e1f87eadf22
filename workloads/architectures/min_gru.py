"""minGRU and minLSTM: gated recurrences whose gates see the input alone, so that training is
parallel over the context.

Idea: take the hidden state out of the gates of a GRU (or LSTM) and what is left, h_t = (1 - z_t)
h_(t-1) + z_t g(x_t), is a linear recurrence with a decay for each channel. minLSTM has a forget and
an input gate, normalised to sum to one: f / (f + i) and i / (f + i). The candidate is kept positive
by g(u) = u + 1/2 from zero on, sigmoid(u) below. Paper: Feng et al. 2024, "Were RNNs All We
Needed?".

Cost: a token costs 2 d h FLOPs for each gate, for the candidate and for the output, h = expand d,
at any context, in training as in decoding; the scan adds O(h) to it. Training keeps about d + 8 h
numbers a token (minLSTM d + 11 h), linear in the context. Decoding holds h numbers a sequence, in
float32.

Kernels: our own blocked scan on a CPU, fla's HGRN kernels on an NVIDIA GPU. The paper scans in log
space; a scan of the same numbers in linear space is faster and more exact, as nothing is divided.

Left out: the paper's convolution and MLP around the cell, which the shared shell has. The output
map is always there, also at expand = 1, because h is positive and the residual stream is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.mixer import Mixer, MixerState
from workloads.ops import backends, scan
from workloads.plugins import Architecture, unknown

Cell = Literal["gru", "lstm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """cell: gru (one gate) or lstm (two, normalised). expand: hidden width over d_model."""

    cell: Cell = "gru"
    expand: int = 1

    def __post_init__(self) -> None:
        if self.cell not in get_args(Cell):
            raise ValueError(unknown("cell", self.cell, get_args(Cell)))
        if self.expand < 1:
            raise ValueError(f"expand must be at least 1, not {self.expand}")


@dataclass(slots=True)
class MinGruState(MixerState):
    """hidden: (B, expand D), float32 at least."""

    hidden: Tensor


def positive(u: Tensor) -> Tensor:
    """The paper's g: u + 1/2 where u >= 0, sigmoid(u) below; without a branch, which is faster."""
    return torch.relu(u) + torch.sigmoid(u.clamp(max=0))


def gates(cell: Cell, projected: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations (..., 2 H) as z, candidate (gru) or (..., 3 H) as f, i, candidate (lstm) ->
    the recurrence's decay and input, each (..., H)."""
    if cell == "gru":
        update, candidate = projected.chunk(2, -1)
        write = torch.sigmoid(update)
        return 1 - write, write * positive(candidate)
    forget, write, candidate = projected.chunk(3, -1)
    # f / (f + i) of two sigmoids is the sigmoid of their logits' difference
    keep = torch.sigmoid(F.logsigmoid(forget) - F.logsigmoid(write))
    return keep, (1 - keep) * positive(candidate)


def log_decay(cell: Cell, projected: Tensor) -> Tensor:
    """The logarithm of `gates`' decay, exact also where the decay itself is zero in floating
    point."""
    if cell == "gru":
        return F.logsigmoid(-projected.chunk(2, -1)[0])
    forget, write, _ = projected.chunk(3, -1)
    return F.logsigmoid(F.logsigmoid(forget) - F.logsigmoid(write))


class MinGru(Mixer):
    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__()
        self.cell: Cell = options.cell
        self.hidden = options.expand * d_model
        self.gates = nn.Linear(d_model, _maps(options) * self.hidden)
        self.out = nn.Linear(self.hidden, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        """minLSTM's forget gate has a bias of 1, as the LSTM's has here."""
        super().initialise(residual_scale)
        if self.cell == "lstm":
            with torch.no_grad():
                self.gates.bias[: self.hidden] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> MinGruState:
        dtype = torch.promote_types(dtype, torch.float32)
        return MinGruState(torch.zeros(batch_size, self.hidden, device=device, dtype=dtype))

    def prefill(self, x: Tensor, state: MinGruState) -> tuple[Tensor, MinGruState]:
        mixed, hidden = self._mix(x, state.hidden)
        return mixed, MinGruState(hidden)

    def step(self, x: Tensor, state: MinGruState) -> tuple[Tensor, MinGruState]:
        decay, added = gates(self.cell, self.gates(x).to(state.hidden.dtype))
        hidden = torch.addcmul(added, decay, state.hidden)
        out: Tensor = self.out(hidden.to(x.dtype))
        return out, MinGruState(hidden)

    def _mix(self, x: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        projected = self.gates(x)
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        decay, added = gates(self.cell, projected)
        if x.is_cuda:
            logs = log_decay(self.cell, projected)
            hidden, last = scan.linear_scan_fla(logs, added, initial_state=initial)
        else:
            hidden, last = scan.linear_scan(decay, added, initial_state=initial)
        out: Tensor = self.out(hidden.to(x.dtype))
        return out, last


def _maps(options: Options) -> int:
    """Gates and candidate."""
    return 2 if options.cell == "gru" else 3


def _parameters(d_model: int, options: Options) -> int:
    hidden, maps = options.expand * d_model, _maps(options)
    return (maps + 1) * d_model * hidden + maps * hidden


def _state_bytes(d_model: int, options: Options, seq_len: int, element_bytes: int) -> int:
    return options.expand * d_model * max(4, element_bytes)


def _saved_elements(d_model: int, options: Options, seq_len: int) -> float:
    return d_model * (1 + options.expand * (8.0 if options.cell == "gru" else 11.0))


ARCHITECTURE = Architecture(
    title="minGRU",
    version=1,
    options=Options,
    mixer=MinGru,
    parameters=_parameters,
    state_bytes=_state_bytes,
    flops_per_token=lambda d_model, options, seq_len: (
        2.0 * (_maps(options) + 1) * options.expand * d_model**2
    ),
    saved_elements_per_token=_saved_elements,
    implementation=lambda options, device_type: backends.implementation(
        "own blocked scan", scan.KERNEL, device_type
    ),
    kernel_class=backends.kernel_class,
    family="recurrent network",
)
