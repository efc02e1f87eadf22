"""DeltaNet: linear attention that replaces what it stored under a key instead of adding to it.

Idea: a state matrix S per head maps keys to values. Before token t writes, it looks up what S holds
at its key and writes only the difference, scaled by a learned step beta: S += k (beta (v - S^T
k))^T. That is one step of online gradient descent on |S^T k - v|^2. Papers: Schlag et al. 2021,
"Linear Transformers Are Secretly Fast Weight Programmers"; parallel in time by Yang et al. 2024,
"Parallelizing Linear Transformers with the Delta Rule over Sequence Length", whose layer this is.
With `negative_eigenvalues` beta lies in (0, 2) and a step may reflect the state along its key,
which state tracking such as parity needs (Grazzi et al. 2024, "Unlocking State-Tracking in Linear
RNNs Through Negative Eigenvalues").

Cost: a token costs 8 d^2 FLOPs of projections and, with heads of width w, about 6 d w for its state
and 8 d C in its chunk of C = 32, at any context, in training and prefill; decoding skips the chunk.
The state is d w numbers a sequence, in float32 or wider.

Kernels: on a CPU chunks with one batched triangular solve (`workloads/ops/delta_rule.py`); on an
NVIDIA GPU fla's chunk_delta_rule, in bfloat16 only and for heads of at most 256 channels. A
decoding step is plain torch everywhere.

Left out: the short convolutions on q, k and v; the shell has one on the mixer's input, as an option
for all mixers alike. Needed beyond the shell: nothing.
"""

from __future__ import annotations

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
    delta_rule,
    delta_rule_step,
    unit_length,
)
from workloads.plugins import Architecture

NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: heads a layer, each d_model / heads wide. negative_eigenvalues: beta in (0, 2) instead
    of (0, 1)."""

    heads: int = 4
    negative_eigenvalues: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, not {self.heads}")


@dataclass(slots=True)
class DeltaState(MixerState):
    """memory: (B, heads, key width, value width), float32 or wider."""

    memory: Tensor


class DeltaNet(Mixer):
    """Raises ValueError where d_model does not split into `heads` heads of 8 n channels."""

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
        self.beta = nn.Linear(d_model, heads, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> DeltaState:
        shape = (batch_size, self.heads, self.head_dim, self.head_dim)
        state_dtype = torch.promote_types(dtype, torch.float32)
        return DeltaState(torch.zeros(shape, device=device, dtype=state_dtype))

    def prefill(self, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        output, memory = self._parallel(x, state.memory)
        return output, DeltaState(memory)

    def step(self, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        q, k, v, beta = self._project(x)
        mixed, memory = delta_rule_step(q, k, v, None, beta, scale=self.scale, state=state.memory)
        return self._merge(mixed), DeltaState(memory)

    def _parallel(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, beta = self._project(x)
        mixed, memory = delta_rule(
            q,
            k,
            v,
            beta,
            scale=self.scale,
            initial_state=memory,
            backend="fla" if x.is_cuda else "torch",
        )
        return self._merge(mixed), memory

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(..., D) -> q and k of unit length and v, each (..., heads, head width), and beta (...,
        heads)."""
        qkv = F.silu(self.qkv(x)).view(*x.shape[:-1], 3, self.heads, self.head_dim)
        q, k = unit_length(qkv[..., :2, :, :]).unbind(-3)
        beta = self.beta(x).to(q.dtype).sigmoid() * self.largest_beta
        return q, k, qkv[..., 2, :, :], beta

    def _merge(self, mixed: Tensor) -> Tensor:
        """(..., heads, head width) -> (..., D): each head's output normed, then the output map."""
        normed = self.norm(mixed.to(self.norm.weight.dtype))
        out: Tensor = self.out(normed.flatten(-2))
        return out


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    width = d_model // options.heads
    projections = 2 * d_model * (4 * d_model + options.heads)
    return projections + chunked_flops(seq_len, options.heads, width, width)


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """Counted: activations of width d, the chunk's matrices, and the state before each chunk."""
    chunk, width = chunk_of(seq_len), d_model // options.heads
    return 17.0 * d_model + options.heads * (3 * chunk + 5) + 2 * d_model * width / chunk


ARCHITECTURE = Architecture(
    title="DeltaNet",
    version=1,
    options=Options,
    mixer=DeltaNet,
    parameters=lambda d_model, options: (
        4 * d_model**2 + d_model * options.heads + d_model // options.heads
    ),
    state_bytes=lambda d_model, options, seq_len, element_bytes: (
        d_model * (d_model // options.heads) * max(4, element_bytes)
    ),
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=lambda options, device_type: backends.implementation(
        f"own chunked products (chunk {CHUNK})", "chunk_delta_rule", device_type
    ),
    width_multiple=lambda options: 8 * options.heads,
    family="delta rule",
)
