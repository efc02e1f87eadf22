"""What fits under a cap: the largest value there is, and true when it is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.isolation import Isolation
from tests.workloads.tiny_cells import measure_cell
from workloads import conditions, limits, neighbours, registry, run, timing
from workloads.cell import Cell, Limits
from workloads.check import check
from workloads.measurement import Measurement
from workloads.subject import Subject

MEBIBYTE = 1 << 20
CAPPED = [name for name in registry.names("metrics") if registry.load("metrics", name).capped]


@given(st.integers(1, 1 << 20), st.integers(1, 64), st.integers(64, 1 << 21))
def test_finds_the_largest_value_to_within_its_resolution(
    limit: int, start: int, most: int
) -> None:
    tried: list[int] = []

    def fits(value: int, steps: int) -> bool:
        tried.append(value)
        return value <= limit

    found = limits.search(fits, start, most)
    if limit < start:
        assert found is None
        return
    assert found is not None and start <= found <= min(limit, most)
    assert found == most or min(limit, most) < max(found + 1, limits.RESOLUTION * found)
    assert all(start <= value <= most for value in tried)
    assert len(tried) <= 2 * 21 + 8, "a doubling and a bisection"


@given(st.integers(10, 10_000), st.integers(1, 3))
def test_what_fitted_once_by_luck_is_not_said_to_fit(limit: int, lucky: int) -> None:
    """Too large for several steps, and now and then not for one."""
    luck = iter([True] * lucky)

    def fits(value: int, steps: int) -> bool:
        return value <= limit or (steps == limits.STEPS and value < 4 * limit and next(luck, False))

    found = limits.search(fits, 2, 1 << 20)
    assert found is not None and found <= limit


@given(st.integers(1, 1000))
def test_what_never_holds_for_several_steps_is_not_found(limit: int) -> None:
    assert (
        limits.search(lambda value, steps: steps == limits.STEPS and value <= limit, 1, 1 << 12)
        is None
    )


def measured(cell: Cell) -> Measurement:
    (found,) = (event for event in run.run(cell) if isinstance(event, Measurement))
    return found


Measured = Callable[[Cell], Measurement]


@pytest.fixture(scope="module")
def alone() -> Iterator[Measured]:
    """`measured` in a child that has built nothing yet, under its guard, as in a sweep."""
    with Isolation() as isolation:
        isolation.wait_until_warm()

        def run_alone(cell: Cell) -> Measurement:
            (found,) = isolation.run_cell(cell).measurements
            return found

        yield run_alone


def capped(metric: str, architecture: str, cap: int, **fields: object) -> Cell:
    cell = measure_cell(architecture=architecture, metrics=(metric,), **fields)
    return replace(cell, limits=Limits(memory_bytes=cap))


LARGE = [
    pytest.param("max_seq_len", "seq_len", name, 1_000_000_000, marks=pytest.mark.exhaustive)
    for name in ("lstm", "gru", "transformer")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "axis", "architecture", "cap"),
    [
        ("max_seq_len", "seq_len", "gru", 32 * MEBIBYTE),
        ("max_seq_len", "seq_len", "transformer", 32 * MEBIBYTE),
        ("max_batch_size", "batch_size", "gru", 32 * MEBIBYTE),
        *LARGE,
    ],
)
def test_the_value_found_runs_again_and_a_tenth_more_does_not(
    metric: str, axis: str, architecture: str, cap: int, alone: Measured
) -> None:
    # Many short sequences where much is to be filled: attention takes the square of the length.
    cell = capped(metric, architecture, cap, batch_size=2 if cap < 100 * MEBIBYTE else 512)
    found = alone(cell)
    (value,) = found.samples
    assert value > 2 * getattr(cell, axis) and found.memory_bytes == cap
    # From there on, and without the part of the cap that a search leaves free.
    whole = Limits(memory_bytes=int(cap / (1 - limits.HEADROOM)))
    for factor, reason in ((1.0, None), (1.1, "out_of_memory")) * 2:
        changed: dict[str, Any] = {axis: int(value * factor)}
        again = replace(cell, **changed, metrics=("max_seq_len",), limits=whole)
        assert alone(again).reason == reason
    print(f"{architecture}: {metric} {value:,.0f} under {cap:,} bytes")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_every_architecture_has_its_limits(architecture: str, alone: Measured) -> None:
    for metric in CAPPED:
        found = alone(capped(metric, architecture, 16 * MEBIBYTE))
        assert found.samples and found.reason is None


def test_a_cap_below_the_first_value_is_out_of_memory() -> None:
    found = measured(capped("max_seq_len", "gru", 1000, seq_len=2048, batch_size=8))
    assert found.reason == "out_of_memory" and "does not fit into 1,000 bytes" in str(found.detail)


def test_how_calls_in_a_child_were_disturbed_is_known_here() -> None:
    cell = capped("decode_throughput", "gru", 64 * MEBIBYTE)
    subject = Subject(cell, check(cell), torch.device("cpu"))
    conditions.taken()
    samples = limits.figures(
        subject, lambda: timing.sample(lambda: time.sleep(0.001), device=subject.device)
    )
    assert len(samples) >= timing.MIN_SAMPLES and min(samples) >= 0.001
    assert 0 <= conditions.taken()[neighbours.WAITED] < 1
    assert limits.figures(subject, lambda: (2.0, 3.0)) == (2.0, 3.0)
    assert neighbours.WAITED not in conditions.taken(), "nothing was timed"


def test_without_a_cap_there_is_nothing_to_measure() -> None:
    found = measured(measure_cell(metrics=("max_batch_size",)))
    assert found.reason == "unsupported" and "limits.memory_bytes" in str(found.detail)


@pytest.mark.slow
def test_decoding_gets_further_than_training(alone: Measured) -> None:
    cap = 12 * MEBIBYTE
    trained = alone(capped("max_seq_len", "transformer", cap))
    decoded = alone(capped("max_seq_len_decoding", "transformer", cap))
    assert decoded.samples[0] > 1.5 * trained.samples[0]


@pytest.mark.slow
def test_a_fixed_state_decodes_more_sequences_of_a_long_context(alone: Measured) -> None:
    def most(architecture: str, seq_len: int) -> float:
        cell = capped("max_decode_batch_size", architecture, 32 * MEBIBYTE, seq_len=seq_len)
        return alone(cell).samples[0]

    assert most("gru", 1024) > 0.9 * most("gru", 64)
    assert most("transformer", 64) > 4 * most("transformer", 1024)


@pytest.mark.slow
def test_throughput_is_that_of_many_sequences(alone: Measured) -> None:
    cell = capped("decode_throughput", "gru", 4 * MEBIBYTE, batch_size=32)
    one = measure_cell(architecture="gru", batch_size=1, metrics=("decode_time",))
    many = alone(cell)
    assert many.reason is None
    assert many.samples[0] > 10 / alone(one).samples[0]
