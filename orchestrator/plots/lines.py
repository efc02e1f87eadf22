"""Lines of a metric against context, in panels under one another: what the figures share that draw
curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.plots import style
from orchestrator.plots.series import Frame, Row, ending, runs
from orchestrator.quantities import count, prefixed

HEAD, FOOT = 0.62, 0.5
"""Inches above the first panel (two lines of heading) and below the last (tick labels)."""

LINE = 0.155
"""Inches that a line of text in the margin takes."""


def stack(heights: Sequence[float], gap: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels of these heights (inches) under one another, margins as in `style`."""
    height = HEAD + sum(heights) + gap * (len(heights) - 1) + FOOT
    figure = Figure(figsize=(style.WIDTH, height))
    width = style.WIDTH - style.MARGIN_LEFT - style.MARGIN_RIGHT
    panels, top = [], height - HEAD
    for inches in heights:
        box = (
            style.MARGIN_LEFT / style.WIDTH,
            (top - inches) / height,
            width / style.WIDTH,
            inches / height,
        )
        panels.append(figure.add_axes(box))
        top -= inches + gap
    return figure, panels


def heading(axes: Axes, title: str, conditions: str) -> None:
    """The metric in bold, and under it, smaller, what is held fixed."""
    styled: tuple[tuple[str, int, dict[str, Any]], ...] = (
        (title, 21, {"fontsize": 11, "fontweight": "bold"}),
        (conditions, 9, {"fontsize": 8, "color": style.GREY}),
    )
    for text, points, options in styled:
        axes.annotate(
            text,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, points),
            textcoords="offset points",
            va="bottom",
            annotation_clip=False,
            **options,
        )


def zone(panels: Iterable[Axes], bounds: tuple[int, int]) -> None:
    """Shades the contexts of interest in every panel, as far as it is in sight, and names them in
    the first where there is room."""
    for place, axes in enumerate(panels):
        left, right = axes.get_xlim()
        low, high = max(bounds[0], left), min(bounds[1], right)
        if low >= high:
            return
        axes.axvspan(low, high, color=style.ZONE, linewidth=0, zorder=0.5)
        share = math.log(high / low) / math.log(right / left)
        words = f"zone {count(bounds[0])}–{count(bounds[1])}"
        if place == 0 and share * axes.bbox.width / axes.figure.dpi > 0.065 * len(words):
            axes.annotate(
                words,
                ((low * high) ** 0.5, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, -3),
                textcoords="offset points",
                ha="center",
                va="top",
                color=style.GREY,
                fontsize=7.5,
            )


def needed(frame: Frame) -> float:
    """Inches of height that the names of a frame's lines take in the margin."""
    labels = {row["label"] for row in frame.rows}
    return sum(LINE * (2 if _remark(frame.of(label)) else 1) + 0.03 for label in labels)


def medians(axes: Axes, frame: Frame, looks: dict[str, style.Look]) -> None:
    """Each label's medians with their intervals. A cross marks a point after which the curve stops
    for a reason; a hollow marker is an undertrained point."""
    shown: list[float] = []
    for label in dict.fromkeys(row["label"] for row in frame.rows):
        look, rows = looks[label], frame.of(label)
        for run in runs(rows, "median"):
            at, values = [row["seq_len"] for row in run], [row["median"] for row in run]
            axes.plot(at, values, **look.plain())
            band(axes, run, "seq_len", look.colour)
            shown += values
            shown += [row[side] for row in run for side in ("low", "high") if row[side] is not None]
        _hollow(axes, rows, look)
        if ending(rows):
            last = [row for row in rows if row["median"] is not None][-1:]
            for row in last:
                axes.plot(
                    row["seq_len"],
                    row["median"],
                    marker="x",
                    markersize=9,
                    markeredgewidth=1.8,
                    color=look.colour,
                    zorder=6,
                )
    style.quantity_axis(axes, shown, frame.unit, log=frame.log)
    words = [] if prefixed(frame.unit) or not frame.unit else [frame.unit]
    words.append("lower is better" if frame.better == "smaller" else "higher is better")
    axes.set_ylabel(" · ".join(words), color=style.GREY)


def _hollow(axes: Axes, rows: list[Row], look: style.Look) -> None:
    for row in rows:
        if row["reason"] == "undertrained" and row["median"] is not None:
            axes.plot(
                row["seq_len"],
                row["median"],
                marker=look.marker,
                markerfacecolor="white",
                markeredgecolor=look.colour,
                zorder=5,
            )


def band(axes: Axes, run: list[Row], x: str, colour: str) -> None:
    """The interval of each point of an unbroken run, as a band; a lone point gets a bar."""
    known = [row for row in run if row["low"] is not None and row["high"] is not None]
    if len(known) == 1:
        axes.vlines(known[0][x], known[0]["low"], known[0]["high"], color=colour, linewidth=1.2)
    elif known:
        axes.fill_between(
            [row[x] for row in known],
            [row["low"] for row in known],
            [row["high"] for row in known],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )


def names(axes: Axes, frame: Frame, looks: dict[str, style.Look]) -> None:
    """The labels in the right margin, each with a sample of its line, at the height of the line's
    end and pushed apart where lines end close together."""
    entries: list[tuple[float, str, str]] = []
    for label in dict.fromkeys(row["label"] for row in frame.rows):
        rows = frame.of(label)
        known = [row["median"] for row in rows if row["median"] is not None]
        end = axes.transData.transform((1, known[-1]))[1] if known else 0.0
        bottom, top = axes.bbox.y0, axes.bbox.y1
        height = (end - bottom) / (top - bottom) if known else 0.0
        entries.append((height, label, _remark(rows)))
    entries.sort(key=lambda entry: -entry[0])
    inches = axes.bbox.height / axes.figure.dpi
    texts = [short(label) + (f"\n{remark}" if remark else "") for _, label, remark in entries]
    sizes = [LINE * (text.count("\n") + 1) + 0.03 for text in texts]
    tops = spread([height * inches for height, _, _ in entries], sizes, inches)
    for (_, label, _), text, middle in zip(entries, texts, tops, strict=True):
        _name(axes, text, middle / inches, looks[label])


def _name(axes: Axes, text: str, height: float, look: style.Look) -> None:
    """One entry of the margin: a sample of the line, then its name, remarks smaller below."""
    name, _, remark = text.partition("\n")
    inches = axes.bbox.height / axes.figure.dpi
    width = axes.bbox.width / axes.figure.dpi
    lift = LINE / 2 / inches if remark else 0.0
    axes.add_line(
        Line2D(
            [1 + 0.08 / width, 1 + 0.23 / width, 1 + 0.38 / width],
            [height + lift] * 3,
            transform=axes.transAxes,
            clip_on=False,
            markevery=[1],
            **look.plain(),
        )
    )
    for words, shift, options in (
        (name, lift, {"fontsize": 8.5}),
        (remark, -lift, {"fontsize": 7, "color": style.GREY}),
    ):
        axes.text(
            1 + 0.45 / width,
            height + shift,
            words,
            transform=axes.transAxes,
            va="center_baseline",
            **options,
        )


def _remark(rows: list[Row]) -> str:
    if any(row["median"] is not None for row in rows):
        return ending(rows) or ""
    reason = next((row["reason"] for row in rows if row["reason"]), None)
    return "no values" if reason is None else f"no values: {reason.replace('_', ' ')}"


def spread(middles: Sequence[float], sizes: Sequence[float], room: float) -> list[float]:
    """Moves stacked boxes, given from the top down by their middles, as little as keeps them apart
    and inside 0..room; where the room is too small they run out at the bottom."""
    placed: list[float] = []
    ceiling = room
    for middle, size in zip(middles, sizes, strict=True):
        placed.append(min(middle, ceiling - size / 2))
        ceiling = placed[-1] - size / 2
    floor = 0.0
    for i in reversed(range(len(placed))):
        if placed[i] - sizes[i] / 2 >= floor:
            break
        placed[i] = floor + sizes[i] / 2
        floor = placed[i] + sizes[i] / 2
    return placed


def short(label: str, width: int = 22) -> str:
    """A label, cut with an ellipsis where it is longer than a margin holds."""
    return label if len(label) <= width else label[: width - 1] + "…"


def key(axes: Axes, labels: Sequence[str], looks: dict[str, style.Look]) -> None:
    """The labels with their lines in the right margin from the top of the panel down, for figures
    of several panels or without line ends."""
    inches = axes.bbox.height / axes.figure.dpi
    for place, label in enumerate(labels):
        height = 1 - (place + 0.5) * LINE * 1.2 / inches
        _name(axes, short(label), height, looks[label])
