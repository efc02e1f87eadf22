"""Delta rule files: without a decay, with one per head (`g`), or with one per key channel
(`gk`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.workloads.golden.driving import Arrays, Case, Form, Tensors, called, recurrence
from workloads.ops.delta_rule import delta_rule, delta_rule_reference, delta_rule_step

ARGUMENTS = {"q": "q", "k": "k", "v": "v", "g": "log_decay", "gk": "log_decay", "beta": "beta"}
"""The file's names of the inputs, and the ops' arguments that they are."""


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    """By the note's name or the file's, as far as a longer name says which switches it holds, or by
    the writing strength that no other file has."""
    prefixes = ("delta_rule", "gated_delta_rule", "kda")
    return called(note, name, *prefixes) or {"q", "k", "v", "beta"} <= set(arrays)


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    """Outputs and last states of all three forms, from zero and from the file's state, then the
    gradients where the file has them."""
    scale = float(note.get("scale", arrays.shape("k")[-1] ** -0.5))

    def form(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Tensors, Tensors], Tensors]:
        def run(inputs: Tensors, start: Tensors) -> Tensors:
            named: dict[str, Any] = {"log_decay": None}
            named |= {ARGUMENTS[array]: x for array, x in inputs.items()}
            output, state = op(**named, scale=scale, initial_state=next(iter(start.values()), None))
            return {"o": output, "S": state}

        return run

    forms = {
        "chunked": Form(form(delta_rule), chunked=True),
        "steps": Form(form(_stepped)),
        "reference": Form(form(delta_rule_reference)),
    }
    yield from recurrence(arrays, forms, inputs=ARGUMENTS, results=("o", "S"))


def _stepped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    state = initial_state
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    outputs = []
    for t in range(v.shape[1]):
        decay = None if log_decay is None else log_decay[:, t]
        output, state = delta_rule_step(
            q[:, t], k[:, t], v[:, t], decay, beta[:, t], scale=scale, state=state
        )
        outputs.append(output)
    return torch.stack(outputs, 1), state
