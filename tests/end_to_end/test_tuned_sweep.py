"""A sweep that tunes before it compares, killed twice in the middle of its searches."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.end_to_end.sweep_process import SweepProcess

pytestmark = pytest.mark.slow

SWEEP = """
name: tuned
question: Are trials neither repeated nor lost?
architectures: [none, gru]
task: language_modelling
device: cpu
model: {parameters: [2_000], num_layers: 1}
train:
  seq_len: [8, 16, 32]
  tokens: 3_200
  tokens_per_update: 64
  seeds: 2
  metrics: [validation_loss]
tune: {learning_rate: {low: 1.0e-3, high: 3.0e-2}, trials: 8, tokens: 3_200}
compare: {baseline: none, zone: [8, 16]}
"""
STUDIES = 2 * 2


def trials(folder: Path) -> list[dict[str, Any]]:
    """The cells of kind `tune` on record."""
    files = folder.glob("results/tuned/journal/[!.]*.json")
    cells = [json.loads(file.read_text())["record"]["cell"] for file in files]
    return [cell for cell in cells if cell["kind"] == "tune"]


@pytest.mark.parametrize("how", ["--inline", pytest.param("ray", marks=pytest.mark.exhaustive)])
def test_a_tuned_sweep_goes_on_where_it_was_killed(tmp_path: Path, how: str) -> None:
    options = [how] if how.startswith("-") else []
    for killed_at in (5, 8 * STUDIES + 3):
        sweep = SweepProcess(tmp_path, SWEEP, *options)
        sweep.wait_for(lambda at=killed_at: len(trials(tmp_path)) >= at)  # type: ignore[misc]
        sweep.process.send_signal(signal.SIGKILL)
        sweep.end()
    code, out, errors = SweepProcess(tmp_path, SWEEP, *options).end()
    assert (code, errors) == (0, ""), out

    found = trials(tmp_path)
    assert set(Counter((one["study"], one["trial"]) for one in found).values()) == {1}
    table = pq.read_table(tmp_path / "results/tuned/tables/tuning.parquet").to_pylist()
    assert len(table) == len(found)
    assert {row["cell_id"] for row in table} == {
        row["cell_id"]
        for row in pq.read_table(tmp_path / "results/tuned/tables/cells.parquet").to_pylist()
        if row["kind"] == "tune" and row["status"] == "finished"
    }
    searched = Counter(row["label"] for row in table if row["stage"] != "check")
    assert searched["none"] == searched["gru"] >= 12 * 2
    assert Counter(row["label"] for row in table if row["stage"] == "check") == {
        "none": 3 * 3,
        "gru": 3 * 3,
    }
    assert all(row["value"] is not None and row["chosen"] is not None for row in table)
    budget = [
        row["holds"]
        for row in pq.read_table(tmp_path / "results/tuned/tables/certificate.parquet").to_pylist()
        if row["clause"] == "tuning budget"
    ]
    assert budget and all(budget)
    assert (tmp_path / "results/tuned/plots/tuning-validation_loss.svg").exists()
    assert "Tuning" in (tmp_path / "results/tuned/report.html").read_text()
