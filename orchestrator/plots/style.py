"""How figures look: one colour, marker and line style per label, quantities with their units, and
a context axis whose tick labels do not collide.

A few labels take the colours of Okabe and Ito (2008), safe for colour-blind readers; neighbours in
the cycle differ in luminance, and markers and line styles differ too, so that figures survive a
grey copy. No cycle tells twenty labels apart: there a colour says the family, its shade, the marker
and the line say which member, and all but the pair of the answer step behind.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from orchestrator.quantities import count, prefixed, quantity

WIDTH = 7.8
"""Inches: fits a page, and a column of the report at its natural size."""

MARGIN_LEFT, MARGIN_RIGHT = 1.15, 2.2
"""Inches beside the axes: tick labels on the left, the names of the lines on the right."""

RC: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    # Labels are a user's text: `$` in one must not start a formula.
    "text.parse_math": False,
    # Equal tables, equal bytes; glyphs as paths look the same on every machine.
    "svg.hashsalt": "sequence-sweep-orchestrator",
    "svg.fonttype": "path",
}

GREY = "#666666"
ZONE = "#f0eee6"
STRIP = "#d9d9d9"

_COLOURS = ("#000000", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)))

FEW = len(_COLOURS)
"""So many labels have a colour each; of more, families share a hue."""

_NEUTRAL = "#6b6b6b"
_HUES: Mapping[str, str] = {
    "recurrent network": "#2a62b8",
    "attention": "#cc3d1a",
    "linear attention": "#c78a00",
    "delta rule": "#00936b",
    "state space": "#8a4fb0",
    "memory": "#16a3c4",
    "hybrid": "#d24c8c",
}
"""A family's hue, the same in every sweep; the shell and families unknown here are grey."""

_SHADES = (0.0, -0.5, 0.42, -0.25, 0.22, -0.75, 0.56)
"""Of the members of one hue, in turn: towards black (-1) or white (1). Seven shades and the
thirty-six pairs of marker and line share no factor."""

Depth = Literal["among", "front", "behind"]
"""Where a label stands: among few, or of many in front or behind."""

_DEPTHS: Mapping[Depth, Mapping[str, Any]] = {
    "among": {},
    "front": {"linewidth": 2.2, "markersize": 5.5, "zorder": 4},
    "behind": {"linewidth": 0.8, "markersize": 3.4, "markeredgewidth": 0.3, "zorder": 2},
}


@dataclass(frozen=True, slots=True)
class Look:
    """What one label is drawn with, in every figure of a sweep."""

    colour: str
    marker: str
    line: Any
    family: str | None = None
    depth: Depth = "among"

    def plain(self) -> dict[str, Any]:
        """The keywords of a line through measured points."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
            **_DEPTHS[self.depth],
        }


def looks(
    labels: Iterable[str],
    families: Mapping[str, str] | None = None,
    front: Collection[str] = (),
) -> dict[str, Look]:
    """A look per label. Of few labels each has its own colour, by its place; of more than `FEW`
    families share a hue, kin stand side by side, and those not in `front` step behind.

    Seven colours and nine markers share no factor, so that the first sixty-three labels all look
    different; nine markers and four lines neither, so that thirty-six do in grey.
    """
    labels, families = list(labels), families or {}
    many = len(labels) > FEW
    if many and families:
        labels = _kin_together(labels, families, front)
    members: dict[str, int] = {}
    found: dict[str, Look] = {}
    for place, label in enumerate(labels):
        colour, family = _COLOURS[place % len(_COLOURS)], None
        if many and families:
            family = families.get(label, "other")
            hue = _HUES.get(family, _NEUTRAL)
            member = members.setdefault(hue, 0)
            members[hue] += 1
            colour = _shade(hue, _SHADES[member % len(_SHADES)])
        depth: Depth = "among" if not many else "front" if label in front else "behind"
        marker, line = _MARKERS[place % len(_MARKERS)], _LINES[place % len(_LINES)]
        found[label] = Look(colour, marker, line, family, depth)
    return found


def _kin_together(
    labels: Sequence[str], families: Mapping[str, str], front: Collection[str]
) -> list[str]:
    """The labels by family, families as they first appear, but what stands in front leads its own:
    the first of a hue has its purest shade."""
    hues = {label: _HUES.get(families.get(label, "other"), _NEUTRAL) for label in labels}
    order = list(dict.fromkeys(hues.values()))
    return sorted(labels, key=lambda label: (order.index(hues[label]), label not in front))


def _shade(colour: str, towards: float) -> str:
    """A colour mixed with white (above zero) or black (below), which keeps its hue."""
    end = 255 if towards > 0 else 0
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (end - part) * abs(towards)):02x}" for part in parts)


def crowded(looks: Mapping[str, Look]) -> bool:
    """True where there are so many labels that some stand behind."""
    return any(look.depth != "among" for look in looks.values())


def families(looks: Mapping[str, Look]) -> dict[str, str]:
    """The hue of each family that shares one, in the order of the looks."""
    return {
        look.family: _HUES.get(look.family, _NEUTRAL)
        for look in looks.values()
        if look.family is not None
    }


def context_axis(
    axes: Axes, contexts: Sequence[int], inches: float, *, labels: bool = True
) -> None:
    """A log2 axis with a tick at every measured context, labelled where there is room in `inches`
    of width; powers of two come first when there is not."""
    first, last = min(contexts), max(contexts)
    room = 0.06 * math.log2(last / first) if last > first else 0.5
    axes.set_xscale("log", base=2)
    axes.set_xlim(first / 2**room, last * 2**room)
    axes.xaxis.set_minor_locator(FixedLocator(sorted(contexts)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    shown = labelled(contexts, inches)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([count(at) if labels else "" for at in shown]))
    axes.grid(axis="x", which="major")


def labelled(contexts: Sequence[int], inches: float) -> list[int]:
    """The contexts whose labels fit side by side on a log2 axis `inches` wide: the ends first, then
    powers of two, then the others, each only where it keeps clear of those already there."""
    low, high = min(contexts), max(contexts)
    span = math.log2(high / low) or 1.0

    def place(context: int) -> float:
        return math.log2(context / low) / span * inches * 0.9

    def half_width(context: int) -> float:
        return 0.036 * len(count(context)) + 0.03

    shown: list[int] = []
    wish = sorted(
        set(contexts), key=lambda c: (c not in (low, high), c & (c - 1) != 0, -_evenness(c), c)
    )
    for context in wish:
        if all(
            abs(place(context) - place(other)) >= half_width(context) + half_width(other)
            for other in shown
        ):
            shown.append(context)
    return sorted(shown)


def _evenness(context: int) -> int:
    """How often two divides it: rounder contexts are labelled first."""
    return (context & -context).bit_length()


def quantity_axis(axes: Axes, values: Sequence[float], unit: str, *, log: bool) -> None:
    """A y axis for `values` in `unit`: each tick says its quantity with a fitting prefix (`2 ms`),
    so that decades need no powers of ten; a unit without prefixes stands in the axis label."""
    low, high = min(values), max(values)
    if log and low > 0:
        axes.set_yscale("log")
        room = max((high / low) ** 0.08, 1.15)
        low, high = low / room, high * room
        ticks = log_ticks(low, high, binary=unit == "bytes")
    else:
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = low - room, high + room
        ticks = linear_ticks(low, high)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    told = unit if prefixed(unit) else ""
    axes.yaxis.set_major_formatter(FixedFormatter([quantity(tick, told) for tick in ticks]))
    axes.grid(axis="y", which="major")


def log_ticks(low: float, high: float, *, binary: bool) -> list[float]:
    """Three to eight round values in a range on a log scale: powers of two for bytes, else 1-2-5,
    thinned to powers of ten where there are many."""
    if binary:
        powers = [2.0**n for n in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
        for stride in (1, 2, 5, 10):
            ticks = [p for p in powers if low <= p <= high and math.log2(p) % stride == 0]
            if len(ticks) <= 8:
                return ticks if len(ticks) >= 2 else linear_ticks(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [
            float(f"{step}e{decade}")
            for decade in decades
            for step in steps
            if low <= float(f"{step}e{decade}") <= high
        ]
        if len(ticks) <= 7:
            return ticks if len(ticks) >= 3 else linear_ticks(low, high)
    stride = math.ceil(len(ticks) / 7)
    return ticks[::stride]


def linear_ticks(low: float, high: float) -> list[float]:
    """Three to seven round values, evenly spaced, inside a range."""
    raw = (high - low) / 5
    decade = 10.0 ** math.floor(math.log10(raw))
    step = next(s * decade for s in (1, 2, 2.5, 5, 10) if s * decade >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
