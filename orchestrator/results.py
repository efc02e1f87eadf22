"""The folder of a sweep's results: where everything lies, and who may write there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator import full_disk
from orchestrator.errors import DiskFull, SweepLocked, UserError
from orchestrator.journal import Journal
from orchestrator.lease import Fence, Lease
from orchestrator.meter import Meter

DEFAULT_ROOT = Path("results")


@dataclass(frozen=True, slots=True)
class Results:
    """`results/<sweep name>/`: the journal is the truth, all else is made from it."""

    folder: Path

    @classmethod
    def of(cls, name: str, root: str | Path | None = None) -> Results:
        """The results of the sweep of that name under `root` (default `results`).

        Raises:
            UserError: there is something of that name, and it is no folder.
        """
        folder = (Path(root) if root else DEFAULT_ROOT).resolve() / name
        for path in (folder.parent, folder):
            if path.exists() and not path.is_dir():
                raise UserError(f"{path}: is not a folder; results are kept in one")
        return cls(folder)

    def journal(self, allowed: Callable[[], object] = lambda: None) -> Journal:
        """The sweep's journal; `allowed` raises where this process may not write (any more)."""
        return Journal(self.folder / "journal", allowed)

    def meter(self, number: int, allowed: Callable[[], object]) -> Meter:
        """What is used of the sweep's budget, for the driver whose lease has this number."""
        return Meter(self.folder / "used", number, allowed)

    def fence(self, lease: int) -> Fence:
        """The right to write under the lease of that number."""
        return Fence(self.folder / "leases", lease)

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    @property
    def plots(self) -> Path:
        return self.folder / "plots"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @contextlib.contextmanager
    def locked(
        self,
        say: Callable[[str], None] = lambda text: None,
        lost: Callable[[], None] = lambda: None,
    ) -> Iterator[Lease]:
        """Hold the sweep for this driver: by a lock, which the kernel gives back when the process
        ends, and by a lease, which holds where no lock reaches. `lost` is called from a thread
        where another driver has taken over.

        Raises:
            SweepLocked: another driver works on it; says which process.
            UserError: the folder cannot be written.
            DiskFull: there is no room in it.
        """
        lease = Lease(self.folder / "leases", lost)
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.folder / "driver.lock").open("a+"))
                lease.take(alone=self._alone(file), say=say)
            except OSError as error:
                if full_disk.is_full(error):
                    raise DiskFull(f"{self.folder}: {error.strerror}; make room there") from None
                raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from None
            stack.callback(lease.release)
            try:
                yield lease
            except KeyboardInterrupt:
                lease.check()  # then it was `lost` that stopped us, and no person
                raise

    def _alone(self, file: IO[str]) -> bool:
        """Whether the kernel says that no other driver runs on this machine; False where the file
        system has no locks."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise SweepLocked(
                f"{self.folder}: process {file.read().strip() or '?'} is working on this "
                "sweep; wait for it, or stop it with Ctrl-C"
            ) from None
        except OSError:
            return False
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return True
