"""The finished numbers of one figure, picked out of the tables: which figures there are, and each
label's points in them. Nothing is computed here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator import quantities
from orchestrator.analysis.blocks import BEST
from orchestrator.analysis.tables import Tables, block_of
from workloads.cell import EXECUTIONS

Row = dict[str, Any]
Key = tuple[str, str, int, str | None, str | None]
"""Metric, task, size, batch and mode of execution."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What all numbers of one figure share, and the rows of `summary` in it."""

    metric: str
    task: str
    size: int
    batch: str | None
    execution: str | None
    rows: tuple[Row, ...]

    @property
    def key(self) -> Key:
        return self.metric, self.task, self.size, self.batch, self.execution

    def holds(self, row: Row) -> bool:
        """True for a row of any table that belongs into this figure."""
        return self.key == block_of(row)

    @property
    def unit(self) -> str:
        unit = str(self.rows[0]["unit"])
        return "" if unit == "1" else unit

    @property
    def title(self) -> str:
        title = str(self.rows[0]["title"] or self.metric)
        return title[:1].upper() + title[1:]

    @property
    def better(self) -> str:
        return str(self.rows[0]["better"])

    @property
    def log(self) -> bool:
        """True where values are compared by ratio."""
        return bool(self.rows[0]["scale"] == "ratio")

    @property
    def centre(self) -> str:
        """What `median` holds here, in words."""
        return "shares of the replicates" if self.rows[0]["scale"] == "share" else "medians"

    @property
    def contexts(self) -> list[int]:
        """Every context planned, also where there is no number."""
        return sorted({row["seq_len"] for row in self.rows})

    def of(self, label: str) -> list[Row]:
        """The label's rows in order of context."""
        return sorted(
            (row for row in self.rows if row["label"] == label), key=lambda row: row["seq_len"]
        )


def frames(tables: Tables) -> list[Frame]:
    """One frame per metric, task, size, batch and mode of execution that has a number, in the order
    of `summary`."""
    found: dict[Key, list[Row]] = {}
    for row in tables.summary.to_pylist():
        found.setdefault(block_of(row), []).append(row)
    return [
        Frame(*key, tuple(rows))
        for key, rows in found.items()
        if any(row["median"] is not None for row in rows)
    ]


def labels(tables: Tables) -> list[str]:
    """Every label: the baseline, then the others in the sweep file's order."""
    baseline = tables.sweep.baseline
    return sorted(tables.sweep.labels, key=lambda label: label != baseline)


def families(tables: Tables) -> dict[str, str]:
    """The family of each label whose architecture was known when the tables were written; tables
    of an older version have no such column."""
    if "family" not in tables.cells.column_names:
        return {}
    rows = tables.cells.select(["label", "family"]).to_pylist()
    return {row["label"]: row["family"] for row in rows if row["family"] is not None}


def front(tables: Tables) -> list[str]:
    """The pair of the answer: the baseline, and the primary challenger where there is one."""
    primary = tables.sweep.primary
    return [tables.sweep.baseline, *([primary[0]] if primary else [])]


def runs(rows: Iterable[Row], value: str) -> Iterator[list[Row]]:
    """Neighbouring rows that have a number: a line is drawn through each run, never across a
    gap."""
    run: list[Row] = []
    for row in rows:
        if row[value] is None:
            if run:
                yield run
            run = []
        else:
            run.append(row)
    if run:
        yield run


def conditions(tables: Tables, frame: Frame) -> str:
    """What is held fixed, in words: `1M parameters, batch 8`."""
    words = [f"{quantities.size(frame.size)} parameters"]
    if frame.batch is not None:
        words.append(batch_words(frame.batch))
    words += mode_words(tables, frame.execution)
    if len(set(tables.cells["task"].to_pylist())) > 1:
        words.insert(0, frame.task)
    return ", ".join(words)


def batch_words(batch: str) -> str:
    """`batch 8`, or `4096 tokens per batch`."""
    return f"batch {batch}" if batch.isdigit() else f"{batch} per batch"


def mode_words(
    tables: Tables, execution: str | None, best: str = "each in its best mode"
) -> list[str]:
    """How it was executed, where the sweep has other ways than the usual one."""
    if execution is None or not _has_modes(tables):
        return []
    return [best if execution == BEST else execution]


def _has_modes(tables: Tables) -> bool:
    """Whether anything was executed in another way than the usual one."""
    return bool(set(tables.cells["execution"].to_pylist()) - {None, EXECUTIONS[0]})


def file_name(tables: Tables, kind: str, **parts: Any) -> str:
    """A figure's file name: its kind, its metric and batch, and task, size or mode of execution
    where the sweep has several: `crossover-train_step_time-batch_8`."""
    several = {
        "task": len(set(tables.cells["task"].to_pylist())) > 1,
        "size": len(set(tables.cells["size"].to_pylist())) > 1,
        "execution": _has_modes(tables),
    }
    words = [kind]
    for part, value in parts.items():
        if value is None or not several.get(part, True):
            continue
        text = quantities.size(value) if part == "size" else str(value)
        words.append(f"batch_{text}" if part == "batch" else text)
    return "-".join(re.sub(r"[^A-Za-z0-9_.=]+", "_", word) for word in words)


def ending(rows: list[Row]) -> str | None:
    """Why and where a label's curve stops, in words: `out of memory from 4,096`; None where it
    reaches the last context or nothing says why not."""
    last = next((i for i in reversed(range(len(rows))) if rows[i]["median"] is not None), -1)
    if last + 1 >= len(rows):
        return None
    after = rows[last + 1]
    if after["reason"] is None:
        return None
    return f"{after['reason'].replace('_', ' ')} from {quantities.count(after['seq_len'])}"
