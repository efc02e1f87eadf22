"""A line per label: a metric's medians against context with their intervals, in one panel."""

from __future__ import annotations

from matplotlib.axes import Axes

from orchestrator.analysis.tables import Tables
from orchestrator.plots import series, style
from orchestrator.plots.series import Frame, Row, ending, runs
from orchestrator.quantities import prefixed


def looks(tables: Tables) -> dict[str, style.Look]:
    """The look of every label, the same in every figure of a sweep."""
    return style.looks(series.labels(tables), series.families(tables), series.front(tables))


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
    shown += trivial(axes, frame)
    style.quantity_axis(axes, shown, frame.unit, log=frame.log)
    words = [] if prefixed(frame.unit) or not frame.unit else [frame.unit]
    words.append("lower is better" if frame.better == "smaller" else "higher is better")
    axes.set_ylabel(" · ".join(words), color=style.GREY)


def trivial(axes: Axes, frame: Frame) -> list[float]:
    """What needs no model reaches, where the task says so, as a dotted line; its values."""
    known = {row["seq_len"]: row["trivial"] for row in frame.rows if row["trivial"] is not None}
    at = sorted(known)
    if not at:
        return []
    values = [known[place] for place in at]
    axes.plot(at, values, color=style.GREY, linestyle=":", linewidth=1.4, marker="_", zorder=1.5)
    axes.annotate(
        "needs no model",
        (at[0], values[0]),
        xytext=(2, 2),
        textcoords="offset points",
        color=style.GREY,
        fontsize=7.5,
    )
    return values


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
