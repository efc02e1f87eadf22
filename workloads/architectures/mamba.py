"""Mamba (Mamba-1, S6): a diagonal state space whose step size, input and read-out depend on the
token.

Idea: each of the expand d inner channels drives N linear states with fixed decay rates A. The token
chooses how long a step dt it makes (near zero: ignored; long: the past is forgotten) and which
states it writes (B) and reads (C). A short causal convolution stands before, a SiLU gate after.
Paper: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces".

Cost: a token costs, with e = expand d and r = dt_rank, 6 d e FLOPs of maps, about 4 e (r + N) for
dt, B and C and 4 e N for the scan, at any context, in training as in decoding. Training keeps about
11 e numbers a token, linear in the context, and recomputes the states in backward, which costs the
scan once more. Decoding holds e (N + conv - 1) numbers a sequence, e N of them in float32, and
updates them all at each step.

Kernels: on a CPU our own scan, token by token: a Python loop inside one autograd Function, which
walks chunks of 16 tokens in buffers that fit a cache and keeps each chunk's first state alone. The
rule of this folder, no such loop, is broken on purpose: a token's N e states fill the vector units,
one multiply-add is all that a token waits for, and a parallel scan, whose work is larger, takes
longer (mambapy's, forward and backward, 1.5 to 5 times as long on one core at 64 to 512 channels
and contexts of 256 to 1024). On an NVIDIA GPU mamba-ssm's CUDA kernel, which is not on PyPI as a
wheel and must be built with nvcc, and which starts from an empty context only.

Left out: nothing of the block; the paper stacks it without an MLP, the shared shell has one.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.mixer import Mixer, MixerState
from workloads.ops import selective_scan
from workloads.ops.convolution import causal_conv, causal_conv_step
from workloads.plugins import Architecture, Unsupported

STEP_MIN, STEP_MAX = 1e-3, 1e-1
"""Between these the step sizes start, log-uniformly (the paper's section 3.6)."""
LOOP_CALLS = 4.0
"""Small operations that a token waits for on a CPU, measured where channels are few (counted, 2.3
forward and 5 backward); where they are many, their own work is what it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """state_size: N, states a channel. expand: inner width over d_model. conv: tokens that the
    convolution sees. dt_rank: rank of the map to the step sizes; 0 is the paper's d_model / 16,
    rounded up."""

    state_size: int = 16
    expand: int = 2
    conv: int = 4
    dt_rank: int = 0

    def __post_init__(self) -> None:
        for name in ("state_size", "expand", "conv"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dt_rank < 0:
            raise ValueError(f"dt_rank must be at least 1, or 0 for its default: {self.dt_rank}")


@dataclass(slots=True)
class MambaState(MixerState):
    """history: (B, conv - 1, E), the convolution's last inputs. hidden: (B, N, E), float32 at
    least. tokens: how many came before."""

    history: Tensor
    hidden: Tensor
    tokens: int


class Mamba(Mixer):
    undecayed = ("log_rates",)

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__()
        inner = options.expand * d_model
        self.inner, self.options = inner, options
        self.rank = _rank(d_model, options)
        self.split = (self.rank, options.state_size, options.state_size)
        self.into = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(inner, options.conv))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.select = nn.Linear(inner, sum(self.split), bias=False)
        self.step_size = nn.Linear(self.rank, inner)
        self.log_rates = nn.Parameter(torch.empty(inner, options.state_size))
        self.skip = nn.Parameter(torch.empty(inner))
        self.out = nn.Linear(inner, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        """As the paper's code: A = -(1..N) in every channel (S4D-real), the step sizes
        log-uniform by their bias, the convolution as torch's Conv1d, the skip 1."""
        super().initialise(residual_scale)
        with torch.no_grad():
            bound = self.options.conv**-0.5
            self.conv_weight.uniform_(-bound, bound)
            self.conv_bias.uniform_(-bound, bound)
            self.log_rates.copy_(torch.arange(1.0, self.options.state_size + 1).log())
            self.skip.fill_(1.0)
            bound = self.rank**-0.5
            self.step_size.weight.uniform_(-bound, bound)
            steps = torch.empty(self.inner).uniform_(math.log(STEP_MIN), math.log(STEP_MAX)).exp()
            self.step_size.bias.copy_(steps.expm1().log())  # softplus of it is the step

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> MambaState:
        history = (batch_size, self.options.conv - 1, self.inner)
        hidden = (batch_size, self.options.state_size, self.inner)
        return MambaState(
            torch.zeros(history, device=device, dtype=dtype),
            torch.zeros(hidden, device=device, dtype=torch.promote_types(dtype, torch.float32)),
            0,
        )

    def prefill(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        return self._mix(x, state)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        u, gate = self.into(x).chunk(2, -1)
        u, history = causal_conv_step(u, self.conv_weight, self.conv_bias, state.history)
        u = F.silu(u)
        dt, b, c = self._selected(u)
        y, hidden = selective_scan.selective_scan_step(
            u, dt, self._rates(), b, c, state=state.hidden
        )
        return self._leave(y, u, gate, x), MambaState(history, hidden, state.tokens + 1)

    def _mix(self, x: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        before = 0 if state is None else state.tokens
        u, gate = self.into(x).chunk(2, -1)
        u, history = causal_conv(
            u, self.conv_weight, self.conv_bias, None if state is None else state.history
        )
        u = F.silu(u)
        dt, b, c = self._selected(u)
        if x.is_cuda:
            if before:
                raise Unsupported(f"{selective_scan.KERNEL} cannot continue from a state")
            y, hidden = selective_scan.selective_scan_kernel(u, dt, self._rates(), b, c)
        else:
            initial = None if state is None else state.hidden
            y, hidden = selective_scan.selective_scan(
                u, dt, self._rates(), b, c, initial_state=initial
            )
        return self._leave(y, u, gate, x), MambaState(history, hidden, before + x.shape[1])

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes, in float32 at least, input map and read-out for each token of (..., E)."""
        low_rank, b, c = self.select(u).split(self.split, -1)
        dt = self.step_size(low_rank)
        return F.softplus(dt.to(torch.promote_types(dt.dtype, torch.float32))), b, c

    def _rates(self) -> Tensor:
        dtype = torch.promote_types(self.log_rates.dtype, torch.float32)
        return -self.log_rates.to(dtype).exp()

    def _leave(self, y: Tensor, u: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        y = torch.addcmul(y, u.to(y.dtype), self.skip.to(y.dtype)).to(x.dtype)
        out: Tensor = self.out(y * F.silu(gate))
        return out


def _rank(d_model: int, options: Options) -> int:
    return options.dt_rank or -(-d_model // 16)


def _parameters(d_model: int, options: Options) -> int:
    inner, rank = options.expand * d_model, _rank(d_model, options)
    maps = 3 * d_model + rank + 2 * options.state_size + rank
    # beside the maps: the rates, the convolution and its bias, the step's bias, the skip
    return inner * (maps + options.state_size + options.conv + 3)


def _state_bytes(d_model: int, options: Options, seq_len: int, element_bytes: int) -> int:
    hidden = options.state_size * max(4, element_bytes)
    return options.expand * d_model * ((options.conv - 1) * element_bytes + hidden)


def _flops(d_model: int, options: Options, seq_len: int) -> float:
    inner, rank = options.expand * d_model, _rank(d_model, options)
    maps = 3 * d_model + rank + 2 * options.state_size + rank
    # one multiply-add a state for the recurrence, one for the read-out
    return 2.0 * inner * (maps + options.conv + 2 * options.state_size)


def _saved_elements(d_model: int, options: Options, seq_len: int) -> float:
    inner, rank = options.expand * d_model, _rank(d_model, options)
    starts = options.state_size * -(-seq_len // selective_scan.CHUNK) / seq_len
    history = (options.conv - 1) / seq_len
    return d_model + inner * (10 + starts + history) + rank + 2 * options.state_size


def _implementation(options: Options, device_type: str) -> str:
    if device_type == "cpu":
        return f"own scan, token by token in chunks of {selective_scan.CHUNK}"
    selective_scan.kernel()
    return f"mamba-ssm {importlib.metadata.version('mamba-ssm')} selective_scan_fn"


ARCHITECTURE = Architecture(
    title="Mamba",
    version=1,
    options=Options,
    mixer=Mamba,
    parameters=_parameters,
    state_bytes=_state_bytes,
    flops_per_token=_flops,
    saved_elements_per_token=_saved_elements,
    implementation=_implementation,
    kernel_class=lambda options, device_type: "sequential" if device_type == "cpu" else "fused",
    calls_per_token=lambda options, device_type: LOOP_CALLS if device_type == "cpu" else 0.0,
    family="state space",
)
