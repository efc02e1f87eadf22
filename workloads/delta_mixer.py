"""DeltaNet's mixer and what it costs, on which Gated DeltaNet builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.delta_heads import HeadOptions, empty_memory, head_width, saved_in_chunks
from workloads.mixer import Mixer, MixerState
from workloads.ops.chunks import chunk_of
from workloads.ops.delta_rule import Backend, delta_rule, delta_rule_step, unit_length
from workloads.ops.delta_rule_chunks import CHUNK, chunked_flops

NORM_EPS = 1e-5


class DeltaOptions(HeadOptions, Protocol):
    """negative_eigenvalues: beta in (0, 2) instead of (0, 1)."""

    @property
    def negative_eigenvalues(self) -> bool: ...


def parameters(d_model: int, options: HeadOptions) -> int:
    """Of the maps to q, k, v and beta, the heads' norm, and the output map."""
    return 4 * d_model**2 + d_model * options.heads + d_model // options.heads


def flops(
    d_model: int,
    options: HeadOptions,
    seq_len: int,
    *,
    more_weights: int = 0,
    per_channel: bool = False,
) -> float:
    """Of the maps, with so many more weights where others stand beside them, and of the chunks."""
    width = d_model // options.heads
    maps = 2 * (4 * d_model**2 + d_model * options.heads + more_weights)
    return maps + chunked_flops(seq_len, options.heads, width, width, per_channel=per_channel)


def saved_elements(
    d_model: int,
    options: HeadOptions,
    seq_len: int,
    *,
    activations: float = 17.0,
    matrices: int = 3,
    scalars: int = 5,
) -> float:
    """Counted: activations of width d, and what is kept in chunks."""
    in_chunks = saved_in_chunks(
        d_model, options, chunk_of(seq_len, CHUNK), matrices=matrices, scalars=scalars
    )
    return activations * d_model + in_chunks


@dataclass(slots=True)
class DeltaState(MixerState):
    """memory: (B, heads, key width, value width), float32 or wider."""

    memory: Tensor


class DeltaMixer(Mixer):
    """DeltaNet's layer. `gated` multiplies its output by a SiLU of a map of its input; with a map
    `decay` a subclass lets the memory fade. Raises ValueError where d_model does not split into
    `heads` heads of 8 n channels."""

    def __init__(
        self,
        d_model: int,
        options: DeltaOptions,
        *,
        gated: bool = False,
        decay: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = options.heads, head_width(d_model, options)
        self.scale = self.head_dim**-0.5
        self.largest_beta = 2.0 if options.negative_eigenvalues else 1.0
        # Their order is that in which weights are drawn.
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False) if gated else None
        self.beta = nn.Linear(d_model, self.heads, bias=False)
        self.decay = decay
        self.norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> DeltaState:
        return DeltaState(empty_memory(batch_size, self.heads, self.head_dim, device, dtype))

    def prefill(self, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        output, memory = self._parallel(x, state.memory)
        return output, DeltaState(memory)

    def step(self, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        mixed, memory = delta_rule_step(*self._project(x), scale=self.scale, state=state.memory)
        return self._merge(mixed, x), DeltaState(memory)

    def _parallel(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        backend: Backend = "fla" if x.is_cuda else "torch"
        mixed, memory = delta_rule(
            *self._project(x), scale=self.scale, initial_state=memory, backend=backend
        )
        return self._merge(mixed, x), memory

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """(..., D) -> q and k of unit length and v, each (..., heads, head width), the log decay,
        and beta (..., heads)."""
        qkv = F.silu(self.qkv(x)).view(*x.shape[:-1], 3, self.heads, self.head_dim)
        q, k = unit_length(qkv[..., :2, :, :]).unbind(-3)
        log_decay = self._log_decay(x, q.dtype)
        beta = self.beta(x).to(q.dtype).sigmoid() * self.largest_beta
        return q, k, qkv[..., 2, :, :], log_decay, beta

    def _log_decay(self, x: Tensor, dtype: torch.dtype) -> Tensor | None:
        """(..., heads) or (..., heads, head width) in `dtype`; None where nothing fades."""
        return None

    def _merge(self, mixed: Tensor, x: Tensor) -> Tensor:
        """(..., heads, head width) -> (..., D): each head's output normed, gated, then the output
        map."""
        mixed = self.norm(mixed.to(self.norm.weight.dtype)).flatten(-2)
        if self.gate is not None:
            mixed = mixed * F.silu(self.gate(x))
        out: Tensor = self.out(mixed)
        return out
