"""Graphs for the edge are the model they were made from, and what serves them is watched."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from orchestrator.isolation import Isolation
from tests.workloads.tiny_cells import measure_cell
from workloads import conditions, neighbours, registry, run
from workloads.cell import Cell, Limits
from workloads.check import check
from workloads.edge import graphs, quality, serving
from workloads.measurement import Measurement
from workloads.plugins import Unsupported
from workloads.subject import Subject

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
ONE_OF_A_KIND = ("gru", "mamba", "transformer")
"""A state of tensors alone, one with a count that decides nothing, a cache filled so far."""
ARCHITECTURES = [
    name if name in ONE_OF_A_KIND else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in registry.names("architectures")
]


def subject_of(architecture: str) -> Subject:
    cell = measure_cell(architecture=architecture, seq_len=40, size=50_000)
    return Subject(cell, check(cell), CPU)


def outputs(graph: bytes, inputs: bytes) -> torch.Tensor:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    with np.load(io.BytesIO(inputs)) as arrays:
        values = [arrays[name] for name in arrays.files]
    names = [one.name for one in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, values, strict=True)))[0])


class LogSigmoid(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.logsigmoid(x)


def test_a_graph_tells_strong_decays_apart(tmp_path: Path) -> None:
    x = torch.tensor([[-60.0, -30.0, -19.0, -1.0, 0.0, 30.0]])
    graphs.write_graphs(LogSigmoid(), [x], tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / graphs.FLOAT)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), F.logsigmoid(x), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_graph_is_the_models_step(architecture: str) -> None:
    subject = subject_of(architecture)
    files = serving.files(subject)
    with torch.inference_mode():
        _, state = subject.prefilled(room=1)
        wanted, _ = subject.model.step(subject.made[:, -1].contiguous(), state)
    scale = float(wanted.abs().max())
    exact = outputs(files[graphs.FLOAT], files["inputs.npz"])
    rounded = outputs(files[graphs.INT8], files["inputs.npz"])
    torch.testing.assert_close(exact, wanted, rtol=0, atol=1e-5 * max(1.0, scale))
    assert 0 < float((rounded - wanted).abs().max()) < 0.15 * scale
    assert len(files[graphs.INT8]) < 0.6 * len(files[graphs.FLOAT])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_a_graph_is_the_models(architecture: str) -> None:
    model = subject_of(architecture).model
    tokens = torch.randint(256, (3, 25), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens[:, :-1]).flatten(0, 1)
    wanted = float(F.cross_entropy(logits, tokens[:, 1:].flatten()))
    float32, int8 = quality.losses(model, tokens)
    assert float32 == pytest.approx(wanted, abs=1e-4)
    assert float32 != int8 == pytest.approx(wanted, abs=0.05)


@pytest.mark.slow
def test_serving_takes_one_process_that_loads_no_torch() -> None:
    conditions.taken()
    served = serving.served(subject_of("gru"), graphs.INT8)
    assert len(served.seconds) > 100 and min(served.seconds) > 0
    assert 0 <= conditions.taken()[neighbours.WAITED] < 1
    assert 20e6 < served.peak_bytes < 150e6
    asked = "import sys, workloads.edge.serve; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", asked], cwd=ROOT, check=True)


def capped(cap: int, **fields: object) -> Cell:
    cell = measure_cell(architecture="gru", metrics=("int8_serving_memory",), **fields)
    return replace(cell, limits=Limits(memory_bytes=cap))


@pytest.mark.slow
def test_the_cap_is_that_of_the_process_that_serves() -> None:
    """Exporting takes more than 100 MB, which is not counted."""
    with Isolation() as isolation:
        (fits,) = isolation.run_cell(capped(100_000_000)).measurements
        (does_not,) = isolation.run_cell(capped(30_000_000)).measurements
    assert fits.reason is None and fits.samples[0] < 100_000_000
    assert does_not.reason == "out_of_memory"
    assert does_not.detail == "serving does not fit into 30,000,000 bytes"


def reason(cell: Cell) -> tuple[str | None, str | None]:
    (found,) = (event for event in run.run(cell) if isinstance(event, Measurement))
    return found.reason, found.detail


def test_what_is_not_float32_is_not_quantised() -> None:
    cell = measure_cell(metrics=("int8_bytes",), precision="bfloat16")
    assert reason(cell)[0] == "unsupported"


def test_a_missing_package_is_named_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PACKAGES", ("onnx", "no_such_package"))
    found, detail = reason(measure_cell(metrics=("int8_bytes",)))
    assert found == "unsupported"
    assert "no_such_package" in str(detail) and "pip install" in str(detail)


def test_an_export_that_memory_does_not_suffice_for_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write_graphs(*asked: object) -> None:
        raise MemoryError

    monkeypatch.setattr(graphs, "write_graphs", write_graphs)
    found, detail = reason(measure_cell(metrics=("int8_bytes",)))
    assert found == "out_of_memory" and "exporting to ONNX takes more" in str(detail)
    with pytest.raises(MemoryError, match="exporting to ONNX takes more"):
        quality.losses(subject_of("gru").model, torch.zeros(1, 5, dtype=torch.int64))


@pytest.mark.slow
def test_what_does_not_export_is_said(tmp_path: Path) -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(Unsupported, match="does not export to ONNX: "):
        graphs.write_graphs(Branches(), [torch.ones(3)], tmp_path)
