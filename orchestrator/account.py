"""The account of a sweep's cells: how they ended, what they were built and trained with, what they
cost, and which machine and code ran them. Every function takes rows of the `cells` table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from orchestrator import quantities
from orchestrator.analysis.tables import Tables
from workloads.cell import EXECUTIONS

Row = dict[str, Any]

STATUSES = ("finished", "failed", "lost", "pending")


def counts(cells: list[Row]) -> dict[str, Any]:
    """Cells by status and by reason, in all and by label. A reason is a result: its cell is
    finished."""
    by_label: dict[str, Counter[str]] = {}
    reasons = Counter(cell["reason"] for cell in cells if cell["reason"])
    for cell in cells:
        row = by_label.setdefault(cell["label"], Counter())
        row["planned"] += 1
        row[cell["status"]] += 1
        if cell["reason"]:
            row[cell["reason"]] += 1
    columns = ["planned", *STATUSES, *sorted(reasons)]
    return {
        "columns": columns,
        "total": {name: sum(row[name] for row in by_label.values()) for name in columns},
        "by_label": {
            label: {name: row[name] for name in columns} for label, row in by_label.items()
        },
    }


FAIR = (
    "implementation",
    "precision",
    "parameters",
    "total_parameters",
    "d_model",
    "mlp_width",
    "num_layers",
    "learning_rate",
    "tokens_per_update",
    "updates",
)


def _kind(cell: Row) -> str:
    return str(cell["kind"]) + _mode(cell)


def _mode(cell: Row) -> str:
    """`, compiled`; nothing of what was executed as usual."""
    mode = cell.get("execution")
    return "" if mode in (None, EXECUTIONS[0]) else f", {mode}"


REACHED = ("flops_share", "bandwidth_share")


def fairness(cells: list[Row]) -> list[Row]:
    """What each label was built and trained with, per size and kind of cell; several values are
    listed, more than three as their ends."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for cell in cells:
        groups.setdefault((cell["label"], cell["size"], _kind(cell)), []).append(cell)
    return [
        {
            "label": label,
            "size": size,
            "kind": kind,
            **{name: _values(cell[name] for cell in group) for name in FAIR},
            **{name: _shares(cell.get(name) for cell in group) for name in REACHED},
        }
        for (label, size, kind), group in groups.items()
    ]


def _shares(values: Iterable[float | None]) -> str:
    found = sorted(value for value in values if value is not None)
    if not found:
        return "–"
    ends = dict.fromkeys(quantities.percent(end) for end in (found[0], found[-1]))
    return " to ".join(ends)


def _values(values: Iterable[Any]) -> str:
    found = {value for value in values if value is not None}
    if not found:
        return "–"
    ordered = sorted(found)
    texts = [value if isinstance(value, str) else _plain(value) for value in ordered]
    if len(texts) > 3 and not isinstance(ordered[0], str):
        return f"{texts[0]} to {texts[-1]}"
    return ", ".join(texts)


def _plain(value: float) -> str:
    return quantities.count(value) if isinstance(value, int) else f"{value:g}"


def failures(cells: list[Row]) -> list[Row]:
    """Cells that did not come through with every metric, equal ones together: who, what, at which
    contexts, how many, and the message."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for cell in cells:
        if cell["reason"] or cell["status"] in ("failed", "lost"):
            what = cell["reason"] or cell["status"]
            what += _mode(cell)
            groups.setdefault((cell["label"], what, cell["message"] or ""), []).append(cell)
    return [
        {
            "label": label,
            "what": what.replace("_", " "),
            "message": message,
            "cells": len(group),
            "contexts": sorted({cell["seq_len"] for cell in group}),
        }
        for (label, what, message), group in groups.items()
    ]


def prediction(cells: list[Row]) -> list[Row]:
    """Predicted and measured wall time in seconds, summed per label and kind over finished cells
    that had a prediction."""
    sums: dict[tuple[str, str], Row] = {}
    for cell in cells:
        if cell["seconds"] is None or cell["predicted_seconds"] is None:
            continue
        row = sums.setdefault(
            (cell["label"], _kind(cell)),
            {
                "label": cell["label"],
                "kind": _kind(cell),
                "cells": 0,
                "predicted": 0.0,
                "measured": 0.0,
            },
        )
        row["cells"] += 1
        row["predicted"] += cell["predicted_seconds"]
        row["measured"] += cell["seconds"]
    return list(sums.values())


def environments(tables: Tables, cells: list[Row]) -> list[Row]:
    """Every environment with records, the one drawn first."""
    used = Counter(cell["environment"] for cell in cells)
    rows = [
        {
            "fingerprint": name,
            "drawn": name == tables.sweep.environment,
            "cells": used[name],
            **facts,
        }
        for name, facts in tables.sweep.environments.items()
    ]
    return sorted(rows, key=lambda row: (not row["drawn"], row["fingerprint"]))


def sources(cells: list[Row]) -> list[Row]:
    """Which code ran, by commit and hash of the workloads' files, with the number of cells."""
    found = Counter(
        (cell["commit"], cell["dirty"], cell["source_hash"])
        for cell in cells
        if cell["source_hash"]
    )
    return [
        {"commit": commit, "dirty": dirty, "hash": source, "cells": number}
        for (commit, dirty, source), number in sorted(
            found.items(), key=lambda item: (-item[1], str(item[0]))
        )
    ]
