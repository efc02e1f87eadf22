"""A real Ray cluster on this machine: a head without slots, and nodes of two slots each, every one
with its own processes, on loopback and with a token, as Ray has it by default."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator import runtime

ROOT = Path(__file__).parents[1]
SLOTS = 2
"""Of a node, where nothing else is said."""
OBJECTS = 80 << 20
JOIN_SECONDS = 120.0
"""How long nodes may take to join, and dead ones to be noticed."""
QUICK = {
    # A dead node is noticed in seconds, not in the default of half a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class RayCluster:
    """A head and its nodes. `environment` is what a driver needs to know to join."""

    def __init__(self, slots: int = SLOTS) -> None:
        from ray.cluster_utils import Cluster

        self._slots = slots
        self.environment = {"RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
        self._cluster: Any = Cluster(
            initialize_head=True, connect=False, head_node_args=_node(0, {})
        )
        self.address: str = self._cluster.address
        self.nodes: list[Any] = []

    def add(self, count: int = 1, **environment: str) -> list[Any]:
        """Bring up nodes, all at once."""
        new = [
            self._cluster.add_node(wait=False, **_node(self._slots, environment))
            for _ in range(count)
        ]
        self._cluster.wait_for_nodes(JOIN_SECONDS)
        self.nodes += new
        return new

    def kill(self, node: Any) -> None:
        """As a power cut would: the node's own processes at once, its workers after them."""
        self.nodes.remove(node)
        _kill(node)
        self._cluster.worker_nodes.discard(node)

    def kill_head(self) -> None:
        _kill(self._cluster.head_node)

    def end(self) -> None:
        self._cluster.shutdown()


def _node(slots: int, environment: dict[str, str]) -> dict[str, Any]:
    return {
        "num_cpus": slots,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
        "object_store_memory": OBJECTS,
        "env_vars": environment or None,
    }


def _kill(node: Any) -> None:
    for processes in node.all_processes.values():
        for one in processes:
            os.kill(one.process.pid, signal.SIGKILL)
            one.process.wait()


@contextmanager
def ray_cluster(folder: Path, nodes: int, slots: int = SLOTS) -> Iterator[RayCluster]:
    """A cluster of so many nodes, of so many slots each, gone at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**runtime.SETTINGS, **QUICK}.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("WORKLOADS_CACHE", str(folder / "cache"))
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a node's own")
        cluster = RayCluster(slots)
        try:
            cluster.add(nodes)
            yield cluster
        finally:
            cluster.end()
