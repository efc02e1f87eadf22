"""Tuning: what each trial reached over its learning rate, and the best so far over the trials of a
rung: after other tokens another loss is to be expected, so that each rung starts anew."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, margin, sheet, style
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import Row, file_name
from orchestrator.quantities import count, size

PANEL, GAP = 1.9, 0.72
"""Inches of height: a panel, and between two."""
_SMALL, _LARGE = 2.5, 6.5
"""Of the markers, from the shortest rung to the longest."""


def draw(tables: Tables) -> Iterator[Drawing]:
    """One figure per task and size: for each length searched at a slice and a history."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in tables.tuning.to_pylist():
        if row["value"] is not None:
            found.setdefault((row["task"], row["size"]), []).append(row)
    looks = lines.looks(tables)
    for (task, parameters), rows in found.items():
        metric = rows[0]["metric"]
        name = file_name(tables, "tuning", metric=metric, task=task, size=parameters)
        caption = (
            f"Tuning at {size(parameters)} parameters: {metric.replace('_', ' ')} of each trial "
            "over its learning rate (a larger marker is a longer trial, the dotted line what was "
            "chosen), and the best so far over the trials, anew for each number of tokens. The "
            "worst quarter may be out of sight."
        )
        yield Drawing(name, caption, _figure(tables, rows, looks))


def _figure(tables: Tables, rows: list[Row], looks: dict[str, style.Look]) -> Figure:
    lengths = sorted({row["seq_len"] for row in rows if row["stage"] != "check"})
    figure, panels = sheet.stack([PANEL] * (2 * len(lengths)), GAP, looks)
    words = str(rows[0]["metric"]).replace("_", " ").capitalize()
    unit = str(rows[0]["unit"] or "")
    present = {row["label"] for row in rows}
    for place, length in enumerate(lengths):
        mine = [row for row in rows if row["seq_len"] == length and row["stage"] != "check"]
        values = _in_sight([row["value"] for row in mine], rows[0]["better"])
        where = f"length {count(length)} {tables.sweep.token_unit}"
        for axes in panels[2 * place : 2 * place + 2]:
            style.quantity_axis(axes, values, "" if unit == "1" else unit, log=False)
            axes.set_ylabel("" if unit == "1" else unit, color=style.GREY)
        _slice(panels[2 * place], mine, looks)
        sheet.heading(panels[2 * place], f"{words} and learning rate" if not place else "", where)
        _history(panels[2 * place + 1], mine, looks, tables.sweep.token_unit)
        told = f"best so far after equally many {tables.sweep.token_unit}, {where}"
        sheet.heading(panels[2 * place + 1], "", told)
    margin.key(panels[0], [label for label in looks if label in present], looks)
    return figure


def _in_sight(values: list[float], better: str) -> list[float]:
    """The better three quarters: a rate that is far too high would press the rest into a line."""
    ranked = sorted(values, reverse=better == "greater")
    return ranked[: max(2, 3 * len(ranked) // 4)]


def _slice(axes: Axes, rows: list[Row], looks: dict[str, style.Look]) -> None:
    rungs = sorted({row["tokens"] for row in rows})
    large = [_SMALL + (_LARGE - _SMALL) * (rung + 1) / len(rungs) for rung in range(len(rungs))]
    rates = [row["learning_rate"] for row in rows]
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
    for label, look in looks.items():
        for rung, tokens in enumerate(rungs):
            mine = [r for r in rows if (r["label"], r["tokens"]) == (label, tokens)]
            axes.plot(
                [row["learning_rate"] for row in mine],
                [row["value"] for row in mine],
                **{**look.plain(), "linestyle": "none", "alpha": 0.75, "markersize": large[rung]},
            )
        for chosen in {r["chosen"] for r in rows if r["label"] == label} - {None}:
            axes.axvline(chosen, color=look.colour, linestyle=":", linewidth=1.0)
    ticks = style.log_ticks(*axes.get_xlim(), binary=False)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.set_xlabel("learning rate")


def _history(axes: Axes, rows: list[Row], looks: dict[str, style.Look], unit: str) -> None:
    better = min if rows[0]["better"] == "smaller" else max
    last = max(row["trial"] for row in rows)
    axes.set_xlim(0.5, last + 0.5)
    for tokens in sorted({row["tokens"] for row in rows}):
        rung = [row for row in rows if row["tokens"] == tokens]
        start, end = (of(row["trial"] for row in rung) for of in (min, max))
        for label, look in looks.items():
            mine = sorted((r for r in rung if r["label"] == label), key=lambda row: row["trial"])
            if not mine:
                continue
            best = list(accumulate((row["value"] for row in mine), better))
            axes.plot(
                # On to the rung's end: of a single trial, too, a line is seen.
                [*(row["trial"] for row in mine), end + 0.4],
                [*best, best[-1]],
                **{**look.plain(), "marker": ""},
                drawstyle="steps-post",
            )
        if start > 1:
            axes.axvline(start - 0.3, color=style.STRIP, linewidth=0.8, zorder=0.5)
        _tell(axes, (start - 0.3, end + 0.4), f"{count(tokens)} {unit} each", better is min)
    axes.xaxis.set_major_locator(FixedLocator([*range(1, last + 1, -(-last // 12))]))
    axes.set_xlabel("trials")


def _tell(axes: Axes, between: tuple[float, float], words: str, falling: bool) -> None:
    """In the corner that lines leave free as they fall or rise, where there is room."""
    low, high = axes.get_xlim()
    inches = axes.bbox.width / axes.figure.dpi * (between[1] - between[0]) / (high - low)
    if inches > 0.065 * len(words):
        axes.annotate(
            words,
            (between[1], float(falling)),
            xycoords=("data", "axes fraction"),
            xytext=(0, -2 if falling else 2),
            textcoords="offset points",
            ha="right",
            va="top" if falling else "bottom",
            color=style.GREY,
            fontsize=7.5,
        )


PLOT = Plot(needs=("tuning",), draw=draw)
