"""The sLSTM: xLSTM's sequential half, an LSTM with exponential gates and memory mixing in heads.

Idea: an LSTM whose input gate is exponential, so that a later token can outweigh all before it. A
normaliser adds up the same weights and divides the cell. Within a head every unit's gates see every
unit's last output (memory mixing); between heads nothing flows. Paper: Beck et al. 2024, "xLSTM:
Extended Long Short-Term Memory". `gate: sigmoid` bounds the input gate, as mLSTMsig does (Beck et
al. 2025), to see what the exponential brings; the paper has no such sLSTM. The normaliser stays.

Cost: a token costs 8 d^2 FLOPs of input maps and 8 d^2 / heads of recurrent ones at any context, in
training as in decoding, one token after another in both: the gates need the output before them, so
that the rule of this folder, no Python loop over tokens, cannot hold here, and on a CPU the loop's
overhead is most of the time at small widths. Training keeps 9 d numbers a token, d more for each
sigmoid gate, linear in the context. Decoding holds 4 d numbers a sequence, in float32.

Kernels: own loop on a CPU, all tokens' input maps in one product before it, backward by hand
(`workloads/ops/slstm.py`). None on a GPU: FlashRNN (Poeppel et al. 2024) has fused kernels that
nobody has yet compared with this cell, and a loop of small launches is no sLSTM to be timed.

The layer: the gates' maps, dense as in the paper's formulas (its code has a block a head), the
cell, a LayerNorm per head, and like the paper's no output map. R starts at U(-1/sqrt(D),
1/sqrt(D)), D a head's width, as every recurrence here, so that memory mixes from the start (the
authors' code begins at zero). Forget biases start from 3 to 6 over a head's units; with the
exponential forget gate, at their log sigmoids, so that both kinds begin with equal decays.

Left out: the paper's convolution before the gates and its gated MLP after the cell, for both of
which the shell has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import plugins
from workloads.mixer import Mixer, MixerState
from workloads.ops import slstm
from workloads.plugins import Architecture, Unsupported

GATES = ("exponential", "sigmoid")
FORGET_BIAS = (3.0, 6.0)
NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: blocks of the recurrent matrix, each d_model / heads wide. gate: the input gate,
    `exponential` or `sigmoid`. forget: the forget gate, `sigmoid` or `exponential`."""

    heads: int = 4
    gate: str = "exponential"
    forget: str = "sigmoid"

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, not {self.heads}")
        if self.gate not in GATES:
            raise ValueError(plugins.unknown("gate", self.gate, GATES))
        if self.forget not in GATES:
            raise ValueError(plugins.unknown("forget gate", self.forget, GATES))


@dataclass(slots=True)
class SlstmState(MixerState):
    """hidden, cell, normaliser and their scale: (B, heads, width), float32 or wider. The scale is
    minus infinity before the first token."""

    hidden: Tensor
    cell: Tensor
    normaliser: Tensor
    scale: Tensor


class Slstm(Mixer):
    """Raises ValueError where d_model does not split into `heads` heads."""

    def __init__(self, d_model: int, heads: int, gate: slstm.Gate, forget: slstm.Gate) -> None:
        super().__init__()
        if d_model % heads:
            raise ValueError(f"d_model must be a multiple of {heads} heads, not {d_model}")
        self.heads, self.width = heads, d_model // heads
        self.gate: slstm.Gate = gate
        self.forget: slstm.Gate = forget
        self.gates = nn.Linear(d_model, 4 * d_model)  # a head after another, each z, i, f, o
        self.recurrent = nn.Parameter(torch.zeros(heads, self.width, 4 * self.width))
        self.norm = nn.Parameter(torch.ones(d_model))

    def initialise(self, residual_scale: float) -> None:
        """As every mixer, but R uniform, and the forget gates open."""
        super().initialise(residual_scale)
        bound = self.width**-0.5
        with torch.no_grad():
            self.norm.fill_(1.0)
            self.recurrent.uniform_(-bound, bound)
            bias = torch.linspace(*FORGET_BIAS, self.width)
            if self.forget == "exponential":
                bias = F.logsigmoid(bias)
            self.gates.bias.view(self.heads, 4, self.width)[:, 2] = bias

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = slstm.slstm(
            self._project(x), self.recurrent, forget=self.forget, gate=self.gate
        )
        return self._normed(hidden, x)

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> SlstmState:
        return SlstmState(*slstm.empty_cell(batch_size, self.heads, self.width, device, dtype))

    def prefill(self, x: Tensor, state: SlstmState) -> tuple[Tensor, SlstmState]:
        hidden, cell = slstm.slstm(
            self._project(x),
            self.recurrent,
            forget=self.forget,
            gate=self.gate,
            initial_state=_cell(state),
        )
        return self._normed(hidden, x), SlstmState(*cell)

    def step(self, x: Tensor, state: SlstmState) -> tuple[Tensor, SlstmState]:
        hidden, cell = slstm.slstm_step(
            self._project(x),
            self.recurrent,
            forget=self.forget,
            gate=self.gate,
            state=_cell(state),
        )
        return self._normed(hidden, x), SlstmState(*cell)

    def _project(self, x: Tensor) -> Tensor:
        """(..., D) -> the gates' share from the input, (..., heads, 4, width)."""
        gates: Tensor = self.gates(x)
        return gates.view(*x.shape[:-1], self.heads, 4, self.width)

    def _normed(self, hidden: Tensor, x: Tensor) -> Tensor:
        """(..., heads, width) -> (..., D) in x's dtype."""
        normed = F.layer_norm(hidden, (self.width,), eps=NORM_EPS).flatten(-2)
        return (normed * self.norm).to(x.dtype)


def _cell(state: SlstmState) -> slstm.Cell:
    return slstm.Cell(state.hidden, state.cell, state.normaliser, state.scale)


def _implementation(options: Options, device_type: str) -> str:
    if device_type == "cpu":
        return "own loop over tokens, backward by hand"
    raise Unsupported(
        "sLSTM has no verified fast kernel here: FlashRNN's fused ones have not been compared with "
        "this cell, and a loop of small launches is never timed in their place"
    )


ARCHITECTURE = Architecture(
    title="sLSTM",
    version=1,
    options=Options,
    mixer=lambda d_model, options: Slstm(
        d_model,
        options.heads,
        cast(slstm.Gate, options.gate),
        cast(slstm.Gate, options.forget),
    ),
    # 4 maps of d x d with biases, 4 recurrent blocks a head, and the norm
    parameters=lambda d_model, options: (
        4 * d_model**2 + 4 * d_model**2 // options.heads + 5 * d_model
    ),
    state_bytes=lambda d_model, options, seq_len, element_bytes: (
        4 * d_model * max(4, element_bytes)
    ),
    flops_per_token=lambda d_model, options, seq_len: (
        8.0 * d_model**2 + 8.0 * d_model**2 / options.heads
    ),
    saved_elements_per_token=lambda d_model, options, seq_len: (
        d_model * (9.1 + (options.forget == "sigmoid") + (options.gate == "sigmoid"))
    ),
    implementation=_implementation,
    kernel_class=lambda options, device_type: "sequential",
    calls_per_token=lambda options, device_type: 30.0,
    width_multiple=lambda options: 8 * options.heads,
    family="recurrent network",
)
