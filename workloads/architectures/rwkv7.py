"""RWKV-7 "Goose": a delta rule with a decay, a removal and a learning rate for every channel.

Idea: the state matrix S of each head decays per key channel and loses part of what it holds along a
unit key kk, each channel at its own in-context learning rate. It gains a value under another key: S
= diag(w) S - (rate kk) (kk^T S) + k v^T, read by the receptance r. All six inputs of the layer mix
the token with the one before it (token shift), channel by channel. Paper: Peng et al. 2025, "RWKV-7
Goose with Expressive Dynamic State Evolution": log w = -exp(-1/2) sigmoid(.), decay, learning rate
and output gate from maps of low rank, k scaled by the learning rate, a bonus (r . (k u)) v for the
present token, group norm per head.

Cost: a token costs 8 d^2 FLOPs of projections and 12 d times the rank for the low-rank maps, and,
with heads of width w, about 8 d w for its state and, in training and prefill, 16 d C in its chunk
of C = 32, at any context. Training keeps about 46 d + 5 C heads + 2 d w / C numbers a token and the
low ranks, linear in the context (each of the six inputs is mixed by itself). Decoding skips the
chunk, and holds and updates d w numbers a sequence, in float32 or wider, and the last token's d.

Kernels: on a CPU chunks with one batched triangular solve (`workloads/ops/rwkv7_chunks.py`); on an
NVIDIA GPU fla's chunk_rwkv7, for heads of at most 256 channels. A decoding step is plain torch
everywhere.

Left out: the value residual (each layer mixing the first layer's values into its own), which
crosses layers, and the paper's start of mixes and decays by the layer's depth: a mixer does not
know its layer, so all start as the first. The ranks are the paper's, but at most d / 4. The
low-rank maps start at N(0, 0.02), not at zero. Needed beyond the shell: nothing; the paper's
channel mixing, which also has a token shift, is the shell's MLP here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import delta_heads
from workloads.mixer import Mixer, MixerState
from workloads.ops import backends
from workloads.ops.chunks import chunk_of
from workloads.ops.delta_rule import unit_length
from workloads.ops.rwkv7 import STRONGEST_DECAY, wkv7, wkv7_step
from workloads.ops.rwkv7_chunks import CHUNK, chunked_flops
from workloads.plugins import Architecture

MIX_POWERS = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
"""Of r, w, k, v, a (the learning rate) and g: channel c starts with 1 - (c / D)^power of the token
before, as the paper's first layer."""
GROUP_NORM_EPS = 1e-5
"""Times the head's width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: heads a layer, each d_model / heads wide."""

    heads: int = 4

    def __post_init__(self) -> None:
        delta_heads.check(self)


@dataclass(slots=True)
class Rwkv7State(MixerState):
    """memory: (B, heads, key width, value width), float32 or wider. previous: (B, D), the mixer's
    last input."""

    memory: Tensor
    previous: Tensor


def ranks(d_model: int) -> tuple[int, int]:
    """Ranks of the maps to decay and learning rate, and of the one to the gate: the nearest
    multiples of 32 to 1.8 D^0.5 and 0.6 D^0.8, at least 32, as in the paper's code, but at most D /
    4."""
    most = max(1, d_model // 4)
    small = max(32, round(1.8 * d_model**0.5 / 32) * 32)
    gate = max(32, round(0.6 * d_model**0.8 / 32) * 32)
    return min(small, most), min(gate, most)


class Rwkv7(Mixer):
    """Raises ValueError where d_model does not split into `heads` heads of 8 n channels."""

    undecayed = ("mix", "bonus", "norm_weight", "norm_bias")

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__()
        heads = options.heads
        self.d_model, self.heads = d_model, heads
        self.head_dim = delta_heads.head_width(d_model, options)
        small, gate = ranks(d_model)
        self.mix = nn.Parameter(torch.empty(len(MIX_POWERS), d_model))
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.decay_down = nn.Linear(d_model, small, bias=False)
        self.decay_up = nn.Linear(small, d_model)
        self.rate_down = nn.Linear(d_model, small, bias=False)
        self.rate_up = nn.Linear(small, d_model)
        self.gate_down = nn.Linear(d_model, gate, bias=False)
        self.gate_up = nn.Linear(gate, d_model, bias=False)
        self.removal_key = nn.Parameter(torch.empty(d_model))
        self.key_rate = nn.Parameter(torch.empty(d_model))
        self.bonus = nn.Parameter(torch.empty(heads, self.head_dim))
        self.norm_weight = nn.Parameter(torch.empty(heads, self.head_dim))
        self.norm_bias = nn.Parameter(torch.empty(heads, self.head_dim))
        self.out = nn.Linear(d_model, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        """N(0, 0.02) for the maps; mixes, decays and scales as in the first layer of the paper's
        code, without randomness."""
        super().initialise(residual_scale)
        channel = torch.arange(self.d_model) / self.d_model
        with torch.no_grad():
            for mix, power in zip(self.mix, MIX_POWERS, strict=True):
                mix.copy_(1 - channel**power)
            ramp = torch.linspace(0, 1, self.d_model) ** 0.85
            self.decay_up.bias.copy_(5 * ramp - 6.5)
            nn.init.constant_(self.removal_key, 0.85)
            nn.init.ones_(self.key_rate)
            nn.init.zeros_(self.bonus)
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x, x.new_zeros(x.shape[0], x.shape[2]), None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> Rwkv7State:
        return Rwkv7State(
            delta_heads.empty_memory(batch_size, self.heads, self.head_dim, device, dtype),
            torch.zeros(batch_size, self.d_model, device=device, dtype=dtype),
        )

    def prefill(self, x: Tensor, state: Rwkv7State) -> tuple[Tensor, Rwkv7State]:
        output, memory = self._parallel(x, state.previous, state.memory)
        return output, Rwkv7State(memory, x[:, -1].clone())

    def step(self, x: Tensor, state: Rwkv7State) -> tuple[Tensor, Rwkv7State]:
        r, w, k, v, a, b, gate = self._project(x, state.previous)
        mixed, memory = wkv7_step(r, w, k, v, a, b, state=state.memory)
        return self._merge(mixed, r, k, v, gate), Rwkv7State(memory, x.clone())

    def _parallel(
        self, x: Tensor, previous: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r, w, k, v, a, b, gate = self._project(x, torch.cat((previous[:, None], x[:, :-1]), 1))
        mixed, memory = wkv7(
            r, w, k, v, a, b, initial_state=memory, backend="fla" if x.is_cuda else "torch"
        )
        return self._merge(mixed, r, k, v, gate), memory

    def _project(self, x: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """(..., D) and the tokens before -> r, w (log decay), k, v, a, b, each (..., heads, head
        width), and the gate (..., D)."""
        heads = (*x.shape[:-1], self.heads, self.head_dim)
        change = previous - x
        for_r, for_w, for_k, for_v, for_a, for_g = (
            torch.addcmul(x, change, mix) for mix in self.mix.unbind(0)
        )
        r, k, v = self.receptance(for_r), self.key(for_k), self.value(for_v).view(heads)
        gate = self.gate_up(self.gate_down(for_g).sigmoid())
        removed = unit_length((k * self.removal_key).view(heads))
        dtype = removed.dtype
        decay = self.decay_up(self.decay_down(for_w).tanh()).to(dtype).sigmoid()
        rate = self.rate_up(self.rate_down(for_a)).to(dtype).sigmoid()
        k = k * torch.addcmul(torch.ones_like(rate), rate - 1, self.key_rate.to(dtype))
        w = (STRONGEST_DECAY * decay).view(heads)
        return r.view(heads), w, k.view(heads), v, -removed, removed * rate.view(heads), gate

    def _merge(self, mixed: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        """(..., heads, head width) -> (..., D): each head normed, the present token's bonus added,
        gated, then the output map."""
        dtype = self.norm_weight.dtype
        normed = F.layer_norm(mixed.to(dtype), (self.head_dim,), eps=GROUP_NORM_EPS * self.head_dim)
        normed = torch.addcmul(self.norm_bias, normed, self.norm_weight)
        present = (r * k * self.bonus).sum(-1, keepdim=True).to(dtype)
        mixed = torch.addcmul(normed, present, v.to(dtype)).flatten(-2)
        out: Tensor = self.out(mixed * gate)
        return out


def _parameters(d_model: int, options: Options) -> int:
    """Four square maps, three of low rank, and vectors: six mixes, two biases, two scales of the
    key, the bonus, and the norm's two."""
    small, gate = ranks(d_model)
    return 4 * d_model**2 + 2 * d_model * (2 * small + gate) + 13 * d_model


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    small, gate = ranks(d_model)
    width = d_model // options.heads
    projections = 8 * d_model**2 + 4 * d_model * (2 * small + gate)
    return projections + chunked_flops(seq_len, options.heads, width, width)


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """Counted: activations of width d and of the low ranks, and what is kept in chunks."""
    small, gate = ranks(d_model)
    chunk = chunk_of(seq_len, CHUNK)
    in_chunks = delta_heads.saved_in_chunks(d_model, options, chunk, matrices=5, scalars=6)
    return 46.0 * d_model + 2 * small + gate + in_chunks


ARCHITECTURE = Architecture(
    title="RWKV-7",
    version=1,
    options=Options,
    mixer=Rwkv7,
    parameters=_parameters,
    state_bytes=lambda d_model, options, seq_len, element_bytes: (
        delta_heads.memory_bytes(d_model, options, seq_len, element_bytes) + d_model * element_bytes
    ),
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=lambda options, device_type: backends.implementation(
        f"own chunked products (chunk {CHUNK})", "chunk_rwkv7", device_type
    ),
    kernel_class=backends.kernel_class,
    width_multiple=delta_heads.width_multiple,
    family="delta rule",
)
