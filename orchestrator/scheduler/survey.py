"""What the nodes of a cluster are, before anything runs: their code, their devices, and the
environment that records made there will have.

The driver may have neither the device nor the packages of the nodes that run its cells, so it asks
them. One message says what is wrong with any of them; nothing is written before.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import provenance
from orchestrator.errors import UserError
from orchestrator.scheduler.placement import NodeShape
from workloads import environment
from workloads.environment import Environment

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One node as it was found. `address` is for messages to people and goes into no record;
    `problem` says why it could not be asked."""

    node_id: str
    address: str
    shape: NodeShape
    devices: tuple[str, ...] = ()
    code: str = ""
    commit: str | None = None
    environment: Environment | None = None
    problem: str | None = None


def examine(device: str) -> dict[str, Any]:
    """What a node says of itself; runs there. Plain values, for the two ends may differ."""
    return {
        "code": code_hash(),
        "commit": provenance.source().commit,
        "devices": [environment.device_slug(name) for name in environment.accelerators()],
        "gpu_memory": 0 if environment.is_cpu(device) else _gpu_memory(),
        "environment": environment.describe(device).to_dict(),
    }


def code_hash() -> str:
    """The code that decides numbers: the workloads' own files, and plug-ins from elsewhere."""
    digest = hashlib.sha256(provenance.source().hash.encode())
    for entry in filter(None, os.environ.get("WORKLOADS_PLUGINS", "").split(os.pathsep)):
        root = Path(entry)
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            # By its place below the folder, which may lie elsewhere on another machine.
            name = path.relative_to(root).as_posix() if path != root else path.name
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _gpu_memory() -> int:
    """Bytes of the smallest GPU here; 0 where the driver's tool does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return smallest_memory(done.stdout)


def smallest_memory(mebibytes: str) -> int:
    """The smallest of the lines, each a number of MiB, in bytes."""
    lines = [line.strip() for line in mebibytes.splitlines()]
    return min((int(line) * MEBIBYTE for line in lines if line.isdigit()), default=0)


def able(nodes: Iterable[Surveyed], device: str) -> list[Surveyed]:
    """The nodes that have what the class asks for."""
    if environment.is_cpu(device):
        return [node for node in nodes if node.shape.cpus >= environment.threads_of(device)]
    # Of a node that could not be asked, Ray at least says whether it has GPUs.
    return [n for n in nodes if n.shape.gpus and (device in n.devices or n.problem is not None)]


def mistakable(nodes: Iterable[Surveyed], fit: Sequence[Surveyed]) -> list[Surveyed]:
    """Nodes that Ray could take for fit ones by their resources: GPUs of another class under the
    same word for their kind, or none."""
    kinds = {node.shape.kind for node in fit}
    return [
        node
        for node in nodes
        if node not in fit
        and any(one.shape.gpus for one in fit)
        and node.shape.gpus
        and (node.shape.kind in kinds or None in (*kinds, node.shape.kind))
    ]


def judged(nodes: Sequence[Surveyed], device: str, code: str) -> list[Surveyed]:
    """The nodes that will run cells of the class; none where the class is not there (yet).

    Raises:
        UserError: one of them cannot, or runs other code than `code`, or they differ in what
            decides a number; the message names each.
    """
    fit = able(nodes, device)
    faults = [f"{node.address}: {node.problem}" for node in fit if node.problem is not None]
    faults += [
        f"{node.address}: has source {node.code} (commit {_short(node.commit)}), "
        f"this driver has {code}"
        for node in fit
        if node.problem is None and node.code != code
    ]
    if faults:
        raise UserError(
            "these nodes do not run the code of this driver; install the same version there (and "
            "the same plug-ins, under the same paths):\n" + "\n".join(f"  {f}" for f in faults)
        )
    groups = _by_environment(fit)
    if len(groups) > 1:
        raise UserError(
            f"{device}: the nodes that have it differ in what decides a number, and their figures "
            "cannot be drawn together; make them alike, or leave all but one of these groups out:\n"
            + "\n".join(f"  {_group(members)}" for members in groups.values())
        )
    return fit


def _by_environment(nodes: Iterable[Surveyed]) -> dict[str, list[Surveyed]]:
    groups: dict[str, list[Surveyed]] = {}
    for node in nodes:
        assert node.environment is not None
        groups.setdefault(node.environment.fingerprint, []).append(node)
    return groups


def _group(members: Sequence[Surveyed]) -> str:
    one = members[0].environment
    assert one is not None
    packages = ", ".join(f"{name} {version}" for name, version in one.packages.items())
    driver = "" if one.driver is None else f", driver {one.driver}"
    where = ", ".join(member.address for member in members)
    return f"{where}: {one.device_name}{driver}, {packages} (environment {one.fingerprint})"


def _short(commit: str | None) -> str:
    return "unknown" if commit is None else commit[:12]


def classes(nodes: Iterable[Surveyed]) -> str:
    """What there is instead, for people."""
    found = sorted({device for node in nodes for device in node.devices})
    return ", ".join(found) or "no accelerator"
