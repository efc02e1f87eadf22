"""The panel of verdicts: a row per pair, with its crossings or what is said where there is none."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator

from orchestrator.plots import style
from orchestrator.plots.fitting import fitted, short
from orchestrator.plots.series import Row
from orchestrator.quantities import count, span

PAIR, MANY_PAIR, PAIR_LINE = 0.24, 0.18, 0.125
"""Inches of height of a pair's row, of one where labels are many, and of a line of its text."""

_VERDICTS = {
    "baseline_always": "{baseline} ahead throughout",
    "challenger_always": "{challenger} ahead throughout",
    "equivalent": "within 5 % throughout",
    "uncertain": "uncertain",
}


def row_heights(verdicts: list[Row], looks: dict[str, style.Look]) -> dict[str, float]:
    """Each pair's challenger and its row's height in inches: a pair that changes places again has a
    line more for each time. Of many the one in front comes first, then kin beside kin."""
    found = list(dict.fromkeys(row["challenger"] for row in verdicts))
    if style.crowded(looks):
        order = list(looks)
        found.sort(key=lambda label: (looks[label].depth != "front", order.index(label)))
    one = MANY_PAIR if style.crowded(looks) else PAIR
    times = {label: sum(row["challenger"] == label for row in verdicts) for label in found}
    return {label: max(one, PAIR_LINE * times[label] + 0.04) for label in found}


def draw(
    axes: Axes, pairs: dict[str, float], rows: list[Row], looks: dict[str, style.Look]
) -> None:
    """A row per pair: its crossings with their intervals, or its verdict in words."""
    one = MANY_PAIR if style.crowded(looks) else PAIR
    places: list[float] = []
    reached = -0.5
    for height in pairs.values():
        places.append(reached + height / one / 2)
        reached += height / one
    for place, challenger in zip(places, pairs, strict=True):
        mine = [row for row in rows if row["challenger"] == challenger]
        _pair(axes, place, mine, looks[challenger])
    axes.set_ylim(reached + 0.1, -0.6)
    _names(axes, places, pairs, looks)
    axes.spines["left"].set_visible(False)
    if style.crowded(looks):  # hairlines lead the eye from a name to its verdict
        axes.grid(axis="y", which="major", linewidth=0.4)


def _pair(axes: Axes, place: float, rows: list[Row], look: style.Look) -> None:
    """One pair's row: a sample of its line, its intervals, in the margin what they say."""
    sample = {**look.plain(), "clip_on": False}
    axes.plot(-0.02, place, transform=axes.get_yaxis_transform(), **sample)
    for row in rows:
        if row["seq_len"] is not None:
            _crossing(axes, place, row, look)
        elif row["low"] is not None and row["high"] is not None:
            # No crossing is shown, but if there is one, it lies here.
            axes.plot([row["low"], row["high"]], [place] * 2, color=look.colour, linestyle=":")
    axes.annotate(
        _words(rows),
        (1, place),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        fontweight="bold" if look.depth == "front" else "normal",
    )


def _words(rows: list[Row]) -> str:
    """A pair's crossings, one a line; where there is none, its verdict."""
    crossing = [row for row in rows if row["seq_len"] is not None]
    if crossing:
        return ";\n".join(f"{count(row['seq_len'])} ({span(row)})" for row in crossing)
    first = rows[0]
    return _VERDICTS[first["verdict"]].format(
        baseline=short(first["baseline"], 16), challenger=short(first["challenger"], 16)
    )


def _names(
    axes: Axes, places: list[float], pairs: dict[str, float], looks: dict[str, style.Look]
) -> None:
    """The challengers, left of their rows."""
    axes.yaxis.set_major_locator(FixedLocator(places))
    many = style.crowded(looks)
    names = [short(pair, 15) for pair in pairs]
    if many:
        weights = ["bold" if looks[pair].depth == "front" else "normal" for pair in pairs]
        names = [
            fitted(pair, style.MARGIN_LEFT - 0.32, 7, weight)
            for pair, weight in zip(pairs, weights, strict=True)
        ]
    axes.yaxis.set_major_formatter(FixedFormatter(names))
    axes.tick_params(axis="y", length=0, labelsize=7 if many else 7.5, pad=14)
    for tick, challenger in zip(axes.get_yticklabels(), pairs, strict=True):
        if looks[challenger].depth == "front":
            tick.set_fontweight("bold")


def _crossing(axes: Axes, place: float, row: Row, look: style.Look) -> None:
    """A crossing on its 95 % interval, arrows where that is open, the indifferent strip behind."""
    left, right = axes.get_xlim()
    colour, behind = look.colour, look.depth == "behind"
    if row["indifferent_low"] is not None and row["indifferent_high"] is not None:
        axes.plot(
            [row["indifferent_low"], row["indifferent_high"]],
            [place, place],
            color=style.STRIP,
            linewidth=5 if behind else 7,
            solid_capstyle="butt",
            zorder=1,
        )
    low = left if row["low_open"] or row["low"] is None else row["low"]
    high = right if row["high_open"] or row["high"] is None else row["high"]
    axes.plot(
        [low, high],
        [place, place],
        color=colour,
        linewidth=1.4 if behind else 2,
        solid_capstyle="butt",
    )
    axes.plot(low, place, marker="<" if low == left else "|", color=colour, clip_on=False)
    axes.plot(high, place, marker=">" if high == right else "|", color=colour, clip_on=False)
    axes.plot(
        row["seq_len"],
        place,
        marker="o",
        markersize=4.5 if behind else 6,
        markerfacecolor="white",
        markeredgecolor=colour,
        markeredgewidth=1.1 if behind else 1.6,
        zorder=5,
    )
