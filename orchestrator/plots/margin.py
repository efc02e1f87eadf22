"""The names of lines in the right margin of a panel, each with a sample of its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from orchestrator.plots import style
from orchestrator.plots.fitting import fitted, short
from orchestrator.plots.series import Frame, Row, ending
from orchestrator.plots.stacking import nearest, spread

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


def needed(frame: Frame, looks: Mapping[str, style.Look]) -> float:
    """Inches of height that the names of a frame's lines take in the margin."""
    labels = {row["label"] for row in frame.rows}
    line = _line(looks)
    return sum(line * (2 if _remark(frame.of(label)) else 1) + 0.03 for label in labels)


def cut(label: str, look: style.Look) -> str:
    """A label as the right margin holds it."""
    if look.depth == "among":
        return short(label)
    room = style.MARGIN_RIGHT - LEADER - 0.45
    return fitted(label, room, *_FONTS[look.depth])


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


def _line(looks: Mapping[str, style.Look]) -> float:
    return SMALL_LINE if style.crowded(looks) else LINE
