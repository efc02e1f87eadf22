"""Linear attention: attention without the softmax, so that the past fits into one matrix a head.

Idea: with phi(q) . phi(k) in place of exp(q . k), the sum over the past can be taken first: S_t =
S_(t-1) + phi(k_t) v_t^T, read by phi(q_t). Divided by phi(q_t) . z_t, where z_t is the sum of all
phi(k), it is a weighted mean of the values, as attention's is. Nothing is ever forgotten. Paper:
Katharopoulos et al. 2020, "Transformers are RNNs", with phi = elu + 1.

Cost: a token costs 8 d^2 FLOPs of projections and 4 d^2 / heads of state at any context and, in
training and prefill, products within chunks; training is parallel over the context. It keeps about
9 d numbers a token, and each chunk's C x C matrices and state, linear in the context. Decoding
skips the chunk, and holds and updates d^2 / heads numbers, and d more for z, in float32.

Options: phi is elu + 1, relu, or the identity; without the division (`normalised: false`) outputs
are scaled by 1 / sqrt(head width) and normed in each head, as in Qin et al. 2022, "The Devil in
Linear Transformer", because sums over the whole past grow with it. The identity has no positive
weights to divide by. Beyond the shared shell it needs nothing.

Kernels: `workloads/ops/gated_linear.py` without a decay: own chunked products on a CPU, fla's
`chunk_simple_gla` (what its `chunk_linear_attn` calls) on an NVIDIA GPU, with the divisor in torch.

Left out: the original's dropout, as no mixer here drops within itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import plugins
from workloads.mixer import Mixer, MixerState
from workloads.ops import backends
from workloads.ops.gated_linear import (
    Backend,
    gated_linear_attention,
    gated_linear_attention_step,
)
from workloads.ops.gated_linear_chunks import CHUNK, products_per_token, saved_per_token
from workloads.plugins import Architecture

FEATURE_MAPS = ("identity", "elu", "relu")
EPSILON = 1e-10
"""Added to the divisor: relu may leave no key visible at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: each is d_model / heads wide. feature_map: identity, elu (elu + 1) or relu.
    normalised: outputs are weighted means of the values."""

    heads: int = 4
    feature_map: str = "elu"
    normalised: bool = True

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, not {self.heads}")
        if self.feature_map not in FEATURE_MAPS:
            raise ValueError(plugins.unknown("feature_map", self.feature_map, FEATURE_MAPS))
        if self.normalised and self.feature_map == "identity":
            raise ValueError(
                "feature_map identity gives negative weights, which cannot be normalised: "
                "set normalised to false, or use elu or relu"
            )


@dataclass(slots=True)
class LinearAttentionState(MixerState):
    """memory: S, (B, heads, head width, head width); normalised, z is one more column of it."""

    memory: Tensor


def features(x: Tensor, feature_map: str) -> Tensor:
    """phi(x), elementwise."""
    if feature_map == "identity":
        return x
    return F.elu(x) + 1 if feature_map == "elu" else F.relu(x)


def normalised_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None = None, backend: Backend = "torch"
) -> tuple[Tensor, Tensor]:
    """phi(q), phi(k) (B, T, H, Dk), v (B, T, H, Dv) -> weighted means of v (B, T, H, Dv) and the
    state (B, H, Dk, Dv + 1), whose last column is z. Raises ValueError for an unknown backend."""
    backends.check_backend(backend)
    if backend == "torch":
        sums, state = gated_linear_attention(
            q, k, _with_ones(v), None, scale=1.0, initial_state=initial_state
        )
        return _divided(sums), state
    # the kernel's tiles are powers of two: a column more would double them
    start = None if initial_state is None else initial_state[..., :-1]
    above, memory = gated_linear_attention(
        q, k, v, None, scale=1.0, initial_state=start, backend=backend
    )
    z = k.float().cumsum(1)
    if initial_state is not None:
        z = z + initial_state[:, None, :, :, -1]
    below = (q.float() * z).sum(-1, keepdim=True) + EPSILON
    return (above / below).to(v.dtype), torch.cat((memory, z[:, -1, ..., None]), -1)


def normalised_linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: the shapes of `normalised_linear_attention` without T."""
    sums, state = gated_linear_attention_step(q, k, _with_ones(v), None, scale=1.0, state=state)
    return _divided(sums), state


def _with_ones(v: Tensor) -> Tensor:
    return F.pad(v, (0, 1), value=1.0)


def _divided(sums: Tensor) -> Tensor:
    return sums[..., :-1] / (sums[..., -1:] + EPSILON)


class LinearAttention(Mixer):
    """Raises ValueError where d_model does not split into `heads` heads."""

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__()
        if d_model % options.heads:
            raise ValueError(
                f"{options.heads} heads need a d_model that is a multiple of {options.heads}, "
                f"not {d_model}"
            )
        self.options, self.head_dim = options, d_model // options.heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.norm = None if options.normalised else nn.RMSNorm(self.head_dim, eps=1e-5)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> LinearAttentionState:
        shape = (batch_size, self.options.heads, *_state_shape(self.head_dim, self.options))
        dtype = torch.promote_types(dtype, torch.float32)
        return LinearAttentionState(torch.zeros(shape, device=device, dtype=dtype))

    def prefill(
        self, x: Tensor, state: LinearAttentionState
    ) -> tuple[Tensor, LinearAttentionState]:
        output, memory = self._parallel(x, state.memory)
        return output, LinearAttentionState(memory)

    def step(self, x: Tensor, state: LinearAttentionState) -> tuple[Tensor, LinearAttentionState]:
        q, k, v = self._project(x)
        if self.norm is None:
            read, memory = normalised_linear_attention_step(q, k, v, state.memory)
        else:
            read, memory = gated_linear_attention_step(
                q, k, v, None, scale=self.head_dim**-0.5, state=state.memory
            )
            read = self.norm(read.to(self.norm.weight.dtype))
        out: Tensor = self.out(read.flatten(-2))
        return out, LinearAttentionState(memory)

    def _parallel(self, x: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self._project(x)
        backend: Backend = "fla" if x.is_cuda else "torch"
        if self.norm is None:
            read, memory = normalised_linear_attention(q, k, v, start, backend)
        else:
            read, memory = gated_linear_attention(
                q, k, v, None, scale=self.head_dim**-0.5, initial_state=start, backend=backend
            )
            read = self.norm(read.to(self.norm.weight.dtype))
        return self.out(read.flatten(-2)), memory

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) -> phi(q), phi(k) and v, each (..., heads, head width)."""
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.options.heads, self.head_dim)
        q, k, v = qkv.unbind(-3)
        phi = self.options.feature_map
        return features(q, phi), features(k, phi), v


def _state_shape(head_dim: int, options: Options) -> tuple[int, int]:
    return head_dim, head_dim + options.normalised


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    shape = _state_shape(d_model // options.heads, options)
    return 8.0 * d_model**2 + products_per_token(seq_len, options.heads, *shape, False)


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    shape = _state_shape(d_model // options.heads, options)
    features = {"identity": 0, "elu": 3, "relu": 2}[options.feature_map]
    normalisation = 1 if options.normalised else 2
    return (2 + features + normalisation) * d_model + saved_per_token(
        seq_len, options.heads, *shape, 0
    )


def _implementation(options: Options, device_type: str) -> str:
    return backends.implementation(
        f"own chunked products (chunk {CHUNK}, {2 * CHUNK} for heads wider than {2 * CHUNK})",
        "chunk_simple_gla",
        device_type,
    )


def _state_bytes(d_model: int, options: Options, seq_len: int, element_bytes: int) -> int:
    rows, columns = _state_shape(d_model // options.heads, options)
    return options.heads * rows * columns * max(4, element_bytes)


ARCHITECTURE = Architecture(
    title="linear attention",
    version=2,
    options=Options,
    mixer=LinearAttention,
    parameters=lambda d_model, options: (
        4 * d_model**2 + (0 if options.normalised else d_model // options.heads)
    ),
    state_bytes=_state_bytes,
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=_implementation,
    kernel_class=backends.kernel_class,
    width_multiple=lambda options: options.heads,
    heads=lambda options: options.heads,
    family="linear attention",
)
