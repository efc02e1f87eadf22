"""Where hourly series come from: a table of an installed package, of the Hugging Face hub, a CSV or
Parquet file of one's own, or a formula (synthetic, and labelled so).

    columns  traffic_volume  temp  rain ...    one of them is forecast, all are inputs
    times    2016-10-01 00:00, 01:00, ...      equally spaced; none where none is named
    gaps     not a number                      an empty cell, or None
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from workloads.tasks import sources
from workloads.tasks.data import folder_name

PACKAGE, FILE = "autots", "autots/datasets/data/traffic_hourly.zip"
TARGETS = {"traffic": "traffic_volume", "weather": "temp"}
COLUMNS = ("clouds_all", "rain_1h", "snow_1h", "temp", "traffic_volume")
ETT, ETT_CONFIG = "thuml/Time-Series-Library", "ETTh1"
ETT_COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
HOURS = 20 * 30 * 24
"""Rows that are used of what is not a user's own: 12 + 4 + 4 months, as of ETTh1."""
CALENDAR = 9
"""Features of the time of day (a sine and a cosine) and of the weekday (one of seven)."""

Source = Literal["packaged", "huggingface", "synthetic"]
Numbers = NDArray[np.float64]
Rows = Mapping[str, Sequence[Any]]
"""The cells of each column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesOptions:
    """series: what of the packaged table is forecast. path: a CSV (with a header) or Parquet file
    of one's own.

    target, time, columns: its columns, or those of a `dataset`, by name: what is forecast (default:
    the first), the timestamps (default: none, and no calendar) and the inputs (default: all that
    are numbers). hub_split: the data set's split that holds the rows.
    """

    source: Source = "packaged"
    series: Literal["traffic", "weather"] = "traffic"
    path: str = ""
    target: str = ""
    time: str = ""
    columns: tuple[str, ...] = ()
    dataset: str = ETT
    config: str = ETT_CONFIG
    hub_split: str = "train"

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"source must be one of {get_args(Source)}, not {self.source!r}")
        if self.series not in TARGETS:
            raise ValueError(f"series must be 'traffic' or 'weather', not {self.series!r}")
        if self.path and self.source != "packaged":
            raise ValueError(f"path: a file of one's own leaves no room for source {self.source!r}")
        foreign = bool(self.path) or self.source == "huggingface"
        for name in ("target", "time", "columns"):
            if getattr(self, name) and not foreign:
                raise ValueError(f"{name} belongs to a `path` or to `source: huggingface`")
        if self.source == "huggingface" and self.dataset != ETT and not self.columns:
            raise ValueError(f"columns: say which columns of {self.dataset} are the inputs")
        if self.target and self.columns and self.target not in self.columns:
            raise ValueError(f"target: {self.target!r} is not among the columns {self.columns}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Equally spaced rows: values (R, C), not a number where missing; the number of the column that
    is forecast; timestamps (R,), or None; where it is from."""

    columns: tuple[str, ...]
    values: Numbers
    target: int
    times: NDArray[np.datetime64] | None
    source: str
    licence: str


def chosen(options: SeriesOptions) -> tuple[tuple[str, ...], str, str]:
    """The columns that are inputs, the one that is forecast, and the one of the timestamps."""
    if options.path:
        own = options.columns or _own_columns(options)
        return own, options.target or own[0], options.time
    if options.source == "huggingface":
        if options.dataset == ETT:
            columns = options.columns or ETT_COLUMNS
            return columns, options.target or columns[-1], options.time or "date"
        return options.columns, options.target or options.columns[0], options.time
    if options.source == "synthetic":
        return ("value", "driver"), "value", "time"
    return COLUMNS, TARGETS[options.series], "datetime"


def missing(options: SeriesOptions) -> str | None:
    """What is not on this machine, with the mend."""
    if options.path:
        return sources.first_fault(lambda: _own_file(options.path))
    if options.source == "packaged" and sources.package_file(PACKAGE, FILE) is None:
        return sources.absent(PACKAGE)
    return None


def key_of(options: SeriesOptions, version: int) -> str:
    """The name of a folder for what is prepared of this table."""
    columns, target, time = chosen(options)
    content: dict[str, Any] = {"version": version, "columns": columns, "target": target}
    if options.path:
        name, content["own"] = "own", sources.own_hash(options.path)
    elif options.source == "huggingface":
        name, content["rows"] = options.dataset, [options.config, options.hub_split]
    elif options.source == "synthetic":
        name = "synthetic"
    else:
        name = sources.named(PACKAGE) if sources.package_file(PACKAGE, FILE) else PACKAGE
    return folder_name(f"{name} {target}", {**content, "name": name, "time": time})


def table_of(options: SeriesOptions) -> Table:
    """Raises ValueError where the table cannot be had or read, or has not these columns."""
    columns, target, time = chosen(options)
    if options.path:
        rows = _rows_of_file(_own_file(options.path))
        source, licence = f"own file: {Path(options.path).name}", "the user's own"
    elif options.source == "huggingface":
        needed = columns + ((time,) if time else ())
        rows, licence = _rows_of_hub(options, needed)
        source = sources.hub_source(options.dataset, options.config)
    elif options.source == "synthetic":
        rows, licence = synthetic_rows(), "none"
        source = "synthetic: two seasons, a driver a day ahead, and noise, from a formula"
    else:
        rows, licence = _rows_of_package(), "CC BY 4.0"
        source = f"UCI Metro Interstate Traffic Volume ({sources.named(PACKAGE)})"
    for name in (*columns, target, *((time,) if time else ())):
        if name not in rows:
            raise ValueError(f"{source} has no column {name!r}; it has {', '.join(rows)}")
    if target not in columns:
        raise ValueError(f"target: {target!r} is not among the columns of numbers {columns}")
    used = slice(None if options.path else HOURS)
    return Table(
        columns=columns,
        values=np.stack([_numbers(rows[name][used], name) for name in columns], axis=1),
        target=columns.index(target),
        times=_times(rows[time][used], time) if time else None,
        source=source,
        licence=licence,
    )


def _numbers(cells: Sequence[Any], name: str) -> Numbers:
    """Numbers of a column; an empty cell or None is not one, and is allowed."""
    try:
        return np.array([math.nan if c in ("", None) else float(c) for c in cells])
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} is not all numbers: {error}") from None


def _times(cells: Sequence[Any], name: str) -> NDArray[np.datetime64]:
    try:
        times = np.array(cells, dtype="datetime64[s]")
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} is not all ISO 8601 times: {error}") from None
    steps = np.diff(times)
    odd = np.flatnonzero((steps != steps[:1]) | (steps <= np.timedelta64(0, "s")))
    if len(odd):
        raise ValueError(
            f"column {name!r}: rows must be equally spaced in time and in order; "
            f"after {times[odd[0]]} comes {times[odd[0] + 1]}"
        )
    return times


def _rows_of_package() -> Rows:
    with zipfile.ZipFile(sources.needed(PACKAGE, FILE)) as archive:
        text = archive.read(archive.namelist()[0]).decode()
    return _columns_of(csv.reader(io.StringIO(text)))


def _rows_of_hub(options: SeriesOptions, needed: tuple[str, ...]) -> tuple[Rows, str]:
    found = sources.hub_rows(options.dataset, options.config, options.hub_split, needed)
    licence = found.info.license or "not stated by the data set"
    return {name: list(found[name]) for name in needed}, licence


def _own_file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{path}: there is no such file (a path is taken from where you are)")
    if file.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: must be a .csv or a .parquet file")
    return file


def _own_columns(options: SeriesOptions) -> tuple[str, ...]:
    """The columns of a user's file that are all numbers, but for the one of the timestamps."""
    file = _own_file(options.path)
    found = tuple(
        name for name in _numeric_columns(file, file.stat().st_mtime_ns) if name != options.time
    )
    if not found:
        raise ValueError(f"{options.path}: has no column of numbers")
    return found


@lru_cache(maxsize=8)
def _numeric_columns(file: Path, changed: int) -> tuple[str, ...]:
    """Read once for each state of the file, for a plan asks this for every cell."""
    return tuple(name for name, cells in _rows_of_file(file).items() if _is_numeric(name, cells))


def _is_numeric(name: str, cells: Sequence[Any]) -> bool:
    try:
        return not np.isnan(_numbers(cells, name)).all()
    except ValueError:
        return False


def _rows_of_file(file: Path) -> Rows:
    """The cells of each column of a CSV or Parquet file."""
    if file.suffix == ".parquet":
        rows = list(sources.parquet_rows(file, ()))
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    with file.open(encoding="utf-8", newline="") as lines:
        return _columns_of(csv.reader(lines))


def _columns_of(lines: Iterator[list[str]]) -> Rows:
    header = next(lines, [])
    rows = [row for row in lines if row]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(
                f"row {number + 2} has {len(row)} cells where the header has {len(header)}"
            )
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def synthetic_rows() -> Rows:
    """`value` = daily and weekly sines + what `driver` was a day before + noise. Both the driver
    and the noise are autoregressive of order one."""
    generator = np.random.Generator(np.random.Philox(key=2**62))
    hours, ahead = np.arange(HOURS), 24

    def wandering(keeping: float) -> Numbers:
        steps = generator.normal(size=HOURS + ahead)
        for t in range(1, len(steps)):
            steps[t] += keeping * steps[t - 1]
        return steps * math.sqrt(1 - keeping**2)

    driver, noise = wandering(0.98), wandering(0.8)[ahead:]
    seasons = 20 * np.sin(2 * np.pi * hours / 24) + 10 * np.sin(2 * np.pi * hours / 168)
    return {
        "time": list(np.datetime64("2020-01-01T00", "s") + hours * np.timedelta64(3600, "s")),
        "value": list(100 + seasons + 10 * driver[:-ahead] + 3 * noise),
        "driver": list(driver[ahead:]),
    }


def filled(values: Numbers) -> Numbers:
    """(R, ...) with each gap given the last value before it; what comes first stays a gap."""
    rows = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, rows), axis=0)
    return np.take_along_axis(values, last, axis=0)


def calendar(times: NDArray[np.datetime64]) -> Numbers:
    """(R, 9): sine and cosine of the time of day, and which of seven weekdays it is, Monday
    first."""
    days = times.astype("datetime64[D]")
    angle = 2 * np.pi * ((times - days) / np.timedelta64(1, "D"))
    weekday = (days.astype(np.int64) + 3) % 7  # day 0, 1 January 1970, was a Thursday
    return np.concatenate([np.sin(angle)[:, None], np.cos(angle)[:, None], np.eye(7)[weekday]], 1)
