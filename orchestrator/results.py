"""The folder of a sweep's results: where everything lies, and the lock of the one driver at
work."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SweepLocked, UserError
from orchestrator.journal import Journal

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

    def journal(self) -> Journal:
        return Journal(self.folder / "journal")

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
    def locked(self) -> Iterator[None]:
        """Hold the sweep for this driver. The kernel gives the lock back when the process ends.

        Raises:
            SweepLocked: another driver works on it; says which process.
            UserError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "driver.lock").open("a+")
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from None
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise SweepLocked(
                    f"{self.folder}: process {file.read().strip() or '?'} is working on this "
                    "sweep; wait for it, or stop it with Ctrl-C"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
