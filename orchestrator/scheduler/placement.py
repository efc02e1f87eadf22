"""What a cell asks of a cluster: a whole device for a measure cell, and for a train cell a part by
its predicted memory, which is then also the most it may use.

A device is a GPU with its share of the node's cores, or the CPU cores of a node all together. Pure
arithmetic over the nodes there are; Ray does the placing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workloads import environment
from workloads.cell import Cell

MARGIN = 1.25
"""A prediction of memory times this is reserved, and enforced."""
WORKER_BYTES = 512 << 20
"""What a worker and its warm fork server hold beside the cell itself."""
CONTEXT_BYTES = 768 << 20
"""Memory of a GPU that each process takes for its context, outside of what torch allocates."""
HANDED_OUT = 0.75
"""Of the memory that the cores leave over, so much is handed out: Ray counts what was free when a
node came up, and one that joins later may have found less."""
KIND_SHARE = 0.001
"""Of a node's `accelerator_type`, which says what kind its GPUs are: enough to be sent there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """What a node has of what cells ask for. `kind` is Ray's word for its accelerator."""

    cpus: int
    memory: int
    gpus: int = 0
    gpu_memory: int = 0
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one cell gets: Ray's resources by name, the part of a device that this is, and the bytes
    of its memory that are reserved for it (None: all there is)."""

    resources: tuple[tuple[str, float], ...]
    of_device: float = 1.0
    reserved_bytes: int | None = None


def asked(cell: Cell, peak_bytes: int, nodes: Sequence[NodeShape]) -> Share:
    """What a cell gets when it is first tried."""
    if cell.kind == "measure":
        return whole_device(cell.device, nodes)
    return packed(cell, peak_bytes, nodes)


def whole_device(device: str, nodes: Sequence[NodeShape]) -> Share:
    """A device to itself."""
    if environment.is_cpu(device):
        return Share((("CPU", _node_sized([node.cpus for node in nodes])),))
    return Share((("CPU", _cpus_beside_gpu(nodes)), ("GPU", 1.0), *_kind(nodes)))


def _node_sized(sizes: Sequence[int]) -> int:
    """As many CPUs as the smallest node has of those that are more than half as large as the
    largest: no node has room for two such shares. Smaller nodes stay out."""
    return min(size for size in sizes if 2 * size > max(sizes))


def _cpus_beside_gpu(nodes: Sequence[NodeShape]) -> float:
    """A GPU's share of its node's cores, where it is smallest."""
    share = min(node.cpus / node.gpus for node in nodes)
    return math.floor(share) if share >= 1 else share


def _kind(nodes: Sequence[NodeShape]) -> tuple[tuple[str, float], ...]:
    """Ray's resource for this kind of GPU, where all the nodes have the same one."""
    kinds = {node.kind for node in nodes}
    kind = kinds.pop() if len(kinds) == 1 else None
    return () if kind is None else ((f"accelerator_type:{kind}", KIND_SHARE),)


def packed(cell: Cell, peak_bytes: int, nodes: Sequence[NodeShape]) -> Share:
    """The part of a device that a train cell of this predicted peak shares; a whole one where the
    prediction leaves no room beside it."""
    reserved = _rounded_up(math.ceil(MARGIN * peak_bytes))
    if environment.is_cpu(cell.device):
        return _packed_on_cpu(cell, reserved, nodes)
    return _packed_on_gpu(cell, reserved, nodes)


def _packed_on_cpu(cell: Cell, reserved: int, nodes: Sequence[NodeShape]) -> Share:
    threads, held = environment.threads_of(cell.device), reserved + WORKER_BYTES
    fits = [node for node in nodes if node.cpus >= threads and node.memory >= held]
    if not fits:
        return whole_device(cell.device, nodes)
    # Memory that the cores leave over is handed out, too: a prediction may be too low.
    left = min(node.memory // min(node.cpus // threads, node.memory // held) for node in fits)
    held = max(held, math.floor(HANDED_OUT * left))
    part = max(max(threads / node.cpus, held / node.memory) for node in fits)
    return Share((("CPU", float(threads)), ("memory", float(held))), part, held - WORKER_BYTES)


def _packed_on_gpu(cell: Cell, reserved: int, nodes: Sequence[NodeShape]) -> Share:
    device_bytes = min(node.gpu_memory for node in nodes)
    cpus = _cpus_beside_gpu(nodes)
    # Each of them needs a core to launch its kernels from.
    together = min(device_bytes // (reserved + CONTEXT_BYTES), math.floor(cpus))
    if together < 2:
        return whole_device(cell.device, nodes)
    gpu = math.floor(1e4 / together) / 1e4  # Ray counts in ten-thousandths
    resources = (("CPU", float(cpus // together)), ("GPU", gpu), *_kind(nodes))
    return Share(resources, 1 / together, device_bytes // together - CONTEXT_BYTES)


def _rounded_up(size: int) -> int:
    """To three binary digits: shares that are nearly equal become equal, so that workers are
    reused."""
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step


def slots(share: Share, nodes: Sequence[NodeShape]) -> int:
    """How many such shares these nodes have room for at once."""
    return sum(_slots(dict(share.resources), node) for node in nodes)


def _slots(share: dict[str, float], node: NodeShape) -> int:
    there = {"CPU": node.cpus, "memory": node.memory, "GPU": node.gpus}
    return min(int(there[name] / share[name]) for name in share if name in there)


def too_small(device: str, nodes: Sequence[NodeShape]) -> int:
    """How many nodes have no room for a whole device's share."""
    return sum(slots(whole_device(device, nodes), [node]) == 0 for node in nodes)


def cores_beside(cores: Sequence[int], gpu: int | None, gpus: int) -> tuple[int, ...]:
    """A node's cores that go with its GPU of this number; all of them where there is none."""
    if gpu is None or gpus < 2 or gpu >= gpus or len(cores) < gpus:
        return tuple(cores)
    each = len(cores) // gpus
    return tuple(cores[gpu * each : (gpu + 1) * each])


def kind_of(device: str, known: Sequence[str]) -> str | None:
    """Ray's word for a device class: the longest of its known kinds that stands in the class's
    name, word by word."""
    words = f"-{device}-"
    fitting = [kind for kind in known if f"-{environment.device_slug(kind)}-" in words]
    return max(fitting, key=len, default=None)
