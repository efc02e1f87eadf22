"""A cell answers every metric it was asked: with samples, or with the reason why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.workloads.tiny_cells import measure_cell, train_cell
from workloads import registry, sizing
from workloads.cell import Cell
from workloads.events import Event, Facts, Started
from workloads.measurement import Measurement
from workloads.plugins import Evaluation, Metric
from workloads.run import run


def has_tests_of_its_own(metric: Metric) -> bool:
    """What is measured under a cap (`test_limits.py`) or of an exported graph (`test_edge.py`)."""
    return metric.capped or metric.work == "export"


MEASURED = tuple(
    name
    for name in registry.names("metrics")
    if not has_tests_of_its_own(registry.load("metrics", name))
)
QUALITY = tuple(registry.load("tasks", "language_modelling").metrics)
TEST_PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def measurements(events: list[Event]) -> dict[str, Measurement]:
    return {event.metric: event for event in events if isinstance(event, Measurement)}


def facts(events: list[Event]) -> dict[str, object]:
    return {k: v for event in events if isinstance(event, Facts) for k, v in event.values.items()}


@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_every_measured_metric_of_every_architecture_has_samples(architecture: str) -> None:
    events = list(run(measure_cell(architecture=architecture, metrics=MEASURED)))
    found = measurements(events)
    assert set(found) == set(MEASURED)
    assert all(m.reason is None and m.samples for m in found.values())
    assert all(len(m.samples) == 1 for m in found.values() if m.deterministic)
    assert found["parameters"].samples == (facts(events)["parameters"],)


def test_facts_come_first_and_each_metric_is_announced() -> None:
    first, *rest = run(measure_cell(metrics=("decode_time", "prefill_time")))
    assert isinstance(first, Facts)
    assert {"d_model", "mlp_width", "implementation", "kernel_class"} <= set(first.values)
    said = [(type(e), e.metric) for e in rest if isinstance(e, Started | Measurement)]
    # On a busy machine one may be taken once more.
    assert list(dict.fromkeys(said)) == [
        (Started, "decode_time"),
        (Measurement, "decode_time"),
        (Started, "prefill_time"),
        (Measurement, "prefill_time"),
    ]


@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_deterministic_metrics_are_the_same_in_every_round(architecture: str) -> None:
    asked = tuple(n for n in MEASURED if registry.load("metrics", n).deterministic)
    cell = measure_cell(architecture=architecture, metrics=asked)
    first, second = (
        {n: m.samples for n, m in measurements(list(run(c))).items()}
        for c in (cell, replace(cell, round=1))
    )
    assert first == second
    assert first["state_bytes"] == (sizing.state_bytes(sizing.shape_for(cell), 32, 4),)


def test_out_of_memory_is_a_reason_and_the_next_metric_is_still_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(TEST_PLUGINS))
    cell = measure_cell(
        architecture="ballast",
        options={"scratch_bytes": 2**50},
        metrics=("train_step_time", "state_bytes", "parameters"),
    )
    found = measurements(list(run(cell)))
    for name in ("train_step_time", "state_bytes"):
        assert (found[name].reason, found[name].samples) == ("out_of_memory", ())
        assert f"{2**50}" in (found[name].detail or "")
    assert found["parameters"].reason is None


def test_training_that_runs_out_of_memory_says_so_for_every_metric(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(TEST_PLUGINS))
    cell = train_cell(architecture="ballast", options={"scratch_bytes": 2**50}, metrics=QUALITY)
    found = measurements(list(run(cell, cache)))
    assert {m.reason for m in found.values()} == {"out_of_memory"} and set(found) == set(QUALITY)


def test_an_accelerator_that_is_not_here_makes_every_metric_unsupported() -> None:
    found = measurements(list(run(measure_cell(device="no-such-chip", metrics=MEASURED))))
    assert set(found) == set(MEASURED)
    assert {m.reason for m in found.values()} == {"unsupported"}
    assert all("no-such-chip" in (m.detail or "") for m in found.values())


def test_few_updates_keep_their_samples_and_are_called_undertrained(cache: Path) -> None:
    events = list(run(train_cell(metrics=QUALITY), cache))
    found = measurements(events)
    assert [m.metric for m in found.values() if m.reason is None] == ["training_loss"]
    for name in QUALITY:
        assert found[name].reason == "undertrained" and found[name].samples
    assert {"updates", "tokens_per_update", "data_source", "data_licence"} <= set(facts(events))


def test_five_hundred_updates_are_enough(cache: Path) -> None:
    cell = train_cell(
        architecture="none", tokens=500 * 32, tokens_per_update=32, size=4000, metrics=QUALITY
    )
    found = measurements(list(run(cell, cache)))
    assert all(m.reason is None for m in found.values())


def test_divergence_is_a_reason_with_its_curve_kept(cache: Path) -> None:
    found = measurements(list(run(train_cell(learning_rate=1e30, metrics=QUALITY), cache)))
    assert found["training_loss"].samples
    for name in QUALITY:
        assert (found[name].reason, found[name].samples) == ("diverged", ())
        assert "not finite" in (found[name].detail or "")


def test_an_error_of_ours_leaves_through_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: object) -> tuple[float, ...]:
        raise RuntimeError("a bug")

    metric = Metric(title="broken", version=1, unit="s", measure=broken)
    monkeypatch.setattr("workloads.metrics.prefill_time.METRIC", metric)
    with pytest.raises(RuntimeError, match="a bug"):
        list(run(measure_cell(metrics=("prefill_time",))))


def test_an_evaluation_that_is_not_finite_is_divergence(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    metric = Metric(
        title="nan",
        version=1,
        unit="nats",
        evaluate=lambda trained: Evaluation(samples=(float("nan"),)),
    )
    monkeypatch.setitem(
        registry.load("tasks", "language_modelling").metrics,
        "validation_loss",
        metric,  # type: ignore[arg-type]  # a dict behind its Mapping
    )
    found = measurements(list(run(train_cell(), cache)))
    assert found["validation_loss"].reason == "diverged"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (measure_cell(architecture="lstn"), "Did you mean 'lstm'"),
        (measure_cell(architecture_version=99), "architecture version 99"),
        (measure_cell(task_version=99), "task version 99"),
        (measure_cell(batch_size=None), "a measure cell needs batch_size"),
        (train_cell(seed=None), "a train cell needs seed"),
        (measure_cell(metrics=("validation_loss",)), "does not have the metric validation_loss"),
        (train_cell(metrics=("decode_time",)), "does not have the metric decode_time"),
        (measure_cell(options={"colour": "red"}), "unknown option 'colour'"),
    ],
)
def test_a_cell_that_cannot_be_run_is_refused_before_it_runs(cell: Cell, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(run(cell))
