"""`analyze`: records -> Parquet tables, plots, `report.html`; from the journal, else from
MLflow."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence

from orchestrator import full_disk
from orchestrator.analysis import tables as tables_of
from orchestrator.analysis.tables import Tables
from orchestrator.answers import newest_environments
from orchestrator.conclusion import answer
from orchestrator.durable import write_durably
from orchestrator.errors import NothingRecorded
from orchestrator.journal import Journal
from orchestrator.plan import Plan
from orchestrator.planning import planned
from orchestrator.plots.plot import draw_all
from orchestrator.provenance import Envelope
from orchestrator.report import render
from orchestrator.results import Results
from orchestrator.spec import LoadedSpec, load_spec
from orchestrator.store import MlflowStore, resolve_uri
from workloads.cell import EXECUTIONS


def run(arguments: argparse.Namespace) -> int:
    loaded = load_spec(arguments.sweep)
    results = Results.of(loaded.spec.name, arguments.results)
    store = MlflowStore(resolve_uri(arguments.tracking_uri), loaded.spec.name, results.folder)
    envelopes = gather(results.journal(), store)
    if not envelopes:
        raise NothingRecorded(
            f"{loaded.path}: nothing is recorded yet, neither in {results.folder} nor in "
            f"{store.address}; `python -m orchestrator sweep {loaded.path}` measures it"
        )
    loaded = on_recorded_device(loaded, envelopes)
    # What was recorded last is drawn, wherever it ran.
    plan = planned(loaded, envelopes, newest_environments(envelopes))
    tables = analyse(plan, envelopes, results, store.run_ids())
    print(answer(tables))
    print(f"report: {results.report}")
    return 0


def gather(journal: Journal, store: MlflowStore, told: set[str] | None = None) -> list[Envelope]:
    """The journal's records; where there are none, those in the MLflow store.

    What had to be left out is said on stderr, but for what is in `told`, where it is then, too:
    who looks again and again says it once.
    """
    told = set() if told is None else told
    envelopes = journal.read()
    left_out = [f"{path}: {why}" for path, why in journal.damaged.items()]
    if not envelopes:
        envelopes = store.records()
        left_out += [f"MLflow run {run_id}: {why}" for run_id, why in store.damaged.items()]
    for line in left_out:
        if line not in told:
            print(f"left out: {line}", file=sys.stderr)
    told.update(left_out)
    return envelopes


def on_recorded_device(loaded: LoadedSpec, envelopes: Sequence[Envelope]) -> LoadedSpec:
    """`device: auto` as what the newest record ran on: this machine may be another one."""
    if loaded.spec.device != "auto":
        return loaded
    newest = max(envelopes, key=lambda envelope: envelope.order)
    return dataclasses.replace(loaded, device=newest.record.cell.device)


def analyse(
    plan: Plan,
    envelopes: Sequence[Envelope],
    results: Results,
    run_ids: Mapping[tuple[str, str], str],
) -> Tables:
    """Make everything that is made from records; the tables it was made from.

    Raises:
        DiskFull: there is no room for it.
    """
    tables = tables_of.build(plan, envelopes, run_ids)
    with full_disk.explained(results.folder):
        tables_of.write(tables, results.tables)
        draw_all(tables, results.plots)
        write_durably(results.report, render(tables, results.plots).encode())
    return tables


def medians(tables: Tables) -> dict[str, list[tuple[int, float]]]:
    """`train_step_time/lstm/batch 4` -> (context, median): what MLflow draws as curves."""
    rows = [row for row in tables.summary.to_pylist() if row["median"] is not None]
    sizes = {row["size"] for row in rows}
    modes = {row["execution"] for row in rows} - {None, EXECUTIONS[0]}
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        parts = [row["metric"], row["label"]]
        parts += [f"size {row['size']}"] if len(sizes) > 1 else []
        parts += [f"batch {row['batch']}"] if row["batch"] else []
        parts += [row["execution"]] if row["execution"] and modes else []
        curves.setdefault("/".join(parts), []).append((row["seq_len"], row["median"]))
    return {name: sorted(curve) for name, curve in curves.items()}
