"""The command line as another machine would run it: with another name and another boot, so that no
lock of this kernel is taken for its own; and with seconds of patience instead of minutes.

Run as `python -m tests.end_to_end.other_machine IDENTITY VERB ...`, where IDENTITY is a file that
stands for `/etc/machine-id` and for the kernel's boot id. Where a file IDENTITY.clock says by how
many seconds the machine's clock is off, it is, from the moment on that it says so.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from orchestrator import cli, full_disk, lease, provenance

WATCH_SECONDS = 5.0
PATIENCE_SECONDS = 5.0


def command(folder: Path, name: str) -> list[str]:
    """What stands for `python -m orchestrator` on the machine of that name."""
    identity = _identity(folder, name)
    identity.write_text(name)
    return [sys.executable, "-m", "tests.end_to_end.other_machine", str(identity)]


def set_clock(folder: Path, name: str, seconds: float) -> None:
    """Let the clock of the machine of that name jump to so many seconds off."""
    new = folder / f"clock of {name}"
    new.write_text(str(seconds))
    new.rename(_clock(_identity(folder, name)))


def _identity(folder: Path, name: str) -> Path:
    return folder / f"identity of {name}"


def _clock(identity: Path) -> Path:
    return identity.with_suffix(".clock")


def _shift_clock(clock: Path) -> None:
    right = time.time

    def shifted() -> float:
        try:
            return right() + float(clock.read_text())
        except FileNotFoundError:
            return right()

    time.time = shifted


if __name__ == "__main__":
    _shift_clock(_clock(Path(sys.argv[1])))
    lease.BOOT_ID = provenance.MACHINE_ID = Path(sys.argv[1])
    lease.WATCH_SECONDS = WATCH_SECONDS
    full_disk.PATIENCE_SECONDS = PATIENCE_SECONDS
    sys.exit(cli.main(sys.argv[2:]))
