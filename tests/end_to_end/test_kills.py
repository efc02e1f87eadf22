"""Kills of the driver in one sweep, eight of them or, exhaustively, twenty: every cell is answered
once, and nothing is done twice that was on record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.kills import CELLS, kill_often

pytestmark = [
    pytest.mark.slow,
    # MLflow's own use of SQLAlchemy, not ours.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_a_sweep_survives_kills(tmp_path: Path, kills: int) -> None:
    outcome = kill_often(tmp_path, inline=True, kills=kills, seed=2)
    assert outcome.faults() == []
    assert len(outcome.killed_at) == kills
    assert outcome.killed_at[-1] < CELLS, "the last kills hit nothing"
    # What was running at a kill is run again, and nothing else.
    assert CELLS <= outcome.executions <= CELLS + kills * 2
