"""What a driver does when a disk takes nothing more: it says so once, waits a while for room, and
stops in order, so that the same command goes on from there."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.errors import DiskFull

PATIENCE_SECONDS = 120.0
"""How long scheduling waits for room before the sweep stops."""
PAUSE_SECONDS = 1.0

_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}
"""Full, over quota, broken, read-only since it broke, or a server's disk that went away."""


def patiently(write: Callable[[], object], folder: Path, say: Callable[[str], None]) -> None:
    """Call `write` until it has found room in `folder`.

    Raises:
        DiskFull: there was none for `PATIENCE_SECONDS`.
    """
    deadline = None
    while True:
        try:
            write()
            return
        except OSError as error:
            if not is_full(error):
                raise
            if deadline is None:
                deadline = time.monotonic() + PATIENCE_SECONDS
                # What is said may go to a file on the same disk.
                with contextlib.suppress(OSError):
                    say(f"{folder}: {error.strerror}; waiting up to {PATIENCE_SECONDS:.0f} s")
            if time.monotonic() >= deadline:
                raise DiskFull(
                    f"{folder}: {error.strerror}; the last answer could not be kept, all others "
                    "are. Make room, and the same command goes on from here"
                ) from error
        time.sleep(PAUSE_SECONDS)


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn a full disk, met while results are made from records, into a DiskFull."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise DiskFull(
            f"{folder}: {error.strerror}; every record is kept. Make room, and the same command "
            "makes tables, plots and report"
        ) from error


def is_full(error: OSError) -> bool:
    """Whether it is the disk that does not take, or give, any more."""
    return error.errno in _ERRORS
