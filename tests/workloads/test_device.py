"""How the device computes is set before a cell and said in its record."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests.workloads.tiny_cells import measure_cell
from workloads import device as devices
from workloads import run
from workloads.events import Facts
from workloads.ops import attention
from workloads.plugins import Unsupported

TINY = torch.finfo(torch.float32).tiny


def halved(threads: int) -> torch.Tensor:
    """Numbers just below the least normal one, enough of them for so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return torch.full((1 << 20,), TINY) / 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_numbers_are_zero_within_in_every_thread_and_kept_after(threads: int) -> None:
    assert torch.count_nonzero(halved(threads)) == 1 << 20
    with devices.flushed_denormals():
        assert torch.count_nonzero(halved(threads)) == 0
    assert torch.count_nonzero(halved(threads)) == 1 << 20


def test_a_record_says_how_its_numbers_were_rounded() -> None:
    said: dict[str, object] = {}
    for event in run.run(measure_cell()):
        if isinstance(event, Facts):
            said |= event.values
    assert said["denormals"] == "flushed" and said["float32_products"] == "ieee"
    assert torch.count_nonzero(halved(1)), "the cell leaves this process as it was"


def test_no_shell_and_no_library_makes_float32_of_a_cell_coarser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products: Any = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    try:
        products.fp32_precision = "bf16"
        assert devices.facts(torch.device("cpu"))["float32_products"] != "ieee"
        devices.open_device(measure_cell())
        assert devices.facts(torch.device("cpu"))["float32_products"] == "ieee"
    finally:
        products.fp32_precision = before
    assert "ONEDNN_DEFAULT_FPMATH_MODE" not in os.environ


def test_attention_may_not_fall_back_on_the_matrix_within() -> None:
    q, narrower = torch.randn(1, 2, 8, 16), torch.randn(1, 2, 8, 8)
    assert attention.fused(q, q, narrower).shape == narrower.shape
    with devices.fused_attention():
        assert attention.fused(q, q, q).shape == q.shape
        with pytest.raises(Unsupported, match="no fused attention kernel"):
            attention.fused(q, q, narrower)
    assert attention.fused(q, q, narrower).shape == narrower.shape
