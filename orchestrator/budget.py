"""The device hours a sweep may use: a hard bound over every attempt on record.

An attempt costs its wall time times the share of a device it held: a measure cell a whole one, a
packed train cell a part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.provenance import Envelope
from workloads.record import RunRecord

SECONDS_PER_HOUR = 3600.0
BUDGET_SPENT = "stopped: the sweep's device hours are spent"
"""What the record of an attempt says that the end of the budget cut off."""


@dataclass(slots=True)
class Budget:
    """Device seconds allowed in all, and spent so far by attempts that have ended."""

    allowed: float = math.inf
    spent: float = 0.0

    @classmethod
    def of(cls, device_hours: float | None, envelopes: Iterable[Envelope]) -> Budget:
        """What a sweep file allows, less what its journal says was spent, whatever became of it."""
        allowed = math.inf if device_hours is None else device_hours * SECONDS_PER_HOUR
        return cls(allowed, sum(cost(envelope.record) for envelope in envelopes))

    def add(self, record: RunRecord) -> None:
        """One more attempt has ended."""
        self.spent += cost(record)

    def left(self, running: Iterable[tuple[float, float]] = ()) -> float:
        """Device seconds still to be had while these (seconds so far, share) run."""
        return self.allowed - self.spent - sum(seconds * share for seconds, share in running)

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


def cost(record: RunRecord) -> float:
    """Device seconds of one attempt."""
    return record.seconds * record.device_share
