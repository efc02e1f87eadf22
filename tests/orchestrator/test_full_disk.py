"""A full disk, a real one: nothing is left half written, it is said once, and what finds room in
time is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import full_disk
from orchestrator.errors import DiskFull
from orchestrator.ledger import Entry, Ledger
from tests.full_file_system import SmallDisk, small_disk

FULL = Path("/dev/full")
"""The kernel's own full device."""
WRITING = """
import sys
from pathlib import Path
from orchestrator.journal import Journal
from orchestrator.ledger import Entry, Ledger
from orchestrator.lease import Lease
from tests.orchestrator.made_records import cell, envelope

folder = Path(sys.argv[1])
one = envelope(cell(128))
what = {
    "journal": lambda: Journal(folder / "journal").append(one),
    "adoption": lambda: Journal(folder / "journal").adopt([one]),
    "lease": lambda: Lease(folder / "leases", print).take(alone=True, say=print),
    "ledger": lambda: Ledger(folder, "uri").confirm({("a", "b"): Entry("r" * 5000, "1")}),
}[sys.argv[2]]
try:
    what()
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", 64 << 10) as one:
        yield one


def write(disk: SmallDisk, what: str) -> str:
    command = [*disk.command(Path.cwd()), sys.executable, "-c", WRITING, str(disk.folder), what]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def files(disk: SmallDisk) -> list[str]:
    return sorted(path.name for path in disk.seen.rglob("*") if path.is_file())


@pytest.mark.parametrize("what", ["journal", "adoption", "lease"])
def test_nothing_is_left_half_written(disk: SmallDisk, what: str) -> None:
    disk.fill()
    assert write(disk, what) == "28"
    assert files(disk) == ["ballast"]
    disk.empty()
    assert write(disk, what) == ""
    assert len(files(disk)) == 1


def test_a_line_that_found_no_room_does_not_swallow_the_next(disk: SmallDisk) -> None:
    ledger = Ledger(disk.seen, "uri")
    ledger.start("1", "parent", {})
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        ledger.confirm({("a", "b"): Entry("r" * 8000, "1")})
    disk.empty()
    ledger.confirm({("c", "d"): Entry("s", "1")})
    again = Ledger(disk.seen, "uri")
    assert (again.experiment, set(again.entries)) == ("1", {("a", "b"), ("c", "d")})


def test_what_finds_room_in_time_is_kept_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_disk, "PAUSE_SECONDS", 0.0)
    said: list[str] = []
    places = iter([FULL, FULL, FULL, tmp_path / "kept"])
    full_disk.patiently(lambda: next(places).write_bytes(b"x"), tmp_path, said.append)
    assert (tmp_path / "kept").read_bytes() == b"x"
    assert said == [f"{tmp_path}: No space left on device; waiting up to 120 s"]


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(full_disk, "PAUSE_SECONDS", 0.01)
    with pytest.raises(DiskFull, match="Make room, and the same command goes on"):
        full_disk.patiently(lambda: FULL.write_bytes(b"x"), tmp_path, lambda text: None)


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        full_disk.patiently(lambda: tmp_path.write_bytes(b"x"), tmp_path, print)
    with pytest.raises(IsADirectoryError), full_disk.explained(tmp_path):
        tmp_path.write_bytes(b"x")
