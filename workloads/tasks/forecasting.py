"""Forecasting: from the hours so far, the next 96 or 336 of one series, each as quantiles.

    hour              ...  t-2   t-1    t   | t+1   t+2  ...  t+96
    traffic_volume    ... 4123  4880  5012  |  ?     ?         ?     standardised, in and out
    temp, rain, ...   ... 3.1   3.4   2.9   |                        input only
    hour, weekday     ...  14    15    16   |                        input only
    out, at hour t                            96 leads x 9 levels (0.1, ..., 0.9)

Every position forecasts the `horizon` hours after it, from what came up to it (a direct head; no
forecast is fed back). Training scores all positions of a window; the metrics score only the last,
which has seen exactly `seq_len` hours. What is trained on is the quantile loss (Koenker and Bassett
1978). Quantiles may cross, and are scored as they are.

Data, as `source` says. `packaged`: hourly traffic on the interstate 94 at Minneapolis with its
weather, October 2016 on (UCI "Metro Interstate Traffic Volume", from the Minnesota Department of
Transportation and OpenWeatherMap, CC BY 4.0; `datasets/data/traffic_hourly.zip` of the package
`autots`). `series` says what is forecast: the vehicles per hour, or the temperature. `huggingface`:
a table of the hub, by default ETTh1. `synthetic`: a series made from a formula, and labelled so.
`path`: a CSV or Parquet file of one's own.

Split by time, as ETTh1 has it (Zhou et al. 2021, "Informer"): 12, 4 and 4 months of 30 days train,
validate and test (a file of one's own: 3/5, 1/5 and 1/5 of its rows). Training sees nothing after
its months; means, deviations and the scale of the error are of them alone. A test forecast's hours
all lie in the test months; its input may reach back before them, as in use. Missing hours repeat
the last known as input, and are never a target.

Score: `mase`, the absolute error of the median over that of "as a day before" within the training
months (Hyndman and Koehler 2006; season 24, M4's for hourly series). `pinball_loss`, the mean over
hours and levels, in standard deviations of the training months. Baseline: seasonal naive, every
hour as one day before or one week before, whichever is the better on the training months; its
quantiles add those of its own errors there at that lead. It sees the week whatever `seq_len` is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.ends import Ends
from workloads.objectives import Objective, pinball
from workloads.plugins import Evaluation, Metric, Task, build_options
from workloads.tasks import forecast_scores, hourly_series
from workloads.tasks.buckets import by_doubling
from workloads.tasks.data import Arrays, generator_of, prepared
from workloads.tasks.forecast_scores import ahead_of, quantile_losses
from workloads.tasks.hourly_series import CALENDAR, Numbers, SeriesOptions, Table, calendar, filled
from workloads.tasks.lengths import by_length
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, outputs_of

VERSION = 1
UNIT = "standard deviations"
CLIP = 10.0
"""Inputs end here, in deviations: rain has training months almost without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(SeriesOptions):
    """horizon: how many hours ahead.

    quantiles: how many evenly spaced levels, odd, so that one is the median; 9 are the deciles.
    season: of the naive forecast, in rows; the other is seven of it. scored: what the metrics are
    of; test_stride: one forecast every so many rows (11 goes through all hours and weekdays). The
    others say which series: `SeriesOptions`.
    """

    horizon: int = 96
    quantiles: int = 9
    season: int = 24
    scored: Literal["test", "validation"] = "test"
    test_stride: int = 11

    def __post_init__(self) -> None:
        SeriesOptions.__post_init__(self)  # a class with slots is made anew, and super() lost
        if self.scored not in ("test", "validation"):
            raise ValueError(f"scored must be 'test' or 'validation', not {self.scored!r}")
        for name in ("horizon", "season", "test_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.quantiles < 1 or self.quantiles % 2 == 0:
            raise ValueError(f"quantiles must be odd, for the median, not {self.quantiles}")

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(k / (self.quantiles + 1) for k in range(1, self.quantiles + 1))

    @property
    def median(self) -> int:
        """The place of the median among the levels."""
        return self.quantiles // 2


def ends(options: Options) -> Ends:
    """Raises ValueError where a user's own file, whose columns decide it, cannot be read."""
    columns, _, time = hourly_series.chosen(options)
    features = len(columns) + (CALENDAR if time else 0)
    return Ends(features=features, outputs=options.horizon * options.quantiles)


def objective(options: Options) -> Objective:
    return pinball(options.levels, UNIT)


def prepare(options: Options, folder: Path) -> Forecasts:
    """Raises ValueError where the data cannot be had or read, or are too short for the horizon."""
    where = folder / "forecasting" / hourly_series.key_of(options, VERSION)
    return Forecasts.of(
        options, prepared(where, lambda: arrays_of(hourly_series.table_of(options)))
    )


def arrays_of(table: Table) -> Arrays:
    """What is kept: inputs (R, F) and targets (R,), float32, standardised by the training rows."""
    rows = len(table.values)
    train, validation = rows * 3 // 5, rows * 4 // 5
    known = table.values[:train]
    if np.isnan(known).all(0).any():
        gap = table.columns[int(np.isnan(known).all(0).argmax())]
        raise ValueError(f"column {gap!r} is empty in all {train} rows of the training split")
    mean, std = np.nanmean(known, 0), np.nanstd(known, 0)
    if std[table.target] == 0:
        raise ValueError(f"{table.columns[table.target]!r} never changes in the training split")
    standard = (table.values - mean) / np.where(std > 0, std, 1)
    inputs = np.clip(filled(standard), -CLIP, CLIP)
    parts = [np.nan_to_num(inputs, nan=0.0)]
    if table.times is not None:
        parts.append(calendar(table.times))
    return Arrays(
        arrays={
            "inputs": np.concatenate(parts, axis=1).astype(np.float32),
            "target": standard[:, table.target].astype(np.float32),
        },
        facts={
            "data_source": table.source,
            "data_licence": table.licence,
            "split": f"by time: rows up to {train} train, to {validation} validate, to {rows} test",
            "train_rows": train,
            "validation_rows": validation - train,
            "test_rows": rows - validation,
            "missing_targets": int(np.isnan(standard[:, table.target]).sum()),
            "target": table.columns[table.target],
            "target_mean": float(mean[table.target]),
            "target_std": float(std[table.target]),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecasts:
    """Rows to forecast from: inputs (R, F), target (R,), both standardised; `train` and
    `validation` are the rows at which these splits end; `origins` are the last known row of each
    scored forecast, whose hours all lie in their split; `scale` is the error of "as a season
    before" in training."""

    options: Options
    inputs: NDArray[np.float32]
    target: NDArray[np.float32]
    train: int
    validation: int
    origins: NDArray[np.int64]
    scale: float
    facts: Mapping[str, Scalar]

    @classmethod
    def of(cls, options: Options, kept: Arrays) -> Forecasts:
        """With the baseline's figures among its facts.

        Raises:
            ValueError: a split is too short for the horizon or the season.
        """
        target = np.asarray(kept.arrays["target"], dtype=np.float64)
        train = int(str(kept.facts["train_rows"]))
        validation = train + int(str(kept.facts["validation_rows"]))
        rows = {"validation": (train, validation), "test": (validation, len(target))}
        first, end = rows[options.scored]
        if end - first < options.horizon:
            raise ValueError(
                f"horizon: {options.horizon} rows are to be forecast, the {options.scored} split "
                f"has {end - first}"
            )
        if train < options.season + options.horizon + 1:
            raise ValueError(
                f"season: {options.season} rows and a horizon of {options.horizon} do not fit into "
                f"the {train} rows of the training split"
            )
        scale = forecast_scores.naive_error(target[:train], options.season)
        if not scale > 0:
            raise ValueError(
                f"season: the series repeats itself exactly every {options.season} rows"
            )
        origins = np.arange(first - 1, end - options.horizon, options.test_stride)
        baseline = forecast_scores.baseline(
            target,
            origins,
            train=train,
            season=options.season,
            horizon=options.horizon,
            stride=options.test_stride,
            levels=options.levels,
        )
        return cls(
            options=options,
            inputs=kept.arrays["inputs"],
            target=kept.arrays["target"],
            train=train,
            validation=validation,
            origins=origins,
            scale=scale,
            facts={
                **kept.facts,
                "scored": options.scored,
                "mase_scale": scale * float(str(kept.facts["target_std"])),
                **baseline,
            },
        )

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Windows of the training rows, drawn uniformly: inputs (B, T, F), targets (B, T, horizon),
        of which the last still lies in training."""
        room = self.train - seq_len - self.options.horizon + 1
        if room < 1:
            raise ValueError(
                f"seq_len: {seq_len} rows and {self.options.horizon} to forecast are more than the "
                f"{self.train} rows of the training split"
            )
        starts = generator_of(seed, update).integers(0, room, size=sequences)
        rows = starts[:, None] + np.arange(seq_len)
        return self.inputs[rows], self.target[ahead_of(rows, self.options.horizon)]

    def before(self, origins: NDArray[np.int64], seq_len: int) -> NDArray[np.float32]:
        """The `seq_len` rows of input up to each origin: (N, T, F)."""
        if seq_len > origins.min() + 1:
            raise ValueError(
                f"eval_seq_len: {seq_len} rows are more than the {origins.min() + 1} before the "
                "first forecast"
            )
        return np.asarray(self.inputs[origins[:, None] + np.arange(1 - seq_len, 1)])


def _forecasts(trained: TrainedModel, seq_len: int) -> tuple[Numbers, Numbers]:
    """Quantiles (N, H, L) that the model says at the scored origins from so many rows each, and the
    values (N, H), both standardised; computed once."""
    name = f"forecasts {seq_len}"
    if name not in trained.memo:
        trained.memo[name] = _forecast(trained, seq_len)
    found: tuple[Numbers, Numbers] = trained.memo[name]
    return found


@torch.inference_mode()
def _forecast(trained: TrainedModel, seq_len: int) -> tuple[Numbers, Numbers]:
    options = build_options(Options, trained.cell.task_options)
    data: Forecasts = trained.data
    origins = data.origins
    inputs = torch.from_numpy(data.before(origins, seq_len))
    said = [
        outputs_of(trained.model, part.to(trained.device), trained.cell.precision)[:, -1].cpu()
        for part in torch.split(inputs, max(1, MICRO_BATCH_TOKENS // seq_len))
    ]
    shape = len(origins), options.horizon, options.quantiles
    return (
        torch.cat(said).double().numpy().reshape(shape),
        data.target[ahead_of(origins, options.horizon)].astype(np.float64),
    )


def scaled_errors(trained: TrainedModel, seq_len: int) -> Numbers:
    """Absolute scaled error of the median, (N, H); not a number where the hour is missing."""
    options = build_options(Options, trained.cell.task_options)
    said, true = _forecasts(trained, seq_len)
    return np.abs(true - said[..., options.median]) / float(trained.data.scale)


def _mase(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(float(np.nanmean(scaled_errors(trained, trained.cell.seq_len))),))


def _pinball_loss(trained: TrainedModel) -> Evaluation:
    options = build_options(Options, trained.cell.task_options)
    said, true = _forecasts(trained, trained.cell.seq_len)
    losses = quantile_losses(said, true, options.levels)
    return Evaluation(samples=(float(np.nanmean(losses)),))


def _mase_by_lead(trained: TrainedModel) -> Evaluation:
    """Buckets of 1, 2, 3-4, 5-8, ... rows ahead; `at` is a bucket's largest."""
    errors = scaled_errors(trained, trained.cell.seq_len)
    known = ~np.isnan(errors)
    leads = np.broadcast_to(np.arange(1, errors.shape[1] + 1), errors.shape)
    at, samples = by_doubling(leads[known], errors[known])
    return Evaluation(samples=samples, coordinate="lead", at=at)


def _mase_by_length(trained: TrainedModel) -> Evaluation:
    return by_length(trained, lambda seq_len: float(np.nanmean(scaled_errors(trained, seq_len))))


TASK = Task(
    title="forecasting",
    version=VERSION,
    options=Options,
    token_unit=lambda options: (
        "rows" if options.path or options.source == "huggingface" else "hours"
    ),
    ends=ends,
    prepare=prepare,
    objective=objective,
    missing=hourly_series.missing,
    metrics={
        "mase": Metric(
            title="mean absolute scaled error of the median",
            version=1,
            unit="1",
            evaluate=_mase,
        ),
        "pinball_loss": Metric(
            title="quantile loss",
            version=1,
            unit=UNIT,
            evaluate=_pinball_loss,
        ),
        "mase_by_lead": Metric(
            title="mean absolute scaled error by how far ahead",
            version=1,
            unit="1",
            evaluate=_mase_by_lead,
        ),
        "mase_by_length": Metric(
            title="mean absolute scaled error by length of the input",
            version=1,
            unit="1",
            evaluate=_mase_by_length,
        ),
    },
)
