"""The one Ray runtime of a sweep on this machine: bound to loopback, in a folder of its own that is
removed afterwards, with what a killed driver left behind cleared away first.

It imports no ray: settings that Ray reads at import must be in place before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from workloads import environment
from workloads.cell import Cell

FOLDER_PREFIX = "sweep-ray-"
NAMING_SECONDS = 60.0
"""How long a folder may be there before its driver is named in it."""
_DRIVER_FILE = "driver"

WORKER_SETTINGS = {
    # A worker that is killed would take its fork server with it, which is to end what it forked.
    "RAY_kill_child_processes_on_worker_exit": "0",
}
"""What a cluster's workers are told, too."""

# With this set, Ray listens where it is told (127.0.0.1) instead of on every interface.
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tune's thread, in the middle of something when we shut down, would start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    # For a dashboard that does not run: a millisecond of each cell.
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    # The journal is the truth: Tune's own loggers and snapshots would only cost time.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": "1000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A node that dies is said in one line of ours, not in a page of Tune's.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    **WORKER_SETTINGS,
}


def set_ray_environment() -> None:
    """Set what Ray reads at import. A user's own setting of the same variable wins."""
    for name, value in SETTINGS.items():
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
    folders = Path("/tmp").glob(f"{FOLDER_PREFIX}*")
    return [folder for folder in folders if _is_stale(folder)]


def _is_stale(folder: Path) -> bool:
    try:
        status = folder.stat()
        if status.st_uid != os.getuid():
            return False
    except OSError:
        return False
    said = []
    with contextlib.suppress(OSError):
        said = (folder / _DRIVER_FILE).read_text().split()
    if len(said) != 2:
        # Killed in between, or just about to say which driver it is.
        return time.time() - status.st_mtime > NAMING_SECONDS
    return _start_time(int(said[0])) != said[1]


def clear_stale() -> None:
    """Remove what killed drivers left: their folders, and processes that name such a folder."""
    for folder in stale_folders():
        _end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """Processes of this user that name the folder on their command line or write into it, and all
    below them. Ray's workers call themselves something else, and have no parent once the raylet is
    gone; the fork server of one that died has never named it."""
    parents = _parents()
    found = {pid for pid in parents if _names(pid, folder) or _writes_into(pid, folder)}
    return sorted(_with_children(found, parents))


def _names(pid: int, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return folder.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _writes_into(pid: int, folder: Path) -> bool:
    """True where it has a file of the folder open for writing: whoever only reads is a visitor."""
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if link.lstat().st_mode & stat.S_IWUSR and folder in link.readlink().parents:
                    return True
    return False


def _parents() -> dict[int, int]:
    """The parent of each other process of this user."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError, IndexError):
                if entry.stat().st_uid == os.getuid():
                    found[int(entry.name)] = int(_stat(int(entry.name))[1])
    return found


def _with_children(pids: set[int], parents: Mapping[int, int]) -> set[int]:
    """These processes and all below them."""
    found = set(pids)
    while below := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= below
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
        return _stat(pid)[19]
    except OSError:
        return None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cores_for(cell: Cell, available: Sequence[int]) -> tuple[int, ...]:
    """The cores a cell may run on: a measure cell the last ones, as many as it has threads; a train
    cell any."""
    if cell.kind == "measure":
        return tuple(available[-environment.threads_of(cell.device) :])
    return tuple(available)


def keep_off(
    taken: Collection[int], available: Collection[int], folder: Path | None = None
) -> None:
    """Keep this process, and all of the runtime in `folder` with its driver, and all they started,
    off the cores `taken` by measure cells; with none taken they get back all that are available.

    Where a cell needs every core there is nothing to keep off. Cells choose their own cores.
    """
    pids = {os.getpid()}
    if folder is not None:
        driver = int((folder / _DRIVER_FILE).read_text().split()[0])
        pids |= {driver, *processes_of(folder)}
    for pid in _with_children(pids, _parents()):
        _keep_to(set(available) - set(taken) or set(available), pid)


def _keep_to(cores: Iterable[int], pid: int) -> None:
    """Confine every thread of a process; threads and processes it starts later inherit that."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)
