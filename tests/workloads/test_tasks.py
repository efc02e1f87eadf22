"""What holds for every task in the folder: it is timed on generated inputs without data, its ends
are those that its model gets, and it says where its data come from."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.workloads.tiny_cells import measure_cell
from workloads import registry
from workloads.cell import Cell
from workloads.check import check
from workloads.measurement import Measurement
from workloads.model import build
from workloads.objectives import objective_of
from workloads.run import run
from workloads.subject import Subject

CPU = torch.device("cpu")
TASKS = registry.names("tasks")
FIRST = {
    "brackets",
    "chat",
    "copying",
    "forecasting",
    "image_text",
    "language_modelling",
    "needle",
    "recall",
    "speech",
    "state_tracking",
    "summarisation",
}


def cell_of(task: str, architecture: str = "gru", *metrics: str) -> Cell:
    return measure_cell(
        architecture=architecture, task=task, task_options={}, seq_len=24, metrics=metrics
    )


def test_the_folder_holds_the_scenarios_of_the_article() -> None:
    assert set(TASKS) >= FIRST


@pytest.mark.parametrize("task", TASKS)
def test_its_docstring_names_data_licence_and_drawing(task: str) -> None:
    said = importlib.import_module(f"workloads.tasks.{task}").__doc__ or ""
    assert "licence" in said.lower() or "public domain" in said or "CC BY" in said or "PSF" in said
    assert any(line.startswith("    ") for line in said.splitlines()), "an example, drawn"


@pytest.mark.parametrize("architecture", ["gru", "transformer"])
@pytest.mark.parametrize("task", TASKS)
def test_it_is_timed_without_data(task: str, architecture: str) -> None:
    metrics = ("train_step_time", "prefill_time", "decode_time", "state_bytes", "peak_memory")
    cell = cell_of(task, architecture, *metrics)
    found = {e.metric: e for e in run(cell) if isinstance(e, Measurement)}
    assert set(found) == set(metrics)
    for measurement in found.values():
        assert measurement.reason is None and measurement.samples, measurement


@pytest.mark.parametrize("task", TASKS)
def test_made_targets_teach_every_parameter(task: str) -> None:
    cell = cell_of(task, "gru", "train_step_time")
    subject = Subject(cell, check(cell), CPU)
    step = subject.training_step()
    assert step.scored > 0
    loss = step.objective.total(step.model(step.inputs).float(), step.targets) / step.scored
    assert loss.isfinite()
    torch.autograd.backward(loss)
    for parameter in step.model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("task", TASKS)
def test_its_model_takes_and_gives_what_it_says(task: str) -> None:
    cell = cell_of(task)
    built = check(cell)
    ends = built.shape.ends
    model = build(built.shape, seed=0, device=CPU).eval()
    subject = Subject(cell, built, CPU)
    with torch.no_grad():
        inputs = subject.made[:, :-1]
        outputs = model(inputs)
        state = model.empty_state(subject.batch_size, cell.seq_len)
        stepped = []
        for position in range(cell.seq_len):
            said, state = model.step(inputs[:, position], state)
            stepped.append(said)
    assert outputs.shape == (subject.batch_size, cell.seq_len, ends.outputs)
    torch.testing.assert_close(torch.stack(stepped, 1), outputs, rtol=1e-4, atol=1e-4)
    assert objective_of(cell).unit


@pytest.mark.parametrize("task", TASKS)
def test_where_it_says_what_is_missing_it_is_a_sentence_else_its_data_are_here(task: str) -> None:
    plugin = registry.load("tasks", task)
    why = plugin.missing(plugin.options())
    if task == "speech" and why is not None:
        pytest.skip(why)  # Debian packages, where apt is
    assert why is None
