"""Ballast for the memory metrics: a mixer that passes its input on and holds memory of a known
size.

`bytes` are held from the start, in a buffer; `scratch_bytes` are held during forward only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workloads.mixer import Mixer
from workloads.plugins import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    bytes: int = 0
    scratch_bytes: int = 0


class Ballast(Mixer):
    def __init__(self, options: Options) -> None:
        super().__init__()
        self.scratch_bytes = options.scratch_bytes
        self.register_buffer("ballast", torch.ones(options.bytes, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        torch.ones(self.scratch_bytes, dtype=torch.uint8, device=x.device)
        return x

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> Any:
        return None

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self(x), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self(x), state


ARCHITECTURE = Architecture(
    title="ballast",
    version=1,
    options=Options,
    mixer=lambda d_model, options: Ballast(options),
    parameters=lambda d_model, options: 0,
    state_bytes=lambda d_model, options, seq_len, element_bytes: 0,
    flops_per_token=lambda d_model, options, seq_len: 0.0,
    saved_elements_per_token=lambda d_model, options, seq_len: 0.0,
    implementation=lambda options, device_type: "ballast",
)
