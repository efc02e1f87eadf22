"""How fast a sweep goes, seen from its records alone: devices busy of late, and the time to go.

Whoever watches from elsewhere has nothing but records, which say when an attempt began, how long it
took and what share of a device it held. What is running now is seen once it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.answers import Answers
from orchestrator.cost import CostModel
from orchestrator.provenance import Envelope
from workloads.cell import Cell

WINDOW_SECONDS = 600.0
"""How far back from the newest record a sweep's pace is looked for."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Devices busy on average over the last `seconds` of records, and predicted seconds until all
    is answered at that pace; None where no record says."""

    busy: float | None
    seconds: float
    seconds_to_go: float | None


def pace(answers: Answers, envelopes: Sequence[Envelope], model: CostModel) -> Pace:
    """The pace of a sweep, from its records and a model that they corrected."""
    busy, seconds = _busy(envelopes)
    left = sum(model.predict(cell).seconds * share for cell, share in _pending(answers, envelopes))
    if not left:
        return Pace(busy, seconds, 0.0)
    return Pace(busy, seconds, left / busy if busy else None)


def _busy(envelopes: Sequence[Envelope]) -> tuple[float | None, float]:
    """Device seconds of the attempts of late over the seconds they span, and that span."""
    if not envelopes:
        return None, 0.0
    end = max(envelope.finished_at for envelope in envelopes)
    late = [one.record for one in envelopes if one.finished_at > end - WINDOW_SECONDS]
    start = max(end - WINDOW_SECONDS, min(record.started_at for record in late))
    if end <= start:
        return None, 0.0
    used = sum(
        (record.started_at + record.seconds - max(start, record.started_at)) * record.device_share
        for record in late
    )
    return used / (end - start), end - start


def _pending(answers: Answers, envelopes: Sequence[Envelope]) -> list[tuple[Cell, float]]:
    """Cells still to be run, with the share of a device that their kind has held so far."""
    held: dict[str, list[float]] = {}
    for envelope in envelopes:
        held.setdefault(envelope.record.cell.kind, []).append(envelope.record.device_share)
    share = {kind: sum(shares) / len(shares) for kind, shares in held.items()}
    return [(cell, share.get(cell.kind, 1.0)) for cell in answers.pending()]
