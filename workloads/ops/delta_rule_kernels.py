"""fla's Triton kernels for the delta rule, and what all kernels of its family share: their limits,
and the check before the first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.ops import backends
from workloads.plugins import Unsupported

Form = Callable[..., tuple[Tensor, Tensor]]

MAX_WIDTH = 256
"""The widest key that the kernels of this family take, channels a head."""
_KERNELS = {
    "none": "fla.ops.delta_rule:chunk_delta_rule",
    "head": "fla.ops.gated_delta_rule:chunk_gated_delta_rule",
    "channel": "fla.ops.kda:chunk_kda",
}


def check_width(name: str, k: Tensor) -> None:
    """Raises Unsupported where a head's keys are too wide for the kernel."""
    if k.shape[-1] > MAX_WIDTH:
        raise Unsupported(
            f"{name} takes keys of at most {MAX_WIDTH} channels a head, not {k.shape[-1]}"
        )


def fused(
    own: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`gated_delta_rule` in v's dtype, with decays and state in float32. `own` is the form that the
    kernel is checked against: q, k, v, beta and the decay, if any -> output and last state."""
    kind = "none" if log_decay is None else "head" if log_decay.ndim == 3 else "channel"
    name = _KERNELS[kind]
    check_width(name, k)
    if kind == "none" and v.dtype == torch.float32:
        raise Unsupported(f"{name} refuses float32; bfloat16 runs")
    kernel = backends.kernel(name)

    def fast(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        gate: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        output, last = kernel(
            q=q.to(v.dtype),
            k=k.to(v.dtype),
            v=v,
            beta=beta.to(v.dtype),
            **({} if gate is None else {"g": gate.float()}),
            scale=scale,
            initial_state=None if state is None else state.float(),
            output_final_state=True,
        )
        return output, last

    backends.check_once(name, fast, own, partial(_small_inputs, kind), v)
    return fast(q, k, v, beta, log_decay, initial_state)


def _small_inputs(kind: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two rows of 80 tokens in two heads of width 32, in the order in which `own` takes them."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, 80, 2, *shape, generator=generator)

    q, k = F.normalize(draw(32), dim=-1), F.normalize(draw(32), dim=-1)
    inputs = [x.to(device, dtype) for x in (q, k, draw(32), draw().sigmoid())]
    if kind != "none":
        gate = draw(32) if kind == "channel" else draw()
        inputs.append(F.logsigmoid(gate + 2).to(device))
    return tuple(inputs)
