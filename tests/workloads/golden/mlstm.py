"""The golden files of the mLSTM's cell, through every form of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.workloads.golden.driving import Arrays, Case, Form, Tensors, recurrence
from workloads.ops.mlstm import Memory, empty_memory, mlstm, mlstm_reference, mlstm_step

Op = Callable[..., tuple[Tensor, Memory]]

INPUTS = ("q", "k", "v", "i", "f")
MATRICES = ("C0", "S0")
NORMALISERS = ("n0", "z0")


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    """Files of the stabilised cell: gates i and f beside q, k and v."""
    return set(INPUTS) <= set(arrays)


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    """Outputs and last states from an empty memory; the same as `h_from_C0`, `h_from_S0` and so on
    from what the file has of C0 (or S0), n0 and m0, zeros in place of the rest; and gradients of
    sum(w h)."""
    scale = float(note.get("scale", arrays.shape("q")[-1] ** -0.5))
    held = tuple(name for name in (*MATRICES, *NORMALISERS, "m0") if name in arrays)

    def form(op: Op) -> Callable[[Tensors, Tensors], Tensors]:
        def run(inputs: Tensors, start: Tensors) -> Tensors:
            memory = _memory(inputs, start) if start else None
            output, last = op(*inputs.values(), scale=scale, initial_state=memory)
            matrix, normaliser, m = last
            found = {"h": output, "o": output, "C": matrix, "S": matrix}
            return found | {"n": normaliser, "z": normaliser, "m": m}

        return run

    forms = {
        "chunked": Form(form(mlstm), chunked=True),
        "chunked, then steps": Form(form(_continued), chunked=True),
        "steps": Form(form(_stepped)),
        "reference": Form(form(mlstm_reference)),
    }
    results = ("h", "o", "C", "S", "n", "z", "m")
    known = {*held, *MATRICES}
    yield from recurrence(
        arrays,
        forms,
        inputs=INPUTS,
        results=results,
        start=lambda name: held if name in known else (),
    )


def _memory(inputs: Tensors, start: Tensors) -> Memory:
    """The start as the op holds it: in the file m is (B, H, 1) or (B, H)."""
    k, v = inputs["k"], inputs["v"]
    empty = empty_memory(v.shape[0], v.shape[2], k.shape[3], v.shape[3], v.device, v.dtype)
    given = [
        next((start[name] for name in names if name in start), zeros).reshape(zeros.shape)
        for names, zeros in zip((MATRICES, NORMALISERS, ("m0",)), empty, strict=True)
    ]
    return Memory(*given)


def _steps(inputs: tuple[Tensor, ...], scale: float, state: Memory) -> tuple[list[Tensor], Memory]:
    outputs = []
    for token in zip(*(x.unbind(1) for x in inputs), strict=True):
        output, state = mlstm_step(*token, scale=scale, state=state)
        outputs.append(output)
    return outputs, state


def _stepped(
    *inputs: Tensor, scale: float, initial_state: Memory | None = None
) -> tuple[Tensor, Memory]:
    _, k, v, *_ = inputs
    shape = v.shape[0], v.shape[2], k.shape[3], v.shape[3]
    state = empty_memory(*shape, v.device, v.dtype) if initial_state is None else initial_state
    outputs, state = _steps(inputs, scale, state)
    return torch.stack(outputs, 1), state


def _continued(
    *inputs: Tensor, scale: float, initial_state: Memory | None = None
) -> tuple[Tensor, Memory]:
    """A third of the tokens in chunks, then steps."""
    first = max(1, inputs[0].shape[1] // 3)
    output, state = mlstm(*(x[:, :first] for x in inputs), scale=scale, initial_state=initial_state)
    outputs, state = _steps(tuple(x[:, first:] for x in inputs), scale, state)
    return torch.cat((output, *(one[:, None] for one in outputs)), 1), state
