"""Two drivers on one sweep: the second is refused while the first works, and takes over when it is
gone; a first that comes back after that writes nothing more."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.end_to_end.shared_sweep import CELLS, SharedSweep

pytestmark = [
    pytest.mark.slow,
    # MLflow's own use of SQLAlchemy, not ours.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


@pytest.fixture
def shared(tmp_path: Path) -> SharedSweep:
    return SharedSweep(tmp_path)


@pytest.mark.exhaustive
def test_a_second_driver_is_refused_wherever_it_is(shared: SharedSweep) -> None:
    first = shared.start_and_hang("first")
    code, _, errors = shared.start("first").end()
    assert (code, errors.count("\n")) == (2, 1)
    assert f"process {first.process.pid} is working on this sweep" in errors
    shared.lose_locks()
    code, _, errors = shared.start("second").end()
    assert (code, errors.count("\n")) == (2, 1)
    assert f"process {first.process.pid} on node " in errors
    assert "stop it there with Ctrl-C" in errors
    shared.note.touch()
    code, _, errors = first.end()
    assert (code, errors) == (0, "")
    assert len(shared.executed()) == CELLS


@pytest.mark.parametrize(
    "all_of_it",
    [
        pytest.param(False, marks=pytest.mark.exhaustive, id="driver"),
        pytest.param(True, id="machine"),
    ],
)
def test_a_driver_that_comes_back_late_writes_nothing_more(
    shared: SharedSweep, all_of_it: bool
) -> None:
    first = shared.start_and_hang("first")
    running = shared.executed()[-1]
    stopped = [first.process.pid, *(first.watch() if all_of_it else ())]
    _signal(stopped, signal.SIGSTOP)
    shared.lose_locks()
    second = shared.start("second")
    second.wait_for(lambda: len(list(shared.results.glob("leases/*"))) == 2)
    shared.note.touch()
    code, out, errors = second.end()
    assert (code, errors) == (0, "")
    assert "watching for 5 s whether it is still at work" in out
    before = shared.written()

    _signal(stopped, signal.SIGCONT)
    code, _, errors = first.end()
    assert code == 1
    assert errors.count("\n") == 1 and "this one stops and writes nothing more" in errors
    assert first.left_behind() == []
    assert shared.written() == before
    # Only what was running when the first was stopped ran again.
    executed = shared.executed()
    assert len(set(executed)) == CELLS == len(shared.records())
    assert {cell for cell in executed if executed.count(cell) > 1} <= {running}
    assert {status for status, _ in before["runs"].values()} == {"FINISHED"}


@pytest.mark.exhaustive
def test_a_driver_does_not_wait_for_its_cell_when_another_has_taken_over(
    shared: SharedSweep,
) -> None:
    first = shared.start_and_hang("first")
    (shared.results / "leases" / "2").write_text(json.dumps({"node": "0123abcd"}))
    code, _, errors = first.end()
    assert code == 1
    assert errors.count("\n") == 1 and "node 0123abcd has taken this sweep over" in errors
    assert first.left_behind() == []
    assert len(shared.records()) == len(shared.executed()) - 1


@pytest.mark.parametrize("left", [pytest.param("journal", marks=pytest.mark.exhaustive), "mlflow"])
def test_another_machine_goes_on_from_what_is_left(shared: SharedSweep, left: str) -> None:
    """From the journal on shared storage, or from the store alone."""
    first = shared.start_and_hang("first")
    running = shared.executed()[-1]
    kept = {path.name: json.loads(path.read_bytes()) for path in shared.records()}
    runs = {run.info.run_id for run in shared.runs()}
    first.process.kill()
    first.process.communicate()
    if left == "mlflow":
        shutil.rmtree(shared.results)
    else:
        shared.lose_locks()
    shared.note.touch()
    code, out, errors = shared.start("second").end()
    assert code == 0
    if left == "mlflow":
        assert errors.count("\n") == 1 and f"{len(kept)} records of" in errors
    else:
        assert errors == "" and "watching for 5 s" in out
    now = {path.name: json.loads(path.read_bytes()) for path in shared.records()}
    assert {name: now.get(name) for name in kept} == kept
    executed = shared.executed()
    assert len(now) == len(set(executed)) == CELLS
    assert len(executed) == CELLS + 1 and executed.count(running) == 2
    found = shared.runs()
    assert runs <= {run.info.run_id for run in found}
    assert len(found) == CELLS + 1
    assert {run.info.status for run in found} == {"FINISHED"}


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
