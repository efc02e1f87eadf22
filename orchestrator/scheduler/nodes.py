"""A cluster's nodes, asked over Ray: which there are, what they say of themselves, and jobs on
them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.util import accelerators
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.credentials import forget_secrets
from orchestrator.errors import UserError
from orchestrator.isolation import Isolation
from orchestrator.scheduler import survey
from orchestrator.scheduler.placement import NodeShape, kind_of
from orchestrator.scheduler.survey import Surveyed
from workloads import environment
from workloads.environment import Environment

CLASS_PATIENCE = 1800.0
"""Seconds that a cluster may take to bring up a first node of the class asked for."""
POLL_SECONDS = 2.0
SURVEY_SECONDS = 120.0
"""How long a node may take to say what it is: a first process that imports our packages."""
DEATH_SECONDS = 45.0
"""How long Ray may take to see that a node is dead: a machine that only falls silent misses five
health checks, three seconds apart, each of which may wait ten."""

Say = Callable[[str], None]


def alive() -> list[dict[str, Any]]:
    """The nodes that are up, as Ray describes them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def shape_of(node: Mapping[str, Any]) -> NodeShape:
    """A node as Ray counts it."""
    has, prefix = node["Resources"], "accelerator_type:"
    return NodeShape(
        cpus=int(has.get("CPU", 0)),
        memory=int(has.get("memory", 0)),
        gpus=int(has.get("GPU", 0)),
        kind=next((name.removeprefix(prefix) for name in has if name.startswith(prefix)), None),
    )


@ray.remote(num_cpus=0, max_retries=1)
def _job(job: dict[str, Any]) -> dict[str, Any]:
    """Runs on a node: a job in a child of its own, as a worker would."""
    forget_secrets()
    try:
        with Isolation(for_cells=False) as isolation:
            return {"answer": isolation.call(job)}
    except RuntimeError as error:
        return {"error": str(error)}


def on_node(node_id: str, **asked: Any) -> Any:
    """The remote function that runs a job (`jobs.py`) on this node, with these resources."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _job.options(scheduling_strategy=where, **asked)


class NodeGoneError(RuntimeError):
    """The node that ran a job has left the cluster."""


def outcome_of(node_id: str, task: Any) -> dict[str, Any]:
    """What such a job answered.

    Raises:
        NodeGoneError: its node left the cluster meanwhile.
        RuntimeError: it did not answer; says why.
    """
    try:
        outcome: dict[str, Any] = ray.get(task)
    except ray.exceptions.RayError as error:
        if _left(error, node_id):
            raise NodeGoneError("its node left the cluster") from None
        raise RuntimeError(_reason(error)) from None
    if "error" in outcome:
        raise RuntimeError(outcome["error"])
    answer: dict[str, Any] = outcome["answer"]
    return answer


def _left(error: ray.exceptions.RayError, node_id: str) -> bool:
    """Whether the node is gone, or is about to be: Ray knows that a process died, or that nobody
    answers, some time before it takes the node for dead."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return False  # the node lives, and says what went wrong
    deadline = time.monotonic() + DEATH_SECONDS
    while any(node["NodeID"] == node_id for node in alive()):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


@ray.remote(num_cpus=0, max_retries=1)
def _examined(device: str) -> dict[str, Any]:
    return survey.examine(device)


@ray.remote(num_cpus=0)
def _there() -> None:
    """Asks for resources, so that an autoscaler brings up a node that has them."""


def with_class(
    device: str, code: str, say: Say, patience: float = CLASS_PATIENCE
) -> list[Surveyed]:
    """All nodes, surveyed; waits for a first one of the class where a cluster has none yet.

    Raises:
        UserError: none came.
    """
    found = surveyed(device)
    if survey.able(found, device):
        return found
    say(
        f"no node of the cluster has {device} yet (there is: {survey.classes(found)}); asked it "
        f"for one, waiting up to {patience / 60:.0f} minutes"
    )
    request, deadline = _there.options(**_asked(device)).remote(), time.monotonic() + patience
    try:
        while not survey.able(found, device):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{device}: no node of the cluster has it, and none came within "
                    f"{patience / 60:.0f} minutes; there is: {survey.classes(found)}"
                )
            ray.wait([request], timeout=POLL_SECONDS)
            if {node["NodeID"] for node in alive()} != {node.node_id for node in found}:
                found = surveyed(device)
    finally:
        ray.cancel(request)
    return found


def _asked(device: str) -> dict[str, Any]:
    """What a first node of the class must have, in Ray's words."""
    if environment.is_cpu(device):
        return {"num_cpus": environment.threads_of(device)}
    names = [str(value) for key, value in vars(accelerators).items() if key.isupper()]
    kind = kind_of(device, names)
    return {"num_gpus": 1} | ({} if kind is None else {"accelerator_type": kind})


def surveyed(device: str) -> list[Surveyed]:
    """Every node that is up, asked what it is. One that leaves meanwhile is none of them."""
    nodes = alive()
    asked = [
        _examined.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(device)
        for node in nodes
    ]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=SURVEY_SECONDS)
    said = (
        _read(node, task if task in ready else None)
        for node, task in zip(nodes, asked, strict=True)
    )
    found = [node for node in said if node is not None]
    up = {node["NodeID"] for node in alive()}
    return [node for node in found if node.node_id in up]


def _read(node: Mapping[str, Any], task: Any) -> Surveyed | None:
    """What a node said, or why it said nothing; None of one that left the cluster."""
    blank = Surveyed(
        node_id=node["NodeID"], address=node["NodeManagerAddress"], shape=shape_of(node)
    )
    if task is None:
        return replace(blank, problem=f"said nothing for {SURVEY_SECONDS:.0f} s")
    try:
        said = ray.get(task)
    except ray.exceptions.RayError as error:
        gone = _left(error, blank.node_id)
        return None if gone else replace(blank, problem=_reason(error))
    return replace(
        blank,
        shape=replace(blank.shape, gpu_memory=said["gpu_memory"]),
        devices=tuple(said["devices"]),
        code=said["code"],
        commit=said["commit"],
        environment=Environment.from_dict(said["environment"]),
    )


def _reason(error: ray.exceptions.RayError) -> str:
    """Why a node's process could not even be asked, without Ray's traceback."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    last = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {last[-1].strip()}"
