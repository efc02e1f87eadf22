"""What others on the machine take from a cell while it is timed: seconds that its threads were
ready and had to wait for a core (the scheduler's own count, in nanoseconds), and seconds in which
the machine beneath a virtual one withheld the core. Linux only; elsewhere nothing is known.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

TIMES = ("s", "1/s")
"""Units of what others on the machine can disturb."""
DISTURBED = 0.05
"""The share of its time that what is timed may wait for a core."""

_STEAL = 8  # proc(5), /proc/stat: cpuN user nice system idle iowait irq softirq steal
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, slots=True)
class Watch:
    """A moment, to be looked back at. `waited` is None where the kernel does not count."""

    at: float
    waited: float | None
    stolen: float

    def waited_share(self) -> float | None:
        """Seconds spent waiting for a core since, of all threads, to those that passed."""
        now = start()
        if self.waited is None or now.waited is None or now.at <= self.at:
            return None
        return max(0.0, now.waited - self.waited) / (now.at - self.at)

    def stolen_share(self) -> float:
        """The same of what was withheld from this process's cores; counted in hundredths of a
        second."""
        now = start()
        cores = len(os.sched_getaffinity(0))
        return (now.stolen - self.stolen) / max(1e-9, (now.at - self.at) * cores)


def start() -> Watch:
    return Watch(time.monotonic(), _waited_seconds(), _stolen_seconds())


def _waited_seconds() -> float | None:
    """Of the threads that live now: those of a pool do as long as its process."""
    try:
        said = [(task / "schedstat").read_text().split() for task in _TASKS.iterdir()]
        return sum(int(waited) for _, waited, _ in said) / 1e9
    except (OSError, ValueError):
        return None


def _stolen_seconds() -> float:
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    mine = [fields for fields in map(str.split, lines) if fields and fields[0] in names]
    ticks = sum(int(fields[_STEAL]) for fields in mine if len(fields) > _STEAL)
    return ticks / os.sysconf("SC_CLK_TCK")
