"""Gated DeltaNet: the delta rule with a memory that can also fade.

Idea: the state matrix S of each head first decays by alpha in (0, 1), chosen by the token, then its
entry at the token's key is corrected towards the token's value: S = alpha S, S += k (beta (v - S^T
k))^T. The gate clears memory fast, the delta rule edits it precisely. Paper: Yang et al. 2024,
"Gated Delta Networks: Improving Mamba2 with Delta Rule". log alpha = -exp(A_log) softplus(a(x) +
dt_bias) with Mamba-2's start; the output is RMSNorm(o) SiLU(gate(x)). With `decay: channel` every
key channel has its own alpha, from a map of low rank, as in Kimi Delta Attention (Kimi Team 2025,
"Kimi Linear").

Cost: a token costs 10 d^2 FLOPs of projections and, with heads of width w, about 6 d w for its
state and 8 d C in its chunk of C = 32, at any context, in training and prefill; decoding skips the
chunk. The state is d w numbers a sequence, in float32 or wider.

Kernels: on a CPU chunks with one batched triangular solve (`workloads/ops/delta_rule.py`); on an
NVIDIA GPU fla's chunk_gated_delta_rule or chunk_kda, for heads of at most 256 channels. The first
refuses to train on Hopper with Triton 3.4.0 to 3.7.0. A decoding step is plain torch everywhere.

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

from workloads.mixer import Mixer, MixerState
from workloads.ops import backends
from workloads.ops.delta_rule import (
    CHUNK,
    chunk_of,
    chunked_flops,
    delta_rule_step,
    gated_delta_rule,
    unit_length,
)
from workloads.plugins import Architecture, unknown

NORM_EPS = 1e-5
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
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, not {self.heads}")
        if self.decay not in _DECAYS:
            raise ValueError(unknown("decay", self.decay, _DECAYS))


@dataclass(slots=True)
class GatedDeltaState(MixerState):
    """memory: (B, heads, key width, value width), float32 or wider."""

    memory: Tensor


class GatedDeltaNet(Mixer):
    """Raises ValueError where d_model does not split into `heads` heads of 8 n channels."""

    undecayed = ("A_log", "dt_bias")

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__()
        heads = options.heads
        if d_model % (8 * heads):
            raise ValueError(
                f"{heads} heads of a multiple of 8 channels need a d_model that is a multiple of "
                f"{8 * heads}, not {d_model}"
            )
        self.heads, self.head_dim = heads, d_model // heads
        self.scale = self.head_dim**-0.5
        self.largest_beta = 2.0 if options.negative_eigenvalues else 1.0
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.beta = nn.Linear(d_model, heads, bias=False)
        self.decay: nn.Module
        if options.decay == "channel":
            self.decay = nn.Sequential(
                nn.Linear(d_model, self.head_dim, bias=False),
                nn.Linear(self.head_dim, d_model, bias=False),
            )
            self.decay_shape: tuple[int, ...] = (heads, self.head_dim)
        else:
            self.decay = nn.Linear(d_model, heads, bias=False)
            self.decay_shape = (heads,)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(self.decay_shape))
        self.norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        """N(0, 0.02) for the maps; A_log and dt_bias as in Mamba-2, so that without input a head's
        memory halves in 0.4 to 700 tokens."""
        super().initialise(residual_scale)
        with torch.no_grad():
            self.A_log.uniform_(*A_RANGE).log_()
            time = self.dt_bias.uniform_(*map(math.log, DT_RANGE)).exp_()
            time.add_((-time).expm1().neg_().log_())  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> GatedDeltaState:
        shape = (batch_size, self.heads, self.head_dim, self.head_dim)
        state_dtype = torch.promote_types(dtype, torch.float32)
        return GatedDeltaState(torch.zeros(shape, device=device, dtype=state_dtype))

    def prefill(self, x: Tensor, state: GatedDeltaState) -> tuple[Tensor, GatedDeltaState]:
        output, memory = self._parallel(x, state.memory)
        return output, GatedDeltaState(memory)

    def step(self, x: Tensor, state: GatedDeltaState) -> tuple[Tensor, GatedDeltaState]:
        q, k, v, log_decay, beta = self._project(x)
        mixed, memory = delta_rule_step(
            q, k, v, log_decay, beta, scale=self.scale, state=state.memory
        )
        return self._merge(mixed, x), GatedDeltaState(memory)

    def _parallel(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, log_decay, beta = self._project(x)
        mixed, memory = gated_delta_rule(
            q,
            k,
            v,
            log_decay,
            beta,
            scale=self.scale,
            initial_state=memory,
            backend="fla" if x.is_cuda else "torch",
        )
        return self._merge(mixed, x), memory

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(..., D) -> q and k of unit length and v, each (..., heads, head width), the log decay
        (..., heads) or (..., heads, head width), and beta (..., heads)."""
        qkv = F.silu(self.qkv(x)).view(*x.shape[:-1], 3, self.heads, self.head_dim)
        q, k = unit_length(qkv[..., :2, :, :]).unbind(-3)
        dtype = q.dtype
        time = F.softplus(
            self.decay(x).to(dtype).unflatten(-1, self.decay_shape) + self.dt_bias.to(dtype)
        )
        rate = self.A_log.to(dtype).exp().view(-1, *(1 for _ in self.decay_shape[1:]))
        beta = self.beta(x).to(dtype).sigmoid() * self.largest_beta
        return q, k, qkv[..., 2, :, :], -rate * time, beta

    def _merge(self, mixed: Tensor, x: Tensor) -> Tensor:
        """(..., heads, head width) -> (..., D): each head's output normed, gated, then the output
        map."""
        normed = self.norm(mixed.to(self.norm.weight.dtype)).flatten(-2)
        out: Tensor = self.out(normed * F.silu(self.gate(x)))
        return out


def _decay_parameters(d_model: int, options: Options) -> int:
    """The map to the decays, A_log and dt_bias."""
    heads = options.heads
    if options.decay == "channel":
        return 2 * d_model * (d_model // heads) + heads + d_model
    return d_model * heads + 2 * heads


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    width, heads = d_model // options.heads, options.heads
    per_channel = options.decay == "channel"
    decay = 2 * d_model * width if per_channel else d_model * heads
    projections = 2 * (5 * d_model**2 + d_model * heads + decay)
    return projections + chunked_flops(seq_len, heads, width, width, per_channel=per_channel)


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """Counted: activations of width d, the chunk's matrices, and the state before each chunk."""
    chunk, width = chunk_of(seq_len), d_model // options.heads
    channel = options.decay == "channel"
    in_chunk = options.heads * (3 * chunk + 5 if channel else 6 * chunk + 9)
    return (43.5 if channel else 23.0) * d_model + in_chunk + 2 * d_model * width / chunk


ARCHITECTURE = Architecture(
    title="Gated DeltaNet",
    version=1,
    options=Options,
    mixer=GatedDeltaNet,
    parameters=lambda d_model, options: (
        5 * d_model**2
        + d_model * options.heads
        + _decay_parameters(d_model, options)
        + d_model // options.heads
    ),
    state_bytes=lambda d_model, options, seq_len, element_bytes: (
        d_model * (d_model // options.heads) * max(4, element_bytes)
    ),
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=lambda options, device_type: backends.implementation(
        f"own chunked products (chunk {CHUNK})",
        "chunk_kda" if options.decay == "channel" else "chunk_gated_delta_rule",
        device_type,
    ),
    width_multiple=lambda options: 8 * options.heads,
    family="delta rule",
)
