"""Predicted against measured wall time of every finished cell: how far `plan` can be trusted."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, margin, sheet, style
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import Row

SIDE = 3.4
"""Inches of height of the square."""


def draw(tables: Tables) -> Iterator[Drawing]:
    """One figure where any finished cell had a prediction."""
    columns = tables.cells.select(["label", "status", "seconds", "predicted_seconds"]).to_pylist()
    finished = [row for row in columns if row["status"] == "finished"]
    rows = [row for row in finished if row["seconds"] and row["predicted_seconds"]]
    if rows:
        caption = (
            "Predicted against measured wall time of each finished cell. On the line the prediction"
            " was right, within the strip by a factor of two."
        )
        yield Drawing("predicted", caption, _figure(rows, lines.looks(tables)))


def _figure(rows: list[Row], looks: dict[str, style.Look]) -> Figure:
    figure, (axes,) = sheet.stack([max(SIDE, margin.key_height(looks))], 0, looks)
    times = [row[column] for row in rows for column in ("seconds", "predicted_seconds")]
    low, high = min(times) / 1.5, max(times) * 1.5
    axes.set_xscale("log")
    style.quantity_axis(axes, [low, high], "s", log=True)
    axes.set_xlim(axes.get_ylim())
    axes.xaxis.set_major_locator(axes.yaxis.get_major_locator())
    axes.xaxis.set_major_formatter(axes.yaxis.get_major_formatter())
    axes.xaxis.set_minor_locator(axes.yaxis.get_minor_locator())
    ends = axes.get_xlim()
    axes.fill_between(
        ends, [end / 2 for end in ends], [end * 2 for end in ends], color=style.ZONE, linewidth=0
    )
    axes.plot(ends, ends, color=style.GREY, linewidth=0.8)
    for label, look in looks.items():
        mine = [row for row in rows if row["label"] == label]
        # Rasterised: ten thousand vector markers would make the report too large to send.
        axes.plot(
            [row["seconds"] for row in mine],
            [row["predicted_seconds"] for row in mine],
            **{**look.plain(), "linestyle": "none"},
            alpha=0.7,
            rasterized=len(rows) > 500,
        )
    sheet.heading(axes, "Predicted and measured time of a cell", "wall time, strip: ± factor 2")
    margin.key(axes, [label for label in looks if any(r["label"] == label for r in rows)], looks)
    axes.set_xlabel("measured")
    axes.set_ylabel("predicted")
    return figure


PLOT = Plot(needs=("cells",), draw=draw)
