"""What cells ask of nodes of every shape: never two on one device, never more memory than is
there."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scheduler import placement
from orchestrator.scheduler.placement import (
    CONTEXT_BYTES,
    HANDED_OUT,
    MARGIN,
    WORKER_BYTES,
    NodeShape,
    Share,
    cores_beside,
    kind_of,
    packed,
    slots,
    whole_device,
)
from tests.workloads.tiny_cells import train_cell

GIB = 1 << 30
H100 = "nvidia-h100-80gb-hbm3"
EIGHT_GPUS = NodeShape(cpus=96, memory=900 * GIB, gpus=8, gpu_memory=80 * GIB, kind="H100")
NODES = st.lists(
    st.builds(NodeShape, cpus=st.integers(1, 128), memory=st.integers(GIB, 512 * GIB)),
    min_size=1,
    max_size=8,
)


def node(cpus: int, memory: int = 64 * GIB) -> NodeShape:
    return NodeShape(cpus=cpus, memory=memory)


def asked(share: Share) -> dict[str, float]:
    return dict(share.resources)


def test_a_measure_cell_on_a_cpu_takes_a_node() -> None:
    assert whole_device("cpu:1", [node(8), node(8)]) == Share((("CPU", 8),))
    assert asked(whole_device("cpu:1", [node(8), node(12)])) == {"CPU": 8}
    assert asked(whole_device("cpu:1", [node(8), node(64), node(48)])) == {"CPU": 48}


@given(NODES)
def test_no_node_has_room_for_two_measure_cells(nodes: list[NodeShape]) -> None:
    share = whole_device("cpu:1", nodes)
    assert all(slots(share, [one]) <= 1 for one in nodes)
    assert slots(share, nodes) + placement.too_small("cpu:1", nodes) == len(nodes)
    assert slots(share, nodes) >= 1


def test_a_measure_cell_on_a_gpu_takes_its_part_of_the_cores_too() -> None:
    share = whole_device(H100, [EIGHT_GPUS])
    assert asked(share) == {"CPU": 12, "GPU": 1, "accelerator_type:H100": 0.001}
    assert (share.of_device, share.reserved_bytes) == (1.0, None)
    assert slots(share, [EIGHT_GPUS]) == 8
    few = NodeShape(cpus=2, memory=GIB, gpus=4)
    assert asked(whole_device(H100, [few])) == {"CPU": 0.5, "GPU": 1}


def test_train_cells_are_packed_by_threads_and_memory() -> None:
    one = node(8, 32 * GIB)
    share = packed(train_cell(), GIB, [one])
    held = asked(share)["memory"]
    assert held == WORKER_BYTES + (share.reserved_bytes or 0)
    assert (share.reserved_bytes or 0) >= MARGIN * GIB
    assert share.of_device == 1 / 8 and slots(share, [one]) == 8
    assert held == HANDED_OUT * one.memory / 8
    three = packed(train_cell(device="cpu:3"), 1 << 20, [one])
    assert asked(three)["CPU"] == 3 and slots(three, [one]) == 2


@given(NODES, st.integers(1, 1 << 40))
def test_what_is_packed_fits_into_memory(nodes: list[NodeShape], peak: int) -> None:
    share = packed(train_cell(), peak, nodes)
    for one in nodes:
        beside = slots(share, [one])
        assert beside * asked(share).get("memory", 0) <= one.memory
    assert slots(share, nodes) >= 1
    assert 0 < share.of_device <= 1
    assert (share.reserved_bytes is None) == (share.of_device == 1 and "memory" not in asked(share))


@given(NODES, st.integers(1, 1 << 40))
def test_memory_that_the_cores_leave_over_costs_no_slot(nodes: list[NodeShape], peak: int) -> None:
    share = packed(train_cell(), peak, nodes)
    if share.reserved_bytes is None:
        return
    least = placement._rounded_up(math.ceil(MARGIN * peak))
    assert share.reserved_bytes >= least
    tight = Share((("CPU", 1.0), ("memory", float(least + WORKER_BYTES))))
    for one in nodes:
        if one.memory >= least + WORKER_BYTES:
            assert slots(share, [one]) == slots(tight, [one])


def test_a_node_that_joins_with_less_free_memory_has_room_too() -> None:
    """Nodes of one machine, or of one kind, count what was free when each of them came up."""
    for first in (node(1, 24 * GIB), node(8, 24 * GIB)):
        later = replace(first, memory=first.memory * 4 // 5)
        share = packed(train_cell(), 1 << 20, [first])
        assert slots(share, [later]) == slots(share, [first]) == first.cpus


def test_a_prediction_that_fits_nowhere_gets_a_whole_device() -> None:
    nodes = [node(8, 4 * GIB)]
    assert packed(train_cell(), 100 * GIB, nodes) == whole_device("cpu:1", nodes)
    assert packed(train_cell(device=H100), 70 * GIB, [EIGHT_GPUS]) == whole_device(
        H100, [EIGHT_GPUS]
    )


def test_a_gpu_is_shared_by_predicted_memory() -> None:
    share = packed(train_cell(device=H100), 10 * GIB, [EIGHT_GPUS])
    assert asked(share)["GPU"] == 0.2 and asked(share)["CPU"] == 2
    assert share.reserved_bytes == 16 * GIB - CONTEXT_BYTES
    assert share.of_device == 1 / 5
    small = packed(train_cell(device=H100), 1 << 20, [EIGHT_GPUS])
    assert asked(small)["CPU"] == 1, "as many as there are cores beside it"
    assert 12 * asked(small)["GPU"] <= 1


def test_sizes_that_are_nearly_equal_are_equal() -> None:
    shares = {packed(train_cell(), GIB + n * (1 << 20), [node(8)]) for n in range(1, 40)}
    assert len(shares) == 1


def test_cores_go_with_their_gpu() -> None:
    cores = tuple(range(8))
    assert cores_beside(cores, 1, 4) == (2, 3)
    assert cores_beside(cores, None, 4) == cores
    assert cores_beside(cores, 0, 1) == cores
    assert cores_beside((0, 1), 2, 4) == (0, 1), "fewer cores than GPUs"


def test_ray_has_a_word_for_a_class() -> None:
    known = ["A100", "H100", "L4", "L40S", "A100-80G", "TPU-V4"]
    assert kind_of(H100, known) == "H100"
    assert kind_of("nvidia-l4", known) == "L4"
    assert kind_of("nvidia-l40s", known) == "L40S"
    assert kind_of("nvidia-rtx-9999", known) is None
