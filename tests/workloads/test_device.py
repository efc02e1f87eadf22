"""How the device computes is set before a cell and said in its record."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.workloads.tiny_cells import measure_cell
from workloads import device as devices
from workloads import run
from workloads.events import Facts

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


def test_an_accelerator_may_not_fall_back_on_the_attention_matrix() -> None:
    script = (
        "import torch; from workloads import device; device.set_products();"
        "assert not torch.backends.cuda.math_sdp_enabled();"
        "assert torch.backends.cuda.flash_sdp_enabled()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
