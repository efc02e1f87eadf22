"""Reference vectors: what others computed, ours within rounding of it.

    pytest tests/workloads/test_golden.py [--golden DIR] [-s]

Every NAME.npz below the folder that has a NAME.json beside it, naming the case and its switches, is
given to the adapters in `golden/`. A file that no adapter knows fails, so that none is passed over
in silence.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.workloads import golden

Case = Callable[[torch.dtype], tuple[Tensor, Tensor]]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference, relative to the largest value expected."""
STATISTICS = {"mqar_examples", "mqar_stats", "index"}
"""Of a task's data, not of a mixer."""


class Adapter(Protocol):
    """What a module in `golden/` exports."""

    def knows(self, note: dict[str, Any], name: str) -> bool: ...

    def cases(
        self, note: dict[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, Case]]: ...


def adapters() -> list[Adapter]:
    found: list[Any] = [
        importlib.import_module(f"{golden.__name__}.{module.name}")
        for module in pkgutil.iter_modules(golden.__path__)
    ]
    return [module for module in found if hasattr(module, "cases")]


def files(folder: Path) -> list[Path]:
    notes = sorted(path for path in folder.rglob("*.json") if path.stem not in STATISTICS)
    return [note for note in notes if note.with_suffix(".npz").exists()]


def cases_of(note: Path) -> Iterator[tuple[str, Case]]:
    """Every case of one file, by name.

    Raises:
        LookupError: no adapter knows it.
    """
    told = json.loads(note.read_text())
    knowing = [adapter for adapter in adapters() if adapter.knows(told, note.stem)]
    if not knowing:
        raise LookupError(f"{note}: no adapter in tests/workloads/golden knows this file")
    with np.load(note.with_suffix(".npz")) as arrays:
        loaded = {key: arrays[key] for key in arrays.files}
    for adapter in knowing:
        for name, case in adapter.cases(told, loaded):
            yield f"{note.stem}: {name}", case


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} for {tuple(expected.shape)}"
    scale = expected.abs().max().item() or 1.0
    return (found.detach().double() - expected.double()).abs().max().item() / scale


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "note" in metafunc.fixturenames:
        notes = files(metafunc.config.getoption("--golden"))
        metafunc.parametrize("note", notes, ids=[note.stem for note in notes])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_ours_are_theirs(note: Path, dtype: torch.dtype) -> None:
    wrong, worst, count = [], 0.0, 0
    for name, case in cases_of(note):
        error = relative_error(*case(dtype))
        worst, count = max(worst, error), count + 1
        if not error <= TOLERANCES[dtype]:
            wrong.append(f"{name}: {error:.1e}")
    assert count, f"{note}: has no case"
    assert not wrong, "\n".join(wrong)
    print(f"{note.stem}: {count} cases, worst relative error {worst:.1e} in {dtype}")
