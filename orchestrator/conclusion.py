"""The answer to a sweep's question in plain words, from its finished tables: what the report opens
with and the end of a sweep prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.analysis.tables import Tables
from orchestrator.quantities import count, figures, percent, size, span

Row = dict[str, Any]

MOST_PAIRS = 4
"""Pairs that an answer without a primary comparison tells of, those that cross first."""
_STOPPED = {
    "out_of_memory": "ran out of memory",
    "timeout": "ran out of time",
    "diverged": "diverged",
    "unsupported": "could not run",
}


def answer(tables: Tables) -> str:
    """What the primary comparison says, with device, size, batch and implementation; without a
    primary one, what every pair says of the first metric. Plain text, a few sentences."""
    finished = sum(status == "finished" for status in tables.cells["status"].to_pylist())
    if not finished:
        return (
            f"No answer yet: none of the {count(tables.cells.num_rows)} planned cells is finished."
        )
    verdicts = tables.crossovers.to_pylist()
    groups = _groups(tables, verdicts)
    if not groups:
        return f"No answer: {_nothing_compared(tables)}"
    sentences = [_sentence(tables, rows) for rows in groups]
    where = _where(tables, groups[0][0])
    if len(sentences) == 1:
        return f"{where} {sentences[0]}{_asides(tables, groups[0])}"
    more = len(sentences) - MOST_PAIRS
    rest = f"; of {more} pairs more the report tells" if more > 0 else ""
    return f"{where} " + "; ".join(sentences[:MOST_PAIRS]) + f"{rest}."


def _groups(tables: Tables, verdicts: list[Row]) -> list[list[Row]]:
    """The rows of each comparison to be told: the primary, else all pairs of the first block."""
    if tables.sweep.primary is not None:
        primary = [row for row in verdicts if row["primary"]]
        return [primary] if primary else []
    found: dict[str, list[Row]] = {}
    for row in verdicts:
        if _block(row) == _block(verdicts[0]):
            found.setdefault(row["challenger"], []).append(row)
    return sorted(found.values(), key=lambda rows: rows[0]["verdict"] != "crosses")


def _block(row: Row) -> tuple[Any, ...]:
    return row["metric"], row["task"], row["size"], row["batch"]


def _nothing_compared(tables: Tables) -> str:
    primary, baseline = tables.sweep.primary, tables.sweep.baseline
    if primary is None:
        return f"there is nothing to compare with {baseline}."
    challenger, metric, _ = primary
    return (
        f"there are no finished measurements yet that compare {challenger} with {baseline} by"
        f" {metric.replace('_', ' ')}."
    )


def _where(tables: Tables, row: Row) -> str:
    """`On Example CPU (1 thread), with 1M parameters in float32 at batch 8,`"""
    environment = tables.sweep.environments.get(tables.sweep.environment or "", {})
    device = environment.get("device_name") or row["device"]
    threads = environment.get("threads")
    if threads and str(row["device"]).startswith("cpu"):
        device = f"{device} ({_plural(threads, 'thread')})"
    precision = sorted({p for p in tables.cells["precision"].to_pylist() if p})
    words = f"with {size(row['size'])} parameters in {' and '.join(precision) or 'its precision'}"
    batch = row["batch"]
    if batch is not None:
        words += f" at batch {batch}" if batch.isdigit() else f" at {batch} per batch"
    return f"On {device}, {words},"


def _sentence(tables: Tables, rows: list[Row]) -> str:
    telling: dict[str, Callable[[Tables, list[Row]], str]] = {
        "crosses": _crosses,
        "baseline_always": lambda tables, rows: _always(tables, rows, rows[0]["baseline"]),
        "challenger_always": lambda tables, rows: _always(tables, rows, rows[0]["challenger"]),
        "equivalent": _equivalent,
        "uncertain": _uncertain,
    }
    return telling[rows[0]["verdict"]](tables, rows)


def _crosses(tables: Tables, rows: list[Row]) -> str:
    first = rows[0]
    winner, loser = _sides(first)
    unit = tables.sweep.token_unit
    text = (
        f"{_named(tables, first, winner)} overtakes {_named(tables, first, loser)} in"
        f" {_metric(tables, first)} at a context of about {count(first['seq_len'])} {unit}"
        f" ({_interval(first)})"
    )
    for row in rows[1:]:
        text += (
            f", and {_sides(row)[0]} is ahead again from about {count(row['seq_len'])} on"
            f" ({_interval(row)})"
        )
    return text if len(rows) > 1 else f"{text}; at shorter contexts {loser} is ahead"


def _sides(row: Row) -> tuple[str, str]:
    """Who is ahead above the crossing, and who below."""
    pair = (row["challenger"], row["baseline"])
    return pair if row["direction"] == row["challenger"] else (pair[1], pair[0])


def _interval(row: Row) -> str:
    if row["low"] == row["high"]:
        return "exactly there, for this metric has no noise"
    if row["low_open"] and row["high_open"]:
        return "95 % interval open on both sides: it may lie at any context measured"
    if row["low_open"]:
        return f"95 % interval: {span(row)}, open towards shorter contexts"
    if row["high_open"]:
        return f"95 % interval: {span(row)}, open towards longer contexts"
    return f"95 % interval {span(row)}"


def _always(tables: Tables, rows: list[Row], winner: str) -> str:
    row = rows[0]
    loser = row["baseline"] if winner == row["challenger"] else row["challenger"]
    return (
        f"{_named(tables, row, winner)} is ahead of {_named(tables, row, loser)} in"
        f" {_metric(tables, row)} at every context compared, {_range(tables, row)}; they do not"
        " change places there"
    )


def _equivalent(tables: Tables, rows: list[Row]) -> str:
    row = rows[0]
    return (
        f"{_named(tables, row, row['challenger'])} and {_named(tables, row, row['baseline'])} lie"
        f" within 5 % of each other in {_metric(tables, row)} at every context compared,"
        f" {_range(tables, row)}"
    )


def _uncertain(tables: Tables, rows: list[Row]) -> str:
    row = rows[0]
    pair = f"{_named(tables, row, row['challenger'])} and {_named(tables, row, row['baseline'])}"
    metric = _metric(tables, row)
    if "undertrained" in (row["note"] or ""):
        return (
            f"there is no verdict between {pair} in {metric}: the models are undertrained, with"
            " fewer than 500 updates"
        )
    replicates = row["replicates"] or 0
    if replicates < 5:
        return (
            f"this sweep is too small for a verdict between {pair} in {metric}: it has"
            f" {_plural(replicates, _replicate(tables, row))} of each, and needs 5"
        )
    text = (
        f"it is uncertain where, or whether, {pair} change places in {metric} over"
        f" {_range(tables, row)}{_leads(tables, row)}"
    )
    if row["low"] is not None and not (row["low_open"] and row["high_open"]):
        text += f"; a crossing, if there is one, lies {_place(row)} {tables.sweep.token_unit}"
    return text


def _leads(tables: Tables, row: Row) -> str:
    """At how many contexts the band puts one of the pair ahead: all that an uncertain verdict can
    say for certain."""
    compared = _compared(tables, row)
    sides = {
        "greater": sum(contrast["low"] > 0 for contrast in compared),
        "smaller": sum(contrast["high"] < 0 for contrast in compared),
    }
    if not any(sides.values()):
        return ""
    better = _summary(tables, row)["better"]
    side = max(sides, key=lambda name: sides[name])
    leader = row["challenger"] if side == better else row["baseline"]
    return f", though {leader} is ahead at {sides[side]} of {len(compared)} contexts"


def _place(row: Row) -> str:
    if row["low_open"]:
        return f"below {count(row['high'])}"
    if row["high_open"]:
        return f"above {count(row['low'])}"
    return f"between {count(row['low'])} and {count(row['high'])}"


def _asides(tables: Tables, rows: list[Row]) -> str:
    """What a careful reader asks next: whether it matters there, whether it is the zone asked
    about, where a curve stopped, on how much it rests."""
    row, unit = rows[0], tables.sweep.token_unit
    low, high = tables.sweep.zone
    asides = []
    if row["verdict"] == "crosses" and row["indifferent_low"] is not None:
        asides.append(
            f"Between {count(row['indifferent_low'])} and {count(row['indifferent_high'])} {unit}"
            " the two lie within 5 % of each other."
        )
    if row["verdict"] == "crosses":
        inside = any(row["in_zone"] for row in rows)
        asides.append(
            f"The interval {'overlaps' if inside else 'lies outside'} the zone asked about,"
            f" {count(low)} to {count(high)}."
        )
    asides += _stops(tables, row)
    if (row["replicates"] or 0) >= 5:
        asides.append(_basis(tables, row))
    return "." + "".join(f" {aside}" for aside in asides)


def _stops(tables: Tables, row: Row) -> list[str]:
    found = []
    for label in (row["challenger"], row["baseline"]):
        at = [
            (cell["seq_len"], cell["reason"])
            for cell in tables.summary.to_pylist()
            if cell["label"] == label and _block(cell) == _block(row) and cell["reason"] in _STOPPED
        ]
        if at:
            context, reason = min(at)
            found.append(
                f"{label} {_STOPPED[reason]} at {count(context)} {tables.sweep.token_unit}, so"
                " nothing is said from there on."
            )
    return found


def _basis(tables: Tables, row: Row) -> str:
    text = f"This rests on {_plural(row['replicates'], _replicate(tables, row))}"
    effect = row["smallest_effect"]
    if not effect:
        return f"{text}."
    scale = _summary(tables, row)["scale"]
    seen = percent(effect) if scale == "ratio" else figures(effect, 2)
    return f"{text}, enough to see a difference of {seen} with probability 0.8."


def _range(tables: Tables, row: Row) -> str:
    contexts = [contrast["seq_len"] for contrast in _compared(tables, row)]
    unit = tables.sweep.token_unit
    if not contexts:
        return f"none {unit}"
    if min(contexts) == max(contexts):
        return f"{count(contexts[0])} {unit} alone"
    return f"{count(min(contexts))} to {count(max(contexts))} {unit}"


def _compared(tables: Tables, row: Row) -> list[Row]:
    """The contrasts of a comparison that have a number."""
    return [
        contrast
        for contrast in tables.contrasts.to_pylist()
        if _block(contrast) == _block(row)
        and contrast["challenger"] == row["challenger"]
        and contrast["estimate"] is not None
    ]


def _summary(tables: Tables, row: Row, label: str | None = None) -> Row:
    """A row of the summary of the same block: its title, scale, kind and implementation."""
    return next(
        (
            cell
            for cell in tables.summary.to_pylist()
            if _block(cell) == _block(row) and label in (None, cell["label"])
        ),
        {
            "title": None,
            "implementation": None,
            "kind": "measure",
            "scale": "ratio",
            "better": "smaller",
        },
    )


def _metric(tables: Tables, row: Row) -> str:
    title = str(_summary(tables, row)["title"] or row["metric"].replace("_", " "))
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def _named(tables: Tables, row: Row, label: str) -> str:
    """A label with the code that ran under it."""
    code = _summary(tables, row, label)["implementation"]
    return f"{label} ({code})" if code else label


def _replicate(tables: Tables, row: Row) -> str:
    return "round" if _summary(tables, row)["kind"] == "measure" else "seed"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
