"""A sweep that is interrupted stops in order, says how to go on, leaves nothing running, and is
continued by the same command."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.end_to_end.sweep_process import SweepProcess

pytestmark = [
    pytest.mark.slow,
    # MLflow's own use of SQLAlchemy, not ours.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

SWEEP = """
name: stopped
question: Does a sweep stop when it is told to?
architectures: [none, {{faulty: {{fault: hang, note: {note}}}}}]
task: instant
model: {{parameters: [2_000], num_layers: 1}}
measure:
  seq_len: [4, 8]
  batch_size: [1]
  rounds: 3
  metrics: [tally, train_step_time]
compare: {{baseline: none, zone: [4, 8]}}
"""
CELLS = 12


def _terminal(driver: int) -> None:
    """Ctrl-C: the terminal tells everyone in the foreground."""
    os.killpg(driver, signal.SIGINT)


def _kill_int(driver: int) -> None:
    os.kill(driver, signal.SIGINT)


def _kill_term(driver: int) -> None:
    os.kill(driver, signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "stop", "later"),
    [
        ((), _terminal, ("--inline",)),
        pytest.param((), _kill_term, (), marks=pytest.mark.exhaustive),
        pytest.param(("--inline",), _kill_int, ("--inline",), marks=pytest.mark.exhaustive),
    ],
    ids=["ray-terminal", "ray-sigterm", "inline-sigint"],
)
def test_an_interrupted_sweep_goes_on(
    tmp_path: Path,
    options: tuple[str, ...],
    stop: Callable[[int], None],
    later: tuple[str, ...],
) -> None:
    note, tally = tmp_path / "note", tmp_path / "tally"
    text = SWEEP.format(note=note)
    sweep = SweepProcess(tmp_path, text, *options, WORKLOADS_TALLY=str(tally))
    sweep.wait_for(note.with_suffix(".waiting").exists)
    # Every cell before the one that hangs is on record soon.
    sweep.wait_for(lambda: _records(tmp_path) == _executions(tally) - 1)
    answered = _records(tmp_path)
    stop(sweep.process.pid)
    code, out, errors = sweep.end()

    assert (code, errors) == (130, "")
    said = re.search(r"interrupted: (\d+) of 12 cells are answered and kept; the same", out)
    assert said is not None and int(said.group(1)) == answered
    assert "failed" not in out
    assert sweep.left_behind() == [] and sweep.runtime_folders() == []
    assert "RUNNING" not in _run_statuses(tmp_path)

    note.touch()
    executed = _executions(tally)
    again = SweepProcess(tmp_path, text, *later, WORKLOADS_TALLY=str(tally))
    code, out, errors = again.end()
    assert (code, errors) == (0, "")
    assert f"{answered} answered before" in out
    assert _executions(tally) - executed == CELLS - answered


def _executions(tally: Path) -> int:
    return len(tally.read_text().split()) if tally.exists() else 0


def _records(folder: Path) -> int:
    return len(list(folder.glob("results/stopped/journal/[!.]*.json")))


def _run_statuses(folder: Path) -> set[str]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stopped")
    if experiment is None:
        return set()
    return {run.info.status for run in client.search_runs([experiment.experiment_id])}
