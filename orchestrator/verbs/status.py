"""`status`: how far a sweep is by architecture, what failed and why, while it runs or after."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from orchestrator.answers import Answers
from orchestrator.expand import expand
from orchestrator.progress import describe
from orchestrator.results import Results
from orchestrator.spec import load_spec
from orchestrator.store import MlflowStore, resolve_uri
from orchestrator.terminal import Terminal
from orchestrator.verbs.analyze import gather, on_recorded_device
from workloads.cell import Cell

STATUSES = ("finished", "failed", "lost", "pending")


def run(arguments: argparse.Namespace) -> int:
    loaded = load_spec(arguments.sweep)
    results = Results.of(loaded.spec.name, arguments.results)
    store = MlflowStore(resolve_uri(arguments.tracking_uri), loaded.spec.name, results.folder)
    envelopes = gather(results.journal(), store)
    plan = expand(on_recorded_device(loaded, envelopes) if envelopes else loaded)
    answers = Answers.of(plan, envelopes)
    terminal = Terminal()
    terminal.say(f"{plan.name}: {plan.question}")
    terminal.print(_table(answers))
    for line in [*_reasons(answers), *answers.remarks()]:
        terminal.say(line)
    counts = answers.counts()
    return 1 if counts["failed"] or counts["lost"] else 0


def _table(answers: Answers) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("kind")
    table.add_column("label")
    for status in STATUSES:
        table.add_column(status, justify="right")
    for (kind, label), cells in answers.plan.groups().items():
        found = [answers.status(cell) for cell in cells]
        numbers = (str(found.count(status)) for status in STATUSES)
        table.add_row(kind, Text(label), *numbers)
    counts = answers.counts()
    table.add_row("all", "", *(str(counts[status]) for status in STATUSES), style="bold")
    return table


def _reasons(answers: Answers) -> Iterator[str]:
    """Every limit reached and every failure: cells that say the same in one line, the first one
    named."""
    said: dict[tuple[str, ...], list[Cell]] = {}
    for cell in answers.plan.cells:
        known = answers.known(cell)
        if known is None:
            continue
        if answers.status(cell) in ("failed", "lost"):
            what, why = answers.status(cell), known.newest.record.message
        elif known.reason is not None:
            what = known.reason.replace("_", " ")
            why = next((m.detail for m in known.measurements.values() if m.reason), None)
        else:
            continue
        said.setdefault((what, cell.kind, cell.label, why or ""), []).append(cell)
    for (what, _, _, why), cells in said.items():
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        yield f"{what}: {describe(cells[0])}{more}" + (f": {why}" if why else "")
