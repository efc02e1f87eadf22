"""Where a record came from: the envelope that the orchestrator puts around a workload's record."""

from __future__ import annotations

import hashlib
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import workloads
from workloads.record import RunRecord

ENVELOPE_SCHEMA = 1
MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a cell was expected to take when it was scheduled: seconds of wall time, bytes at its
    peak."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which code ran: git commit, whether the tree differed from it, and a hash of the workloads'
    own files."""

    commit: str | None
    dirty: bool | None
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One record with its logistics. `attempt` counts from 1 per cell and environment; `node` is an
    opaque hash, for host names do not belong into records. `key` is unique to this attempt and
    names its file in the journal. `epoch` is the number of its driver's lease, `sequence` counts
    that driver's records from 1; both are 0 in records older than leases. `ceilings` are the rates
    that the device reached at best when the sweep began: `flops_per_second`,
    `bfloat16_flops_per_second`, `bytes_per_second`.
    """

    record: RunRecord
    key: str
    sweep: str
    spec_hash: str
    attempt: int
    node: str
    source: Source
    prediction: Prediction | None
    epoch: int = 0
    sequence: int = 0
    ceilings: Mapping[str, float] | None = None

    @property
    def finished_at(self) -> float:
        """Unix time at which the attempt ended, as its machine's clock had it."""
        return self.record.started_at + self.record.seconds

    @property
    def order(self) -> tuple[int, int, float, str]:
        """What orders records from oldest to newest. A clock, which may jump, decides only between
        records that have no other order."""
        return self.epoch, self.sequence, self.finished_at, self.key

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": ENVELOPE_SCHEMA,
            "key": self.key,
            "sweep": self.sweep,
            "spec_hash": self.spec_hash,
            "attempt": self.attempt,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "node": self.node,
            "source": {
                "commit": self.source.commit,
                "dirty": self.source.dirty,
                "hash": self.source.hash,
            },
            "prediction": None
            if self.prediction is None
            else {
                "seconds": self.prediction.seconds,
                "peak_bytes": self.prediction.peak_bytes,
            },
            "ceilings": None if self.ceilings is None else dict(self.ceilings),
            "record": self.record.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Envelope:
        """The envelope that `to_dict` wrote. Raises ValueError."""
        if data.get("schema") != ENVELOPE_SCHEMA:
            raise ValueError(
                f"envelope has schema {data.get('schema')}, this version reads {ENVELOPE_SCHEMA}"
            )
        try:
            prediction = data["prediction"]
            return cls(
                record=RunRecord.from_dict(data["record"]),
                key=data["key"],
                sweep=data["sweep"],
                spec_hash=data["spec_hash"],
                attempt=data["attempt"],
                epoch=data.get("epoch", 0),
                sequence=data.get("sequence", 0),
                node=data["node"],
                source=Source(**data["source"]),
                prediction=None if prediction is None else Prediction(**prediction),
                ceilings=data.get("ceilings"),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"envelope is not readable: {error!r}") from None


def new_key(cell_id: str) -> str:
    """A name for one attempt: the cell's id, shortened, and a random part."""
    return f"{cell_id[:16]}-{uuid.uuid4().hex[:12]}"


@cache
def node_name() -> str:
    """An opaque, stable name of this machine (8 hex digits)."""
    try:
        identity = MACHINE_ID.read_text().strip()
    except OSError:
        identity = ""
    return hashlib.sha256((identity or hex(uuid.getnode())).encode()).hexdigest()[:8]


@cache
def source() -> Source:
    """The code that is running now."""
    root = Path(workloads.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(
            path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        )
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--", "orchestrator", "workloads")
    return Source(
        commit=commit,
        dirty=None if commit is None or status is None else bool(status),
        hash=digest.hexdigest()[:12],
    )


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
