"""Lines of a metric against context, in panels under one another: what the figures share that draw
curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath

from orchestrator.analysis.tables import Tables
from orchestrator.plots import series, style
from orchestrator.plots.series import Frame, Row, ending, runs
from orchestrator.quantities import count, prefixed

HEAD, FOOT = 0.62, 0.5
"""Inches above the first panel (two lines of heading) and below the last (tick labels)."""

LINE, SMALL_LINE = 0.155, 0.13
"""Inches that a line of text in the margin takes, and where there are many."""

LEADER = 0.24
"""Inches right of the axes in which thin leaders run from the ends of many lines to their names."""

_FONTS: Mapping[style.Depth, tuple[float, str]] = {
    "among": (8.5, "normal"),
    "front": (8, "bold"),
    "behind": (7.5, "normal"),
}
"""Size and weight of a name in the margin."""

FAMILY_ROW, FAMILIES_ABREAST = 0.17, 4
"""The key of families along the lower edge: inches of height of a row, and entries in it."""


def looks(tables: Tables) -> dict[str, style.Look]:
    """The look of every label, the same in every figure of a sweep."""
    return style.looks(series.labels(tables), series.families(tables), series.front(tables))


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


def needed(frame: Frame, looks: Mapping[str, style.Look]) -> float:
    """Inches of height that the names of a frame's lines take in the margin."""
    labels = {row["label"] for row in frame.rows}
    line = _line(looks)
    return sum(line * (2 if _remark(frame.of(label)) else 1) + 0.03 for label in labels)


def _line(looks: Mapping[str, style.Look]) -> float:
    return SMALL_LINE if style.crowded(looks) else LINE


def medians(axes: Axes, frame: Frame, looks: dict[str, style.Look]) -> None:
    """Each label's medians with their intervals. A cross marks a point after which the curve stops
    for a reason; a hollow marker is an undertrained point."""
    shown: list[float] = []
    for label in dict.fromkeys(row["label"] for row in frame.rows):
        look, rows = looks[label], frame.of(label)
        for run in runs(rows, "median"):
            at, values = [row["seq_len"] for row in run], [row["median"] for row in run]
            axes.plot(at, values, **look.plain())
            band(axes, run, "seq_len", look)
            shown += values
            shown += [row[side] for row in run for side in ("low", "high") if row[side] is not None]
        _hollow(axes, rows, look)
        if ending(rows):
            last = [row for row in rows if row["median"] is not None][-1:]
            for row in last:
                behind = look.depth == "behind"
                axes.plot(
                    row["seq_len"],
                    row["median"],
                    marker="x",
                    markersize=6 if behind else 9,
                    markeredgewidth=1.0 if behind else 1.8,
                    color=look.colour,
                    zorder=3 if behind else 6,
                )
    style.quantity_axis(axes, shown, frame.unit, log=frame.log)
    words = [] if prefixed(frame.unit) or not frame.unit else [frame.unit]
    words.append("lower is better" if frame.better == "smaller" else "higher is better")
    axes.set_ylabel(" · ".join(words), color=style.GREY)


def _hollow(axes: Axes, rows: list[Row], look: style.Look) -> None:
    for row in rows:
        if row["reason"] == "undertrained" and row["median"] is not None:
            behind = {"markersize": 3.4, "markeredgewidth": 0.7, "zorder": 2.5}
            axes.plot(
                row["seq_len"],
                row["median"],
                marker=look.marker,
                markerfacecolor="white",
                markeredgecolor=look.colour,
                **(behind if look.depth == "behind" else {"zorder": 5}),
            )


def band(axes: Axes, run: list[Row], x: str, look: style.Look) -> None:
    """The interval of each point of an unbroken run, as a band; a lone point gets a bar. What
    stands behind gets none: twenty bands are a fog, and the tables hold them."""
    if look.depth == "behind":
        return
    colour = look.colour
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
            zorder=3 if look.depth == "front" else 1,
        )


def names(axes: Axes, frame: Frame, looks: dict[str, style.Look]) -> None:
    """The labels in the right margin, each with a sample of its line, at the height of the line's
    end and pushed apart where lines end close together; where they are many, a thin leader ties
    each to its end."""
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
    texts = [
        cut(label, looks[label]) + (f"\n{remark}" if remark else "") for _, label, remark in entries
    ]
    line = _line(looks)
    sizes = [line * (text.count("\n") + 1) + 0.03 for text in texts]
    middles = [height * inches for height, _, _ in entries]
    if style.crowded(looks):
        tops = nearest(middles, sizes, inches)
    else:
        tops = spread(middles, sizes, inches)
    for (end, label, _), text, middle in zip(entries, texts, tops, strict=True):
        led = style.crowded(looks) and frame.of(label)[-1]["median"] is not None
        if led:
            _leader(axes, frame.contexts[-1], end, middle / inches, looks[label])
        gap = LEADER if style.crowded(looks) else 0.08
        _name(axes, text, middle / inches, looks[label], gap, line)


def _leader(axes: Axes, context: int, end: float, height: float, look: style.Look) -> None:
    """A hairline from a line's last point to its name."""
    width = axes.bbox.width / axes.figure.dpi
    at = axes.transAxes.inverted().transform((axes.transData.transform((context, 1))[0], 0))[0]
    axes.add_line(
        Line2D(
            [at, 1, 1 + (LEADER - 0.02) / width],
            [end, end, height],
            transform=axes.transAxes,
            clip_on=False,
            color=look.colour,
            linewidth=0.45,
            zorder=1.5,
        )
    )


def _name(
    axes: Axes, text: str, height: float, look: style.Look, gap: float = 0.08, line: float = LINE
) -> None:
    """One entry of the margin, `gap` inches beside the axes: a sample of the line, then its name
    (bold where it stands in front of many), remarks smaller below."""
    name, _, remark = text.partition("\n")
    inches = axes.bbox.height / axes.figure.dpi
    width = axes.bbox.width / axes.figure.dpi
    lift = line / 2 / inches if remark else 0.0
    size, weight = _FONTS[look.depth]
    axes.add_line(
        Line2D(
            [1 + (gap + along) / width for along in (0, 0.15, 0.3)],
            [height + lift] * 3,
            transform=axes.transAxes,
            clip_on=False,
            markevery=[1],
            **look.plain(),
        )
    )
    for words, shift, options in (
        (name, lift, {"fontsize": size, "fontweight": weight}),
        (remark, -lift, {"fontsize": 7 if size > 8 else 6.5, "color": style.GREY}),
    ):
        axes.text(
            1 + (gap + 0.37) / width,
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


def nearest(middles: Sequence[float], sizes: Sequence[float], room: float) -> list[float]:
    """As `spread`, but with the least squares of all ways moved: boxes that meet are pushed to both
    sides, so that leaders stay short. Boxes too many for the room run out at the bottom."""
    clusters: list[tuple[float, float, int]] = []  # sum of wished tops, height, boxes
    for middle, size in zip(middles, sizes, strict=True):
        wish, height, boxes = middle + size / 2, size, 1
        while clusters and _top(clusters[-1], room) - clusters[-1][1] < _top(
            (wish, height, boxes), room
        ):
            before = clusters.pop()
            # A box's wish for its cluster's top counts the boxes above it.
            wish = before[0] + wish + boxes * before[1]
            height, boxes = before[1] + height, before[2] + boxes
        clusters.append((wish, height, boxes))
    placed: list[float] = []
    for cluster in clusters:
        top = _top(cluster, room)
        for size in sizes[len(placed) : len(placed) + cluster[2]]:
            placed.append(top - size / 2)
            top -= size
    return placed


def _top(cluster: tuple[float, float, int], room: float) -> float:
    """Where a cluster's upper edge lies: at its boxes' mean wish, inside the room."""
    wish, height, boxes = cluster
    return min(max(wish / boxes, height), room)


def short(label: str, width: int = 22) -> str:
    """A label, cut with an ellipsis where it is longer than a margin holds."""
    return label if len(label) <= width else label[: width - 1] + "…"


def cut(label: str, look: style.Look) -> str:
    """A label as the right margin holds it."""
    if look.depth == "among":
        return short(label)
    room = style.MARGIN_RIGHT - LEADER - 0.45
    return fitted(label, room, *_FONTS[look.depth])


def fitted(label: str, inches: float, size: float, weight: str = "normal") -> str:
    """A label, cut in its middle where it is wider than `inches`: of many labels some differ in
    their last word alone."""
    font = FontProperties(family=style.RC["font.family"], weight=weight)
    text = label
    for kept in range(len(label) - 1, 2, -1):
        if TextPath((0, 0), text, size=size, prop=font).get_extents().width <= 72 * inches:
            break
        tail = kept // 2
        text = f"{label[: kept - tail]}…{label[-tail:]}"
    return text


def key(axes: Axes, labels: Sequence[str], looks: dict[str, style.Look]) -> None:
    """The labels with their lines in the right margin from the top of the panel down, for figures
    of several panels or without line ends."""
    inches = axes.bbox.height / axes.figure.dpi
    for place, label in enumerate(labels):
        height = 1 - (place + 0.5) * _line(looks) * 1.2 / inches
        _name(axes, cut(label, looks[label]), height, looks[label])


def key_height(looks: Mapping[str, style.Look]) -> float:
    """Inches of height that `key` takes with every label; 0 for few, which any panel holds."""
    return _line(looks) * 1.2 * len(looks) if style.crowded(looks) else 0.0
