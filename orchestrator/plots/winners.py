"""The winners' map: at each context and batch, the labels that cannot be told from the best.

The best label's marker stands first in its cell; the others beside it are those that the
measurements do not separate from it. A tinted cell has a single winner.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, style
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import Frame, Row, batch_words, file_name, frames, labels
from orchestrator.quantities import count, size

ROW, HEAD, FOOT, KEY = 0.34, 0.62, 0.55, 0.22
"""Inches of height: a row of the map, the heading, the context axis, a row of the key."""

LEFT, RIGHT, COLUMNS = 2.65, 0.2, 4
"""Inches beside the map, on the left for the rows' names; columns of the key."""

Key = tuple[str, str, int, str | None]


def draw(tables: Tables) -> Iterator[Drawing]:
    """One map per task and size: a row per metric and batch, a column per context."""
    found: dict[Key, dict[int, list[Row]]] = {}
    for row in tables.winners.to_pylist():
        if row["in_best_set"]:
            key = (row["metric"], row["task"], row["size"], row["batch"])
            found.setdefault(key, {}).setdefault(row["seq_len"], []).append(row)
    looks = style.looks(labels(tables))
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
    height = HEAD + ROW * len(shown) + FOOT + KEY * math.ceil(len(looks) / COLUMNS)
    figure = Figure(figsize=(style.WIDTH, height))
    width = style.WIDTH - LEFT - RIGHT
    map_height = ROW * len(shown)
    axes = figure.add_axes(
        (
            LEFT / style.WIDTH,
            (height - HEAD - map_height) / height,
            width / style.WIDTH,
            map_height / height,
        )
    )
    for place, frame in enumerate(shown):
        for column, context in enumerate(contexts):
            _cell(
                axes, column, place, found[frame.key].get(context, []), looks, width / len(contexts)
            )
    _axes(axes, shown, contexts, tables, width)
    lines.heading(axes, "Who cannot be told from the best", f"{size(shown[0].size)} parameters")
    _key(figure, looks)
    return figure


def _key(figure: Figure, looks: dict[str, style.Look]) -> None:
    """The labels with their markers along the lower edge."""
    handles = [
        Line2D([], [], **{**look.plain(), "linestyle": "none"}, label=lines.short(label))
        for label, look in looks.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=COLUMNS, handletextpad=0.2)


def _cell(
    axes: Axes,
    column: int,
    place: int,
    rows: list[Row],
    looks: dict[str, style.Look],
    inches: float,
) -> None:
    """The best set of one context as markers in a row, the best one first and larger, in a column
    `inches` wide."""
    ranked = [row["label"] for row in sorted(rows, key=lambda row: not row["best"])]
    alone = len(ranked) == 1
    box = Rectangle(
        (column - 0.48, place - 0.46),
        0.96,
        0.92,
        facecolor=looks[ranked[0]].colour if alone else "#f3f3f3",
        alpha=0.22 if alone else 1.0,
        linewidth=0,
    )
    if ranked:
        axes.add_patch(box)
    step = min(0.26, 0.84 / max(len(ranked), 1))
    room = 72 * step * inches * 0.92
    for i, label in enumerate(ranked):
        axes.plot(
            column + (i - (len(ranked) - 1) / 2) * step,
            place,
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
    axes.set_ylim(len(shown) - 0.5, -0.5)
    # A column is `inches / columns` wide; a label with more digits than that holds is left out.
    every = max(1, round(0.082 * len(count(max(contexts))) * len(contexts) / inches + 0.45))
    axes.xaxis.set_major_locator(FixedLocator(range(0, len(contexts), every)))
    axes.xaxis.set_major_formatter(FixedFormatter([count(at) for at in contexts[::every]]))
    names = [
        lines.short(frame.title, 30) + (f", {batch_words(frame.batch)}" if frame.batch else "")
        for frame in shown
    ]
    axes.yaxis.set_major_locator(FixedLocator(range(len(shown))))
    axes.yaxis.set_major_formatter(FixedFormatter(names))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(f"context ({tables.sweep.token_unit})")


PLOT = Plot(needs=("winners",), draw=draw)
