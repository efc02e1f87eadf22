"""Our ops and mixers equal the libraries': outputs, last states and gradients.

    pytest tests/workloads/test_oracles.py [-s]

With -s the largest errors found are shown. The libraries are in the `dev` extra, for these tests
alone: the same numbers come out of code that others wrote and use.
"""

from __future__ import annotations

import importlib
import pkgutil
import socket
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from tests.workloads import oracles
from tests.workloads.oracles import memory_caching_package
from tests.workloads.oracles.oracle import Oracle
from workloads import registry

LENGTHS = (1, 37, 64, 150)
"""One token, an odd length, one chunk, several and a rest."""
WITHOUT = {
    "none": "mixes nothing",
    "lstm": "torch's own module",
    "gru": "torch's own module",
    "stacked_rnn": "torch's own modules",
    "hybrid": "made of the others",
    "kvm": "in no library",
}
if not memory_caching_package.AVAILABLE:
    WITHOUT["memory_caching"] = "the package refuses this Python"


def found() -> list[Oracle]:
    modules = [
        importlib.import_module(f"{oracles.__name__}.{module.name}")
        for module in pkgutil.iter_modules(oracles.__path__)
    ]
    return [oracle for module in modules for oracle in getattr(module, "ORACLES", ())]


ORACLES = found()


@pytest.fixture(autouse=True, scope="module")
def _offline() -> Iterator[None]:
    """Without a message about missing kernels, and without the net."""

    def refuse(*_: object) -> None:
        raise AssertionError("a library reached for the net")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_equals_the_library(oracle: Oracle, length: int) -> None:
    case = oracle.case(length)
    ours, theirs = case.ours(), case.theirs()
    outputs = errors(ours, theirs)
    slopes = errors(gradients(ours, case.leaves), gradients(theirs, case.leaves))
    print(f"\n{oracle}, {length}: outputs {max(outputs):.1e}, gradients {max(slopes):.1e}")
    assert all(error <= oracle.tolerance for error in outputs), outputs
    assert all(error <= oracle.tolerance for error in slopes), slopes


def test_every_architecture_has_an_oracle_or_a_reason() -> None:
    assert {oracle.architecture for oracle in ORACLES} | set(WITHOUT) == set(
        registry.names("architectures")
    )
    assert not {oracle.architecture for oracle in ORACLES} & set(WITHOUT)


def errors(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[float]:
    """Of each tensor the largest difference, relative to the largest value of it."""
    relative = []
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        scale = float(one.detach().abs().max()) or 1.0
        relative.append(float((one - other).detach().abs().max()) / scale)
    return relative


def gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of a random weighted sum of all outputs; zeros for a leaf that plays no part."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in outputs]
    found = torch.autograd.grad(list(outputs), leaves, weights, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
