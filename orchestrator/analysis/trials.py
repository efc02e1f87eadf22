"""The trials of tuning, and what each search chose of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from orchestrator.analysis.observations import Observed
from orchestrator.search import Search
from workloads.cell import canonical_json


def rows(searches: Iterable[Search], observed: Observed) -> list[dict[str, object]]:
    """The rows of the `tuning` table: by search and trial."""
    return [
        {
            "label": search.label,
            "architecture": trial.cell.architecture,
            "task": trial.cell.task,
            "size": search.size,
            "seq_len": search.seq_len,
            "device": trial.cell.device,
            "study": trial.cell.study,
            "stage": trial.stage,
            "trial": trial.cell.trial,
            "cell_id": trial.cell.id,
            "tokens": trial.cell.tokens,
            "learning_rate": trial.cell.learning_rate,
            **asdict(trial.cell.recipe),
            "forget_bias": trial.cell.options.get("forget_bias"),
            "metric": search.metric,
            "unit": _unit(search, observed),
            "better": search.better,
            "value": trial.value,
            "reason": trial.reason,
            "low": search.low,
            "high": search.high,
            "widened": search.widened,
            "chosen": None if search.chosen is None else search.chosen["learning_rate"],
            "chosen_setting": None if search.chosen is None else canonical_json(search.chosen),
            "fitted": search.fitted,
            "at_edge": search.at_edge,
            "environment": observed.environment,
        }
        for search in searches
        for trial in search.trials
    ]


def _unit(search: Search, observed: Observed) -> str | None:
    facts = observed.metrics.get(search.metric)
    return None if facts is None else facts.unit
