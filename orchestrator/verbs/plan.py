"""`plan`: everything that can fail without a device fails here; prints cells and what they take."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.answers import Answers
from orchestrator.cost import CostModel, cost_model
from orchestrator.expand import expand
from orchestrator.plan import Plan
from orchestrator.progress import duration
from orchestrator.provenance import Prediction
from orchestrator.quantities import quantity
from orchestrator.results import Results
from orchestrator.spec import load_spec
from workloads.tasks.data import cache_folder


def run(arguments: argparse.Namespace) -> int:
    plan = expand(load_spec(arguments.sweep))
    envelopes = Results.of(plan.name, arguments.results).journal().read()
    answers = Answers.of(plan, envelopes)
    model = cost_model(plan.cells[0].device, cache_folder(), envelopes)
    predictions = {cell.id: model.predict(cell) for cell in plan.cells}
    if arguments.json:
        print(json.dumps(_as_object(plan, answers, predictions)))
    else:
        _print(Console(), plan, answers, model, predictions)
    return 0


def _as_object(plan: Plan, answers: Answers, predictions: dict[str, Prediction]) -> dict[str, Any]:
    """One object; `cells[i]` is what `python -m workloads` takes."""
    return {
        "name": plan.name,
        "question": plan.question,
        "spec_hash": plan.spec_hash,
        "token_unit": plan.token_unit,
        "counts": dict(answers.counts()),
        "predicted_seconds": sum(predictions[cell.id].seconds for cell in answers.pending()),
        "cells": [{"id": cell.id, **cell.to_dict()} for cell in plan.cells],
        "predictions": {
            cell_id: {"seconds": p.seconds, "peak_bytes": p.peak_bytes}
            for cell_id, p in predictions.items()
        },
    }


def _print(
    console: Console,
    plan: Plan,
    answers: Answers,
    model: CostModel,
    predictions: dict[str, Prediction],
) -> None:
    console.print(f"[bold]{plan.name}[/]: ", plan.question, sep="", markup=True, highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("kind", "label", "contexts", "cells", "answered", "predicted", "largest peak"):
        table.add_column(name, justify="left" if name in ("kind", "label") else "right")
    for kind in ("measure", "train"):
        for label in plan.labels:
            cells = [c for c in plan.cells if c.kind == kind and c.label == label]
            if not cells:
                continue
            lengths = sorted({cell.seq_len for cell in cells})
            done = sum(not answers.missing(cell) for cell in cells)
            table.add_row(
                kind,
                label,
                f"{lengths[0]}-{lengths[-1]}" if len(lengths) > 1 else str(lengths[0]),
                str(len(cells)),
                str(done),
                duration(sum(predictions[c.id].seconds for c in cells)),
                quantity(max(predictions[c.id].peak_bytes for c in cells), "bytes"),
            )
    console.print(table)
    _print_summary(console, plan, answers, model, predictions)


def _print_summary(
    console: Console,
    plan: Plan,
    answers: Answers,
    model: CostModel,
    predictions: dict[str, Prediction],
) -> None:
    pending = answers.pending()
    seconds = Counter[str]()
    for cell in pending:
        seconds[cell.kind] += predictions[cell.id].seconds
    basis = "this machine's probed rates" if model.probed else "typical rates, not this machine's"
    if model.factors:
        basis += ", corrected by earlier records"
    done = len(plan.cells) - sum(bool(answers.missing(cell)) for cell in plan.cells)
    say = _Plain(console)
    say(
        f"{len(plan.cells)} cells on {plan.cells[0].device}, {done} answered, {len(pending)} to run"
    )
    say(
        f"to go: {duration(seconds['measure'])} of measuring, one at a time, and "
        f"{duration(seconds['train'])} of training, shared between cores ({basis})"
    )
    say(f"lengths count {plan.token_unit}")
    if given_up := sum(answers.exhausted(c) for c in plan.cells if answers.missing(c)):
        say(f"{given_up} cells failed as often as they may; other code or limits start them anew")
    if elsewhere := answers.elsewhere():
        say(f"{elsewhere} cells are answered in another environment only; they are kept apart")
    if changed := answers.other_sources():
        say(f"{changed} answered cells ran other source code than today's")


class _Plain:
    """Prints a line as it is, without rich's colours for numbers."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
