"""The mixers with cached matrix memories: linear attention and the Mamba-2 block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.mixer import Mixer, MixerState
from workloads.ops.convolution import causal_conv, causal_conv_step
from workloads.ops.memory_caching.cache import MatrixCache, empty_cache
from workloads.ops.memory_caching.matrix import memory_caching, memory_caching_step
from workloads.ops.memory_caching.weights import Caching

NORM_EPS = 1e-6
"""Of the linear memory's heads."""
MAMBA2_NORM_EPS = 1e-5
"""Of the Mamba-2 block, as in `workloads/architectures/mamba2.py`."""
CONVOLUTION = 4
"""Tokens of the Mamba-2 block's short convolution."""
EXPAND = 2
"""Inner width of the Mamba-2 block over d_model."""
STATE_WIDTH = 64
"""Width of B and C, shared by the Mamba-2 block's heads."""
_Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""q, k, v, u and the log decay."""


class CachedLinear(Mixer):
    """Raises ValueError where d_model does not split into `heads` heads."""

    def __init__(
        self, d_model: int, heads: int, caching: Caching, decay: bool, output_norm: bool
    ) -> None:
        super().__init__()
        if d_model % heads:
            raise ValueError(f"{heads} heads need a multiple of {heads} as d_model, not {d_model}")
        self.heads, self.head_dim, self.caching = heads, d_model // heads, caching
        self.scale = 1.0 if caching.normalised else self.head_dim**-0.5
        self.qkvu = nn.Linear(d_model, (3 + caching.gated) * d_model, bias=False)
        self.decay = nn.Linear(d_model, heads) if decay else None
        self.norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS) if output_norm else None
        self.out = nn.Linear(d_model, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        """Decays start between 0.95 and 0.998 a token, spread over the heads."""
        super().initialise(residual_scale)
        if self.decay is not None:
            with torch.no_grad():
                self.decay.bias.copy_(torch.linspace(3, 6, self.heads))

    def forward(self, x: Tensor) -> Tensor:
        output, _ = memory_caching(*self._inputs(x), self.caching, scale=self.scale)
        return self._finish(output, x.dtype)

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> MatrixCache:
        widths = self.head_dim, self.head_dim
        return empty_cache(
            self.caching, batch_size, self.heads, self.heads, widths, max_len, device, dtype
        )

    def prefill(self, x: Tensor, state: MatrixCache) -> tuple[Tensor, MatrixCache]:
        output, cache = memory_caching(
            *self._inputs(x), self.caching, scale=self.scale, cache=state
        )
        assert cache is not None
        return self._finish(output, x.dtype), cache

    def step(self, x: Tensor, state: MatrixCache) -> tuple[Tensor, MatrixCache]:
        output, cache = memory_caching_step(
            *self._inputs(x), self.caching, scale=self.scale, cache=state
        )
        return self._finish(output, x.dtype), cache

    def _inputs(self, x: Tensor) -> _Inputs:
        """(..., D) -> (..., H, D / H) each, the log decay (..., H)."""
        q, k, v, *u = self.qkvu(x).unflatten(-1, (-1, self.heads, self.head_dim)).unbind(-3)
        if self.caching.normalised:
            wide = torch.promote_types(q.dtype, torch.float32)
            q, k = F.elu(q.to(wide)) + 1, F.elu(k.to(wide)) + 1
        log_decay = None
        if self.decay is not None:
            logits = self.decay(x)
            log_decay = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return q, k, v, u[0] if u else None, log_decay

    def _finish(self, output: Tensor, dtype: torch.dtype) -> Tensor:
        output = output.to(dtype)
        if self.norm is not None:
            output = self.norm(output)
        mixed: Tensor = self.out(output.flatten(-2))
        return mixed


@dataclass(slots=True)
class MambaCache(MixerState):
    """cache: of the memories; history: (B, 3, channels), inputs of the short convolution."""

    cache: MatrixCache
    history: Tensor


class CachedMamba2(Mixer):
    """The Mamba-2 block (Dao and Gu 2024) with C as q, B as k and dt x as v; gated by z, then
    RMSNorm. The pooled key is B, which all heads share; each has its own connector.

    Raises:
        ValueError: d_model's inner width does not split into `heads` heads.
    """

    def __init__(self, d_model: int, heads: int, caching: Caching) -> None:
        super().__init__()
        self.inner = EXPAND * d_model
        if self.inner % heads:
            raise ValueError(f"{heads} heads do not divide the inner width {self.inner}")
        self.heads, self.head_dim, self.caching = heads, self.inner // heads, caching
        channels = self.inner + 2 * STATE_WIDTH
        connector = heads * STATE_WIDTH * caching.gated
        self.sizes = [self.inner, channels, heads, connector]
        self.inp = nn.Linear(d_model, sum(self.sizes), bias=False)
        self.conv_weight = nn.Parameter(torch.empty(channels, CONVOLUTION))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.log_a = nn.Parameter(torch.empty(heads))
        self.skip = nn.Parameter(torch.empty(heads))
        self.norm = nn.RMSNorm(self.inner, eps=MAMBA2_NORM_EPS)
        self.out = nn.Linear(self.inner, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        """Time steps log-uniform in [0.001, 0.1], A uniform in [1, 16], the convolution and its
        bias as torch's Conv1d: the start of `workloads/architectures/mamba2.py`."""
        super().initialise(residual_scale)
        with torch.no_grad():
            bound = CONVOLUTION**-0.5
            self.conv_weight.uniform_(-bound, bound)
            self.conv_bias.uniform_(-bound, bound)
            steps = torch.empty(self.heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.dt_bias.copy_(steps.expm1().log())  # softplus of it is the step
            self.log_a.uniform_(1, 16).log_()
            self.skip.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        z, mixed, dt, u = self._project(x)
        mixed, _ = causal_conv(mixed, self.conv_weight, self.conv_bias)
        inputs, values = self._inputs(mixed, dt, u)
        output, _ = memory_caching(*inputs, self.caching, scale=1.0)
        return self._finish(output, values, z, x.dtype)

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> MambaCache:
        widths = STATE_WIDTH, self.head_dim
        cache = empty_cache(self.caching, batch_size, self.heads, 1, widths, max_len, device, dtype)
        shape = (batch_size, CONVOLUTION - 1, self.sizes[1])
        return MambaCache(cache, torch.zeros(shape, device=device, dtype=dtype))

    def prefill(self, x: Tensor, state: MambaCache) -> tuple[Tensor, MambaCache]:
        z, mixed, dt, u = self._project(x)
        mixed, history = causal_conv(mixed, self.conv_weight, self.conv_bias, state.history)
        inputs, values = self._inputs(mixed, dt, u)
        output, cache = memory_caching(*inputs, self.caching, scale=1.0, cache=state.cache)
        assert cache is not None
        return self._finish(output, values, z, x.dtype), MambaCache(cache, history)

    def step(self, x: Tensor, state: MambaCache) -> tuple[Tensor, MambaCache]:
        z, mixed, dt, u = self._project(x)
        mixed, history = causal_conv_step(mixed, self.conv_weight, self.conv_bias, state.history)
        inputs, values = self._inputs(mixed, dt, u)
        output, cache = memory_caching_step(*inputs, self.caching, scale=1.0, cache=state.cache)
        return self._finish(output, values, z, x.dtype), MambaCache(cache, history)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        z, mixed, dt, u = self.inp(x).split_with_sizes(self.sizes, -1)
        return z, mixed, dt, u.unflatten(-1, (self.heads, STATE_WIDTH)) if u.shape[-1] else None

    def _inputs(self, mixed: Tensor, dt: Tensor, u: Tensor | None) -> tuple[_Inputs, Tensor]:
        """After the convolution; also x itself (..., H, head width), for the skip."""
        x, b, c = F.silu(mixed).split_with_sizes([self.inner, STATE_WIDTH, STATE_WIDTH], -1)
        wide = torch.promote_types(dt.dtype, torch.float32)
        step = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        log_decay = -step * self.log_a.to(wide).exp()
        values = torch.unflatten(x, -1, (self.heads, self.head_dim)).to(wide)
        inputs = c.unsqueeze(-2), b.unsqueeze(-2), values * step[..., None], u, log_decay
        return inputs, values

    def _finish(self, output: Tensor, values: Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
        output = output + values * self.skip.to(values.dtype)[:, None]
        gated = output.flatten(-2) * F.silu(z.to(output.dtype))
        mixed: Tensor = self.out(self.norm(gated.to(dtype)))
        return mixed
