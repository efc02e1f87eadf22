"""The instruments read what they claim: known amounts of memory, single calls, bounded samples."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.workloads.tiny_cells import measure_cell
from workloads import run, timing
from workloads.check import check
from workloads.measurement import Measurement
from workloads.metrics import decode_time, generation_time
from workloads.record import RunRecord
from workloads.subject import Subject

CPU = torch.device("cpu")
MEGABYTES = 1_000_000
BALLAST = 300 * MEGABYTES
ROOT = Path(__file__).parents[2]


def memory_of(options: dict[str, int]) -> tuple[float, float]:
    """Peak of tensors and of the process, in a process of its own, as a sweep would take them."""
    cell = measure_cell(
        architecture="ballast",
        options=options,
        seq_len=64,
        metrics=("peak_memory", "peak_process_memory"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "workloads", "-", "--quiet"],
        input=json.dumps(cell.to_dict()),
        env={**os.environ, "WORKLOADS_PLUGINS": str(ROOT / "tests/plugins")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    record = RunRecord.from_dict(json.loads(done.stdout.splitlines()[-1]))
    tensors, process = record.measurements
    return tensors.samples[0], process.samples[0]


@pytest.fixture(scope="module")
def without_ballast() -> tuple[float, float]:
    return memory_of({})


@pytest.mark.parametrize("option", ["bytes", "scratch_bytes"])
def test_ballast_shows_in_both_memory_metrics(
    option: str, without_ballast: tuple[float, float]
) -> None:
    tensors, process = memory_of({option: BALLAST})
    assert tensors - without_ballast[0] == pytest.approx(BALLAST, rel=0.01)
    assert process - without_ballast[1] == pytest.approx(BALLAST, rel=0.10)


def test_peak_memory_holds_weights_gradients_and_moments(
    without_ballast: tuple[float, float],
) -> None:
    built = check(measure_cell(architecture="lstm", seq_len=64))
    assert without_ballast[0] > 16 * built.parameters


def taken(*metrics: str, **fields: object) -> dict[str, float]:
    cell = measure_cell(metrics=metrics, **fields)
    events = run.run(cell)
    return {e.metric: e.samples[0] for e in events if isinstance(e, Measurement)}


@pytest.mark.parametrize("architecture", ["gru", "transformer"])
def test_the_parts_of_the_peak_add_up(architecture: str) -> None:
    parts = ("peak_memory", "activation_memory", "optimiser_bytes", "model_bytes")
    found = taken(*parts, architecture=architecture, seq_len=256)
    weights = found["model_bytes"]
    assert found["optimiser_bytes"] == pytest.approx(2 * weights, rel=0.02), "two moments"
    held = weights + found["optimiser_bytes"]
    assert found["peak_memory"] - found["activation_memory"] == pytest.approx(held, rel=0.02)
    twice = taken("activation_memory", architecture=architecture, seq_len=512)
    assert twice["activation_memory"] == pytest.approx(2 * found["activation_memory"], rel=0.1)


@pytest.mark.parametrize("architecture", ["gru", "transformer"])
def test_inference_needs_weights_and_state_and_less_than_training(architecture: str) -> None:
    parts = ("inference_memory", "model_bytes", "state_bytes", "peak_memory")
    found = taken(*parts, architecture=architecture, seq_len=256, batch_size=4)
    least = found["model_bytes"] + 4 * found["state_bytes"]
    assert least < found["inference_memory"] < 0.5 * found["peak_memory"]


def test_samples_are_single_calls_after_a_warm_up() -> None:
    calls = []
    samples = timing.sample(
        lambda: calls.append(gc.isenabled()), device=CPU, warm_up=2, max_samples=5, min_seconds=1e9
    )
    assert len(samples) == 5 and len(calls) == 7
    assert not any(calls[2:]), "the garbage collector must rest while a sample is taken"
    assert gc.isenabled()


def test_a_slow_call_is_sampled_no_more_than_needed() -> None:
    samples = timing.sample(
        lambda: time.sleep(0.02), device=CPU, warm_up=0, min_seconds=0.01, max_seconds=0.01
    )
    assert len(samples) == 3 and min(samples) >= 0.02


def test_sampling_ends_when_there_was_time_enough() -> None:
    samples = timing.sample(lambda: time.sleep(0.02), device=CPU, warm_up=0, max_seconds=0.1)
    assert 4 <= len(samples) <= 5


def test_the_collector_is_put_back_after_an_error() -> None:
    def broken() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        timing.sample(broken, device=CPU, warm_up=0)
    assert gc.isenabled()


@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_decoding_grows_the_context_no_further_than_said(architecture: str) -> None:
    cell = measure_cell(architecture=architecture)
    subject = Subject(cell, check(cell), CPU)
    steps = []
    subject.model.embedding.register_forward_hook(lambda _, inputs, out: steps.append(out.shape))
    # A cache has room for the context and STEPS more: growing further would fail.
    samples = decode_time.measure(subject)
    repeats, rest = divmod(len(steps) - 1, decode_time.STEPS)
    assert rest == 0 and 1 <= repeats <= decode_time.MAX_REPEATS
    assert len(samples) == repeats * (decode_time.STEPS - timing.warm_up_calls(CPU))


def test_an_answer_is_a_prompt_and_then_one_token_after_the_other() -> None:
    cell = measure_cell(architecture="transformer", seq_len=64)
    subject = Subject(cell, check(cell), CPU)
    read: list[int] = []
    subject.model.embedding.register_forward_hook(
        lambda _, inputs, out: read.append(inputs[0].numel() // subject.batch_size)
    )
    samples = generation_time.measure(subject)
    answer = [64] + [1] * (generation_time.NEW_TOKENS - 1)
    answers, rest = divmod(len(read), len(answer))
    assert rest == 0 and read == answer * answers
    assert timing.warm_up_calls(CPU) <= answers - len(samples) <= timing.MAX_WARM_UP


def test_inputs_depend_on_the_round_alone() -> None:
    def tokens(**fields: object) -> torch.Tensor:
        cell = measure_cell(**fields)
        return Subject(cell, check(cell), CPU).made

    assert torch.equal(tokens(architecture="lstm"), tokens(architecture="transformer"))
    assert not torch.equal(tokens(), tokens(round=1))


def test_a_freed_subject_holds_no_model() -> None:
    cell = measure_cell()
    subject = Subject(cell, check(cell), CPU)
    before = subject.model
    subject.free()
    assert subject.model is not before


def test_training_steps_do_not_share_weights() -> None:
    cell = measure_cell()
    subject = Subject(cell, check(cell), CPU)
    first, second = subject.training_step(), subject.training_step()
    first()
    weights = [step.model.head.weight for step in (first, second)]
    assert not torch.equal(*weights)
    assert torch.equal(weights[1], subject.model.head.weight)
