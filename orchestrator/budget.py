"""The device hours a sweep may use: a hard bound over every attempt, those that a kill cut off too.

An attempt costs its wall time times the share of a device it held: a measure cell a whole one, a
packed train cell a part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from orchestrator.meter import Meter
from orchestrator.provenance import Envelope
from workloads.record import RunRecord

SECONDS_PER_HOUR = 3600.0
BUDGET_SPENT = "stopped: the sweep's device hours are spent"
"""What the record of an attempt says that the end of the budget cut off."""


@dataclass(slots=True)
class Budget:
    """Device seconds allowed in all, and spent so far by attempts that have ended; `before` are
    those of earlier drivers, and `meter` is told of ours."""

    allowed: float = math.inf
    spent: float = 0.0
    before: float = 0.0
    meter: Meter | None = None

    @classmethod
    def of(
        cls,
        device_hours: float | None,
        envelopes: Collection[Envelope],
        meter: Meter | None = None,
    ) -> Budget:
        """What a sweep file allows, less what its journal and its meter say was spent, whatever
        became of it."""
        if device_hours is None:
            return cls()
        spent = sum(envelope.record.device_seconds for envelope in envelopes)
        spent += meter.unrecorded(envelopes) if meter else 0.0
        return cls(device_hours * SECONDS_PER_HOUR, spent, spent, meter)

    def add(self, record: RunRecord) -> None:
        """One more attempt has ended."""
        self.spent += record.device_seconds

    def left(self, running: Iterable[tuple[float, float]] = ()) -> float:
        """Device seconds still to be had while these (seconds so far, share) run."""
        spent = self.spent + sum(seconds * share for seconds, share in running)
        if self.meter is not None:
            self.meter.note(spent - self.before)
        return self.allowed - spent

    @property
    def exhausted(self) -> bool:
        return self.left() <= 0

    def sentence(self, cells_left: int) -> str:
        """What a person is told who ran out of it."""
        spent, allowed = self.spent / SECONDS_PER_HOUR, self.allowed / SECONDS_PER_HOUR
        return (
            f"the budget is spent: {spent:.3g} of {allowed:.3g} device hours; {cells_left} cells "
            "are left; raise limits.device_hours to go on"
        )
