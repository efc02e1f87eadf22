"""Sweep files whose cells sleep, on a device class that every node of a cluster has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SWEEP = """
name: {name}
question: {question}
architectures: [none, gru]
task: {{nap: {{seconds: {seconds}, gate: "{gate}"}}}}
device: cpu
model: {{parameters: [2_000], num_layers: 1}}
train:
  seq_len: {contexts}
  tokens: {tokens}
  tokens_per_update: {tokens_per_update}
  seeds: {seeds}
  learning_rate: {{default: 1.0e-3}}
  metrics: [slept]
compare: {{baseline: none, zone: [4, 8]}}
"""
ARCHITECTURES = 2


def nap_sweep(
    name: str,
    question: str,
    *,
    seconds: float,
    seeds: int,
    gate: Path | None = None,
    contexts: Sequence[int] = (4,),
    updates: int = 1,
) -> str:
    """Cells that sleep for so many seconds, and on while the file `gate` is there; `seeds` for each
    of the two architectures at each context."""
    tokens_per_update = max(contexts)
    return SWEEP.format(
        name=name,
        question=question,
        seconds=seconds,
        gate=gate or "",
        contexts=list(contexts),
        tokens=updates * tokens_per_update,
        tokens_per_update=tokens_per_update,
        seeds=seeds,
    )
