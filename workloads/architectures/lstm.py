"""The long short-term memory: a gated recurrent network with one hidden and one cell vector a
layer.

Idea: a cell c_t = f_t c_(t-1) + i_t g_t carries memory by addition, so that gradients pass through
many tokens. Two gates, i and f, functions of the input and of the last output, decide what is
written and what is kept. A third, o, decides what is read: h_t = o_t tanh(c_t). Paper: Hochreiter
and Schmidhuber 1997, "Long Short-Term Memory", with the forget gate of Gers et al. 2000.

Cost: a token costs 16 d^2 FLOPs at any context, in training as in decoding, one token after another
in both. Training keeps about 17 d numbers a token (oneDNN's workspace; 9 d in ATen's loop), linear
in the context. Decoding holds 2 d numbers a sequence and reads the 8 d^2 weights at each step.

Kernels: `torch.nn.LSTM`, one layer, hidden width d_model; that is oneDNN on a CPU (in float32 and,
where the CPU has it, bfloat16; ATen in float64) and cuDNN on an NVIDIA GPU. A decoding step uses
`torch.lstm_cell` on the same weights, because nn.LSTM repacks all weights on every call, up to 29
times slower at one token.

Left out: peepholes from the cell to the gates (Gers and Schmidhuber 2000), which torch's module
does not have; and a projection of the output (Sak et al. 2014), as the hidden vector is as wide as
the residual stream that it is added to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workloads import recurrent
from workloads.mixer import Mixer, MixerState
from workloads.plugins import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """forget_bias: the forget gate's bias at the start; 1 (Jozefowicz et al. 2015), so that memory
    lasts from then on. library: oneDNN's or cuDNN's kernel over the sequence; without it ATen's
    loop over tokens, to see what of a verdict is the kernel's."""

    forget_bias: float = 1.0
    library: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.forget_bias):
            raise ValueError(f"forget_bias must be a number, not {self.forget_bias}")


@dataclass(slots=True)
class LstmState(MixerState):
    """hidden, cell: (B, D)."""

    hidden: Tensor
    cell: Tensor


class Lstm(Mixer):
    def __init__(self, d_model: int, forget_bias: float = 1.0, library: bool = True) -> None:
        super().__init__()
        self.d_model = d_model
        self.forget_bias = forget_bias
        self.library = library
        self.rnn = nn.LSTM(d_model, d_model, batch_first=True)

    def initialise(self, residual_scale: float) -> None:
        """As every recurrence here, but for the forget gate's bias."""
        recurrent.initialise(self.rnn)
        with torch.no_grad():
            b_ih = self.rnn.all_weights[0][2]
            # The gates' order is i, f, g, o.
            b_ih[self.d_model : 2 * self.d_model] = self.forget_bias

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = recurrent.run(self.rnn, x, library=self.library)[0]
        return output

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> LstmState:
        shape = (batch_size, self.d_model)
        return LstmState(
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(shape, device=device, dtype=dtype),
        )

    def prefill(self, x: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        before = state.hidden[None], state.cell[None]
        output, (hidden, cell) = recurrent.run(self.rnn, x, before, library=self.library)
        return output, LstmState(hidden[0], cell[0])

    def step(self, x: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        hidden, cell = torch.lstm_cell(x, (state.hidden, state.cell), *self.rnn.all_weights[0])
        return hidden, LstmState(hidden, cell)


def _onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _fused(options: Options, device_type: str) -> bool:
    return options.library and (device_type != "cpu" or _onednn())


def _implementation(options: Options, device_type: str) -> str:
    if not _fused(options, device_type):
        return "torch.nn.LSTM (ATen)"
    if device_type == "cpu":
        return "torch.nn.LSTM (oneDNN)"
    return recurrent.cudnn_kernel("torch.nn.LSTM")


ARCHITECTURE = Architecture(
    title="LSTM",
    version=1,
    options=Options,
    mixer=lambda d_model, options: Lstm(d_model, options.forget_bias, options.library),
    parameters=lambda d_model, options: 8 * d_model**2 + 8 * d_model,
    state_bytes=lambda d_model, options, seq_len, element_bytes: 2 * d_model * element_bytes,
    flops_per_token=lambda d_model, options, seq_len: 16.0 * d_model**2,
    # oneDNN's workspace, or ATen's gates and cells.
    saved_elements_per_token=lambda d_model, options, seq_len: (
        (17.2 if options.library else 8.75) * d_model
    ),
    implementation=_implementation,
    kernel_class=lambda options, device_type: (
        "fused" if _fused(options, device_type) else "sequential"
    ),
    calls_per_token=lambda options, device_type: (
        0.0 if _fused(options, device_type) else recurrent.LOOP_CALLS
    ),
    arithmetic=recurrent.arithmetic,
    family="recurrent network",
    code_options=("library",),
)
