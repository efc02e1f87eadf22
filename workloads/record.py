"""A run record: one attempt at a cell, with its measurements, what was built, where, and how it
ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workloads.cell import Cell, Scalar
from workloads.environment import Environment
from workloads.measurement import Measurement, Reason

RECORD_SCHEMA = 1
Status = Literal["finished", "failed", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One attempt at a cell.

    `finished`: every metric asked has samples or a reason. `failed`: an error of ours, with its
    `traceback`.
    `lost`: the machine went away. `facts` are the model and run as they were built: `parameters`
    (non-embedding), `total_parameters`, `d_model`, `mlp_width`, `implementation` and
    `kernel_class` (of training and prefill; `implementation.METRIC` where a metric times other
    code), and for training `updates`, `tokens_per_update`.
    `started_at` is Unix time; `seconds` is the wall time of the attempt. Whoever placed it on a
    cluster adds the `node`, an opaque name, and the `device_share` it held of a device: 1 is all.
    """

    cell: Cell
    status: Status
    environment: Environment
    measurements: tuple[Measurement, ...] = ()
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    started_at: float
    seconds: float
    message: str | None = None
    traceback: str | None = None
    node: str | None = None
    device_share: float = 1.0

    @property
    def reason(self) -> Reason | None:
        """The first reason among the measurements, in the order they were taken."""
        return next((m.reason for m in self.measurements if m.reason), None)

    @property
    def device_seconds(self) -> float:
        """What the attempt cost: its wall time for the share of a device that it held."""
        return self.seconds * self.device_share

    def measurement(self, metric: str) -> Measurement | None:
        return next((m for m in self.measurements if m.metric == metric), None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": RECORD_SCHEMA,
            "id": self.cell.id,
            "cell": self.cell.to_dict(),
            "status": self.status,
            "environment": self.environment.to_dict(),
            "measurements": [m.to_dict() for m in self.measurements],
            "facts": dict(self.facts),
            "started_at": self.started_at,
            "seconds": self.seconds,
            "message": self.message,
            "traceback": self.traceback,
            "node": self.node,
            "device_share": self.device_share,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunRecord:
        """The record that `to_dict` wrote, also after a trip through JSON.

        Raises:
            ValueError: another schema number, or content that is not a record.
        """
        if data.get("schema") != RECORD_SCHEMA:
            raise ValueError(
                f"record has schema {data.get('schema')}, this version reads {RECORD_SCHEMA}"
            )
        try:
            return cls(
                cell=Cell.from_dict({**data["cell"], "id": data["id"]}),
                status=data["status"],
                environment=Environment.from_dict(data["environment"]),
                measurements=tuple(Measurement.from_dict(m) for m in data["measurements"]),
                facts=data["facts"],
                started_at=data["started_at"],
                seconds=data["seconds"],
                message=data["message"],
                traceback=data["traceback"],
                # Records made before there were several nodes do not say.
                node=data.get("node"),
                device_share=data.get("device_share", 1.0),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"record is not readable: {error!r}") from None
