"""Forecasts see nothing of what they forecast, and are held against "as a season before"."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workloads.tiny_cells import train_cell
from workloads.ends import Ends
from workloads.events import Facts
from workloads.measurement import Measurement
from workloads.objectives import pinball_losses
from workloads.plugins import Evaluation, build_options
from workloads.run import run
from workloads.tasks.data import Arrays
from workloads.tasks.forecast_scores import ahead_of, naive, quantile_losses
from workloads.tasks.forecasting import CLIP, TASK, Forecasts, Options, arrays_of
from workloads.tasks.hourly_series import COLUMNS, HOURS, Table, filled
from workloads.train import TrainedModel


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def traffic(cache: Path) -> Forecasts:
    return TASK.prepare(Options(), cache)


def counting(rows: int = 500, **options: Any) -> Forecasts:
    """A series whose target says its own row: what is seen and forecast can be read off."""
    kept = Arrays(
        arrays={
            "inputs": np.arange(rows, dtype=np.float32)[:, None],
            "target": np.arange(rows, dtype=np.float32),
        },
        facts={"train_rows": rows * 3 // 5, "validation_rows": rows // 5, "target_std": 1.0},
    )
    return Forecasts.of(Options(**options), kept)


def test_the_packaged_series_is_two_years_of_hours_split_by_time(traffic: Forecasts) -> None:
    assert TASK.missing(Options()) is None
    facts = traffic.facts
    assert (facts["data_licence"], facts["target"]) == ("CC BY 4.0", "traffic_volume")
    assert "autots 1" in str(facts["data_source"]) and facts["data_sha256"]
    rows = [facts[f"{split}_rows"] for split in ("train", "validation", "test")]
    assert rows == [8640, 2880, 2880] and len(traffic.target) == HOURS
    # 1 October 2016 was a Saturday, and the first hour is midnight.
    assert traffic.inputs[0, 5:].tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0]
    assert traffic.inputs[6, 5] == pytest.approx(1) and traffic.inputs[:, :5].max() <= CLIP
    assert np.nanmean(traffic.target[:8640]) == pytest.approx(0, abs=1e-4)
    assert np.nanstd(traffic.target[:8640]) == pytest.approx(1, abs=1e-4)
    assert facts["missing_targets"] == np.isnan(traffic.target).sum() > 50
    assert np.isfinite(traffic.inputs).all()


def test_the_baselines_figures_are_those_counted_by_hand(traffic: Forecasts) -> None:
    facts, target = traffic.facts, traffic.target.astype(float)
    assert facts["baseline"] == "seasonal naive, as 168 rows before"
    known = [t for t in range(24, 8640) if not math.isnan(target[t] - target[t - 24])]
    scale = float(np.mean([abs(target[t] - target[t - 24]) for t in known]))
    assert traffic.scale == pytest.approx(scale)
    last = target.copy()
    for t in range(1, len(last)):
        last[t] = last[t - 1] if math.isnan(last[t]) else last[t]
    for season in (24, 168):
        errors = [
            abs(target[o + h] - last[o + h - season * math.ceil(h / season)])
            for o in range(11519, HOURS - 96, 11)
            for h in range(1, 97)
        ]
        assert facts[f"naive_{season}_mase"] == pytest.approx(np.nanmean(errors) / scale)
    assert facts["baseline_mase"] == facts["naive_168_mase"] == pytest.approx(0.678, abs=1e-3)
    assert 0.05 < float(str(facts["baseline_pinball_loss"])) < 0.12


@settings(max_examples=20, deadline=None)
@given(
    seq_len=st.integers(1, 250),
    horizon=st.integers(1, 49),
    seed=st.integers(0, 2**31),
    update=st.integers(0, 2**40),
)
def test_each_position_forecasts_what_comes_after_it_within_training(
    seq_len: int, horizon: int, seed: int, update: int
) -> None:
    data = counting(horizon=horizon)
    inputs, targets = data.batch(3, seq_len, seed=seed, update=update)
    assert inputs.shape == (3, seq_len, 1) and targets.shape == (3, seq_len, horizon)
    assert inputs.dtype == targets.dtype == np.float32
    # Row r forecasts r + 1, ..., r + horizon; nothing of validation or test is ever seen.
    assert (targets == inputs + np.arange(1, horizon + 1)).all()
    assert (np.diff(inputs[..., 0], axis=1) == 1).all() and targets.max() < data.train == 300
    again = data.batch(3, seq_len, seed=seed, update=update)
    assert (again[0] == inputs).all() and (again[1] == targets).all()
    others = [data.batch(3, seq_len, seed=seed, update=update + k)[0] for k in range(1, 9)]
    assert seq_len + horizon > 280 or any((other != inputs).any() for other in others)


@settings(max_examples=20, deadline=None)
@given(seq_len=st.integers(1, 300), horizon=st.integers(1, 100), stride=st.integers(1, 20))
def test_scored_hours_lie_in_their_split_and_are_the_same_at_each_length(
    seq_len: int, horizon: int, stride: int
) -> None:
    for split, first, end in (("validation", 300, 400), ("test", 400, 500)):
        data = counting(horizon=horizon, test_stride=stride, scored=split)
        ahead = ahead_of(data.origins, horizon)
        assert first == ahead.min() and ahead.max() < end
        seen = data.before(data.origins, seq_len)[..., 0]
        assert seen.shape == (len(data.origins), seq_len)
        assert (seen[:, -1] == data.origins).all() and (seen[:, 0] >= 0).all()


def test_a_length_or_horizon_without_room_says_so() -> None:
    with pytest.raises(ValueError, match="seq_len: 205 rows and 96 to forecast are more than"):
        counting().batch(1, 205, seed=0, update=0)
    assert counting().batch(1, 204, seed=0, update=0)[0].max() == 203
    with pytest.raises(ValueError, match="horizon: 101 rows are to be forecast, the test split"):
        counting(horizon=101)
    with pytest.raises(ValueError, match="season: 290 rows"):
        counting(season=290)
    with pytest.raises(ValueError, match="eval_seq_len: 401 rows are more than the 400"):
        counting().before(counting().origins, 401)


def table(values: np.ndarray, **fields: Any) -> Table:
    content = {"columns": ("a", "b"), "target": 0, "times": None, "source": "", "licence": ""}
    return Table(values=values, **(content | fields))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), changed=st.integers(300, 499))
def test_what_comes_later_changes_nothing_before_it(seed: int, changed: int) -> None:
    """Standardisation is of the training rows alone, and gaps are filled from the past alone."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(500, 2))
    values[generator.random((500, 2)) < 0.1] = math.nan
    other = values.copy()
    other[changed:] = generator.normal(size=other[changed:].shape) * 100
    one, two = arrays_of(table(values)), arrays_of(table(other))
    for name in ("inputs", "target"):
        same = np.isclose(one.arrays[name], two.arrays[name], equal_nan=True)
        assert same[:changed].all() and not same[changed:].all()
    assert (np.isnan(one.arrays["target"]) == np.isnan(values[:, 0])).all()
    assert np.isfinite(one.arrays["inputs"]).all()
    assert one.facts == two.facts | {"missing_targets": one.facts["missing_targets"]}


def test_gaps_repeat_what_came_before_and_stay_where_nothing_did() -> None:
    gap = math.nan
    found = filled(np.array([[gap, 1], [2, gap], [gap, gap], [4, 5]]))
    np.testing.assert_equal(found, [[gap, 1], [2, 1], [2, 1], [4, 5]])


def test_columns_that_say_nothing_are_refused_or_zero() -> None:
    values = np.ones((50, 2))
    values[:, 0] = np.arange(50)
    assert (arrays_of(table(values)).arrays["inputs"][:, 1] == 0).all()
    with pytest.raises(ValueError, match="'b' never changes in the training split"):
        arrays_of(table(values, target=1))
    values[:30, 1] = math.nan
    with pytest.raises(ValueError, match="column 'b' is empty in all 30 rows"):
        arrays_of(table(values))


def test_the_naive_forecast_repeats_the_last_season() -> None:
    said = naive(np.arange(100.0), np.array([49]), 7, 3)
    assert said.tolist() == [[47, 48, 49, 47, 48, 49, 47]]


def test_quantile_losses_are_those_that_training_makes_small() -> None:
    generator = np.random.default_rng(0)
    said, true = generator.normal(size=(4, 5, 3)), generator.normal(size=(4, 5))
    levels = (0.25, 0.5, 0.75)
    trained = pinball_losses(
        torch.from_numpy(said.reshape(4, 1, 15)), torch.from_numpy(true[:, None]), levels
    )
    np.testing.assert_allclose(quantile_losses(said, true, levels), trained[:, 0].numpy())
    assert quantile_losses(np.array([[[1.0]]]), np.array([[3.0]]), (0.9,)) == pytest.approx(1.8)


class Knowing(torch.nn.Module):
    """Of the counting series: every quantile is right, plus an error that it is given."""

    def __init__(self, horizon: int, quantiles: int, error: float) -> None:
        super().__init__()
        self.lead = torch.arange(1, horizon + 1).repeat_interleave(quantiles)
        self.error = error

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.lead + self.error


def evaluate(name: str, trained: TrainedModel) -> Evaluation:
    metric = TASK.metrics[name]
    assert metric.evaluate is not None
    return metric.evaluate(trained)


@pytest.mark.parametrize("error", [0.0, 6.0])
def test_who_knows_the_future_makes_no_error_and_an_error_is_of_its_size(error: float) -> None:
    options = {"horizon": 10, "quantiles": 3, "season": 24}
    data = counting(**options)
    cell = train_cell(task="forecasting", task_options=options, seq_len=32, eval_seq_len=(64, 16))
    trained = TrainedModel(
        cell=cell,
        model=Knowing(10, 3, error),  # type: ignore[arg-type]
        data=data,
        device=torch.device("cpu"),
    )
    assert data.scale == 24  # the series grows by one a row
    assert evaluate("mase", trained).samples == pytest.approx((error / 24,))
    # Above the truth at every level: the mean of 1 - level is a half.
    assert evaluate("pinball_loss", trained).samples == pytest.approx((error / 2,))
    lead = evaluate("mase_by_lead", trained)
    assert (lead.coordinate, lead.at) == ("lead", (1, 2, 4, 8, 10))
    length = evaluate("mase_by_length", trained)
    assert (length.coordinate, length.at) == ("eval_seq_len", (16, 32, 64))
    for curve in (lead, length):
        assert curve.samples == pytest.approx([error / 24] * len(curve.samples))


def test_missing_hours_are_no_targets(traffic: Forecasts) -> None:
    gaps = np.flatnonzero(np.isnan(traffic.target))
    assert len(gaps) and np.isfinite(traffic.inputs[gaps]).all()
    column = COLUMNS.index("traffic_volume")
    assert (traffic.inputs[gaps, column] == traffic.inputs[gaps - 1, column]).all()


def test_the_ends_and_levels_follow_the_options() -> None:
    assert TASK.ends(Options()) == Ends(features=14, outputs=96 * 9)
    assert TASK.ends(Options(source="synthetic", horizon=336, quantiles=3)).outputs == 1008
    assert TASK.ends(Options(source="huggingface")).features == 7 + 9
    assert Options().levels == pytest.approx([0.1 * k for k in range(1, 10)])
    assert Options().levels[Options().median] == 0.5
    assert TASK.token_unit(Options()) == "hours" and TASK.token_unit(Options(path="a")) == "rows"


def test_the_synthetic_series_says_that_it_is(cache: Path) -> None:
    data = TASK.prepare(Options(source="synthetic"), cache)
    assert str(data.facts["data_source"]).startswith("synthetic: ")
    assert data.facts["data_licence"] == "none" and len(data.target) == HOURS
    value, driver = data.inputs[:, 0], data.inputs[:, 1]
    noise = value[168:] - value[:-168]
    ahead = np.corrcoef(noise[24:], (driver[168:] - driver[:-168])[:-24])[0, 1]
    assert ahead > 0.9  # the driver tells the value a day before


def test_a_tiny_model_learns_and_has_its_metrics(cache: Path) -> None:
    cell = train_cell(
        task="forecasting",
        task_options={"horizon": 12, "quantiles": 3, "test_stride": 101, "season": 24},
        seq_len=24,
        tokens=24 * 32 * 80,
        tokens_per_update=24 * 32,
        learning_rate=1e-2,
        metrics=tuple(TASK.metrics),
    )
    events = list(run(cell, cache))
    found = {event.metric: event for event in events if isinstance(event, Measurement)}
    assert set(TASK.metrics) <= set(found)
    assert found["mase"].samples[0] < 1.0  # of a day before; it has the hour and the weekday
    assert found["training_loss"].unit == "standard deviations"
    facts: dict[str, Any] = {}
    for event in events:
        if isinstance(event, Facts):
            facts |= event.values
    assert {"data_source", "data_licence", "split", "baseline_mase"} <= set(facts)


def own_rows(rows: int = 300) -> dict[str, list[Any]]:
    start = np.datetime64("2024-01-01T00:00", "s")
    hours = np.arange(rows)
    return {
        "when": [str(start + np.timedelta64(3600 * int(h), "s")).replace("T", " ") for h in hours],
        "place": ["here"] * rows,
        "sold": [float(h % 24) + h % 5 for h in hours],
        "price": [None if h == 7 else float(h % 11) for h in hours],
    }


def written(folder: Path, suffix: str, rows: dict[str, list[Any]]) -> str:
    file = folder / f"own{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table(rows), file)
    else:
        lines = [
            ",".join(rows),
            *(",".join(map(_cell, r)) for r in zip(*rows.values(), strict=True)),
        ]
        file.write_text("\n".join(lines))
    return str(file)


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_of_ones_own_is_read(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, own_rows())
    plain = Options(path=path, horizon=5)
    assert TASK.missing(plain) is None and TASK.ends(plain).features == 2
    data = TASK.prepare(plain, tmp_path)
    assert (data.facts["target"], data.train, data.validation) == ("sold", 180, 240)
    assert data.facts["data_licence"] == "the user's own"
    options = Options(path=path, horizon=5, target="price", time="when")
    assert TASK.ends(options).features == 2 + 9
    data = TASK.prepare(options, tmp_path)
    assert data.facts["target"] == "price" and np.isnan(data.target[7])
    assert data.batch(2, 16, seed=0, update=0)[0].shape == (2, 16, 11)
    assert len(list((tmp_path / "forecasting").iterdir())) == 2 + 2  # each with its lock
    for wrong, message in (
        ({"target": "bought"}, "has no column 'bought'; it has when, place, sold, price"),
        ({"columns": ("place",)}, "column 'place' is not all numbers"),
        ({"target": "place"}, "'place' is not among the columns of numbers"),
        ({"time": "place"}, "column 'place' is not all ISO 8601 times"),
    ):
        with pytest.raises(ValueError, match=message):
            TASK.prepare(Options(path=path, horizon=5, **wrong), tmp_path)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    assert "no such file" in str(TASK.missing(Options(path=str(tmp_path / "none.csv"))))
    (tmp_path / "a.txt").write_text("")
    assert "must be a .csv or a .parquet" in str(
        TASK.missing(Options(path=str(tmp_path / "a.txt")))
    )
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match="row 3 has 1 cells where the header has 2"):
        TASK.ends(Options(path=str(ragged)))
    (tmp_path / "a.parquet").write_text("a,b")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        TASK.ends(Options(path=str(tmp_path / "a.parquet")))
    ragged.write_text("a,b\nx,y\n")
    with pytest.raises(ValueError, match="has no column of numbers"):
        TASK.ends(Options(path=str(ragged)))
    rows = own_rows()
    del rows["price"]
    for column in rows.values():
        del column[50]
    with pytest.raises(
        ValueError, match="equally spaced in time and in order; after 2024-01-03T01"
    ):
        TASK.prepare(Options(path=written(tmp_path, ".csv", rows), time="when"), tmp_path)


def test_a_table_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()
    folder = tmp_path / "table"
    folder.mkdir()
    pq.write_table(pa.table(own_rows()), folder / "train.parquet")
    options = Options(
        source="huggingface",
        dataset=str(folder),
        config="",
        columns=("sold", "price"),
        time="when",
        horizon=5,
    )
    data = TASK.prepare(options, tmp_path)
    assert data.inputs.shape == (300, TASK.ends(options).features) == (300, 11)
    assert data.facts["target"] == "sold" and str(folder) in str(data.facts["data_source"])
    with pytest.raises(ValueError, match="has no column 'lost'"):
        TASK.prepare(
            Options(source="huggingface", dataset=str(folder), config="", columns=("lost",)),
            tmp_path,
        )
    nowhere = str(tmp_path / "no")
    with pytest.raises(ValueError, match="cannot be had"):
        TASK.prepare(
            Options(source="huggingface", dataset=nowhere, config="", columns=("a",)), tmp_path
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "web"}, "source must be one of"),
        ({"series": "stocks"}, "series must be 'traffic' or 'weather'"),
        ({"scored": "train"}, "scored must be 'test' or 'validation'"),
        ({"horizon": 0}, "horizon must be positive"),
        ({"season": 0}, "season must be positive"),
        ({"quantiles": 4}, "quantiles must be odd"),
        ({"path": "a.csv", "source": "synthetic"}, "path: a file of one's own"),
        ({"target": "temp"}, "target belongs to a `path`"),
        ({"source": "huggingface", "dataset": "a/b"}, "columns: say which columns of a/b"),
        ({"path": "a.csv", "target": "x", "columns": ("y",)}, "'x' is not among the columns"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)
