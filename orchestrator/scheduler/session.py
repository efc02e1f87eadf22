"""A Ray runtime that is up: one of our own on this machine, or a cluster that was there before."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.air._internal import usage

from orchestrator import runtime
from orchestrator.credentials import secrets_hidden
from orchestrator.errors import UserError
from orchestrator.scheduler import survey
from orchestrator.scheduler.nodes import (
    NodeGoneError,
    Say,
    alive,
    on_node,
    outcome_of,
    shape_of,
    with_class,
)
from orchestrator.scheduler.placement import NodeShape
from orchestrator.scheduler.sentinel import Sentinel, answers, head_in
from workloads import environment
from workloads.environment import Environment
from workloads.tasks.headway import Hear, counted, heard


@dataclass(frozen=True, slots=True)
class Expected:
    """What a worker must find where it is: the driver's code, the surveyed environment."""

    code: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class RaySession:
    """A Ray runtime that is up. `nodes` are those that run cells. What is this machine's own, its
    `cores` and the `folder` of the runtime's files, is empty on a cluster; what only a cluster has,
    the rest, is empty here."""

    storage: Path
    nodes: tuple[NodeShape, ...]
    cores: tuple[int, ...] = ()
    folder: Path | None = None
    expected: Expected | None = None
    environment: Environment | None = None
    workers: tuple[str, ...] = ()
    unfit: frozenset[str] = frozenset()
    head: tuple[str, int] | None = None
    joined: Callable[[], object] = lambda: None
    """To be called when cells are about to run: the joining is over."""

    def everywhere(self, job: dict[str, Any], hear: Hear) -> None:
        """Run a job (`jobs.py`) on every node that runs cells, on all at once; a node that leaves
        meanwhile runs none. Raises RuntimeError."""
        tasks = [(node, on_node(node).remote(job)) for node in self.workers]
        with heard(by=hear):
            for node, task in counted(tasks, "nodes"):
                with contextlib.suppress(NodeGoneError):
                    outcome_of(node, task)

    def once(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job on one of them, on a device that is free; its answer. Raises RuntimeError."""
        on_cpu = environment.is_cpu(job["device"])
        asked = {"num_cpus": environment.threads_of(job["device"])} if on_cpu else {"num_gpus": 1}
        for node in self.workers:
            with contextlib.suppress(NodeGoneError):
                return outcome_of(node, on_node(node, **asked).remote(job))
        raise NodeGoneError("every node left the cluster")


@contextlib.contextmanager
def ray_started(cores: Sequence[int]) -> Iterator[RaySession]:
    """Ray up on these cores of this machine, and down again."""
    with runtime.runtime_folder() as folder:
        options: dict[str, Any] = {
            "num_cpus": len(cores),
            "include_dashboard": False,
            "object_store_memory": 100 << 20,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(folder),
        }
        try:
            with _initialised(options):
                nodes = tuple(shape_of(node) for node in alive())
                if nodes[0].gpus:
                    memory = survey.examine(environment.default_device())["gpu_memory"]
                    nodes = tuple(replace(node, gpu_memory=memory) for node in nodes)
                yield RaySession(folder / "tune", nodes, cores=tuple(cores), folder=folder)
        finally:
            runtime.keep_off((), cores)


@contextlib.contextmanager
def cluster_joined(address: str, device: str, say: Say) -> Iterator[RaySession]:
    """The cluster at this address, its nodes surveyed for cells of a device class.

    Raises:
        UserError: it cannot be reached, or its nodes cannot run the cells; says why.
    """
    cannot = f"{address}: cannot be joined as a Ray cluster from this machine"
    with runtime.runtime_folder() as folder, contextlib.ExitStack() as stack:
        head = head_in(address)
        if head is not None and not answers(head):
            raise UserError(f"{cannot}: nobody listens there")
        sentinel = Sentinel(head)
        stack.callback(sentinel.stop)
        try:
            stack.enter_context(_initialised({"address": address}))
            stack.callback(sentinel.stop)  # before Ray goes down, which takes a while
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{cannot}: {said[0]}") from None
        code = survey.code_hash()
        found = with_class(device, code, say)
        fit = survey.judged(found, device, code)
        where = fit[0].environment
        assert where is not None
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        yield RaySession(
            folder / "tune",
            tuple(node.shape for node in fit),
            expected=Expected(code, where.fingerprint),
            environment=where,
            workers=tuple(node.node_id for node in fit),
            unfit=frozenset(node.node_id for node in survey.mistakable(found, fit)),
            head=(host.strip("[]"), int(port)),
            joined=sentinel.stop,
        )


@contextlib.contextmanager
def _initialised(options: Mapping[str, Any]) -> Iterator[None]:
    """Ray's client up. Its messages are for its developers: errors only."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    # What a cluster tells every driver of its nodes, each time in a page of text.
    ray._private.worker._worker_logs_enabled = False
    # Statistics of use are off; to count callbacks for them, Tune would import all of MLflow.
    usage.tag_callbacks = lambda callbacks: False
    on_term = signal.getsignal(signal.SIGTERM)
    # A cluster's workers do not inherit where plug-ins lie.
    plugins = {"WORKLOADS_PLUGINS": os.environ.get("WORKLOADS_PLUGINS", "")}
    told = {**runtime.WORKER_SETTINGS, **plugins}
    try:
        with warnings.catch_warnings():
            # Ray announces changes of its own defaults to whoever starts it.
            warnings.simplefilter("ignore", FutureWarning)
            with secrets_hidden():
                ray.init(
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": told},
                    **options,
                )
            # Ray ends the process on SIGTERM; here it ends a sweep in order.
            signal.signal(signal.SIGTERM, on_term)
            yield
    finally:
        ray.shutdown()
