"""What this device does at best in a second: the rates that predictions start from, and that each
cell's share is of.

Matrix products in either precision and a copy much larger than any cache, each the fastest of
several, and the time of one small operation, which is what bounds short contexts and decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads import device as devices
from workloads import environment, timing

MATRIX = {"cpu": 768, "cuda": 8192}
COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}


def probe(device_class: str) -> dict[str, float]:
    """`flops_per_second` of float32 and `bfloat16_flops_per_second`, `bytes_per_second` (read +
    write), and `call_seconds` of one small op.

    Takes about a second. `device_class` as in a cell; the first accelerator stands for any other
    than the CPU.
    """
    torch.set_num_threads(environment.threads_of(device_class))
    device = torch.device("cpu" if environment.is_cpu(device_class) else "cuda")
    devices.set_products(device.type)
    n, size = MATRIX[device.type], COPY_BYTES[device.type]
    factors = torch.randn(2, n, n, device=device)
    source = torch.zeros(size // 4, device=device)
    target, small = torch.empty_like(source), torch.zeros(8, device=device)
    with torch.inference_mode():
        products = {
            dtype: min(_product(factors.to(dtype), device))
            for dtype in (torch.float32, torch.bfloat16)
        }
        copy = min(timing.sample(lambda: target.copy_(source), device=device, max_samples=10))

        def calls() -> None:
            for _ in range(200):
                small.add_(1.0)

        call = min(timing.sample(calls, device=device, max_samples=5)) / 200
    return {
        "flops_per_second": 2 * n**3 / products[torch.float32],
        "bfloat16_flops_per_second": 2 * n**3 / products[torch.bfloat16],
        "bytes_per_second": 2 * size / copy,
        "call_seconds": call,
    }


def _product(factors: Tensor, device: torch.device) -> tuple[float, ...]:
    a, b = factors
    return timing.sample(lambda: torch.mm(a, b), device=device, max_samples=10)
