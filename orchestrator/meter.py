"""What attempts took that no record tells: a driver notes now and then how many device seconds it
has used, so that the next one counts what ran when it was killed.

The notes lie beside the journal. A sweep that goes on from MLflow alone has none of them.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from orchestrator.durable import write_whole
from orchestrator.provenance import Envelope

NOTE_SECONDS = 10.0
"""How much of each running attempt a kill may hide."""


class Meter:
    """The notes in `folder`, one file a driver, and ours under the number of our lease. `allowed`
    raises where this process may not write (any more)."""

    def __init__(
        self, folder: Path, number: int, allowed: Callable[[], object] = lambda: None
    ) -> None:
        self._folder, self._number, self._allowed = folder, number, allowed
        self._noted = time.monotonic()

    def note(self, seconds: float) -> None:
        """We have used so many device seconds so far, running attempts included."""
        if time.monotonic() - self._noted < NOTE_SECONDS:
            return
        self._noted = time.monotonic()
        with contextlib.suppress(OSError):  # a full disk is told by what matters more
            self._folder.mkdir(exist_ok=True)
            write_whole(self._folder / str(self._number), f"{seconds:.1f}".encode(), self._allowed)

    def unrecorded(self, envelopes: Iterable[Envelope]) -> float:
        """Device seconds that earlier drivers used beyond what their records say."""
        recorded: defaultdict[int, float] = defaultdict(float)
        for envelope in envelopes:
            recorded[envelope.epoch] += envelope.record.device_seconds
        noted = {number: self._read(number) for number in range(1, self._number)}
        return sum(max(0.0, seconds - recorded[number]) for number, seconds in noted.items())

    def _read(self, number: int) -> float:
        with contextlib.suppress(OSError, ValueError):
            return float((self._folder / str(number)).read_text())
        return 0.0
