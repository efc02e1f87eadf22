"""A sweep as a person starts it: the command in a process of its own, watched from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0
_LISTENING = "0A"


class SweepProcess:
    """`python -m orchestrator sweep` in a folder, leading a process group as under a shell;
    `command` is what stands for `python -m orchestrator`, where it is something else."""

    def __init__(
        self,
        folder: Path,
        text: str,
        *options: str,
        command: Sequence[str] = (sys.executable, "-m", "orchestrator"),
        **environment: str,
    ) -> None:
        self.folder = folder
        (folder / "sweep.yaml").write_text(text)
        self.process = subprocess.Popen(
            [*command, "sweep", "sweep.yaml", *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "WORKLOADS_PLUGINS": str(ROOT / "tests/plugins"),
                "WORKLOADS_CACHE": str(folder / "cache"),
                **environment,
            },
        )
        self.seen: set[int] = set()
        self.patience = PATIENCE

    def watch(self) -> set[int]:
        """The driver's descendants now; every one ever seen is remembered."""
        self.seen |= (now := set(_descendants(self.process.pid)))
        return now

    def wait_for(self, happened: Callable[[], object]) -> None:
        """Until it happened, watching all the while; the sweep must go on meanwhile."""
        deadline = time.monotonic() + self.patience
        while not happened():
            self.watch()
            assert self.process.poll() is None, self.process.communicate()
            if time.monotonic() > deadline:
                self.process.kill()  # nothing of a failed test may live on into the next
                raise AssertionError("it did not happen", self.end(self.patience))
            time.sleep(0.05)

    def end(self, patience: float = PATIENCE) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended."""
        try:
            out, errors = self.process.communicate(timeout=patience)
        except subprocess.TimeoutExpired as late:
            self.process.kill()  # nothing of a failed test may live on into the next
            said = self.process.communicate()
            raise AssertionError("it did not end", *said) from late
        return self.process.returncode, out, errors

    def left_behind(self) -> list[int]:
        """Processes seen under the driver that still run."""
        return [pid for pid in self.seen if _runs(pid)]

    def runtime_folders(self) -> list[Path]:
        """Folders of Ray's files that name this driver."""
        files = Path("/tmp").glob("sweep-ray-*/driver")
        return [file.parent for file in files if _text(file).split()[:1] == [str(self.process.pid)]]

    def listeners(self) -> set[str]:
        """Addresses, in the kernel's hexadecimal, on which the driver or a descendant listens."""
        inodes = {inode for pid in {self.process.pid, *self.watch()} for inode in _sockets(pid)}
        found = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in _text(Path(table)).splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and fields[9] in inodes:
                    found.add(fields[1].partition(":")[0])
        return found


def loopback(address: str) -> bool:
    """True for 127.0.0.0/8 and ::1, also where IPv4 is written as IPv6."""
    is_v4 = len(address) == 8 or address.startswith("0" * 16 + "FFFF0000")
    return address[-2:] == "7F" if is_v4 else address == "0" * 24 + "01000000"


def _descendants(pid: int) -> Iterator[int]:
    for thread in _entries(Path(f"/proc/{pid}/task")):
        for child in map(int, _text(thread / "children").split()):
            yield child
            yield from _descendants(child)


def _sockets(pid: int) -> Iterator[str]:
    for entry in _entries(Path(f"/proc/{pid}/fd")):
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _runs(pid: int) -> bool:
    state = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return bool(state) and state[0] != "Z"


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
