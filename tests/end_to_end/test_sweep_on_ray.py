"""One whole sweep on Ray: what it prints, where it listens, and what it leaves behind."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.end_to_end.sweep_process import SweepProcess, loopback

pytestmark = pytest.mark.slow

SWEEP = """
name: both
question: Do both kinds of cell run on Ray?
architectures: [none, gru]
task: instant
model: {parameters: [2_000], num_layers: 1}
measure:
  seq_len: [4, 8]
  batch_size: [1]
  rounds: 2
  metrics: [state_bytes, tally]
train:
  seq_len: [4]
  tokens: 2_400
  tokens_per_update: 4
  seeds: 2
  learning_rate: {default: 1.0e-3}
  metrics: [one]
compare: {baseline: none, zone: [4, 8]}
"""

PRINTED = [
    r"both: Do both kinds of cell run on Ray\?",
    r"data for instant: checking, preparing where needed",
    r"probing how fast cpu:1 is at best",
    r"12 cells, 0 answered before, 12 to run, about .*; store sqlite:////.*/mlflow\.db",
    r"\d+ of 12 cells, .* to go",
    r"label +finished",
    r"(none|gru) +6",
    r"report: results/both/report\.html",
    r"tables: results/both/tables, store: sqlite:////.*/mlflow\.db",
]


def test_a_sweep_on_ray(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    sweep = SweepProcess(tmp_path, SWEEP, WORKLOADS_TALLY=str(tally))
    listeners: set[str] = set()
    folders: set[Path] = set()
    while sweep.process.poll() is None:
        listeners |= sweep.listeners()
        folders |= set(sweep.runtime_folders())
        time.sleep(0.1)
    code, out, errors = sweep.end()

    assert (code, errors) == (0, "")
    lines = out.splitlines()
    # The answer in one sentence is the conclusion's own; nothing else may be said.
    unknown = [line for line in lines if not any(re.fullmatch(p, line) for p in PRINTED)]
    assert len(unknown) == 1 and " On " in f" {unknown[0]}", out

    assert listeners and all(map(loopback, listeners)), listeners
    assert len(folders) == 1 and not any(folder.exists() for folder in folders)
    assert len(sweep.seen) > 5 and sweep.left_behind() == []
    assert len(tally.read_text().split()) == 8

    again = SweepProcess(tmp_path, SWEEP, WORKLOADS_TALLY=str(tally))
    while again.process.poll() is None:
        assert not again.runtime_folders(), "Ray was started for nothing"
        time.sleep(0.02)
    assert again.end()[0] == 0
    assert len(tally.read_text().split()) == 8, "a cell was run again"
