"""The folder of a Ray runtime, its processes, and the cores they keep off, without Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import runtime
from tests.workloads.tiny_cells import measure_cell, train_cell

NO_SUCH_PROCESS = "999999999 1"


@pytest.fixture
def abandoned() -> Iterator[Path]:
    """What a killed driver leaves: a folder, and a process that names it, with a child that does
    not."""
    folder = Path(tempfile.mkdtemp(prefix=runtime.FOLDER_PREFIX, dir="/tmp"))
    (folder / "driver").write_text(NO_SUCH_PROCESS)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def process_naming(folder: Path) -> subprocess.Popen[bytes]:
    program = "import subprocess; subprocess.run(['sleep', '3600'])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.DEVNULL
    )
    while len(runtime.processes_of(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_the_next_start_clears_what_a_killed_driver_left(abandoned: Path) -> None:
    with process_naming(abandoned) as process:
        assert abandoned in runtime.stale_folders()
        pids = runtime.processes_of(abandoned)
        assert process.pid in pids and len(pids) == 2
        with runtime.runtime_folder():
            assert not abandoned.exists()
            assert process.wait() != 0
            assert runtime.processes_of(abandoned) == []


def test_who_writes_into_it_belongs_to_it_and_who_reads_is_a_visitor(abandoned: Path) -> None:
    """As a worker's fork server, whose worker has died, and someone who looks at a log."""
    log = abandoned / "log"
    log.touch()
    sleep = ["sleep", "3600"]
    with log.open("w") as writing, log.open() as reading:
        writer = subprocess.Popen(sleep, stdout=writing, start_new_session=True)
        reader = subprocess.Popen(sleep, stdin=reading, stdout=subprocess.DEVNULL)
    with writer, reader:
        assert runtime.processes_of(abandoned) == [writer.pid]
        runtime.clear_stale()
        assert writer.wait() != 0 and reader.poll() is None
        reader.kill()


def test_a_folder_in_use_is_left_alone(abandoned: Path) -> None:
    with runtime.runtime_folder() as folder:
        runtime.clear_stale()
        assert folder.exists() and not abandoned.exists()
    assert not folder.exists()


def test_a_driver_that_another_process_followed_is_dead(abandoned: Path) -> None:
    """The number lives on in another process, which started at another time."""
    (abandoned / "driver").write_text(f"{os.getpid()} 1")
    assert abandoned in runtime.stale_folders()


def test_a_folder_without_a_driver_is_left_alone_for_a_while(abandoned: Path) -> None:
    """It may be another driver's that has just made it, or one's that was killed just then."""
    (abandoned / "driver").unlink()
    assert abandoned not in runtime.stale_folders()
    long_ago = time.time() - 2 * runtime.NAMING_SECONDS
    os.utime(abandoned, (long_ago, long_ago))
    assert abandoned in runtime.stale_folders()


def test_measure_cells_have_cores_of_their_own() -> None:
    available = (0, 1, 2, 3)
    assert runtime.cores_for(measure_cell(device="cpu:1"), available) == (3,)
    assert runtime.cores_for(measure_cell(device="cpu:2"), available) == (2, 3)
    assert runtime.cores_for(train_cell(device="cpu:1"), available) == available


def test_everything_else_keeps_off_them_and_comes_back() -> None:
    available = sorted(os.sched_getaffinity(0))
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None
    try:
        runtime.keep_off(available[-1:], available)
        for task in (0, thread.native_id):
            assert os.sched_getaffinity(task) == set(available[:-1] or available)
        runtime.keep_off((), available)
        for task in (0, thread.native_id):
            assert os.sched_getaffinity(task) == set(available)
        runtime.keep_off(available, available)
        assert os.sched_getaffinity(0) == set(available), "a cell that needs all cores shares them"
    finally:
        os.sched_setaffinity(0, available)
        done.set()
        thread.join()


def test_the_runtime_and_its_driver_keep_off_them_too() -> None:
    available = sorted(os.sched_getaffinity(0))
    with runtime.runtime_folder() as folder:
        process = process_naming(folder)
        try:
            runtime.keep_off(available[-1:], available, folder)
            for pid in runtime.processes_of(folder):
                assert os.sched_getaffinity(pid) == set(available[:-1] or available)
        finally:
            runtime.keep_off((), available, folder)
    assert process.wait() != 0


def test_a_users_own_setting_of_ray_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_DEDUP_LOGS": "1"})
    runtime.set_ray_environment()
    assert os.environ["RAY_DEDUP_LOGS"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
