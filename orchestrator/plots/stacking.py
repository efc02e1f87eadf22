"""Boxes stacked in a margin, each as near to its wish as the others leave room."""

from __future__ import annotations

from collections.abc import Sequence


def spread(middles: Sequence[float], sizes: Sequence[float], room: float) -> list[float]:
    """Moves stacked boxes, given from the top down by their middles, as little as keeps them apart
    and inside 0..room; where the room is too small they run out at the bottom."""
    placed: list[float] = []
    ceiling = room
    for middle, size in zip(middles, sizes, strict=True):
        placed.append(min(middle, ceiling - size / 2))
        ceiling = placed[-1] - size / 2
    floor = 0.0
    for i in reversed(range(len(placed))):
        if placed[i] - sizes[i] / 2 >= floor:
            break
        placed[i] = floor + sizes[i] / 2
        floor = placed[i] + sizes[i] / 2
    return placed


def nearest(middles: Sequence[float], sizes: Sequence[float], room: float) -> list[float]:
    """As `spread`, but with the least squares of all ways moved: boxes that meet are pushed to both
    sides, so that leaders stay short. Boxes too many for the room run out at the bottom."""
    clusters: list[tuple[float, float, int]] = []  # sum of wished tops, height, boxes
    for middle, size in zip(middles, sizes, strict=True):
        wish, height, boxes = middle + size / 2, size, 1
        while clusters and _top(clusters[-1], room) - clusters[-1][1] < _top(
            (wish, height, boxes), room
        ):
            before = clusters.pop()
            # A box's wish for its cluster's top counts the boxes above it.
            wish = before[0] + wish + boxes * before[1]
            height, boxes = before[1] + height, before[2] + boxes
        clusters.append((wish, height, boxes))
    placed: list[float] = []
    for cluster in clusters:
        top = _top(cluster, room)
        for size in sizes[len(placed) : len(placed) + cluster[2]]:
            placed.append(top - size / 2)
            top -= size
    return placed


def _top(cluster: tuple[float, float, int], room: float) -> float:
    """Where a cluster's upper edge lies: at its boxes' mean wish, inside the room."""
    wish, height, boxes = cluster
    return min(max(wish / boxes, height), room)
