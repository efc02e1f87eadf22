"""Profiles: quality along a coordinate (position in the context, distance between fact and
question, length of the evaluation), a line a label, a panel a training length."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, margin, sheet, style
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import Row, file_name, runs
from orchestrator.quantities import count, size

PANEL, GAP = 1.9, 0.42
"""Inches of height: the panel of one training length, and between two."""
MAX_TICKS = 9
_LINEAR = frozenset({"messages", "facts", "lines"})
"""Coordinates of few small numbers; all others double from tick to tick."""
WORDS = {
    "position": "tokens of context",
    "distance": "tokens between",
    "lines": "lines between",
    "facts": "facts in the sequence",
    "messages": "messages before the reply",
    "eval_seq_len": "length of the evaluation",
}


def draw(tables: Tables) -> Iterator[Drawing]:
    """One figure per metric with a coordinate, task and size."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in tables.profiles.to_pylist():
        found.setdefault((row["metric"], row["task"], row["size"]), []).append(row)
    looks = lines.looks(tables)
    for (metric, task, parameters), rows in found.items():
        name = file_name(tables, "profile", metric=metric, task=task, size=parameters)
        better = "lower" if rows[0]["better"] == "smaller" else "higher"
        caption = (
            f"{_title(rows)} at {size(parameters)} parameters ({better} is better): medians over"
            " seeds with 95 % intervals, one panel a training length."
        )
        if rows[0]["coordinate"] == "eval_seq_len":
            caption += f" The dotted line is the length trained at; beyond it {_positions(tables)}."
        if any(row["reason"] == "undertrained" for row in rows):
            caption += " Undertrained: learning had only begun."
        yield Drawing(name, caption, _figure(tables, rows, looks))


def _positions(tables: Tables) -> str:
    """What decides how each label reads longer contexts than it was trained at."""
    found: dict[str, list[str]] = {}
    for row in tables.cells.select(["label", "position_encoding"]).to_pylist():
        if row["position_encoding"] is not None:
            found.setdefault(row["position_encoding"], []).append(row["label"])
    told = [f"{', '.join(dict.fromkeys(who))} by {name}" for name, who in sorted(found.items())]
    return f"positions are told apart {'; '.join(told) or 'by recurrence alone'}"


def _title(rows: list[Row]) -> str:
    title = str(rows[0]["title"])
    return title[:1].upper() + title[1:]


def _figure(tables: Tables, rows: list[Row], looks: dict[str, style.Look]) -> Figure:
    lengths = sorted({row["seq_len"] for row in rows})
    beside = (margin.key_height(looks) + GAP) / len(lengths) - GAP
    figure, panels = sheet.stack([max(PANEL, beside)] * len(lengths), GAP, looks)
    coordinate, unit = str(rows[0]["coordinate"]), str(rows[0]["unit"])
    known = [
        row[side] for row in rows for side in ("median", "low", "high") if row[side] is not None
    ]
    for axes, length in zip(panels, lengths, strict=True):
        mine = [row for row in rows if row["seq_len"] == length]
        for label in looks:
            _line(axes, [row for row in mine if row["label"] == label], looks[label])
        style.quantity_axis(axes, known, "" if unit == "1" else unit, log=False)
        points = sorted({row["at"] for row in rows})
        _axis(axes, coordinate, points, labelled=axes is panels[-1])
        axes.set_ylabel("" if unit == "1" else unit, color=style.GREY)
        if coordinate == "eval_seq_len":
            axes.axvline(length, color=style.GREY, linewidth=0.8, linestyle=":")
        told = f"trained at {count(length)} {tables.sweep.token_unit}"
        sheet.heading(axes, "" if axes is not panels[0] else _title(rows), told)
    present = {row["label"] for row in rows}
    margin.key(panels[0], [label for label in looks if label in present], looks)
    panels[-1].set_xlabel(WORDS.get(coordinate, coordinate.replace("_", " ")))
    return figure


def _line(axes: Axes, rows: list[Row], look: style.Look) -> None:
    for run in runs(sorted(rows, key=lambda row: row["at"]), "median"):
        axes.plot([row["at"] for row in run], [row["median"] for row in run], **look.plain())
        lines.band(axes, run, "at", look)


def _axis(axes: Axes, coordinate: str, at: list[float], *, labelled: bool) -> None:
    linear = coordinate in _LINEAR or at[0] <= 0
    # The same in every panel: only the last one's ticks are labelled.
    if linear:
        room = 0.05 * max(at[-1] - at[0], 1.0)
        axes.set_xlim(at[0] - room, at[-1] + room)
    else:
        axes.set_xscale("log", base=2)
        axes.set_xlim(at[0] / 2**0.4, at[-1] * 2**0.4)
    ticks = at[:: -(-len(at) // MAX_TICKS)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    texts = [count(round(tick)) if labelled else "" for tick in ticks]
    axes.xaxis.set_major_formatter(FixedFormatter(texts))
    axes.grid(axis="x")


PLOT = Plot(needs=("profiles",), draw=draw)
