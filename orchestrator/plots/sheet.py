"""The sheet of a figure: panels under one another, their headings, the key of families."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from orchestrator.plots import style
from orchestrator.quantities import count

HEAD, FOOT = 0.62, 0.5
"""Inches above the first panel (two lines of heading) and below the last (tick labels)."""

FAMILY_ROW, FAMILIES_ABREAST = 0.17, 4
"""The key of families along the lower edge: inches of height of a row, and entries in it."""


def stack(
    heights: Sequence[float], gap: float, looks: Mapping[str, style.Look]
) -> tuple[Figure, list[Axes]]:
    """A figure with panels of these heights (inches) under one another, margins as in `style`, and
    a key of families along the lower edge where colours mean them."""
    below = families_height(looks)
    height = HEAD + sum(heights) + gap * (len(heights) - 1) + FOOT + below
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
    families(figure, looks, style.MARGIN_LEFT)
    return figure, panels


def families_height(looks: Mapping[str, style.Look]) -> float:
    """Inches of height of the key of families; none where each label has a colour of its own."""
    rows = math.ceil(len(style.families(looks)) / FAMILIES_ABREAST)
    return FAMILY_ROW * rows + 0.08 if rows else 0.0


def families(figure: Figure, looks: Mapping[str, style.Look], left: float) -> None:
    """Which hue is which family, along the figure's lower edge, `left` inches from its side."""
    hues = style.families(looks)
    if not hues:
        return
    # A legend fills columns first; rows read better, so that its entries are dealt out by column.
    entries = list(hues.items())
    columns = min(FAMILIES_ABREAST, len(entries))
    dealt = [entry for column in range(columns) for entry in entries[column::columns]]
    figure.legend(
        handles=[Patch(facecolor=hue, label=family) for family, hue in dealt],
        loc="lower left",
        bbox_to_anchor=(left / style.WIDTH, 0.05 / figure.get_figheight()),
        ncols=columns,
        fontsize=7.5,
        borderpad=0,
        borderaxespad=0,
        handlelength=0.9,
        handleheight=0.8,
        handletextpad=0.5,
        columnspacing=1.6,
        labelspacing=0.35,
    )


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
