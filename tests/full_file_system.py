"""A real file system that can be full: a small tmpfs in a mount namespace of its own, for which no
rights are needed where user namespaces are allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
_HOLD = 'mount -t tmpfs -o size="$1" tmpfs "$0" && echo mounted && exec sleep infinity'


class SmallDisk:
    """So many bytes at `folder`, for commands that begin with `command`; others see them at
    `seen`."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir()
        self.folder = folder
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", _HOLD, str(folder), str(size)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline().strip()
        self.refused = None if said == "mounted" else said or "unshare ended"

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{self.folder}")

    def command(self, working_directory: Path) -> list[str]:
        target = ["nsenter", "--target", str(self._holder.pid)]
        return [
            *target,
            "--user",
            "--mount",
            "--preserve-credentials",
            f"--wdns={working_directory}",
        ]

    def fill(self, *, but_pages: int = 0) -> None:
        """Leave room for so many pages of 4 KiB, each of which holds a file of one byte."""
        ballast = self.seen / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                while file.write(bytes(PAGE)):
                    pass
        except OSError:
            pass
        with ballast.open("r+b") as file:
            file.truncate(max(0, ballast.stat().st_size - but_pages * PAGE))

    def empty(self) -> None:
        (self.seen / "ballast").unlink()

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Such a disk, gone at the end; the test is skipped where none can be mounted."""
    one = SmallDisk(folder, size)
    if one.refused:
        pytest.skip(f"no file system can be mounted here: {one.refused}")
    try:
        yield one
    finally:
        one.close()
