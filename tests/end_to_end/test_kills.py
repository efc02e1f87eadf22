"""Twenty kills of the driver in one sweep: every cell is answered once, and nothing is done twice
that was on record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.kills import CELLS, kill_often

pytestmark = [
    pytest.mark.slow,
    # MLflow's own use of SQLAlchemy, not ours.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


def test_a_sweep_survives_twenty_kills(tmp_path: Path) -> None:
    outcome = kill_often(tmp_path, inline=True, kills=20, seed=2)
    assert outcome.faults() == []
    assert len(outcome.killed_at) == 20
    assert outcome.killed_at[-1] < CELLS, "the last kills hit nothing"
    # What was running at a kill is run again, and nothing else.
    assert CELLS <= outcome.executions <= CELLS + 20 * 2
