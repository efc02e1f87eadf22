"""Leases: one driver at a time on any shared storage, by whether a beat moves, never by a clock."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import lease
from orchestrator.durable import write_durably
from orchestrator.errors import LeaseLost, SweepLocked
from orchestrator.lease import Fence, Lease
from orchestrator.results import Results

ELSEWHERE = {"node": "feed", "boot": "another", "pid": 7, "beat": 1, "released": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 1.0)


@pytest.fixture
def drivers() -> Iterator[list[Lease]]:
    """Leases taken, released at the end."""
    taken: list[Lease] = []
    yield taken
    for one in taken:
        one.release()


@pytest.fixture
def take(tmp_path: Path, drivers: list[Lease]) -> Callable[..., Lease]:
    def take(alone: bool = True, lost: Callable[[], None] = lambda: None) -> Lease:
        one = Lease(tmp_path, lost)
        one.take(alone=alone, say=said.append)
        drivers.append(one)
        return one

    said: list[str] = []
    return take


def test_after_an_orderly_end_the_next_need_not_wait(take: Callable[..., Lease]) -> None:
    first = take()
    first.release()
    clock = time.monotonic()
    second = take(alone=False)
    assert (first.number, second.number) == (1, 2)
    assert time.monotonic() - clock < lease.WATCH_SECONDS


def test_a_driver_whose_beat_moves_is_not_disturbed(take: Callable[..., Lease]) -> None:
    first = take()
    with pytest.raises(SweepLocked, match=f"process {os.getpid()} on node "):
        take(alone=False)
    first.check()


def test_a_beat_that_stands_still_is_taken_over(tmp_path: Path, take: Callable[..., Lease]) -> None:
    (tmp_path / "4").write_text(json.dumps(ELSEWHERE))
    assert take().number == 5
    (tmp_path / "6").touch()  # killed before it said who it was
    assert take().number == 7


def test_what_this_kernel_says_is_dead_is_not_watched(
    tmp_path: Path, take: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 1000.0)
    (tmp_path / "1").write_text(json.dumps({**ELSEWHERE, "boot": lease._boot()}))
    assert take().number == 2


def test_where_the_file_system_has_no_locks_the_beat_alone_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    results = Results(tmp_path / "sweep")
    with results.locked() as first:
        with pytest.raises(SweepLocked, match="on node"), results.locked():
            pass
        first.check()
    with results.locked() as second:
        assert second.number == 2


def test_an_interrupt_of_a_driver_that_was_taken_over_is_no_persons(tmp_path: Path) -> None:
    results = Results(tmp_path)
    with pytest.raises(LeaseLost), results.locked():
        (tmp_path / "leases" / "2").touch()
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), results.locked():
        raise KeyboardInterrupt


def test_a_release_while_one_watches_is_noticed(
    tmp_path: Path, take: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 1000.0)
    path = tmp_path / "1"
    write_durably(path, json.dumps(ELSEWHERE).encode())
    released = json.dumps({**ELSEWHERE, "released": True}).encode()
    threading.Timer(0.3, write_durably, (path, released)).start()
    assert take().number == 2


def test_who_comes_back_late_is_told_and_leaves_the_lease_alone(
    tmp_path: Path, take: Callable[..., Lease]
) -> None:
    told = threading.Event()
    first = take(lost=told.set)
    first.check()
    second = Fence(tmp_path, 2)
    (tmp_path / "2").write_text(json.dumps(ELSEWHERE))
    second.check()
    with pytest.raises(LeaseLost, match="node feed has taken this sweep over"):
        first.check()
    assert told.wait(10)
    content = (tmp_path / "1").read_bytes()
    first.release()
    assert (tmp_path / "1").read_bytes() == content
    assert not json.loads(content)["released"]


def test_records_from_elsewhere_are_older_than_those_to_come(
    tmp_path: Path, take: Callable[..., Lease]
) -> None:
    one = take()
    one.exceed(0)
    assert one.number == 1
    one.exceed(6)
    assert one.number == 7
    one.check()
    assert json.loads((tmp_path / "1").read_bytes())["released"]
    assert take_next(tmp_path, one) == 8


def take_next(folder: Path, former: Lease) -> int:
    former.release()
    following = Lease(folder, lambda: None)
    following.take(alone=True, say=print)
    following.release()
    return following.number


def test_of_many_at_once_one_is_the_driver(
    drivers: list[Lease], take: Callable[..., Lease]
) -> None:
    refused = []

    def try_it() -> None:
        try:
            take(alone=False)
        except SweepLocked as error:
            refused.append(error)

    threads = [threading.Thread(target=try_it) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drivers) == 1 and len(refused) == 11
    drivers[0].check()


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from orchestrator import lease
from orchestrator.lease import Lease

left = int(sys.argv[2])
def boundary():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def killing(function):
    def wrapped(*arguments, **options):
        boundary()
        result = function(*arguments, **options)
        boundary()
        return result
    return wrapped

os.open, os.fsync, lease._write = map(killing, (os.open, os.fsync, lease._write))
one = Lease(Path(sys.argv[1]), print)
one.take(alone=True, say=print)
one.exceed(4)
one.release()
"""


def test_a_kill_at_any_boundary_leaves_a_lease_that_can_be_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.1)
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for boundary in range(1, 30):
        folder = tmp_path / str(boundary)
        command = [sys.executable, "-c", KILLED_AT, str(folder), str(boundary)]
        ended = subprocess.run(command, env=paths).returncode
        found = max((int(path.name) for path in folder.iterdir()), default=0)
        following = Lease(folder, lambda: None)
        following.take(alone=True, say=lambda text: None)
        assert following.number == found + 1
        following.check()
        following.release()
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert boundary > 10 and found == 5
