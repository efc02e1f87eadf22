"""`plan`: everything that can fail without a device fails here; prints cells and what they take."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from orchestrator.answers import Answers, cells
from orchestrator.cost import CostModel, cost_model
from orchestrator.plan import Plan
from orchestrator.planning import planned
from orchestrator.preparation import check_data
from orchestrator.progress import duration
from orchestrator.provenance import Prediction
from orchestrator.quantities import quantity
from orchestrator.results import Results
from orchestrator.spec import load_spec
from orchestrator.terminal import Terminal
from workloads.cell import KINDS
from workloads.tasks.data import cache_folder
from workloads.train import MIN_UPDATES, schedule_of

Predictions = Mapping[str, Prediction]


def run(arguments: argparse.Namespace) -> int:
    loaded = load_spec(arguments.sweep)
    journal = Results.of(loaded.spec.name, arguments.results).journal()
    envelopes = journal.read()
    plan = planned(loaded, envelopes)
    check_data(loaded, plan)
    for path, why in journal.damaged.items():
        print(f"left out: {path}: {why}", file=sys.stderr)
    answers = Answers.of(plan, envelopes)
    model = cost_model(plan.cells[0].device, cache_folder(), envelopes)
    predictions = {cell.id: model.predict(cell) for cell in plan.cells}
    if arguments.json:
        print(json.dumps(_as_object(answers, predictions)))
    else:
        _print(Terminal(), answers, model, predictions)
    return 0


def _as_object(answers: Answers, predictions: Predictions) -> dict[str, Any]:
    """One object; `cells[i]` is what `python -m workloads` takes."""
    plan = answers.plan
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
    terminal: Terminal, answers: Answers, model: CostModel, predictions: Predictions
) -> None:
    plan = answers.plan
    pending = answers.pending()
    terminal.say(f"{plan.name}: {plan.question}")
    terminal.print(_table(answers, predictions))
    to_go = [*pending, *(cell for cell in plan.cells if cell.is_open)]
    done = sum(not answers.missing(cell) for cell in plan.cells)
    terminal.say(
        f"{len(plan.cells)} cells on {plan.cells[0].device}, {done} answered, {len(pending)} to run"
    )
    if to_go:
        seconds = {
            kind: sum((predictions[c.id].seconds for c in to_go if c.kind == kind), 0.0)
            for kind in KINDS
        }
        terminal.say(
            f"to go: {duration(seconds['measure'])} of measuring, one at a time, and "
            f"{duration(seconds['tune'] + seconds['train'])} of training, shared between cores "
            f"({_basis(model)})"
        )
    terminal.say(f"lengths count {plan.token_unit}")
    for remark in [*_tuning(plan), *_undertrained(plan), *answers.remarks()]:
        terminal.say(remark)


def _tuning(plan: Plan) -> Iterator[str]:
    if plan.searches:
        metric = plan.searches[0].metric
        yield f"{len(plan.searches)} searches are judged by {metric}, with equal trials and tokens"


def _undertrained(plan: Plan) -> Iterator[str]:
    trained = [cell for cell in plan.cells if cell.kind == "train"]
    if few := sum(schedule_of(cell).updates < MIN_UPDATES for cell in trained):
        yield f"{cells(few)} train for fewer than {MIN_UPDATES} updates, which gives no verdict"


def _basis(model: CostModel) -> str:
    basis = "this machine's probed rates" if model.probed else "typical rates, not this machine's"
    return f"{basis}, corrected by earlier records" if model.factors else basis


def _table(answers: Answers, predictions: Predictions) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("kind", "label", "contexts", "cells", "answered", "predicted", "largest peak"):
        table.add_column(name, justify="left" if name in ("kind", "label") else "right")
    for (kind, label), group in answers.plan.groups().items():
        lengths = sorted({cell.seq_len for cell in group})
        table.add_row(
            kind,
            Text(label),
            f"{lengths[0]}-{lengths[-1]}" if len(lengths) > 1 else str(lengths[0]),
            str(len(group)),
            str(sum(not answers.missing(cell) for cell in group)),
            duration(sum(predictions[c.id].seconds for c in group)),
            quantity(max(predictions[c.id].peak_bytes for c in group), "bytes"),
        )
    return table
