"""flashrnn's plain forms of the sLSTM's cell: a loop over tokens, by autograd and backward by hand.

The one library form with memory mixing. The package asks for Triton and ninja, which its plain
forms never load: `pip install --no-deps flashrnn`. Without it there are no oracles here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tests.workloads.oracles.oracle import (
    BATCH,
    FLOAT64,
    HEAD,
    HEADS,
    Case,
    Oracle,
    draw,
    library,
    op_case,
)
from workloads.ops import slstm

AVAILABLE = importlib.util.find_spec("flashrnn") is not None
BACKENDS = ("vanilla", "vanilla_fwbw")
ORDER = (1, 2, 0, 3)
"""Its gates are i, f, z, o; ours z, i, f, o."""


def flashrnn_gates(x: Tensor) -> Tensor:
    """(B, T, H, 4, D) -> its (B, T, 4, H, D)."""
    return torch.stack([x[..., gate, :] for gate in ORDER], 2)


def flashrnn_recurrent(recurrent: Tensor) -> Tensor:
    """(H, D, 4 D) -> its (4, H, D, D), from the last axis to the one before."""
    gates = recurrent.unflatten(2, (4, -1))
    return torch.stack([gates[:, :, gate].transpose(1, 2) for gate in ORDER])


def flashrnn_slstm(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function, in its layout: gates, recurrent, bias (4, H, D), and the state of h, c, n, m,
    (4, B, 1, H, D), or None -> the states after every token, (4, B, T, H, D), and the last."""
    found = library("flashrnn").flashrnn
    # dtype: what autocast would cast to
    return partial(found, function="slstm", backend=backend, dtype="float32")


def _slstm(backend: str, carried: bool, length: int) -> Case:
    """Memories are compared free of their scales, which are a matter of the form."""
    x, recurrent = draw((BATCH, length, HEADS, 4, HEAD), (HEADS, HEAD, 4 * HEAD))
    hidden, cell, above, scale = draw(*[(BATCH, HEADS, HEAD)] * 4, seed=1)
    start = [hidden, cell, 1 + above.abs()] if carried else []

    def proper(output: Tensor, last: slstm.Cell) -> tuple[Tensor, ...]:
        return output, last.hidden, *(y * last.scale.exp() for y in (last.cell, last.normaliser))

    def ours(x: Tensor, recurrent: Tensor, *start: Tensor) -> tuple[Tensor, ...]:
        state = slstm.Cell(*start, scale) if carried else None
        return proper(*slstm.slstm(x, recurrent, forget="sigmoid", initial_state=state))

    def theirs(x: Tensor, recurrent: Tensor, *start: Tensor) -> tuple[Tensor, ...]:
        state = torch.stack((*start, scale)).unsqueeze(2) if carried else None
        bias = x.new_zeros(4, HEADS, HEAD)
        states, last = flashrnn_slstm(backend)(
            flashrnn_gates(x), flashrnn_recurrent(recurrent), bias, state
        )
        return proper(states[0], slstm.Cell(*last.squeeze(2)))

    return op_case([x, recurrent * HEAD**-0.5, *start], ours, theirs)


def _oracle(backend: str, carried: bool) -> Oracle:
    start = "a state" if carried else "nothing"
    return Oracle(
        "slstm", f"flashrnn {backend}, from {start}", FLOAT64, partial(_slstm, backend, carried)
    )


ORACLES = (
    tuple(_oracle(backend, carried) for backend in BACKENDS for carried in (False, True))
    if AVAILABLE
    else ()
)
