"""The answer figure: a metric against context per label, under it the ratio to the baseline, under
that where each pair changes places.

Bands are 95 %: of the median above, simultaneous over the contexts in the middle. A bar below is a
crossing's 95 % interval, an arrow where that is open; the pale bar behind it is where the two lie
within 5 % of each other.
"""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, margin, ratio_panel, sheet, style, verdict_panel
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import Frame, Row, conditions, ending, file_name, frames

CURVES, RATIOS, MANY_RATIOS, GAP = 2.7, 1.65, 2.3, 0.16
"""Inches of height: the curves, the ratios, those where labels are many, and between panels."""


def draw(tables: Tables) -> Iterator[Drawing]:
    """One figure per metric, task, size, batch and mode of execution that has a number."""
    contrasts = tables.contrasts.to_pylist()
    crossovers = tables.crossovers.to_pylist()
    looks = lines.looks(tables)
    for frame in frames(tables):
        ratios = [row for row in contrasts if frame.holds(row)]
        verdicts = [row for row in crossovers if frame.holds(row)]
        name = file_name(
            tables,
            "crossover",
            metric=frame.metric,
            task=frame.task,
            size=frame.size,
            batch=frame.batch,
            execution=frame.execution,
        )
        figure = _figure(tables, frame, ratios, verdicts, looks)
        yield Drawing(name, _caption(tables, frame, ratios, looks), figure)


def _caption(tables: Tables, frame: Frame, ratios: list[Row], looks: dict[str, style.Look]) -> str:
    better = "lower" if frame.better == "smaller" else "higher"
    text = (
        f"{frame.title} against context at {conditions(tables, frame)} ({better} is better): "
        f"{frame.centre} with 95 % intervals."
    )
    if any(row["estimate"] is not None for row in ratios):
        what = "ratio to" if frame.log else "difference from"
        text += (
            f" Below: the {what} {tables.sweep.baseline} with its simultaneous 95 % band; the grey"
            " strip is ±5 %, bars are the intervals of the crossings, dotted where a crossing would"
            " lie if there is one."
        )
    if any(ending(frame.of(row["label"])) for row in frame.rows):
        text += " A cross marks where a curve stops."
    if any(row["reason"] == "undertrained" for row in frame.rows):
        text += " Hollow points are undertrained."
    if style.families(looks):
        text += " Families share a hue."
    if any(looks[row["challenger"]].family == "shell" for row in ratios):
        text += " The shell alone may lie outside the ratios shown."
    if style.crowded(looks):
        pair = " and ".join(label for label, look in looks.items() if look.depth == "front")
        text += f" In front, with bands: {pair}; the others are thin, their intervals left out."
    return text


def _figure(
    tables: Tables,
    frame: Frame,
    ratios: list[Row],
    verdicts: list[Row],
    looks: dict[str, style.Look],
) -> Figure:
    with_ratios = any(row["estimate"] is not None for row in ratios)
    pairs = verdict_panel.row_heights(verdicts, looks) if with_ratios else {}
    heights = [
        max(CURVES, margin.needed(frame, looks)),
        *([MANY_RATIOS if style.crowded(looks) else RATIOS] if with_ratios else []),
        *([sum(pairs.values()) + 0.1] if with_ratios else []),
    ]
    figure, panels = sheet.stack(heights, GAP, looks)
    inches = style.WIDTH - style.MARGIN_LEFT - style.MARGIN_RIGHT
    curves = panels[0]
    lines.medians(curves, frame, looks)
    sheet.heading(curves, frame.title, f"{conditions(tables, frame)} · {_device(tables)}")
    for panel in panels:
        style.context_axis(panel, frame.contexts, inches, labels=panel is panels[-1])
    sheet.zone(panels, tables.sweep.zone)
    if with_ratios:
        ratio_panel.draw(panels[1], tables.sweep.baseline, ratios, verdicts, looks)
        verdict_panel.draw(panels[2], pairs, verdicts, looks)
    margin.names(curves, frame, looks)
    panels[-1].set_xlabel(f"context ({tables.sweep.token_unit}, log scale)")
    return figure


def _device(tables: Tables) -> str:
    environment = tables.sweep.environments.get(tables.sweep.environment or "", {})
    return str(environment.get("device_name", environment.get("device", "")))


PLOT = Plot(needs=("summary",), draw=draw)
