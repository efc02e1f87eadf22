"""Files that are there whole or not at all, and files that survive a power failure."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def write_whole(path: Path, content: bytes, allowed: Callable[[], object] = lambda: None) -> None:
    """Put `content` at `path` whole or not at all, whatever is killed; on disk after `sync`.
    `allowed` is called last, before the file takes its name; what it raises leaves nothing
    behind."""
    with _appearing(path) as temporary:
        temporary.write_bytes(content)
        allowed()


def write_durably(path: Path, content: bytes, allowed: Callable[[], object] = lambda: None) -> None:
    """As `write_whole`, and on disk before this returns."""
    with _appearing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        allowed()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A name beside `path` under which to write; it takes its own when whole, and goes where an
    error came in between, such as a full disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync(folder: Path) -> None:
    """Put on disk all that was written to the file system of `folder`: one wait for many files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)
