"""The gated recurrent unit: a recurrent network with one state vector and two gates a layer.

Idea: the state becomes a mean of itself and a candidate, h_t = (1 - z_t) n_t + z_t h_(t-1). The
update gate z decides how much is kept. The reset gate r decides how much of the past the candidate
n sees. Paper: Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder".

Cost: a token costs 12 d^2 FLOPs at any context, in training as in decoding, one token after another
in both. Training keeps 2 d numbers a token on a CPU, linear in the context. Decoding holds d
numbers a sequence and reads the 6 d^2 weights at each step.

Kernels: `torch.nn.GRU`, one layer, hidden width d_model; that is cuDNN on an NVIDIA GPU, and ATen's
loop over tokens on a CPU (oneDNN has the GRU but torch does not call it, so it loses to the LSTM
there for want of a kernel, not by its arithmetic), with a backward by hand, which about halves a
training step (`workloads/ops/gru.py`). A decoding step uses `torch.gru_cell` on the same weights.

Left out: the paper resets the state before the recurrent matrix, U (r h); torch and cuDNN reset
after it, r (U h), which makes one product of all gates, and so does this. There is no projection of
the output either, as it is as wide as the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workloads import recurrent
from workloads.mixer import Mixer, MixerState
from workloads.plugins import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """library: cuDNN's kernel over the sequence, on an NVIDIA GPU; without it, and on a CPU always,
    ATen's loop over tokens."""

    library: bool = True


@dataclass(slots=True)
class GruState(MixerState):
    """hidden: (B, D)."""

    hidden: Tensor


class Gru(Mixer):
    def __init__(self, d_model: int, library: bool = True) -> None:
        super().__init__()
        self.d_model = d_model
        self.library = library
        self.rnn = nn.GRU(d_model, d_model, batch_first=True)

    def initialise(self, residual_scale: float) -> None:
        """Zero biases let half of the past through at the start."""
        recurrent.initialise(self.rnn)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = recurrent.run(self.rnn, x, library=self.library)[0]
        return output

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> GruState:
        return GruState(torch.zeros((batch_size, self.d_model), device=device, dtype=dtype))

    def prefill(self, x: Tensor, state: GruState) -> tuple[Tensor, GruState]:
        output, hidden = recurrent.run(self.rnn, x, state.hidden[None], library=self.library)
        return output, GruState(hidden[0])

    def step(self, x: Tensor, state: GruState) -> tuple[Tensor, GruState]:
        hidden = torch.gru_cell(x, state.hidden, *self.rnn.all_weights[0])
        return hidden, GruState(hidden)


def _fused(options: Options, device_type: str) -> bool:
    return options.library and device_type != "cpu"


def _implementation(options: Options, device_type: str) -> str:
    if device_type == "cpu":
        return "torch.nn.GRU (ATen), backward by hand"
    if not options.library:
        return "torch.nn.GRU (ATen)"
    return recurrent.cudnn_kernel("torch.nn.GRU")


ARCHITECTURE = Architecture(
    title="GRU",
    version=2,
    options=Options,
    mixer=lambda d_model, options: Gru(d_model, options.library),
    parameters=lambda d_model, options: 6 * d_model**2 + 6 * d_model,
    state_bytes=lambda d_model, options, seq_len, element_bytes: d_model * element_bytes,
    flops_per_token=lambda d_model, options, seq_len: 12.0 * d_model**2,
    # x and its states; cuDNN's workspace is more, and not known here.
    saved_elements_per_token=lambda d_model, options, seq_len: 2.0 * d_model,
    implementation=_implementation,
    # On a CPU, ATen's loop over tokens in C++.
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
