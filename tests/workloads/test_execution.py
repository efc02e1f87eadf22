"""However a model's operations are launched, they compute the same, and what cannot be launched
says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import config

from tests.workloads.tiny_cells import measure_cell
from workloads import conditions, execution, run
from workloads.cell import Cell
from workloads.check import check
from workloads.events import Facts
from workloads.measurement import Measurement
from workloads.subject import Subject

# Tracing a model, torch's compiler warns of what it itself does.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
# The shell; those whose cache grows, one with a kernel of a library, one of small operations.
ARCHITECTURES = [
    "none",
    *(
        pytest.param(name, marks=pytest.mark.exhaustive)
        for name in ("transformer", "sliding_window", "kvm", "gru", "mamba2")
    ),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def subject(architecture: str, mode: str) -> Subject:
    cell = measure_cell(architecture=architecture, seq_len=12, size=5_000, execution=mode)
    return Subject(cell, check(cell), CPU)


def measured(cell: Cell) -> Measurement:
    (found,) = (event for event in run.run(cell) if isinstance(event, Measurement))
    return found


def weights_after(architecture: str, mode: str) -> list[torch.Tensor]:
    step = subject(architecture, mode).training_step(executed=True)
    step()
    step()
    return [weight.detach() for weight in step.model.parameters()]


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_compiled_training_steps_change_weights_as_two_eager_ones_do(architecture: str) -> None:
    torch.testing.assert_close(
        weights_after(architecture, "compiled"),
        weights_after(architecture, "eager"),
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_decoding_says_what_eager_decoding_says(architecture: str) -> None:
    """Over more steps than would be built anew: a cache's length is another at each."""
    of = subject(architecture, "compiled")
    with torch.inference_mode():
        _, eager = of.prefilled(room=12)
        _, compiled = of.prefilled(room=12, prefill=of.executed(of.model.prefill))
        step = of.executed(of.model.step)
        for position in range(12):
            wanted, eager = of.model.step(of.made[:, position], copy.deepcopy(eager))
            found, compiled = step(of.made[:, position], compiled)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_graphs_are_for_accelerators() -> None:
    found = measured(measure_cell(execution="graph"))
    assert (found.reason, found.samples) == ("unsupported", ())
    assert found.detail == "graph: CUDA graphs need an NVIDIA GPU"


def test_without_a_compiler_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.cpp, "cxx", ("no_such_compiler",))
    found = measured(measure_cell(execution="compiled"))
    assert found.reason == "unsupported" and "install g++" in str(found.detail)


@pytest.mark.parametrize("metric", ["train_step_time", "decode_time"])
def test_a_record_says_how_its_code_was_launched(metric: str) -> None:
    said: dict[str, object] = {}
    for event in run.run(measure_cell(execution="graph", metrics=(metric,))):
        if isinstance(event, Facts):
            said |= event.values
    ran = str(said[conditions.fact("implementation", metric)])
    assert ran.endswith(", launched as a CUDA graph")


def test_what_cannot_be_built_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def ready(function: Callable[..., Any], mode: str, device: torch.device) -> Callable[..., Any]:
        def failing(*given: Any) -> Any:
            raise TorchDynamoException("a branch on data\nand a page of advice")

        return failing

    monkeypatch.setattr(execution, "ready", ready)
    found = measured(measure_cell(execution="compiled"))
    assert found.reason == "unsupported"
    assert found.detail == "compiled: torch cannot build it: a branch on data"


def test_a_cell_without_a_mode_is_the_eager_one() -> None:
    cell = measure_cell()
    old = cell.to_dict()
    del old["execution"]
    assert Cell.from_dict(old).id == cell.id == measure_cell(execution="eager").id
    assert measure_cell(execution="compiled").id != cell.id
