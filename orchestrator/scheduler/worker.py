"""The actor that runs cells on a node: one warm fork server, one cell at a time.

Actors are reused and each cell runs in a child of its own (`isolation.py`), so a cell costs
hundredths of a second instead of Tune's usual seconds. On a cluster it first makes sure that this
node is what the survey found, for nodes may join later.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import placement_group

from orchestrator import provenance, runtime
from orchestrator.credentials import forget_secrets
from orchestrator.isolation import Isolation, is_cut_short
from orchestrator.jobs import data_job
from orchestrator.scheduler.placement import Share, cores_beside
from orchestrator.scheduler.session import Expected
from orchestrator.scheduler.survey import code_hash
from workloads import environment
from workloads.cell import Cell

HOLD_SECONDS = 5.0
NODE_PATIENCE = 600.0
"""How long a measure cell waits for the rest of a node that is larger than the others."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A cell, and what it gets."""

    cell: Cell
    share: Share


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a trial knows of itself: its cell, and the place of its request among a run's."""

    cell_id: str
    place: int

    @property
    def text(self) -> str:
        return f"{self.cell_id} {self.place}"


def ticket_of(config: Mapping[str, Any]) -> Ticket:
    """The ticket of a trial of this configuration."""
    cell_id, place = config["ticket"].split()
    return Ticket(cell_id, int(place))


@dataclass(frozen=True, slots=True)
class Post:
    """What is the same for every worker of a session: see `RaySession`."""

    cores: tuple[int, ...]
    folder: Path | None
    expected: Expected | None


class CellRunner(tune.Trainable):
    """A reused actor. Its first `step` makes ready, and says so, or why this node is `refused`;
    each further one is a cell: `record` is its record as JSON, `crowded` says that it needs a
    device to itself."""

    def setup(  # type: ignore[override]  # Tune passes what `with_parameters` was given
        self, config: dict[str, Any], assignments: Mapping[str, Assignment], post: Post
    ) -> None:
        forget_secrets()
        self._assignments, self._post = assignments, post
        self._isolation = Isolation()
        # Without waiting until it is warm: an actor that is idle takes over the cell of one that is
        # still starting, which Tune then ends, starts anew, and so on, for as long as cells take
        # less time than starting does.
        self._isolation.start()
        self._first = True
        self._refused = False

    def step(self) -> dict[str, Any]:
        cell, share = self._cell_and_share()
        if self._refused:
            # Whoever answered at once would be given the next cell, and so on to the last.
            time.sleep(HOLD_SECONDS)
            return {"done": False}
        if self._first:
            self._first = False
            why = self._begin(cell, share)
            self._refused = why is not None
            return {"refused": why, "node": _node_id(), "ready": why is None, "done": False}
        reserved = share.reserved_bytes
        record = self._isolation.run_cell(
            cell, cores=self._own_cores(cell), reserved_bytes=reserved
        )
        if is_cut_short(record, reserved_bytes=reserved):
            return {"crowded": True, "seconds": record.seconds, "done": True}
        record = replace(record, node=self._node, device_share=share.of_device)
        return {"record": record.to_json(), "done": True}

    def _cell_and_share(self) -> tuple[Cell, Share]:
        assignment = self._assignments[ticket_of(self.config).cell_id]
        return assignment.cell, assignment.share

    def _begin(self, cell: Cell, share: Share) -> str | None:
        """Make ready for cells like this one; why not, where this node is not for them."""
        self._node = node_name(on_cluster=self._post.expected is not None)
        self._isolation.wait_until_warm()
        if self._post.expected is None:
            self._keep_off(cell)
            return None
        return mismatch(self._post.expected, cell.device) or self._data(cell) or _rest(cell, share)

    def _keep_off(self, cell: Cell) -> None:
        if cell.kind == "measure":
            # Starting is over; from here on the runtime, too, keeps off the cells' cores.
            runtime.keep_off(self._own_cores(cell), self._post.cores, self._post.folder)

    def _data(self, cell: Cell) -> str | None:
        """A node that joined later prepares its data now, outside of any cell's time."""
        if cell.kind != "measure":
            try:
                self._isolation.call(data_job(cell))
            except RuntimeError as error:
                return f"{cell.task}: its data cannot be prepared: {error}"
        return None

    def _own_cores(self, cell: Cell) -> tuple[int, ...]:
        cores = self._post.cores or environment.cores()
        gpus = [int(gpu) for gpu in ray.get_gpu_ids() if str(gpu).isdigit()]
        beside = cores_beside(cores, gpus[0] if gpus else None, len(environment.accelerators()))
        return runtime.cores_for(cell, beside)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def cleanup(self) -> None:
        self._isolation.close()


def mismatch(expected: Expected, device: str) -> str | None:
    """Why this machine is not like those that were surveyed; None where it is."""
    code = code_hash()
    if code != expected.code:
        return f"it has source {code}, the driver has {expected.code}: install the same version"
    here = environment.describe(device)
    if here.fingerprint != expected.fingerprint:
        return (
            f"its environment is {here.fingerprint} ({here.device_name}), the sweep runs in "
            f"{expected.fingerprint}: figures of the two cannot be drawn together"
        )
    return None


def node_name(*, on_cluster: bool) -> str:
    """This machine's opaque name; on a cluster with a part of Ray's own, for several nodes may be
    one machine."""
    machine = provenance.node_name()
    if not on_cluster:
        return machine
    return f"{machine}-{hashlib.sha256(_node_id().encode()).hexdigest()[:8]}"


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _rest(cell: Cell, share: Share) -> str | None:
    """Reserve what a measure cell's share leaves over of a larger node, so that nobody else runs
    beside it, for as long as this actor lives."""
    if cell.kind != "measure" or not environment.is_cpu(cell.device):
        return None
    here = _node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    has = next(node["Resources"] for node in nodes if node["NodeID"] == here)
    rest = has.get("CPU", 0) - dict(share.resources)["CPU"]
    if rest <= 0:
        return None
    group = placement_group([{"CPU": rest}], bundle_label_selector=[{"ray.io/node-id": here}])
    if group.wait(NODE_PATIENCE):
        return None
    return f"it could not be had whole within {NODE_PATIENCE:.0f} s"
