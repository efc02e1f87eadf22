"""A sweep whose disk is full: it waits, stops in order with what it has, and the same command goes
on once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.shared_sweep import CELLS, SharedSweep
from tests.full_file_system import SmallDisk, small_disk

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", 16 << 20) as one:
        yield one


def test_a_full_disk_stops_a_sweep_in_order(tmp_path: Path, disk: SmallDisk) -> None:
    shared = SharedSweep(tmp_path, disk.seen)
    where = {"through": disk.command(tmp_path)}
    results = "--results", str(disk.folder)
    sweep = shared.start_and_hang("this", *results, **where)
    kept = shared.records()
    disk.fill()
    shared.note.touch()
    code, out, errors = sweep.end()
    assert (code, errors.count("\n")) == (1, 1), errors
    assert "No space left on device; the last answer could not be kept" in errors
    assert out.count("No space left on device; waiting up to") == 1
    assert shared.records() == kept
    assert list(shared.results.glob("journal/.*")) == []
    assert sweep.left_behind() == []

    disk.empty()
    code, _, errors = shared.start("this", *results, **where).end()
    assert (code, errors) == (0, "")
    assert len(shared.records()) == CELLS == len(set(shared.executed()))
    assert len(shared.executed()) == CELLS + 1

    disk.fill(but_pages=4)
    code, _, errors = shared.start("this", *results, **where).end()
    assert (code, errors.count("\n")) == (1, 1), errors
    assert "No space left on device; every record is kept" in errors
    assert [path.name for path in shared.results.rglob(".*")] == []
    disk.empty()
    assert shared.start("this", *results, **where).end()[0] == 0
    assert len(shared.executed()) == CELLS + 1
