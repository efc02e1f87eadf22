"""The tables of a sweep: built from its plan and records, written as Parquet, read back.

A table row never mixes two environments: every number is of the environment drawn, that of the
newest records, and a cell that only another environment has answered is `pending` here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.analysis import (
    article,
    blocks,
    cell_rows,
    certificate,
    crossover,
    profiles,
    references,
    scaling,
    summary,
    trials,
    winners,
)
from orchestrator.analysis.observations import Observed, observe
from orchestrator.analysis.schema import SCHEMAS, TABLES_SCHEMA
from orchestrator.errors import NothingRecorded, UserError
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from workloads import collector


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFacts:
    """What a reader of the tables must know of the sweep, kept as JSON in `cells.parquet`.

    `environment` is the fingerprint drawn, None while nothing is recorded; `environments` describes
    every environment with records, by fingerprint. `labels` are in the sweep file's order.
    `primary` is (challenger, metric, batch size).
    """

    name: str
    question: str
    spec_hash: str
    spec_yaml: str
    token_unit: str
    labels: tuple[str, ...]
    baseline: str
    zone: tuple[int, int]
    primary: tuple[str, str, int | None] | None
    environment: str | None
    environments: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> SweepFacts:
        values = json.loads(text)
        primary = values["primary"]
        return cls(
            **{
                **values,
                "labels": tuple(values["labels"]),
                "zone": tuple(values["zone"]),
                "primary": None if primary is None else tuple(primary),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Every table of a sweep; `orchestrator.analysis.schema` declares their columns."""

    sweep: SweepFacts
    cells: pa.Table
    samples: pa.Table
    curves: pa.Table
    summary: pa.Table
    profiles: pa.Table
    references: pa.Table
    tuning: pa.Table
    certificate: pa.Table
    article: pa.Table
    crossovers: pa.Table
    contrasts: pa.Table
    winners: pa.Table
    scaling: pa.Table


def block_of(row: Mapping[str, Any]) -> tuple[str, str, int, str | None, str | None]:
    """What all rows of one figure share, in any of the tables that judge."""
    return row["metric"], row["task"], row["size"], row["batch"], row["execution"]


def build(
    plan: Plan,
    envelopes: Sequence[Envelope],
    run_ids: Mapping[tuple[str, str], str] | None = None,
) -> Tables:
    """The tables of `plan` as far as `envelopes` answer it; every planned cell has its row.

    `run_ids` names the MLflow run of (cell id, environment fingerprint), where there is one. The
    order of `envelopes` does not matter: the same records give the same bytes.
    """
    with collector.paused():
        return _build(plan, observe(plan, envelopes), run_ids or {})


def _build(plan: Plan, observed: Observed, run_ids: Mapping[tuple[str, str], str]) -> Tables:
    found = blocks.assemble(observed)
    facts = _facts(plan, observed.environment, observed.environments)
    contrasts, crossovers = crossover.rows(found, plan.comparison, observed.environment)
    rows = {
        "summary": summary.rows(found, observed.environment),
        "profiles": profiles.rows(observed),
        "references": references.rows(observed),
        "tuning": trials.rows(plan.searches, observed),
        "certificate": certificate.rows(
            found, plan.comparison.baseline, observed, plan.references, plan.searches
        ),
        "article": article.rows(found, observed.environment),
        "crossovers": crossovers,
        "contrasts": contrasts,
        "winners": winners.rows(found, observed.environment, plan.references),
        "scaling": scaling.rows(found, observed.environment),
    }
    judged = {name: pa.Table.from_pylist(rows[name], SCHEMAS[name]) for name in rows}
    return Tables(
        sweep=facts,
        cells=cell_rows.cells(plan.name, observed, run_ids),
        samples=cell_rows.samples(observed),
        curves=cell_rows.curves(observed),
        **judged,
    )


def _facts(
    plan: Plan, environment: str | None, environments: Mapping[str, Mapping[str, Any]]
) -> SweepFacts:
    comparison = plan.comparison
    primary = comparison.primary
    return SweepFacts(
        name=plan.name,
        question=plan.question,
        spec_hash=plan.spec_hash,
        spec_yaml=plan.spec_yaml,
        token_unit=plan.token_unit,
        labels=plan.labels,
        baseline=comparison.baseline,
        zone=comparison.zone,
        primary=None
        if primary is None
        else (primary.challenger, primary.metric, primary.batch_size),
        environment=environment,
        environments=environments,
    )


def write(tables: Tables, folder: Path) -> None:
    """Writes `folder/NAME.parquet` for every table, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        table: pa.Table = getattr(tables, name)
        metadata = {b"schema": str(TABLES_SCHEMA).encode()}
        if name == "cells":
            metadata[b"sweep"] = tables.sweep.to_json().encode()
        unfinished = folder / f".{name}.{os.getpid()}.parquet"
        try:
            pq.write_table(table.replace_schema_metadata(metadata), unfinished)
            unfinished.replace(folder / f"{name}.parquet")
        finally:
            unfinished.unlink(missing_ok=True)


def read(folder: Path) -> Tables:
    """The tables that `write` put into `folder`.

    Raises:
        NothingRecorded: a file is missing.
        UserError: a file is not readable, or of another schema number.
    """
    tables = {name: _read(folder / f"{name}.parquet") for name in SCHEMAS}
    facts = SweepFacts.from_json(tables["cells"].schema.metadata[b"sweep"])
    return Tables(sweep=facts, **tables)


def _read(path: Path) -> pa.Table:
    if not path.exists():
        raise NothingRecorded(f"{path}: no such table; `analyze` writes it from the records")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a table ({error}); `analyze` writes it anew") from None
    number = (table.schema.metadata or {}).get(b"schema", b"none").decode()
    if number != str(TABLES_SCHEMA):
        raise UserError(
            f"{path}: schema {number}, this version reads {TABLES_SCHEMA};"
            " `analyze` writes the tables anew"
        )
    return table
