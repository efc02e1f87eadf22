"""The one Ray runtime of a sweep on this machine: bound to loopback, in a folder of its own that is
removed afterwards, with what a killed driver left behind cleared away first.

It imports no ray: settings that Ray reads at import must be in place before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from workloads import environment

FOLDER_PREFIX = "sweep-ray-"
_DRIVER_FILE = "driver"

# With this set, Ray listens where it is told (127.0.0.1) instead of on every interface.
_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    # The journal is the truth: Tune's own loggers and snapshots would only cost time.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": "1000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def set_ray_environment() -> None:
    """Set what Ray reads at import. A user's own setting of the same variable wins."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """A fresh folder for Ray's session files, removed at the end, after clearing dead drivers'."""
    clear_stale()
    # Short, for socket paths inside it may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp"))
    (folder / _DRIVER_FILE).write_text(f"{os.getpid()} {_start_time(os.getpid())}")
    try:
        yield folder
    finally:
        _end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def stale_folders() -> list[Path]:
    """Runtime folders of this user whose driver is gone."""
    found = []
    for folder in Path("/tmp").glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, started = (folder / _DRIVER_FILE).read_text().split()
            if folder.stat().st_uid == os.getuid() and _start_time(int(pid)) != started:
                found.append(folder)
    return found


def clear_stale() -> None:
    """Remove what killed drivers left: their folders, and processes that name such a folder."""
    for folder in stale_folders():
        _end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """Processes of this user with the folder's unique name on their command line."""
    name = folder.name.encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            ours = entry.stat().st_uid == os.getuid()
            if ours and name in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def _end_processes(folder: Path, patience: float = 3.0) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        pids = processes_of(folder)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        while pids and processes_of(folder) and time.monotonic() < deadline:
            time.sleep(0.05)


def _start_time(pid: int) -> str | None:
    """When the process started, in the kernel's ticks: a pid alone may be another process by
    now."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def measure_cores(device: str, available: Sequence[int]) -> tuple[int, ...]:
    """The cores a measure cell is pinned to: the last ones, as many as it has threads."""
    return tuple(available[-environment.threads_of(device) :])


def leave_cores_to_cells(devices: Sequence[str]) -> None:
    """Keep this process, and what it starts, off the cores that measure cells are pinned to.

    Where a cell needs every core there is nothing to keep off, and nothing is changed.
    """
    available = environment.cores()
    taken = {core for device in devices for core in measure_cores(device, available)}
    if rest := set(available) - taken:
        os.sched_setaffinity(0, rest)
