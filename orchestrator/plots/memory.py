"""Memory against context: every metric in bytes side by side, so that what training holds and what
decoding keeps are seen together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from matplotlib.figure import Figure

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, margin, sheet, style
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import Frame, conditions, file_name, frames

PANEL = 2.0
"""Inches of height of one panel."""


def draw(tables: Tables) -> Iterator[Drawing]:
    """One figure per task, size and batch at which two metrics or more are in bytes; a single one
    is its crossover figure."""
    looks = lines.looks(tables)
    shown = sorted(
        (frame for frame in frames(tables) if frame.unit == "bytes" and frame.batch is not None),
        key=lambda frame: frame.key[1:],
    )
    for (task, size, batch, _), group in groupby(shown, key=lambda frame: frame.key[1:]):
        mine = list(group)
        if len(mine) > 1:
            name = file_name(tables, "memory", task=task, size=size, batch=batch)
            caption = (
                f"Memory against context at {conditions(tables, mine[0])}: "
                f"{', '.join(frame.title.lower() for frame in mine)} (lower is better)."
            )
            yield Drawing(name, caption, _figure(tables, mine, looks))


def _figure(tables: Tables, shown: list[Frame], looks: dict[str, style.Look]) -> Figure:
    heights = [max(PANEL, margin.needed(frame, looks)) for frame in shown]
    figure, panels = sheet.stack(heights, 0.62, looks)
    inches = style.WIDTH - style.MARGIN_LEFT - style.MARGIN_RIGHT
    for axes, frame in zip(panels, shown, strict=True):
        lines.medians(axes, frame, looks)
        sheet.heading(axes, frame.title, conditions(tables, frame))
        style.context_axis(axes, frame.contexts, inches, labels=axes is panels[-1])
        sheet.zone([axes], tables.sweep.zone)
        margin.names(axes, frame, looks)
    panels[-1].set_xlabel(f"context ({tables.sweep.token_unit}, log scale)")
    return figure


PLOT = Plot(needs=("summary",), draw=draw)
