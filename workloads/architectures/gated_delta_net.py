"""Gated DeltaNet: the delta rule with a memory that can also fade.

Idea: the state matrix S of each head first decays by alpha in (0, 1), chosen by the token. Then its
entry at the token's key is corrected towards the token's value: S = alpha S, S += k (beta (v - S^T
k))^T. The gate clears memory fast, the delta rule edits it precisely. Paper: Yang et al. 2024,
"Gated Delta Networks: Improving Mamba2 with Delta Rule". log alpha = -exp(A_log) softplus(a(x) +
dt_bias) with Mamba-2's start; the output is RMSNorm(o) SiLU(gate(x)). With `decay: channel` every
key channel has its own alpha, from a map of low rank, as in Kimi Delta Attention (Kimi Team 2025,
"Kimi Linear").

Cost: a token costs 10 d^2 FLOPs of projections and, with heads of width w, about 6 d w for its
state and, in training and prefill, 8 d C in its chunk of C = 32, at any context. Training keeps
about 23 d + 6 C heads + 2 d w / C numbers a token (44 d + 3 C heads + 2 d w / C with `channel`),
linear in the context. Decoding skips the chunk, and holds and updates d w numbers a sequence, in
float32 or wider.

Kernels: on a CPU chunks with one batched triangular solve (`workloads/ops/delta_rule_chunks.py`);
on an NVIDIA GPU fla's chunk_gated_delta_rule or chunk_kda, for heads of at most 256 channels. The
first refuses to train on Hopper with Triton 3.4.0 to 3.7.0. A decoding step is plain torch
everywhere.

Left out: the short convolutions on q, k and v (the shell has one on the mixer's input, as an option
for all mixers alike); the paper's values twice as wide as keys; KDA's output gate of low rank with
a sigmoid, so that both decays differ in the decay alone. `negative_eigenvalues` is not the paper's:
beta in (0, 2), as Grazzi et al. 2024 do for DeltaNet. Needed beyond the shell: nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import delta_heads, delta_mixer
from workloads.delta_mixer import DeltaMixer
from workloads.ops import backends
from workloads.ops.delta_rule_chunks import CHUNK
from workloads.plugins import Architecture, unknown

A_RANGE = (1.0, 16.0)
"""exp(A_log) is drawn from it, as in Mamba-2."""
DT_RANGE = (1e-3, 1e-1)
"""softplus(dt_bias) is drawn from it, uniformly in the logarithm, as in Mamba-2."""
_DECAYS = ("scalar", "channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: heads a layer, each d_model / heads wide. negative_eigenvalues: beta in (0, 2) instead
    of (0, 1). decay: `scalar`, one per head, or `channel`, one per key channel (KDA)."""

    heads: int = 4
    negative_eigenvalues: bool = False
    decay: str = "scalar"

    def __post_init__(self) -> None:
        delta_heads.check(self)
        if self.decay not in _DECAYS:
            raise ValueError(unknown("decay", self.decay, _DECAYS))


class GatedDeltaNet(DeltaMixer):
    """Raises ValueError where d_model does not split into `heads` heads of 8 n channels."""

    undecayed = ("A_log", "dt_bias")
    decay: nn.Module

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__(d_model, options, gated=True, decay=_decay_map(d_model, options))
        channels = (self.head_dim,) if options.decay == "channel" else ()
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.dt_bias = nn.Parameter(torch.empty(self.heads, *channels))

    def initialise(self, residual_scale: float) -> None:
        """N(0, 0.02) for the maps; A_log and dt_bias as in Mamba-2, so that without input a head's
        memory halves in 0.4 to 700 tokens."""
        super().initialise(residual_scale)
        with torch.no_grad():
            self.A_log.uniform_(*A_RANGE).log_()
            time = self.dt_bias.uniform_(*map(math.log, DT_RANGE)).exp_()
            time.add_((-time).expm1().neg_().log_())  # the inverse of softplus

    def _log_decay(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        each = self.dt_bias.shape
        time = F.softplus(self.decay(x).to(dtype).unflatten(-1, each) + self.dt_bias.to(dtype))
        rate = self.A_log.to(dtype).exp().view(-1, *(1 for _ in each[1:]))
        return -rate * time


def _decay_map(d_model: int, options: Options) -> nn.Module:
    """To one decay per head, or through the width of a head to one per channel."""
    if options.decay == "scalar":
        return nn.Linear(d_model, options.heads, bias=False)
    width = delta_heads.head_width(d_model, options)
    return nn.Sequential(
        nn.Linear(d_model, width, bias=False), nn.Linear(width, d_model, bias=False)
    )


def _more_weights(d_model: int, options: Options) -> int:
    """Of the maps to the gate and to the decays."""
    to_decays = 2 * (d_model // options.heads) if options.decay == "channel" else options.heads
    return d_model**2 + d_model * to_decays


def _parameters(d_model: int, options: Options) -> int:
    """DeltaNet's, the other maps, A_log and dt_bias."""
    decays = d_model if options.decay == "channel" else options.heads
    own = _more_weights(d_model, options) + options.heads + decays
    return delta_mixer.parameters(d_model, options) + own


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    more, per_channel = _more_weights(d_model, options), options.decay == "channel"
    return delta_mixer.flops(d_model, options, seq_len, more_weights=more, per_channel=per_channel)


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """Counted, of either decay."""
    activations, matrices, scalars = (43.5, 3, 5) if options.decay == "channel" else (23.0, 6, 9)
    return delta_mixer.saved_elements(
        d_model, options, seq_len, activations=activations, matrices=matrices, scalars=scalars
    )


ARCHITECTURE = Architecture(
    title="Gated DeltaNet",
    version=1,
    options=Options,
    mixer=GatedDeltaNet,
    parameters=_parameters,
    state_bytes=delta_heads.memory_bytes,
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=lambda options, device_type: backends.implementation(
        f"own chunked products (chunk {CHUNK})",
        "chunk_kda" if options.decay == "channel" else "chunk_gated_delta_rule",
        device_type,
    ),
    kernel_class=backends.kernel_class,
    width_multiple=delta_heads.width_multiple,
    family="delta rule",
)
