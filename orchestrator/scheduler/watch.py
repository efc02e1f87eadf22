"""Whether a cluster is still there: Ray would only say so by ending this process."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import ray

from orchestrator.errors import EngineLost
from orchestrator.scheduler.nodes import alive
from orchestrator.scheduler.sentinel import answers
from orchestrator.scheduler.session import RaySession

POLL_SECONDS = 2.0
HEAD_PATIENCE = 20.0
"""How long a cluster's head may be silent before it counts as lost. Ray itself would end this
process, without a word to us, after sixty."""


@dataclass(slots=True)
class Watch:
    """Says when a cluster is lost: its head is silent, or it dropped the node that we are on."""

    session: RaySession
    heard_at: float = field(default_factory=time.monotonic)
    looked_at: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Cheap enough to be called often. Raises EngineLost."""
        head, now = self.session.head, time.monotonic()
        if head is None or now - self.looked_at < POLL_SECONDS:
            return
        self.looked_at = now
        if not answers(head):
            if now - self.heard_at > HEAD_PATIENCE:
                raise EngineLost(
                    f"the Ray cluster's head at {head[0]}:{head[1]} has been gone for "
                    f"{now - self.heard_at:.0f} s"
                )
            return
        self.heard_at = now
        self._look_around()

    def explain(self) -> None:
        """Something of Ray broke: return once the cluster is known to be there. Raises
        EngineLost."""
        while self.session.head is not None:
            before = self.heard_at
            self.look()
            if self.heard_at > before:
                return
            time.sleep(POLL_SECONDS / 4)

    def _look_around(self) -> None:
        here = ray.get_runtime_context().get_node_id()
        if here not in {node["NodeID"] for node in alive()}:
            raise EngineLost("the Ray node on this machine is gone, and with it the cluster")
