"""A sweep over hosts with networks of their own, one of which is cut off in the middle and comes
back when others have answered its cells."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.nap_sweep import nap_sweep
from tests.end_to_end.sweep_process import SweepProcess
from tests.separate_hosts import PORT, lacking, ray_on_hosts

pytestmark = pytest.mark.exhaustive

PATIENCE = 300.0
CELLS = 24


def records(folder: Path) -> list[dict[str, Any]]:
    files = folder.glob("results/hosts/journal/[!.]*.json")
    return [json.loads(file.read_text()) for file in files]


def test_a_host_that_is_cut_off_and_comes_back_changes_nothing(tmp_path: Path) -> None:
    if why := lacking():
        pytest.skip(why)
    gate = tmp_path / "gate"
    text = nap_sweep(
        "hosts", "Is every cell answered once?", seconds=1.0, seeds=CELLS // 2, gate=gate
    )
    with ray_on_hosts(tmp_path, 4) as (hosts, environment):
        head, victim = hosts[0], hosts[1]
        sweep = SweepProcess(
            tmp_path,
            text,
            *("--address", f"{head.address}:{PORT}"),
            command=(*head.run, sys.executable, "-m", "orchestrator"),
            **environment,
        )
        sweep.patience = PATIENCE
        sweep.wait_for(lambda: len({one["node"] for one in records(tmp_path)}) == 3)
        gate.touch()
        begun = len(records(tmp_path))
        victim.cut_off()
        gate.unlink()
        sweep.wait_for(lambda: len(records(tmp_path)) >= min(CELLS - 1, begun + 8))
        victim.plug_in()
        code, out, errors = sweep.end(PATIENCE)
    assert (code, errors) == (0, ""), out
    made = records(tmp_path)
    assert {one["record"]["status"] for one in made} == {"finished"}
    assert set(Counter(one["record"]["id"] for one in made).values()) == {1}
    assert len(made) == CELLS
