"""The panel of ratios to the baseline, with a ring where a curve crosses it.

The bands are simultaneous over the contexts; the grey strip is where the two are within 5 %.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from orchestrator.plots import lines, style
from orchestrator.plots.fitting import short
from orchestrator.plots.series import Row, runs
from orchestrator.quantities import figures


def draw(
    axes: Axes,
    baseline: str,
    rows: list[Row],
    verdicts: list[Row],
    looks: dict[str, style.Look],
) -> None:
    """The contrasts with their bands, rings on them, and whose side is whose."""
    log = rows[0]["scale"] == "ratio"
    axes.axhline(0, color="black", linewidth=0.9)
    if log:
        axes.axhspan(math.log(0.95), math.log(1.05), color=style.STRIP, linewidth=0, zorder=0.6)
    for challenger in dict.fromkeys(row["challenger"] for row in rows):
        look = looks[challenger]
        mine = sorted(
            (row for row in rows if row["challenger"] == challenger), key=lambda r: r["seq_len"]
        )
        for run in runs(mine, "estimate"):
            at = [row["seq_len"] for row in run]
            axes.plot(at, [row["estimate"] for row in run], **look.plain())
            lines.band(axes, run, "seq_len", look)
    for row in verdicts:
        if row["seq_len"] is not None:
            _ring(axes, row["seq_len"], looks[row["challenger"]])
    # The shell does next to nothing: the panel belongs to those that compete.
    shown = [
        row[column]
        for row in rows
        for column in ("estimate", "low", "high")
        if row[column] is not None and looks[row["challenger"]].family != "shell"
    ]
    _ratio_axis(axes, shown, baseline, log)
    _sides(axes, baseline, rows[0]["better"])


def _ring(axes: Axes, crossing: float, look: style.Look) -> None:
    behind = look.depth == "behind"
    axes.plot(
        crossing,
        0,
        marker="o",
        markersize=5 if behind else 8,
        markerfacecolor="none",
        markeredgecolor=look.colour,
        markeredgewidth=0.8 if behind else 1.6,
        zorder=3 if behind else 5,
    )


def _ratio_axis(axes: Axes, values: list[float], baseline: str, log: bool) -> None:
    low, high = min([*values, -0.06 if log else 0.0]), max([*values, 0.06 if log else 0.0])
    room = 0.12 * (high - low) or 0.1
    low, high = low - room, high + room
    axes.set_ylim(low, high)
    if not log:
        ticks = style.linear_ticks(low, high)
        texts = [figures(tick) for tick in ticks]
        axes.set_ylabel(f"difference\nfrom {short(baseline)}")
    else:
        ticks, texts = ratio_ticks(low, high)
        axes.set_ylabel(f"ratio to\n{short(baseline)}")
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FixedFormatter(texts))
    axes.grid(axis="y", which="major")


def ratio_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Positions (log ratio) and texts: percent where the ratios stay near one, factors beyond."""
    if high - low < math.log(1.9):
        first, last = 100 * math.expm1(low), 100 * math.expm1(high)
        step = next(step for step in (1, 2, 5, 10, 20) if (last - first) / step < 7)
        percents = range(step * math.ceil(first / step), math.floor(last) + 1, step)
        return (
            [math.log1p(percent / 100) for percent in percents],
            [f"{percent:+d} %" if percent else "0" for percent in percents],
        )
    factors = style.log_ticks(math.exp(low), math.exp(high), binary=False)
    return [math.log(f) for f in factors], [f"{figures(f)}×" for f in factors]


def _sides(axes: Axes, baseline: str, better: str) -> None:
    """Says in the right margin which side of one is whose."""
    above, below = f"↑ {short(baseline)} ahead", "↓ challenger ahead"
    if better == "greater":
        above, below = "↑ challenger ahead", f"↓ {short(baseline)} ahead"
    for text, at, edge in ((above, 1.0, "top"), (below, 0.0, "bottom")):
        axes.annotate(
            text,
            (1, at),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va=edge,
            color=style.GREY,
            fontsize=8,
        )
