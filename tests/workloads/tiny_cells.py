"""Cells so small that one runs in about a second."""

from __future__ import annotations

from typing import Any

from workloads import registry
from workloads.cell import Cell

_BASE: dict[str, Any] = {
    "architecture": "lstm",
    "task": "language_modelling",
    "task_version": 1,
    "size": 20_000,
    "precision": "float32",
    "device": "cpu:1",
    "seq_len": 32,
}


def _completed(content: dict[str, Any]) -> dict[str, Any]:
    """The architecture's present version, where there is one of that name; a hybrid's whole
    pattern, one layer of any other."""
    name = content["architecture"]
    known = name in registry.names("architectures")
    return {
        "architecture_version": registry.load("architectures", name).version if known else 1,
        "num_layers": 2 if name == "hybrid" else 1,
        **content,
    }


def measure_cell(**fields: Any) -> Cell:
    content = _BASE | {"batch_size": 2, "round": 0, "metrics": ("train_step_time",)} | fields
    content = _completed(content)
    return Cell(kind="measure", label=content["architecture"], **content)


def train_cell(**fields: Any) -> Cell:
    content = _BASE | {
        "seed": 0,
        "tokens": 64 * 20,
        "tokens_per_update": 64,
        "learning_rate": 2e-3,
        "task_options": {"validation_tokens": 512},
        "metrics": ("validation_loss",),
    }
    content = _completed(content | fields)
    return Cell(kind="train", label=content["architecture"], **content)
