"""What a person sees while a sweep runs, on a terminal and in a log."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from orchestrator import progress as shown
from orchestrator.progress import LiveProgress, describe, duration, headway_shown
from tests.simulated_world import Law, SimulatedWorld, measure_cells, train_cell
from workloads.cell import Cell
from workloads.tasks.headway import Headway

WORLD = SimulatedWorld(laws={"lstm": Law(), "gru": Law(out_of_memory_from=512)})
CELLS = measure_cells(("lstm",), range(64, 64 * 21, 64), rounds=1)


def watched(cells: list[Cell], seconds: float = 1.0) -> tuple[LiveProgress, io.StringIO]:
    log = io.StringIO()
    predicted = {cell.id: seconds for cell in cells}
    return LiveProgress(Console(file=log, width=120), cells, predicted), log


def test_a_log_has_a_line_for_each_tenth() -> None:
    progress, log = watched(CELLS)
    with progress:
        for cell, record in WORLD.execute(CELLS):
            progress.answered(cell, record)
    lines = log.getvalue().strip().splitlines()
    assert len(lines) == 10
    assert lines[0] == "2 of 20 cells, 9 s to go"
    assert lines[-1] == "20 of 20 cells, 0 s to go"


def test_time_to_go_is_corrected_by_how_predictions_did() -> None:
    progress, _ = watched(CELLS, seconds=2.0)
    with progress:
        assert progress.seconds_to_go() == pytest.approx(40)
        progress.answered(CELLS[0], replace(WORLD.answer(CELLS[0]), seconds=6.0))
        assert progress.seconds_to_go() == pytest.approx(19 * 6)


def test_cells_side_by_side_take_less() -> None:
    cells = [train_cell(seed=seed) for seed in range(4)]
    progress, _ = watched([*CELLS, *cells])
    progress.width = {"measure": 1, "train": 4}
    assert progress.seconds_to_go() == pytest.approx(20 + 1)


def test_cells_without_a_prediction_count_as_cells() -> None:
    progress = LiveProgress(Console(file=io.StringIO()), CELLS, {})
    with progress:
        progress.answered(CELLS[0], WORLD.answer(CELLS[0]))
        assert progress.seconds_to_go() == 0


def test_failures_and_limits_are_said_as_they_happen() -> None:
    failed, cut = CELLS[0], measure_cells(("gru",), (512,), rounds=1)[0]
    progress, log = watched([failed, cut])
    with progress:
        record = replace(WORLD.answer(failed), status="failed", message="[Errno 28] no space")
        progress.answered(failed, record)
        progress.answered(cut, WORLD.answer(cut))
    said = log.getvalue()
    assert f"failed: {describe(failed)}: [Errno 28] no space" in said
    assert f"out of memory: {describe(cut)}" in said


def test_a_limit_that_every_replicate_reaches_is_said_once() -> None:
    cells = measure_cells(("gru",), (512, 1024), rounds=3)
    progress, log = watched(cells)
    with progress:
        for cell, record in WORLD.execute(cells):
            progress.answered(cell, record)
    assert log.getvalue().count("out of memory: ") == 2


def test_a_terminal_is_redrawn_in_place() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with LiveProgress(console, CELLS, {}) as progress:
        for cell, record in WORLD.execute(CELLS):
            progress.answered(cell, record)
    assert "20/20 cells" in screen.getvalue()
    assert "of 20 cells" not in screen.getvalue()


def test_cells_and_durations_in_words() -> None:
    assert describe(train_cell(label="gru", seq_len=64, seed=3)) == "train gru, context 64, seed 3"
    assert describe(CELLS[0]).startswith("measure lstm, context ")
    assert describe(CELLS[0]).endswith(", batch 8, round 0")
    assert [duration(s) for s in (0.4, 89, 90, 3600, 5400, 12_345)] == [
        "0 s",
        "89 s",
        "2 min",
        "60 min",
        "1 h 30 min",
        "3 h 26 min",
    ]


def test_a_terminal_has_a_bar_for_each_stage_of_a_preparation() -> None:
    log = io.StringIO()
    with headway_shown(Console(file=log, width=80, force_terminal=True)) as hear:
        hear(Headway("reading code", 7, None))
        hear(Headway("tokenising", 3, 12))
    assert "reading code: 7" in log.getvalue() and "tokenising: 3 of 12" in log.getvalue()


def test_a_log_hears_of_long_stages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    with headway_shown(Console(file=log, width=80)) as hear:
        hear(Headway("reading code", 0, None))
        hear(Headway("reading code", 900, 900))
        monkeypatch.setattr(shown, "LONG_STAGE_SECONDS", 0.0)
        hear(Headway("tokenising", 0, 12))
        hear(Headway("tokenising", 12, 12))
    assert log.getvalue() == "tokenising: 12 of 12, 0 s\n"
