"""Sweep files for tests: one that is right, and changes of it by place."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec import LoadedSpec, load_spec
from orchestrator.spec.load import validated
from orchestrator.spec.strict_yaml import parse

SWEEP: Mapping[str, Any] = {
    "name": "made",
    "question": "Which is faster?",
    "architectures": ["lstm", "gru", "transformer"],
    "task": "language_modelling",
    "model": {"parameters": 50_000, "num_layers": 2},
    "device": "cpu",
    "measure": {
        "seq_len": [64, 128],
        "batch_size": [1, 4],
        "rounds": 3,
        "metrics": ["train_step_time", "state_bytes"],
    },
    "train": {
        "seq_len": [64],
        "tokens": 6_400,
        "tokens_per_update": 128,
        "seeds": 2,
        "learning_rate": {"default": 2.0e-3, "lstm": 4.0e-3},
        "metrics": ["validation_loss"],
    },
    "compare": {"baseline": "lstm", "zone": [64, 128]},
}


class _Absent(Enum):
    ABSENT = auto()
    """An enumeration's, since its text, part of a test's name, is the same in every process."""


ABSENT = _Absent.ABSENT


def changed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The right file's data with values replaced at dotted places; ABSENT takes a key away."""
    data = copy.deepcopy(dict(SWEEP))
    for place, value in changes.items():
        *parents, key = place.split(".")
        inner = data
        for parent in parents:
            inner = inner.setdefault(parent, {})
        if value is ABSENT:
            inner.pop(key)
        else:
            inner[key] = value
    return data


def write(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A sweep file on disk. JSON is YAML."""
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(changed(changes or {}), indent=1))
    return path


def load(folder: Path, changes: Mapping[str, Any] | None = None) -> LoadedSpec:
    return load_spec(write(folder, changes))


def faults(changes: Mapping[str, Any]) -> list[str]:
    """What is wrong with the changed file, without line numbers; nothing where it is right."""
    return faults_of(json.dumps(changed(changes)))


def faults_of(text: str) -> list[str]:
    try:
        validated("sweep.yaml", parse(text))
    except SpecError as error:
        return [fault.removeprefix("line 1: ") for fault in error.faults]
    return []
