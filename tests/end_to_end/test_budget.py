"""A sweep whose device hours run out stops with the answer so far, starts nothing more, and goes on
once there are more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.end_to_end.sweep_process import SweepProcess

pytestmark = pytest.mark.slow

PATIENCE = 120.0
SWEEP = """
name: bounded
question: Does a sweep keep to its budget?
architectures: [none, gru]
task: instant
model: {{parameters: [2_000], num_layers: 1}}
measure:
  seq_len: [4, 8]
  batch_size: [1]
  rounds: 5
  metrics: [tally, pause]
limits: {{device_hours: {hours}}}
compare: {{baseline: none, zone: [4, 8]}}
"""
CELLS = 20
SENTENCE = r"the budget is spent: ([\d.]+) of 0\.00111 device hours; (\d+) cells are left; .*go on"


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(("--inline",), id="inline"),
        pytest.param((), marks=pytest.mark.exhaustive, id="ray"),
    ],
)
def test_a_sweep_keeps_to_its_budget(tmp_path: Path, engine: tuple[str, ...]) -> None:
    tally = tmp_path / "tally"

    def run(hours: float) -> tuple[int, str, int]:
        text = SWEEP.format(hours=hours)
        sweep = SweepProcess(tmp_path, text, *engine, WORKLOADS_TALLY=str(tally))
        code, out, errors = sweep.end(PATIENCE)
        assert errors == ""
        return code, out, len(set(tally.read_text().split()))

    code, out, executed = run(4 / 3600)
    said = re.search(SENTENCE, out)
    assert code == 1 and said is not None, out
    spent, left = float(said[1]), int(said[2])
    assert spent >= 0.00111 and 0 < left < CELLS
    assert executed <= CELLS - left + 1, "one may have been stopped"
    assert "report: results/bounded/report.html" in out

    code, out, again = run(4 / 3600)
    assert (code, again) == (1, executed), "something was started without a budget"
    assert re.search(SENTENCE, out) is not None

    code, out, _ = run(1.0)
    assert code == 0, out
