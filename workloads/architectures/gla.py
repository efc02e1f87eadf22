"""Gated linear attention and its kin: linear attention whose state decays.

Idea: the past is one matrix a head, S_t = diag(a_t) S_(t-1) + k_t v_t^T, read by q_t. The decay
a_t, between 0 and 1, makes room for what comes. `decay` says who chooses it: `fixed`, nobody, head
h keeps 1 - 2^(-5-h) of its state at every token (Sun et al. 2023, "Retentive Network"); `scalar`,
the token, one number a head, as in Mamba-2 and simple GLA; `channel`, the token, one number for
every key channel (Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient
Training").

All three share GLA's layer: keys and queries of d / 2, values of d, a_t = sigmoid(gate)^(1/16), for
`channel` with the gate through rank 16, and outputs normed in each head (RMSNorm) and multiplied by
SiLU of a projection of the input.

Cost: a token costs 8 d^2 FLOPs of projections and 2 d^2 / heads of state at any context and, in
training and prefill, products within chunks; training is parallel over the context. It keeps about
12 d numbers a token (20 d with `channel`), and each chunk's C x C matrices and state, linear in the
context. Decoding skips the chunk, and holds and updates d^2 / (2 heads) numbers in float32.

Kernels: `workloads/ops/gated_linear.py`: own chunked products on a CPU; on an NVIDIA GPU fla's
`chunk_gla` for `channel`, else `chunk_simple_gla`, which refuses to train with `scalar` on Hopper
before Triton 3.7.1 (wrong gradients there).

Left out: RetNet's rotation of q and k (xPos) and its values of 2 d, so that the three differ in the
decay alone; the norm is RMSNorm, not RetNet's group norm. Beyond the shared shell it needs nothing.
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
    gated_linear_attention,
    gated_linear_attention_step,
    kernel_path,
)
from workloads.ops.gated_linear_chunks import CHUNK, products_per_token, saved_per_token
from workloads.plugins import Architecture

GATE_RANK = 16
GATE_ROOT = 16.0
"""The decay is this root of a sigmoid, so that a gate at rest keeps 96 % of the state."""
_DECAY_DIMS = {"fixed": 1, "scalar": 3, "channel": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: each has keys of d_model / (2 heads) and values of d_model / heads. decay: fixed,
    scalar or channel."""

    heads: int = 4
    decay: str = "channel"

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, not {self.heads}")
        if self.decay not in _DECAY_DIMS:
            raise ValueError(plugins.unknown("decay", self.decay, _DECAY_DIMS))


@dataclass(slots=True)
class GlaState(MixerState):
    """memory: S, (B, heads, key width, value width)."""

    memory: Tensor


_fixed: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def fixed_log_decays(heads: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """log(1 - 2^(-5-h)) of every head, (heads,); computed once, in float64."""
    key = (heads, device, dtype)
    if key not in _fixed:
        with torch.inference_mode(False):  # training may use it later
            head = torch.arange(heads, dtype=torch.float64, device="cpu")
            _fixed[key] = torch.log1p(-torch.exp2(-5 - head)).to(device, dtype)
    return _fixed[key]


class GatedLinearAttention(Mixer):
    """Raises ValueError where d_model does not split into keys and values of `heads` heads."""

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__()
        heads = options.heads
        if d_model % (2 * heads):
            raise ValueError(
                f"{heads} heads, with keys half as wide as values, need a d_model that is a "
                f"multiple of {2 * heads}, not {d_model}"
            )
        self.heads, self.decay = heads, options.decay
        self.widths = (d_model // 2, d_model // 2, d_model, d_model)
        self.dk, self.dv = d_model // (2 * heads), d_model // heads
        self.qkvg = nn.Linear(d_model, sum(self.widths), bias=False)
        self.gate: nn.Module | None = None
        if options.decay == "scalar":
            self.gate = nn.Linear(d_model, heads)
        elif options.decay == "channel":
            self.gate = nn.Sequential(
                nn.Linear(d_model, GATE_RANK, bias=False), nn.Linear(GATE_RANK, d_model // 2)
            )
        self.norm = nn.RMSNorm(self.dv, eps=1e-5)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> GlaState:
        shape = (batch_size, self.heads, self.dk, self.dv)
        dtype = torch.promote_types(dtype, torch.float32)
        return GlaState(torch.zeros(shape, device=device, dtype=dtype))

    def prefill(self, x: Tensor, state: GlaState) -> tuple[Tensor, GlaState]:
        output, memory = self._parallel(x, state.memory)
        return output, GlaState(memory)

    def step(self, x: Tensor, state: GlaState) -> tuple[Tensor, GlaState]:
        q, k, v, output_gate = self._project(x)
        read, memory = gated_linear_attention_step(
            q, k, v, self._log_decay(x), scale=self.dk**-0.5, state=state.memory
        )
        return self._merge(read, output_gate), GlaState(memory)

    def _parallel(self, x: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, output_gate = self._project(x)
        read, memory = gated_linear_attention(
            q,
            k,
            v,
            self._log_decay(x),
            scale=self.dk**-0.5,
            initial_state=start,
            backend="fla" if x.is_cuda else "torch",
        )
        return self._merge(read, output_gate), memory

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(..., D) -> q, k (..., heads, key width), v (..., heads, value width), and the output
        gate (..., D)."""
        q, k, v, gate = self.qkvg(x).split(self.widths, -1)
        q, k, v = (t.reshape(*t.shape[:-1], self.heads, -1) for t in (q, k, v))
        return q, k, v, gate

    def _log_decay(self, x: Tensor) -> Tensor:
        """In float32 at least: (heads,), (..., heads) or (..., heads, key width)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.gate is None:
            return fixed_log_decays(self.heads, x.device, dtype)
        log_decay = F.logsigmoid(self.gate(x).to(dtype)) / GATE_ROOT
        if self.decay == "channel":
            log_decay = log_decay.view(*x.shape[:-1], self.heads, -1)
        return log_decay

    def _merge(self, read: Tensor, output_gate: Tensor) -> Tensor:
        normed = self.norm(read.to(self.norm.weight.dtype)).flatten(-2)
        out: Tensor = self.out(normed * F.silu(output_gate))
        return out


def _parameters(d_model: int, options: Options) -> int:
    gate = {
        "fixed": 0,
        "scalar": options.heads * (d_model + 1),
        "channel": GATE_RANK * (d_model + d_model // 2) + d_model // 2,
    }
    return 4 * d_model**2 + d_model // options.heads + gate[options.decay]


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    gate = {
        "fixed": 0,
        "scalar": 2 * d_model * options.heads,
        "channel": 2 * GATE_RANK * (d_model + d_model // 2),
    }
    dv = d_model // options.heads
    per_channel = options.decay == "channel"
    products = products_per_token(seq_len, options.heads, dv // 2, dv, per_channel)
    return 8.0 * d_model**2 + gate[options.decay] + products


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    gate = {"fixed": 0, "scalar": 5 * options.heads, "channel": d_model + GATE_RANK}
    dv = d_model // options.heads
    within = saved_per_token(seq_len, options.heads, dv // 2, dv, _DECAY_DIMS[options.decay])
    return 9 * d_model + gate[options.decay] + within


def _implementation(options: Options, device_type: str) -> str:
    wider = "" if options.decay == "channel" else f", {2 * CHUNK} for heads wider than {2 * CHUNK}"
    return backends.implementation(
        f"own chunked products (chunk {CHUNK}{wider})",
        kernel_path(_DECAY_DIMS[options.decay]).partition(":")[2],
        device_type,
    )


ARCHITECTURE = Architecture(
    title="gated linear attention",
    version=2,
    options=Options,
    mixer=GatedLinearAttention,
    parameters=_parameters,
    state_bytes=lambda d_model, options, seq_len, element_bytes: (
        d_model**2 // (2 * options.heads) * max(4, element_bytes)
    ),
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=_implementation,
    kernel_class=backends.kernel_class,
    width_multiple=lambda options: 2 * options.heads,
    heads=lambda options: options.heads,
    family="linear attention",
)
