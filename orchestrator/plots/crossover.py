"""The answer figure: a metric against context per label, under it the ratio to the baseline, under
that where each pair changes places.

Bands are 95 %: of the median above, simultaneous over the contexts in the middle. A bar below is a
crossing's 95 % interval, an arrow where that is open; the pale bar behind it is where the two lie
within 5 % of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, style
from orchestrator.plots.plot import Drawing, Plot
from orchestrator.plots.series import (
    Frame,
    Row,
    conditions,
    ending,
    file_name,
    frames,
    runs,
)
from orchestrator.quantities import count, figures, span

CURVES, RATIOS, PAIR, GAP = 2.7, 1.65, 0.24, 0.16
"""Inches of height: the curves, the ratios, each pair's row of verdicts, and between them."""

MANY_RATIOS, MANY_PAIR, PAIR_LINE = 2.3, 0.18, 0.125
"""Where labels are many: the ratios, a pair's row; in any figure, a line of a row's text."""

_VERDICTS = {
    "baseline_always": "{baseline} ahead throughout",
    "challenger_always": "{challenger} ahead throughout",
    "equivalent": "within 5 % throughout",
    "uncertain": "uncertain",
}


def draw(tables: Tables) -> Iterator[Drawing]:
    """One figure per metric, task, size and batch that has a number."""
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
        )
        figure = _figure(tables, frame, ratios, verdicts, looks)
        yield Drawing(name, _caption(tables, frame, ratios, looks), figure)


def _caption(tables: Tables, frame: Frame, ratios: list[Row], looks: dict[str, style.Look]) -> str:
    better = "lower" if frame.better == "smaller" else "higher"
    text = (
        f"{frame.title} against context at {conditions(tables, frame)} ({better} is better): "
        "medians with 95 % intervals."
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
    pairs = _pairs(verdicts, looks) if with_ratios else {}
    heights = [
        max(CURVES, lines.needed(frame, looks)),
        *([MANY_RATIOS if style.crowded(looks) else RATIOS] if with_ratios else []),
        *([sum(pairs.values()) + 0.1] if with_ratios else []),
    ]
    figure, panels = lines.stack(heights, GAP, looks)
    inches = style.WIDTH - style.MARGIN_LEFT - style.MARGIN_RIGHT
    curves = panels[0]
    lines.medians(curves, frame, looks)
    lines.heading(curves, frame.title, f"{conditions(tables, frame)} · {_device(tables)}")
    for panel in panels:
        style.context_axis(panel, frame.contexts, inches, labels=panel is panels[-1])
    lines.zone(panels, tables.sweep.zone)
    if with_ratios:
        _ratios(panels[1], tables.sweep.baseline, ratios, verdicts, looks)
        _verdicts(panels[2], pairs, verdicts, looks)
    lines.names(curves, frame, looks)
    panels[-1].set_xlabel(f"context ({tables.sweep.token_unit}, log scale)")
    return figure


def _pairs(verdicts: list[Row], looks: dict[str, style.Look]) -> dict[str, float]:
    """Each pair's challenger and its row's height in inches: a pair that changes places again has a
    line more for each time. Of many the one in front comes first, then kin beside kin."""
    found = list(dict.fromkeys(row["challenger"] for row in verdicts))
    if style.crowded(looks):
        order = list(looks)
        found.sort(key=lambda label: (looks[label].depth != "front", order.index(label)))
    one = MANY_PAIR if style.crowded(looks) else PAIR
    times = {label: sum(row["challenger"] == label for row in verdicts) for label in found}
    return {label: max(one, PAIR_LINE * times[label] + 0.04) for label in found}


def _device(tables: Tables) -> str:
    environment = tables.sweep.environments.get(tables.sweep.environment or "", {})
    return str(environment.get("device_name", environment.get("device", "")))


def _ratios(
    axes: Axes,
    baseline: str,
    rows: list[Row],
    verdicts: list[Row],
    looks: dict[str, style.Look],
) -> None:
    """The contrasts with their bands, and a ring where a curve crosses the baseline."""
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
            behind = looks[row["challenger"]].depth == "behind"
            axes.plot(
                row["seq_len"],
                0,
                marker="o",
                markersize=5 if behind else 8,
                markerfacecolor="none",
                markeredgecolor=looks[row["challenger"]].colour,
                markeredgewidth=0.8 if behind else 1.6,
                zorder=3 if behind else 5,
            )
    # The shell does next to nothing: the panel belongs to those that compete.
    shown = [
        row[column]
        for row in rows
        for column in ("estimate", "low", "high")
        if row[column] is not None and looks[row["challenger"]].family != "shell"
    ]
    _ratio_axis(axes, shown, baseline, log)
    _sides(axes, baseline, rows[0]["better"])


def _ratio_axis(axes: Axes, values: list[float], baseline: str, log: bool) -> None:
    low, high = min([*values, -0.06 if log else 0.0]), max([*values, 0.06 if log else 0.0])
    room = 0.12 * (high - low) or 0.1
    low, high = low - room, high + room
    axes.set_ylim(low, high)
    if not log:
        ticks = style.linear_ticks(low, high)
        texts = [figures(tick) for tick in ticks]
        axes.set_ylabel(f"difference\nfrom {lines.short(baseline)}")
    else:
        ticks, texts = ratio_ticks(low, high)
        axes.set_ylabel(f"ratio to\n{lines.short(baseline)}")
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
    above, below = f"↑ {lines.short(baseline)} ahead", "↓ challenger ahead"
    if better == "greater":
        above, below = "↑ challenger ahead", f"↓ {lines.short(baseline)} ahead"
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


def _verdicts(
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
        bold = "bold" if looks[challenger].depth == "front" else "normal"
        mine = [row for row in rows if row["challenger"] == challenger]
        crossing = [row for row in mine if row["seq_len"] is not None]
        sample = {**looks[challenger].plain(), "clip_on": False}
        axes.plot(-0.02, place, transform=axes.get_yaxis_transform(), **sample)
        for row in mine:
            if row["seq_len"] is not None:
                _crossing(axes, place, row, looks[challenger])
            elif row["low"] is not None and row["high"] is not None:
                # No crossing is shown, but if there is one, it lies here.
                colour = looks[challenger].colour
                axes.plot([row["low"], row["high"]], [place] * 2, color=colour, linestyle=":")
        text = (
            "; ".join(f"{count(row['seq_len'])} ({span(row)})" for row in crossing)
            if crossing
            else _VERDICTS[mine[0]["verdict"]].format(
                baseline=lines.short(mine[0]["baseline"], 16),
                challenger=lines.short(challenger, 16),
            )
        )
        axes.annotate(
            text if len(crossing) < 2 else text.replace("; ", ";\n"),
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            fontweight=bold,
        )
    axes.set_ylim(reached + 0.1, -0.6)
    axes.yaxis.set_major_locator(FixedLocator(places))
    many = style.crowded(looks)
    names = [lines.short(pair, 15) for pair in pairs]
    if many:
        weights = ["bold" if looks[pair].depth == "front" else "normal" for pair in pairs]
        names = [
            lines.fitted(pair, style.MARGIN_LEFT - 0.32, 7, weight)
            for pair, weight in zip(pairs, weights, strict=True)
        ]
    axes.yaxis.set_major_formatter(FixedFormatter(names))
    axes.tick_params(axis="y", length=0, labelsize=7 if many else 7.5, pad=14)
    for tick, challenger in zip(axes.get_yticklabels(), pairs, strict=True):
        if looks[challenger].depth == "front":
            tick.set_fontweight("bold")
    axes.spines["left"].set_visible(False)
    if many:  # hairlines lead the eye from a name to its verdict
        axes.grid(axis="y", which="major", linewidth=0.4)


def _crossing(axes: Axes, place: float, row: Row, look: style.Look) -> None:
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


PLOT = Plot(needs=("summary",), draw=draw)
