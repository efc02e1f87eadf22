"""What others on the machine take from a cell while it is timed: seconds that its threads were
ready and had to wait for a core (the scheduler's own count, in nanoseconds), and seconds in which
the machine beneath a virtual one withheld the core. Linux only; elsewhere nothing is known.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from workloads import conditions

WAITED, WITHHELD = "waited_share", "withheld_share"
DISTURBED = 0.05
"""The share of its time that what is timed may be without a core."""

_STEAL = 8  # proc(5), /proc/stat: cpuN user nice system idle iowait irq softirq steal
_TASKS = Path("/proc/self/task")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Around calls that are timed: notes the shares `WAITED`, seconds that threads of this process
    waited for a core to those that passed, and `WITHHELD`, seconds that its cores were withheld;
    nothing where the kernel does not count."""
    waited, stolen, clock = _waited_seconds(), stolen_seconds(), time.monotonic()
    yield
    after = _waited_seconds()
    passed = time.monotonic() - clock
    if waited is not None and after is not None and passed > 0:
        conditions.note(WAITED, max(0.0, after - waited) / passed, passed)
        conditions.note(WITHHELD, max(0.0, stolen_seconds() - stolen) / passed, passed)


def disturbance(under: Mapping[str, float]) -> float | None:
    """The share of its time that what was timed was without a core, of its conditions."""
    shares = [under[name] for name in (WAITED, WITHHELD) if name in under]
    return sum(shares) if shares else None


def _waited_seconds() -> float | None:
    """Of the threads that live now: those of a pool do as long as its process."""
    try:
        said = [(task / "schedstat").read_text().split() for task in _TASKS.iterdir()]
    except OSError:
        return None
    # A kernel that does not count says zero of a thread that runs.
    if not any(int(ran) for ran, *_ in said):
        return None
    return sum(int(waited) for _, waited, *_ in said) / 1e9


def stolen_seconds() -> float:
    """Withheld from this process's cores so far, a core's share each; in hundredths of a second."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    cores = os.sched_getaffinity(0)
    names = {f"cpu{core}" for core in cores}
    mine = [fields for fields in map(str.split, lines) if fields and fields[0] in names]
    ticks = sum(int(fields[_STEAL]) for fields in mine if len(fields) > _STEAL)
    return ticks / os.sysconf("SC_CLK_TCK") / len(cores)
