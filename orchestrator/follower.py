"""The one writer of a sweep's MLflow store: a thread that follows the journal in batches, so that
neither workers nor the scheduler ever wait for MLflow. `recorder.py` gives it a process.

The journal is the truth. While the store is down the thread waits, ever longer up to a cap, says so
once, and drops nothing: what is not recorded at the end is recorded by the next command. Where
another driver has taken the sweep over, the thread ends at once and leaves the store as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator import child_run
from orchestrator.errors import LeaseLost, StoreError, StoreRefused
from orchestrator.journal import Journal, Merged, merge_cell
from orchestrator.ledger import Group
from orchestrator.provenance import Envelope
from orchestrator.store import Described, RunStore

BATCH = 50
"""Cells recorded between two confirmations in the ledger."""
GATHER_SECONDS = 0.25
"""Least time between two readings of the journal, so that records are taken in batches."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0
LAST_PAUSE_SECONDS = 1.0
"""Longest pause between two tries while somebody waits in `close`."""
CHECK_SECONDS = 5.0
"""How often an idle writer asks whether it is still the one: it would keep another one waiting."""


class StoreWriter:
    """Brings a store up to date with a journal until closed.

    Start it early, `notify` it after each record, `close` it at the end. `warn` is called from the
    thread, once, when the store cannot be reached or refuses; `told` where that was said already of
    how it is now. The thread is a daemon: it ends with
    the driver. A lock in the results folder keeps a second writer of the sweep waiting. `allowed`
    raises where this process may not write any more; the store asks it, too.
    """

    def __init__(
        self,
        store: RunStore,
        journal: Journal,
        sweep: Described,
        results: Path,
        warn: Callable[[str], None],
        allowed: Callable[[], object] = lambda: None,
        told: bool = False,
    ) -> None:
        self._store, self._sweep, self._warn, self._allowed = store, sweep, warn, allowed
        self._journal, self._records = journal.folder, _Records(journal.folder)
        self._lock_path = results / "mlflow" / "writer.lock"
        self._lock = contextlib.ExitStack()
        # Cells that may be behind: so that a look costs what is new, however long the sweep.
        self._open: dict[Group, Merged] = {}
        self._refused: dict[Group, str] = {}
        self._locked = self._began = self._warned = self._shut_out = False
        self._told = told
        self._failures = 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def start(self) -> None:
        """Begin to follow; returns at once."""
        self._thread.start()

    def notify(self) -> None:
        """The journal has something new."""
        self._wake.set()

    def close(self, wait_seconds: float) -> int:
        """Record what is left, for at most this long, and leave nothing RUNNING; the number of
        cells whose newest records are still not in the store."""
        self._deadline = time.monotonic() + wait_seconds
        self._closing.set()
        self._wake.set()
        self._thread.join(wait_seconds)
        # What the thread has read is still its own where it has not ended.
        records = _Records(self._journal) if self._thread.is_alive() else self._records
        return len(self._store.behind(records.all()))

    def _run(self) -> None:
        with self, contextlib.suppress(LeaseLost):
            while True:
                # Asked before reading: what was appended before `close` is read once more.
                last = self._closing.is_set()
                done = self.catch_up() or self._shut_out
                if (done and last) or time.monotonic() >= self._deadline:
                    break
                self._rest()
            self.end()

    def _rest(self) -> None:
        """Until there is something to do: after a failure for a pause that doubles, else until
        notified, and then a moment longer, for more to gather."""
        if self._failures:
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)
            if not self._closing.wait(pause):
                return
            time.sleep(min(pause, LAST_PAUSE_SECONDS))
        else:
            while not self._wake.wait(CHECK_SECONDS):
                self._allowed()
            self._wake.clear()
            self._closing.wait(GATHER_SECONDS)

    def catch_up(self) -> bool:
        """One try at recording all there is; False where it has to be tried again. It is what the
        thread does; without `start`, whoever has entered this object may."""
        self._allowed()
        try:
            self._hold()
            if not self._began:
                self._begin()
            behind = self._behind()
            for start in range(0, len(behind), BATCH):
                self._write(behind[start : start + BATCH])
        except (StoreError, OSError) as error:
            self._began = False
            self._failures += 1
            self._shut_out = isinstance(error, StoreRefused)
            if not self._told:
                self._say(f"{error}. The sweep goes on; its records are kept and recorded later")
            return False
        self._failures, self._told = 0, False
        return True

    def _begin(self) -> None:
        """After this, what the store has may be other than it was."""
        self._store.begin(self._sweep)
        self._began = True
        self._open = {_group(one): one for one in self._records.all()}

    def _hold(self) -> None:
        """Keep every other writer of the sweep waiting, from the first time until the end."""
        if self._locked:
            return
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(self._lock_path.open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = f"{self._lock_path}: another process is recording this sweep"
                raise StoreError(held) from None
            self._lock = stack.pop_all()
        self._locked = True

    def _behind(self) -> list[Merged]:
        self._open.update(self._records.look())
        behind = self._store.behind(list(self._open.values()))
        self._open = {_group(one): one for one in behind}
        return [one for one in behind if self._refused.get(_group(one)) != child_run.revision(one)]

    def _write(self, batch: Sequence[Merged]) -> None:
        """Record a batch. Where the store fails though it is there, one cell after another, so that
        a cell it refuses keeps no other one waiting."""
        try:
            self._store.write(batch)
        except StoreError:
            self._begin()
            for one in self._store.behind(batch):
                self._write_alone(one)

    def _write_alone(self, one: Merged) -> None:
        try:
            self._store.write([one])
        except StoreError as error:
            self._begin()
            self._refused[_group(one)] = child_run.revision(one)
            self._say(f"{error}. {child_run.name(one.cell)} is kept, and tried by the next command")

    def _say(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(message)

    def end(self) -> None:
        """Leave nothing RUNNING."""
        if self._began:
            try:
                self._store.end()
            except (StoreError, OSError) as error:
                self._say(str(error))


def behind(store: RunStore, journal: Path) -> list[Merged]:
    """The cells of a journal's folder whose newest records are not in the store, by its ledger."""
    return store.behind(_Records(journal).all())


class _Records:
    """The merged records of a journal's folder; only cells with something new are merged again."""

    def __init__(self, folder: Path) -> None:
        # A reader of its own: the driver's Journal belongs to another thread.
        self._journal = Journal(folder)
        self._groups: dict[Group, list[Envelope]] = {}
        self._merged: dict[Group, Merged] = {}

    def look(self) -> dict[Group, Merged]:
        """Read on; the cells that have something new."""
        new = {}
        for envelope in self._journal.unread():
            record = envelope.record
            group = record.cell.id, record.environment.fingerprint
            self._groups.setdefault(group, []).append(envelope)
            new[group] = self._groups[group]
        changed = {group: merge_cell(found) for group, found in new.items()}
        self._merged.update(changed)
        return changed

    def all(self) -> list[Merged]:
        """Read on; all cells there are records of."""
        self.look()
        return list(self._merged.values())


def _group(merged: Merged) -> Group:
    return merged.cell.id, merged.environment.fingerprint
