"""The answer as a whole: where it was measured, what was found there, how far it carries."""

from __future__ import annotations

from orchestrator.analysis.tables import Tables, block_of
from orchestrator.conclusion.asides import asides, heading, unfair
from orchestrator.conclusion.comparison import Comparison, Row, plural
from orchestrator.conclusion.verdicts import sentence, sentences
from orchestrator.quantities import count, size
from workloads.cell import EXECUTIONS

MOST_SENTENCES = 4
"""Of an answer without a primary comparison, pairs that cross first."""


def answer(tables: Tables) -> str:
    """What the primary comparison says, with device, size, batch and implementation; without a
    primary one, what every pair says of the first metric. Plain text, a few sentences."""
    finished = sum(status == "finished" for status in tables.cells["status"].to_pylist())
    if not finished:
        return (
            f"No answer yet: none of the {count(tables.cells.num_rows)} planned cells is finished."
        )
    comparisons = _comparisons(tables)
    if not comparisons:
        return f"No answer: {_nothing_compared(tables)}"
    where = _where(tables, comparisons[0].first)
    above = list(heading(comparisons))
    if len(comparisons) == 1:
        (only,) = comparisons
        return " ".join([*above, f"{where} {sentence(only)}.", *asides(only)])
    told = sentences(comparisons)
    more = len(told) - MOST_SENTENCES
    rest = f"; the report tells {more} more" if more > 0 else ""
    verdicts = f"{where} {'; '.join(told[:MOST_SENTENCES])}{rest}."
    return " ".join([*above, verdicts, *unfair(comparisons)])


def _comparisons(tables: Tables) -> list[Comparison]:
    """Those to be told: the primary one, else all pairs of the first block."""
    verdicts = tables.crossovers.to_pylist()
    if tables.sweep.primary is not None:
        primary = [row for row in verdicts if row["primary"]]
        return [Comparison(tables, primary)] if primary else []
    found: dict[str, list[Row]] = {}
    for row in verdicts:
        if block_of(row) == block_of(verdicts[0]):
            found.setdefault(row["challenger"], []).append(row)
    crossing_first = sorted(found.values(), key=lambda rows: rows[0]["verdict"] != "crosses")
    return [Comparison(tables, rows) for rows in crossing_first]


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
        device = f"{device} ({plural(threads, 'thread')})"
    precision = sorted({p for p in tables.cells["precision"].to_pylist() if p})
    words = f"with {size(row['size'])} parameters in {' and '.join(precision) or 'its precision'}"
    batch = row["batch"]
    if batch is not None:
        words += f" at batch {batch}" if batch.isdigit() else f" at {batch} per batch"
    if row["execution"] not in (None, EXECUTIONS[0]):
        words += f", {row['execution']}"
    return f"On {device}, {words},"
