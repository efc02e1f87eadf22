"""`status`: counts by status and by architecture, what failed and why, while a sweep runs or
after."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from orchestrator.answers import Answers
from orchestrator.expand import expand
from orchestrator.progress import describe
from orchestrator.results import Results
from orchestrator.spec import load_spec
from orchestrator.store import MlflowStore, resolve_uri
from orchestrator.verbs.analyze import gather, on_recorded_device

STATUSES = ("finished", "failed", "lost", "pending")


def run(arguments: argparse.Namespace) -> int:
    loaded = load_spec(arguments.sweep)
    results = Results.of(loaded.spec.name, arguments.results)
    store = MlflowStore(resolve_uri(arguments.tracking_uri), loaded.spec.name, results.folder)
    envelopes = gather(results.journal(), store)
    plan = expand(on_recorded_device(loaded, envelopes) if envelopes else loaded)
    answers = Answers.of(plan, envelopes)
    console = Console(highlight=False)
    console.print(f"{plan.name}: {plan.question}", markup=False, soft_wrap=True)
    console.print(_table(answers))
    _print_reasons(console, answers)
    if elsewhere := answers.elsewhere():
        console.print(f"{elsewhere} cells are answered in another environment only; kept apart")
    if changed := answers.other_sources():
        console.print(f"{changed} answered cells ran other source code than today's")
    counts = answers.counts()
    return 1 if counts["failed"] or counts["lost"] else 0


def _table(answers: Answers) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("label")
    table.add_column("kind")
    for status in STATUSES:
        table.add_column(status, justify="right")
    cells = answers.plan.cells
    for label, kind in dict.fromkeys((cell.label, cell.kind) for cell in cells):
        found = [answers.status(c) for c in cells if (c.label, c.kind) == (label, kind)]
        table.add_row(label, kind, *(str(found.count(status)) for status in STATUSES))
    counts = answers.counts()
    table.add_row("all", "", *(str(counts[status]) for status in STATUSES), style="bold")
    return table


def _print_reasons(console: Console, answers: Answers) -> None:
    """Every limit reached and every failure, a line each."""
    for cell in answers.plan.cells:
        known = answers.known(cell)
        if known is None:
            continue
        if answers.status(cell) in ("failed", "lost"):
            text = f"{known.status}: {describe(cell)}: {known.newest.record.message}"
        elif known.reason is not None:
            detail = next((m.detail for m in known.measurements.values() if m.reason), None)
            text = f"{known.reason}: {describe(cell)}" + (f": {detail}" if detail else "")
        else:
            continue
        console.print(text, markup=False, soft_wrap=True)
