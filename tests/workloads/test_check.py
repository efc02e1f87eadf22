"""The dry build: mistakes of a user raise, gaps of a device are told, a model is built once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workloads import check as checking
from workloads import registry
from workloads.cell import Cell
from workloads.check import check
from workloads.sizing import CannotMatch

CELL = Cell(
    kind="measure",
    architecture="transformer",
    architecture_version=1,
    label="transformer",
    task="language_modelling",
    task_version=1,
    size=300_000,
    num_layers=2,
    precision="float32",
    device="cpu:1",
    seq_len=4096,
    batch_size=8,
    round=0,
)

GAPPY = '''
"""A plug-in from another folder, which has no kernel for accelerators."""
from workloads.architectures import gru
from workloads.plugins import Unsupported
from dataclasses import replace

def implementation(options, device_type):
    if device_type != "cpu":
        raise Unsupported("no kernel for " + device_type)
    return "torch.nn.GRU (ATen)"

ARCHITECTURE = replace(gru.ARCHITECTURE, title="gappy", implementation=implementation)
'''


@pytest.mark.parametrize("name", registry.names("architectures"))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_architecture_passes_with_its_defaults(name: str, precision: str) -> None:
    built = check(replace(CELL, architecture=name, precision=precision))
    assert built.shape.architecture == name
    assert built.implementation is not None and built.unsupported is None
    assert 0 < built.parameters < built.total_parameters
    if registry.load("architectures", name).matched:
        assert built.parameters == pytest.approx(CELL.size, rel=0.02)


def test_it_opens_no_device_and_leaves_randomness_alone() -> None:
    before = torch.get_rng_state()
    check(replace(CELL, device="nvidia-h100-80gb-hbm3", size=310_000))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's omission


def test_the_implementation_depends_on_the_device() -> None:
    gru = replace(CELL, architecture="gru", precision="bfloat16")
    on_cpu, on_cuda = check(gru), check(replace(gru, device="nvidia-h100-80gb-hbm3"))
    assert on_cpu.implementation == "torch.nn.GRU (ATen), backward by hand"
    assert on_cuda.implementation == "torch.nn.GRU (cuDNN)"
    assert on_cpu.arithmetic == "bfloat16"
    assert on_cuda.arithmetic == "float32", "cuDNN would compute in float16"


def test_a_missing_kernel_is_told_and_does_not_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "architectures").mkdir()
    (tmp_path / "architectures" / "gappy.py").write_text(GAPPY)
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(tmp_path))
    built = check(replace(CELL, architecture="gappy", device="nvidia-h100-80gb-hbm3"))
    assert (built.implementation, built.unsupported) == (None, "no kernel for cuda")
    assert check(replace(CELL, architecture="gappy")).unsupported is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "transfomer"}, "Did you mean 'transformer'"),
        ({"options": {"head": 2}}, "unknown option 'head'. Did you mean 'heads'"),
        ({"options": {"heads": 0}}, "heads must be at least 1"),
        ({"options": {"heads": 1000}}, "too few"),
        ({"size": 500}, "500 parameters are too few"),
        ({"task": "language_modeling"}, "Did you mean 'language_modelling'"),
        ({"precision": "bfloat32"}, "unknown precision"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_users_mistake_is_a_value_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(replace(CELL, **changes))  # type: ignore[arg-type]  # mistaken on purpose


def test_a_size_that_cannot_be_matched_has_its_own_error() -> None:
    with pytest.raises(CannotMatch):
        check(replace(CELL, size=500))


def test_cells_of_one_model_share_one_dry_build() -> None:
    checking._built.cache_clear()
    start = time.process_time()
    built = {
        id(check(replace(CELL, seq_len=seq_len, batch_size=batch_size, round=round_)))
        for seq_len in range(64, 2064, 100)
        for batch_size in (1, 8)
        for round_ in range(25)
    }
    assert len(built) == 1
    assert checking._built.cache_info().misses == 1
    assert time.process_time() - start < 1.0
