"""The write-ahead log of a sweep: one durable file per record, written before anything else hears
of it, and the one rule that merges several records of a cell.

A record on disk is there whole or not at all: a temporary file in the same folder is synced and
renamed over its final name, then the folder is synced. This holds on a shared file system too,
where several machines may append at once, for no two attempts have one name. Nothing is ever
changed or deleted. What is newest is decided by driver and count (`Envelope.order`), by no clock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.durable import sync, write_durably, write_whole
from orchestrator.provenance import Envelope
from workloads import collector
from workloads.cell import Cell, Limits, Scalar
from workloads.environment import Environment
from workloads.measurement import Measurement, Reason
from workloads.record import Status

MAX_ATTEMPTS = 3
"""Attempts at a cell that may fail or be lost before it is left alone, per environment, limits and
source."""

_SUFFIX = ".json"


class Journal:
    """The records of one sweep in a folder, which is made by the first `append`.

    `damaged` maps the path of each file that is no record of this version to why; reading goes on
    without them. `allowed` is called before a record takes its name, and raises where this process
    may not write any more.
    """

    def __init__(self, folder: Path, allowed: Callable[[], object] = lambda: None) -> None:
        self.folder = folder
        self._allowed = allowed
        self.damaged: dict[Path, str] = {}
        self._known: dict[str, Envelope] = {}
        # Size and time of what was no record: a file that was still being copied is read again.
        self._rejected: dict[str, tuple[int, int]] = {}

    def append(self, envelope: Envelope) -> Path:
        """Store one record so that a crash of process or machine cannot lose it; the path of its
        file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(envelope)
        write_durably(path, _content(envelope), self._allowed)
        return path

    def adopt(self, envelopes: Iterable[Envelope]) -> int:
        """Take in records that were kept elsewhere, under the keys they have; how many were new.
        They are on disk before this returns, all with one wait."""
        known = {envelope.key for envelope in self.read()}
        new = [envelope for envelope in envelopes if envelope.key not in known]
        if new:
            self.folder.mkdir(parents=True, exist_ok=True)
            for envelope in new:
                write_whole(self._path(envelope), _content(envelope), self._allowed)
            sync(self.folder)
        return len(new)

    def read(self) -> list[Envelope]:
        """Every record, the newest last. Only files not seen before are opened, so polling is
        cheap."""
        self.unread()
        return in_order(self._known.values())

    def unread(self) -> list[Envelope]:
        """The records that came since the last reading, by this or by `read`, the newest last."""
        new = [
            entry
            for entry in self._entries()
            if entry.name not in self._known and _is_record(entry.name)
        ]
        with collector.paused():
            taken = [self._taken(entry) for entry in new]
        return in_order(envelope for envelope in taken if envelope is not None)

    def _path(self, envelope: Envelope) -> Path:
        return self.folder / f"{envelope.key}{_SUFFIX}"

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as entries:
                return list(entries)
        except FileNotFoundError:
            return []

    def _taken(self, entry: os.DirEntry[str]) -> Envelope | None:
        """The record of a file; None where it is none."""
        status, path = entry.stat(), self.folder / entry.name
        signature = status.st_mtime_ns, status.st_size
        if self._rejected.get(entry.name) == signature:
            return None
        try:
            self._known[entry.name] = envelope = _load(path)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self.damaged[path] = str(error) or type(error).__name__
            self._rejected[entry.name] = signature
            return None
        self.damaged.pop(path, None)
        return envelope


def _is_record(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(".")


def _content(envelope: Envelope) -> bytes:
    return json.dumps(envelope.to_dict(), allow_nan=False).encode()


def _load(path: Path) -> Envelope:
    envelope = Envelope.from_dict(json.loads(path.read_bytes()))
    if path.name != f"{envelope.key}{_SUFFIX}":
        raise ValueError(f"holds record {envelope.key}, which has a file of its own")
    return envelope


def in_order(envelopes: Iterable[Envelope]) -> list[Envelope]:
    """Records from the oldest to the newest."""
    return sorted(envelopes, key=lambda envelope: envelope.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """All that is known of one cell in one environment.

    `measurements` are the newest of each metric among *finished* records, and `origin` says which
    record each came from; an attempt that failed adds no number. `status` is `finished` where every
    metric asked by the newest record is answered by a finished record of the same limits and
    source, else the newest record's own. `attempts` counts what failed or was lost since anything
    last finished, or limits or source last changed.
    """

    cell: Cell
    environment: Environment
    status: Status
    measurements: Mapping[str, Measurement]
    origin: Mapping[str, Envelope]
    facts: Mapping[str, Scalar]
    attempts: int
    newest: Envelope
    envelopes: tuple[Envelope, ...]

    @property
    def reason(self) -> Reason | None:
        """The first reason among the measurements."""
        return next((m.reason for m in self.measurements.values() if m.reason), None)


def merge(envelopes: Iterable[Envelope]) -> dict[tuple[str, str], Merged]:
    """Records grouped by cell id and environment fingerprint, each group merged by the one rule:
    newest per metric, same environment. A record given twice counts once."""
    groups: dict[tuple[str, str], list[Envelope]] = {}
    for envelope in in_order({envelope.key: envelope for envelope in envelopes}.values()):
        record = envelope.record
        groups.setdefault((record.cell.id, record.environment.fingerprint), []).append(envelope)
    return {group: merge_cell(members) for group, members in groups.items()}


def merge_cell(envelopes: Iterable[Envelope]) -> Merged:
    """The records of one cell in one environment, at least one, merged."""
    members = in_order(envelopes)
    newest = members[-1]
    origin: dict[str, Envelope] = {}
    measurements: dict[str, Measurement] = {}
    facts: dict[str, Scalar] = {}
    for envelope in sorted(members, key=lambda one: one.record.status == "finished"):
        facts.update(envelope.record.facts)
        if envelope.record.status == "finished":
            origin.update(dict.fromkeys((m.metric for m in envelope.record.measurements), envelope))
            measurements.update((m.metric, m) for m in envelope.record.measurements)
    return Merged(
        cell=newest.record.cell,
        environment=newest.record.environment,
        status="finished" if _answers(origin, newest) else newest.record.status,
        measurements=measurements,
        origin=origin,
        facts=facts,
        attempts=_attempts(members),
        newest=newest,
        envelopes=tuple(members),
    )


def missing(cell: Cell, merged: Merged | None, versions: Mapping[str, int]) -> tuple[str, ...]:
    """The metrics asked of `cell` that are still to be measured, in the order asked; none means
    answered.

    `versions` are the metrics' present versions. A metric is answered by a finished record at that
    version; where a limit was the reason why it has no samples, that limit must have been no
    smaller than today's, and where the cap is what was measured, it must be the same.
    """
    if merged is None:
        return cell.metrics
    return tuple(name for name in cell.metrics if not _holds(merged, cell, name, versions[name]))


def exhausted(merged: Merged | None, cell: Cell, source_hash: str) -> bool:
    """True where a cell was tried as often as it may be with these limits and this source."""
    if merged is None or merged.attempts < MAX_ATTEMPTS:
        return False
    return _circumstances(merged.newest) == (cell.limits, source_hash)


def _holds(merged: Merged, cell: Cell, metric: str, version: int) -> bool:
    measurement = merged.measurements.get(metric)
    if measurement is None or measurement.version != version:
        return False
    if measurement.memory_bytes not in (None, cell.limits.memory_bytes):
        return False
    then = merged.origin[metric].record.cell.limits
    if measurement.reason == "timeout":
        return replace(then, cell_seconds=cell.limits.cell_seconds).within(then)
    if measurement.reason == "out_of_memory":
        return replace(then, memory_bytes=cell.limits.memory_bytes).within(then)
    return True


def _answers(origin: Mapping[str, Envelope], newest: Envelope) -> bool:
    """A finished record answers a failed one only under the same circumstances: a retry with larger
    limits or other code asked something new."""
    if newest.record.status == "finished":
        return True
    return all(
        metric in origin and _circumstances(origin[metric]) == _circumstances(newest)
        for metric in newest.record.cell.metrics
    )


def _attempts(members: list[Envelope]) -> int:
    count = 0
    for envelope in reversed(members):
        if envelope.record.status == "finished":
            break
        if _circumstances(envelope) != _circumstances(members[-1]):
            break
        count += 1
    return count


def _circumstances(envelope: Envelope) -> tuple[Limits, str]:
    return envelope.record.cell.limits, envelope.source.hash
