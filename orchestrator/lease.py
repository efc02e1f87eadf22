"""Who drives a sweep: numbered leases in its results folder, the highest of which is the driver's.

The kernel's lock (`results.py`) covers one machine, and file systems whose locks work. A lease only
needs a file system on which a file can be created exclusively. Its number is a fencing token: a
driver that was stopped, suspended or cut off, and comes back after another took over, finds a
higher number and writes nothing more. Clocks are never compared; whether a driver lives is seen
from whether its beat moves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import provenance
from orchestrator.errors import LeaseLost, SweepLocked

BEAT_SECONDS = 2.0
WATCH_SECONDS = 15.0
"""How long another machine's beat has to stand still before its sweep may be taken over."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_SIZE = 256
"""Bytes of a lease's file, always: a beat then needs no room on a disk that is full by now."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write under one lease."""

    folder: Path
    number: int

    def check(self) -> None:
        """Nothing where no higher lease was taken.

        Raises:
            LeaseLost: another driver has taken over.
        """
        highest = max(_numbers(self.folder), default=0)
        if highest > self.number:
            node = _said_by(_bytes(self.folder / str(highest))).get("node", "unknown")
            raise LeaseLost(
                f"{self.folder.parent}: a driver on node {node} has taken this sweep over; this "
                "one stops and writes nothing more"
            )


class Lease:
    """The lease of this driver, whose beat a thread moves until `release`.

    `lost` is called from that thread, once, where another driver has taken over: the one who waits
    for a long cell would notice only at its end.
    """

    def __init__(self, folder: Path, lost: Callable[[], None]) -> None:
        self._folder, self._lost = folder, lost
        self._number = self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def number(self) -> int:
        return self._number

    def check(self) -> None:
        """As `Fence.check`, with the number of this moment."""
        Fence(self._folder, self._number).check()

    def take(self, *, alone: bool, say: Callable[[str], None]) -> None:
        """Become the driver. `alone`: the kernel has said that no other driver runs here.

        Raises:
            SweepLocked: the driver of another machine is at work.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            highest = max(_numbers(self._folder), default=0)
            if highest:
                _await_stillness(self._folder / str(highest), alone, say)
            if self._create(highest + 1):
                break
        self._thread.start()

    def exceed(self, epoch: int) -> None:
        """Move on to a number above `epoch`: records that came from elsewhere stay older than those
        to come. They may be of a driver that has taken over meanwhile: then this raises
        LeaseLost."""
        self.check()
        if epoch >= self._number:
            former = self._number
            if not self._create(epoch + 1):
                self.check()
            _write(self._folder / str(former), self._said(former, released=True))

    def release(self) -> None:
        """An orderly end: the next driver need not wait. Nothing where the lease was lost."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError, LeaseLost):
            self.check()
            _write(self._path, self._said(self._number, released=True))

    @property
    def _path(self) -> Path:
        return self._folder / str(self._number)

    def _create(self, number: int) -> bool:
        """Take this number; False where another driver was faster."""
        path = self._folder / str(number)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._said(number))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise
        self._number = number
        return True

    def _said(self, number: int, *, released: bool = False) -> bytes:
        content = {
            "node": provenance.node_name(),
            "boot": _boot(),
            "pid": os.getpid(),
            "beat": self._beat,
            "released": released,
        }
        return json.dumps(content).encode().ljust(_SIZE - 1) + b"\n"

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._beat += 1
            try:
                self.check()
                _write(self._path, self._said(self._number))
            except LeaseLost:
                # Who is about to write finds out without being woken.
                if not self._ended.wait(BEAT_SECONDS):
                    self._lost()
                return
            except OSError:
                continue  # the storage may come back


def _numbers(folder: Path) -> Iterator[int]:
    """Every lease that was ever taken. The folder is listed, for a shared file system answers from
    memory who asks for one name."""
    try:
        with os.scandir(folder) as entries:
            yield from (int(entry.name) for entry in entries if entry.name.isdigit())
    except FileNotFoundError:
        return


def _await_stillness(path: Path, alone: bool, say: Callable[[str], None]) -> None:
    """Return once the holder of this lease is known to be gone.

    Raises:
        SweepLocked: its beat moves.
    """
    content = _bytes(path)
    said = _said_by(content)
    if said.get("released") or (alone and said.get("boot") == _boot()):
        return
    node, pid = said.get("node", "unknown"), said.get("pid", "?")
    say(
        f"node {node} did not end this sweep in order; watching for {WATCH_SECONDS:.0f} s whether "
        "it is still at work"
    )
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(0.1, WATCH_SECONDS))
        now = _bytes(path)
        if _said_by(now).get("released"):
            return
        if now != content:
            raise SweepLocked(
                f"{path.parent.parent}: process {pid} on node {node} is working on this sweep; "
                "wait for it, or stop it there with Ctrl-C"
            )


def _said_by(content: bytes) -> dict[str, Any]:
    """What a lease says; nothing where it was not written completely."""
    try:
        said = json.loads(content)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _write(path: Path, content: bytes) -> None:
    """Overwrite in place: opened and closed, so that other machines see it."""
    with path.open("r+b") as file:
        file.write(content)


def _boot() -> str:
    """An opaque name of this run of this machine's kernel, the reach of its locks: machines made
    from one image may have one name, never one boot."""
    try:
        identity = BOOT_ID.read_text().strip()
    except OSError:
        identity = provenance.node_name()
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
