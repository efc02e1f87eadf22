"""Training curves: a metric sampled during training against the tokens seen, one thin line a seed.

No band is drawn: each line is one run, so that a diverging seed is seen and not averaged away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, margin, sheet, style
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import Row, file_name
from orchestrator.quantities import count, size

PANEL, GAP = 1.7, 0.38
"""Inches of height: the panel of one training length, and between two."""

_DEPTHS: Mapping[style.Depth, Mapping[str, Any]] = {
    "among": {"linewidth": 0.9, "alpha": 0.75},
    "front": {"linewidth": 1.3, "alpha": 0.95, "zorder": 4},
    "behind": {"linewidth": 0.6, "alpha": 0.6, "zorder": 2},
}


def draw(tables: Tables) -> Iterator[Drawing]:
    """One figure per metric with steps, task and size: a panel per training length."""
    columns = ["cell_id", "label", "task", "size", "seq_len", "tokens_per_update"]
    cells = {row["cell_id"]: row for row in tables.cells.select(columns).to_pylist()}
    found: dict[tuple[str, str, int], dict[str, list[Row]]] = {}
    stepped = tables.samples.filter(tables.samples["step"].is_valid())
    for row in stepped.to_pylist():
        cell = cells[row["cell_id"]]
        key = (row["metric"], cell["task"], cell["size"])
        found.setdefault(key, {}).setdefault(row["cell_id"], []).append(row)
    looks = lines.looks(tables)
    for (metric, task, parameters), curves in found.items():
        name = file_name(tables, "training", metric=metric, task=task, size=parameters)
        words = metric.replace("_", " ")
        caption = (
            f"{words[:1].upper()}{words[1:]} against tokens of training at {size(parameters)}"
            " parameters, one line a seed, one panel a training length."
        )
        yield Drawing(name, caption, _figure(tables, words, curves, cells, looks))


def _figure(
    tables: Tables,
    title: str,
    curves: dict[str, list[Row]],
    cells: dict[str, Row],
    looks: dict[str, style.Look],
) -> Figure:
    lengths = sorted({cells[cell]["seq_len"] for cell in curves})
    # The key may be longer than one panel: it runs down beside all of them.
    beside = (margin.key_height(looks) + GAP) / len(lengths) - GAP
    figure, panels = sheet.stack([max(PANEL, beside)] * len(lengths), GAP, looks)
    unit = next(iter(curves.values()))[0]["unit"]
    values = [row["value"] for rows in curves.values() for row in rows]
    for axes, length in zip(panels, lengths, strict=True):
        mine = {cell: rows for cell, rows in curves.items() if cells[cell]["seq_len"] == length}
        for cell, rows in mine.items():
            _curve(axes, rows, cells[cell], looks, crowded=len(values) > 20_000)
        style.quantity_axis(axes, values, unit, log=False)
        _token_axis(axes, curves, cells, labelled=axes is panels[-1])
        axes.set_ylabel(unit, color=style.GREY)
        told = f"length {count(length)} {tables.sweep.token_unit}"
        sheet.heading(axes, "" if axes is not panels[0] else title.capitalize(), told)
    margin.key(panels[0], [label for label in looks if _present(label, curves, cells)], looks)
    panels[-1].set_xlabel(f"{tables.sweep.token_unit} of training")
    return figure


def _present(label: str, curves: dict[str, list[Row]], cells: dict[str, Row]) -> bool:
    return any(cells[cell]["label"] == label for cell in curves)


def _curve(
    axes: Axes, rows: list[Row], cell: Row, looks: dict[str, style.Look], *, crowded: bool
) -> None:
    look = looks[cell["label"]]
    ordered = sorted(rows, key=lambda row: row["step"])
    axes.plot(
        [_tokens(row, cell) for row in ordered],
        [row["value"] for row in ordered],
        color=look.colour,
        linestyle=look.line,
        rasterized=crowded,
        **_DEPTHS[look.depth],
    )


def _tokens(row: Row, cell: Row) -> int:
    """Tokens seen at a sample: updates so far, in the tokens of one update."""
    return int(row["step"] * (cell["tokens_per_update"] or 1))


def _token_axis(
    axes: Axes, curves: dict[str, list[Row]], cells: dict[str, Row], *, labelled: bool
) -> None:
    last = max(_tokens(row, cells[cell]) for cell, rows in curves.items() for row in rows)
    axes.set_xlim(0, last * 1.02)
    ticks = style.linear_ticks(0, last)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    texts = [(size(tick) if tick else "0") if labelled else "" for tick in ticks]
    axes.xaxis.set_major_formatter(FixedFormatter(texts))
    axes.grid(axis="x")


PLOT = Plot(needs=("samples", "cells"), draw=draw)
