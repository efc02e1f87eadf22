"""RWKV-7's WKV files: r, w_log, k, v, a, b."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.workloads.golden.driving import Arrays, Case, Form, Tensors, called, recurrence
from workloads.ops.rwkv7 import wkv7, wkv7_reference, wkv7_step

INPUTS = ("r", "w_log", "k", "v", "a", "b")


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    """By the note's name or the file's, or by the inputs that no other file has."""
    return called(note, name, "rwkv7") or set(INPUTS) <= set(arrays)


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    """Outputs and last states of all three forms, from zero and from the file's state, then the
    gradients where the file has them."""
    scale = float(note.get("scale", 1.0))

    def form(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Tensors, Tensors], Tensors]:
        def run(inputs: Tensors, start: Tensors) -> Tensors:
            state = next(iter(start.values()), None)
            output, last = op(*inputs.values(), scale=scale, initial_state=state)
            return {"o": output, "S": last}

        return run

    forms = {
        "chunked": Form(form(wkv7), chunked=True),
        "steps": Form(form(_stepped)),
        "reference": Form(form(wkv7_reference)),
    }
    yield from recurrence(arrays, forms, inputs=INPUTS, results=("o", "S"))


def _stepped(
    *inputs: Tensor, scale: float, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    v = inputs[3]
    state = initial_state
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], inputs[2].shape[-1], v.shape[-1])
    outputs = []
    for token in zip(*(x.unbind(1) for x in inputs), strict=True):
        output, state = wkv7_step(*token, scale=scale, state=state)
        outputs.append(output)
    return torch.stack(outputs, 1), state
