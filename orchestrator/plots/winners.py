"""The winners' map: at each context and batch, the labels that cannot be told from the best.

The best label's marker stands first in its cell; the others beside it are those that the
measurements do not separate from it. A tinted cell has a single winner.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator

from orchestrator.analysis.tables import Tables, block_of
from orchestrator.plots import lines, margin, sheet, style
from orchestrator.plots.fitting import short
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import Frame, Key, Row, batch_words, file_name, frames, mode_words
from orchestrator.quantities import count, size

ROW, HEAD, FOOT, KEY = 0.34, 0.62, 0.55, 0.22
"""Inches of height: a row of the map, the heading, the context axis, a row of the key."""

LEFT, RIGHT, COLUMNS = 2.65, 0.2, 4
"""Inches beside the map, on the left for the rows' names; columns of the key."""

KEY_LEFT, MANY_KEY = 0.35, 0.17
"""Where labels are many: inches left of the key, and of height of one of its rows."""

MARKER, MOST_LINES = 0.12, 4
"""Of many labels, a best set too wide for its cell stands in several lines: inches that a marker
takes each way, and the most lines before markers shrink."""


def draw(tables: Tables) -> Iterator[Drawing]:
    """One map per task and size: a row per metric and batch, a column per context."""
    found: dict[Key, dict[int, list[Row]]] = {}
    for row in tables.winners.to_pylist():
        if row["in_best_set"]:
            found.setdefault(block_of(row), {}).setdefault(row["seq_len"], []).append(row)
    looks = lines.looks(tables)
    shown = [frame for frame in frames(tables) if frame.key in found]
    for task, parameters in dict.fromkeys((frame.task, frame.size) for frame in shown):
        mine = [frame for frame in shown if (frame.task, frame.size) == (task, parameters)]
        name = file_name(tables, "winners", task=task, size=parameters)
        caption = (
            f"Who wins at {size(parameters)} parameters: per metric, batch and context the labels"
            " that cannot be told from the best, the best one first. A tinted cell has one winner."
        )
        yield Drawing(name, caption, _figure(tables, mine, found, looks))


def _figure(
    tables: Tables,
    shown: list[Frame],
    found: dict[Key, dict[int, list[Row]]],
    looks: dict[str, style.Look],
) -> Figure:
    contexts = sorted({context for frame in shown for context in frame.contexts})
    width = style.WIDTH - LEFT - RIGHT
    column_width = width / len(contexts)
    many = style.crowded(looks)
    cells = [found[frame.key] for frame in shown]
    most = [max(map(len, row.values())) for row in cells]
    abreast = [_abreast(n, column_width) if many else n for n in most]
    # Row heights in units of ROW: a row is as high as its largest best set needs.
    highs = [
        1 + MARKER / ROW * (math.ceil(largest / side) - 1)
        for largest, side in zip(most, abreast, strict=True)
    ]
    middles = [sum(highs[:place]) + (high - 1) / 2 for place, high in enumerate(highs)]
    below = sheet.families_height(looks)
    key = (MANY_KEY if many else KEY) * math.ceil(len(looks) / COLUMNS)
    map_height = ROW * sum(highs)
    height = HEAD + map_height + FOOT + key + below
    figure = Figure(figsize=(style.WIDTH, height))
    axes = figure.add_axes(
        (
            LEFT / style.WIDTH,
            (height - HEAD - map_height) / height,
            width / style.WIDTH,
            map_height / height,
        )
    )
    for place, row in enumerate(cells):
        for column, context in enumerate(contexts):
            cell = _Cell(column, middles[place], column_width, highs[place], abreast[place])
            _draw(axes, cell, row.get(context, []), looks)
    axes.set_ylim(sum(highs) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(middles))
    _axes(axes, shown, contexts, tables, width)
    sheet.heading(axes, "Who cannot be told from the best", f"{size(shown[0].size)} parameters")
    _key(figure, looks, below)
    sheet.families(figure, looks, KEY_LEFT)
    return figure


def _abreast(most: int, inches: float) -> int:
    """How many markers of the largest best set stand side by side in a column `inches` wide."""
    fitting = max(1, math.floor(0.9 * inches / MARKER))
    return max(min(fitting, most), math.ceil(most / MOST_LINES))


def _key(figure: Figure, looks: dict[str, style.Look], below: float) -> None:
    """The labels with their markers along the lower edge, `below` inches above it."""
    many = style.crowded(looks)
    marks = {"linestyle": "none"}
    sizes = {"markersize": 4.5, "markeredgewidth": 0.6} if many else {}
    handles = [
        Line2D([], [], **{**look.plain(), **marks, **sizes}, label=margin.cut(label, look))
        for label, look in looks.items()
    ]
    at: dict[str, Any] = {"loc": "lower center"}
    if many:
        corner = (KEY_LEFT / style.WIDTH, (below + 0.06) / figure.get_figheight())
        at = {"loc": "lower left", "bbox_to_anchor": corner, "fontsize": 7.5, "borderpad": 0}
        at |= {"borderaxespad": 0, "labelspacing": 0.4}
    legend = figure.legend(handles=handles, ncols=COLUMNS, handletextpad=0.2, **at)
    for text, look in zip(legend.get_texts(), looks.values(), strict=True):
        if look.depth == "front":
            text.set_fontweight("bold")


@dataclass(frozen=True, slots=True)
class _Cell:
    """One context of one row of the map: where its middle is, how wide in inches, how high in
    rows, and how many markers stand abreast in it."""

    column: int
    place: float
    width: float
    high: float
    abreast: int


def _draw(axes: Axes, cell: _Cell, rows: list[Row], looks: dict[str, style.Look]) -> None:
    """The best set of one context as markers in a row, or in several, the best one first and
    larger."""
    column, place = cell.column, cell.place
    ranked = [row["label"] for row in sorted(rows, key=lambda row: not row["best"])]
    alone = len(ranked) == 1
    box = Rectangle(
        (column - 0.48, place - cell.high / 2 + 0.04),
        0.96,
        cell.high - 0.08,
        facecolor=looks[ranked[0]].colour if alone else "#f3f3f3",
        alpha=0.22 if alone else 1.0,
        linewidth=0,
    )
    if ranked:
        axes.add_patch(box)
    abreast = min(len(ranked), cell.abreast)
    step = min(0.26, 0.84 / max(abreast, 1))
    room = 72 * step * cell.width * 0.92
    last = math.ceil(len(ranked) / max(abreast, 1)) - 1
    for i, label in enumerate(ranked):
        line, along = divmod(i, abreast)
        axes.plot(
            column + (along - (abreast - 1) / 2) * step,
            place + (line - last / 2) * MARKER / ROW,
            marker=looks[label].marker,
            color=looks[label].colour,
            markersize=min(6.5 if i == 0 else 4.5, room * (1.25 if i == 0 else 1.0)),
            markeredgecolor="white",
            markeredgewidth=0.5,
        )


def _axes(
    axes: Axes, shown: list[Frame], contexts: list[int], tables: Tables, inches: float
) -> None:
    axes.set_xlim(-0.5, len(contexts) - 0.5)
    # A column is `inches / columns` wide; a label with more digits than that holds is left out.
    every = max(1, round(0.082 * len(count(max(contexts))) * len(contexts) / inches + 0.45))
    axes.xaxis.set_major_locator(FixedLocator(range(0, len(contexts), every)))
    axes.xaxis.set_major_formatter(FixedFormatter([count(at) for at in contexts[::every]]))
    names = [
        ", ".join(
            [
                short(frame.title, 30),
                *([batch_words(frame.batch)] if frame.batch else []),
                *mode_words(tables, frame.execution, best="best mode"),
            ]
        )
        for frame in shown
    ]
    axes.yaxis.set_major_formatter(FixedFormatter(names))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(f"context ({tables.sweep.token_unit})")


PLOT = Plot(needs=("winners",), draw=draw)
