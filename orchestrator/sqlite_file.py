"""The SQLite file of a local MLflow store: where it is, made by one process at a time, and written
ahead, so that recording one run costs no wait for the disk.

With a write-ahead log a commit is one append, and readers (the MLflow UI) do not block the writer.
`synchronous=NORMAL` may lose the last commits at a power failure, never tear them; `checkpoint`
forces them to disk before anyone relies on them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PREFIX = "sqlite:///"

LOG_PAGES = 10_000
"""Pages (4 KiB) that the log may have before a commit waits for them to be put in their places; a
writer does so itself far earlier, between two batches."""

_written_ahead: set[str] = set()


def database(uri: str) -> Path | None:
    """The file of a SQLite URI; None for any other store."""
    if not uri.startswith(PREFIX):
        return None
    return Path(uri.removeprefix(PREFIX).partition("?")[0]).absolute()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the right to create or migrate this file: MLflow's first use runs its migrations, and
    two at once break each other."""
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"mlflow-store-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name beside `path` under which to make the file; it takes its own when whole. The caller
    is `alone`, so what an earlier one left unfinished is nobody's and goes."""
    for left in path.parent.glob(f".{path.name}.*.new*"):
        left.unlink(missing_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
    yield unfinished
    unfinished.rename(path)


def write_ahead(path: Path) -> None:
    """Have every later SQLAlchemy connection to this file use the write-ahead log."""
    if not _written_ahead:
        from sqlalchemy import Engine, event

        event.listen(Engine, "connect", _on_connect)
    _written_ahead.add(str(path.resolve()))


def _on_connect(connection: Any, _: object) -> None:
    if not isinstance(connection, sqlite3.Connection):
        return
    file = connection.execute("PRAGMA database_list").fetchone()[2]
    if file in _written_ahead:
        # A reader that is at work in the old mode keeps it; then only speed is lost.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")


def checkpoint(path: Path) -> None:
    """Put on disk what the file has only in its log."""
    if path.exists():
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def may_hold(path: Path, experiment: str) -> bool:
    """Whether MLflow should be asked for the experiment: importing it takes seconds, and nearly
    always a new sweep has none. Where the file is not as expected, MLflow itself has to say."""
    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as found:
            query = "SELECT 1 FROM experiments WHERE name = ?"
            return found.execute(query, (experiment,)).fetchone() is not None
    except sqlite3.Error:
        return True
