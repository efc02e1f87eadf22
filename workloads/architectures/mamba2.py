"""Mamba-2 (SSD): Mamba's selective state space with one decay a head, computed by matrix products.

Idea: if all channels of a head share one decay exp(dt_t A), the scan equals linear attention with
queries C, keys B, values dt x and that decay, and runs in chunks of dense products. B and C are
shared by all heads (one group). A short causal convolution stands before x, B and C, a gated
RMSNorm after. Paper: Dao and Gu 2024, "Transformers are SSMs: Generalized Models and Efficient
Algorithms Through Structured State Space Duality".

Cost: a token costs, with e = expand d, 6 d e FLOPs of maps, 4 N e for its state and, in training
and prefill, 2 c (e + N) in its chunk of c = 32 tokens (64 for wider states), at any context.
Training keeps about 14 e + 10 N + 2 e N / c + (3 c + 9) heads numbers a token, linear in the
context: the last terms are each chunk's state, twice, and its tokens by each other in every head.
Decoding skips the chunk, holds e N numbers in float32 and (conv - 1) (e + 2 N) of the convolution,
and updates them all at each step.

Kernels: our own chunked products on a CPU, fla's `chunk_simple_gla` on an NVIDIA GPU.

Left out: several groups of B and C and tensor parallelism, both for models that are spread over
devices; the paper stacks the block without an MLP, the shared shell has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.mixer import Mixer, MixerState
from workloads.ops import backends
from workloads.ops.convolution import causal_conv, causal_conv_step
from workloads.ops.gated_linear import (
    CHUNK,
    chunk_length,
    gated_linear_attention,
    gated_linear_attention_step,
)
from workloads.plugins import Architecture

STEP_MIN, STEP_MAX = 1e-3, 1e-1
"""Between these the step sizes start, log-uniformly."""
RATE_MIN, RATE_MAX = 1.0, 16.0
"""Between these the decay rates -A start, uniformly."""
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """state_size: N, states a channel. expand: inner width over d_model. conv: tokens that the
    convolution sees. head_dim: channels a head; where that does not divide the inner width, their
    greatest common divisor."""

    state_size: int = 64
    expand: int = 2
    conv: int = 4
    head_dim: int = 64

    def __post_init__(self) -> None:
        for name in ("state_size", "expand", "conv", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(slots=True)
class Mamba2State(MixerState):
    """history: (B, conv - 1, E + 2 N), the convolution's last inputs. hidden: (B, heads, N, head
    width), float32 at least."""

    history: Tensor
    hidden: Tensor


class Mamba2(Mixer):
    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__()
        self.options = options
        self.inner = options.expand * d_model
        self.heads = _heads(d_model, options)
        convolved = self.inner + 2 * options.state_size
        self.parts = (self.inner, convolved, self.heads)
        self.into = nn.Linear(d_model, sum(self.parts), bias=False)
        self.conv_weight = nn.Parameter(torch.empty(convolved, options.conv))
        self.conv_bias = nn.Parameter(torch.empty(convolved))
        self.step_bias = nn.Parameter(torch.empty(self.heads))
        self.log_rates = nn.Parameter(torch.empty(self.heads))
        self.skip = nn.Parameter(torch.empty(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=NORM_EPS)
        self.out = nn.Linear(self.inner, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        """As the paper's code: step sizes log-uniform by their bias, rates uniform, the convolution
        as torch's Conv1d, the skip 1."""
        super().initialise(residual_scale)
        with torch.no_grad():
            bound = self.options.conv**-0.5
            self.conv_weight.uniform_(-bound, bound)
            self.conv_bias.uniform_(-bound, bound)
            steps = torch.empty(self.heads).uniform_(math.log(STEP_MIN), math.log(STEP_MAX)).exp()
            self.step_bias.copy_(steps.expm1().log())  # softplus of it is the step
            self.log_rates.uniform_(RATE_MIN, RATE_MAX).log_()
            self.skip.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> Mamba2State:
        history = (batch_size, self.options.conv - 1, self.parts[1])
        head_dim = self.inner // self.heads
        hidden = (batch_size, self.heads, self.options.state_size, head_dim)
        return Mamba2State(
            torch.zeros(history, device=device, dtype=dtype),
            torch.zeros(hidden, device=device, dtype=torch.promote_types(dtype, torch.float32)),
        )

    def prefill(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        return self._mix(x, state)

    def step(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        gate, xbc, dt = self.into(x).split(self.parts, -1)
        xbc, history = causal_conv_step(xbc, self.conv_weight, self.conv_bias, state.history)
        u, v, b, c, log_decay = self._selected(xbc, dt)
        y, hidden = gated_linear_attention_step(c, b, v, log_decay, scale=1.0, state=state.hidden)
        return self._leave(y, u, gate), Mamba2State(history, hidden)

    def _mix(self, x: Tensor, state: Mamba2State | None) -> tuple[Tensor, Mamba2State]:
        gate, xbc, dt = self.into(x).split(self.parts, -1)
        xbc, history = causal_conv(
            xbc, self.conv_weight, self.conv_bias, None if state is None else state.history
        )
        u, v, b, c, log_decay = self._selected(xbc, dt)
        y, hidden = gated_linear_attention(
            c,
            b,
            v,
            log_decay,
            scale=1.0,
            initial_state=None if state is None else state.hidden,
            backend="fla" if x.is_cuda else "torch",
        )
        return self._leave(y, u, gate), Mamba2State(history, hidden)

    def _selected(self, xbc: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The convolved (..., E + 2 N) and the raw step sizes (..., H) -> channels x and values dt
        x (..., H, P), keys B and queries C (..., 1, N), log decay (..., H) in float32 at least."""
        states = self.options.state_size
        u, b, c = torch.split(F.silu(xbc), [self.inner, states, states], -1)
        u = u.view(*u.shape[:-1], self.heads, -1)
        wide = torch.promote_types(dt.dtype, torch.float32)
        dt = F.softplus(dt.to(wide) + self.step_bias.to(wide))
        log_decay = -dt * self.log_rates.to(wide).exp()
        v = (u * dt[..., None]).to(u.dtype)
        return u, v, b.unsqueeze(-2), c.unsqueeze(-2), log_decay

    def _leave(self, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        y = torch.addcmul(y, u, self.skip.to(u.dtype)[:, None]).flatten(-2)
        gated = (y * F.silu(gate)).to(self.norm.weight.dtype)
        out: Tensor = self.out(self.norm(gated))
        return out


def _heads(d_model: int, options: Options) -> int:
    inner = options.expand * d_model
    return inner // math.gcd(options.head_dim, inner)


def _width_multiple(options: Options) -> int:
    """So that a head has 16 channels at least, where it may."""
    least = math.gcd(16, options.head_dim)
    return least // math.gcd(least, options.expand)


def _parameters(d_model: int, options: Options) -> int:
    inner, heads = options.expand * d_model, _heads(d_model, options)
    convolved = inner + 2 * options.state_size
    maps = d_model * (inner + convolved + heads) + inner * d_model
    # beside the maps: the convolution and its bias, three numbers a head, the norm
    return maps + convolved * (options.conv + 1) + 3 * heads + inner


def _state_bytes(d_model: int, options: Options, seq_len: int, element_bytes: int) -> int:
    inner = options.expand * d_model
    history = (options.conv - 1) * (inner + 2 * options.state_size) * element_bytes
    return history + inner * options.state_size * max(4, element_bytes)


def _flops(d_model: int, options: Options, seq_len: int) -> float:
    inner, heads, states = options.expand * d_model, _heads(d_model, options), options.state_size
    convolved = inner + 2 * states
    chunk = chunk_length(seq_len, states, inner // heads)
    padding = -(-seq_len // chunk) * chunk / seq_len
    maps = d_model * (inner + convolved + heads) + inner * d_model
    # C B^T once for all heads and its product with v, the states' writes and reads
    space = chunk * (states + inner) + 2 * states * inner
    return 2.0 * (maps + options.conv * convolved + padding * space)


def _saved_elements(d_model: int, options: Options, seq_len: int) -> float:
    inner, heads, states = options.expand * d_model, _heads(d_model, options), options.state_size
    chunk = chunk_length(seq_len, states, inner // heads)
    maps = d_model + 2 * inner + 2 * states + heads
    convolved = 3 * (inner + 2 * states)
    # values thrice, keys and queries, each chunk's state twice, the tokens of a chunk by each other
    space = 3 * inner + 2 * states + 2 * inner * states / chunk + (3 * heads + 1) * chunk
    return maps + convolved + space + 6 * inner + 8 * heads


ARCHITECTURE = Architecture(
    title="Mamba-2",
    version=1,
    options=Options,
    mixer=Mamba2,
    parameters=_parameters,
    state_bytes=_state_bytes,
    flops_per_token=_flops,
    saved_elements_per_token=_saved_elements,
    implementation=lambda options, device_type: backends.implementation(
        f"own chunked products (chunk {CHUNK})", "chunk_simple_gla", device_type
    ),
    kernel_class=backends.kernel_class,
    width_multiple=_width_multiple,
    family="state space",
)
