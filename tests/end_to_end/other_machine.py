"""The command line as another machine would run it: with another name and another boot, so that no
lock of this kernel is taken for its own; and with seconds of patience instead of minutes.

Run as `python -m tests.end_to_end.other_machine IDENTITY VERB ...`, where IDENTITY is a file that
stands for `/etc/machine-id` and for the kernel's boot id.
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator import cli, full_disk, lease, provenance

WATCH_SECONDS = 5.0
PATIENCE_SECONDS = 5.0


def command(folder: Path, name: str) -> list[str]:
    """What stands for `python -m orchestrator` on the machine of that name."""
    identity = folder / f"identity of {name}"
    identity.write_text(name)
    return [sys.executable, "-m", "tests.end_to_end.other_machine", str(identity)]


if __name__ == "__main__":
    lease.BOOT_ID = provenance.MACHINE_ID = Path(sys.argv[1])
    lease.WATCH_SECONDS = WATCH_SECONDS
    full_disk.PATIENCE_SECONDS = PATIENCE_SECONDS
    sys.exit(cli.main(sys.argv[2:]))
