"""minGRU and minLSTM files: pre-activations in, hidden states out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.workloads.golden.driving import Arrays, Case, Form, Pair, Tensors, recurrence
from workloads.architectures.min_gru import gates, log_decay
from workloads.ops.scan import linear_scan, linear_scan_reference

Op = Callable[..., tuple[Tensor, Tensor]]
PRE_ACTIVATIONS = {"gru": ("z_pre", "h_pre"), "lstm": ("f_pre", "i_pre", "h_pre")}


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    return bool(_cells(arrays))


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    """The hidden states of all forms, from zero and from the file's state, and the last of them;
    gradients of sum(w h) where the file has them.

    In a file of one cell its states may be called h; the gradient of the candidate, which both
    cells take, is compared there alone.
    """
    cells = _cells(arrays)
    for cell in cells:
        names = PRE_ACTIVATIONS[cell]
        results = (f"min{cell}", "last", f"min{cell}_last")
        results += ("h", "o", "h_last", "last_state") if len(cells) == 1 else ()
        for label, op in _FORMS.items():
            named = f"{label}, min{cell}"
            forms = {named: Form(partial(_run, op, cell, results))}
            yield from (
                case
                for case in recurrence(arrays, forms, inputs=names, results=results)
                if len(cells) == 1 or not case.name.endswith(": dh_pre")
            )
            for array in arrays:
                stem, _, start = array.partition("_from_")
                if (
                    stem in (f"min{cell}", "h")
                    and stem in results
                    and (not start or start in arrays)
                ):
                    run = partial(_last, arrays, op, cell, array, start)
                    yield Case(f"{named}: {array}, last state", run)
        yield Case(f"log decay of min{cell}", partial(_decay, arrays, cell))


def _cells(arrays: Arrays) -> list[Any]:
    """The cells whose pre-activations the file has."""
    return [cell for cell, names in PRE_ACTIVATIONS.items() if set(names) <= set(arrays)]


def _run(op: Op, cell: Any, results: tuple[str, ...], inputs: Tensors, start: Tensors) -> Tensors:
    decay, added = gates(cell, torch.cat(list(inputs.values()), -1))
    states, last = op(decay, added, initial_state=next(iter(start.values()), None))
    return {name: last if "last" in name else states for name in results}


def _last(arrays: Arrays, op: Op, cell: Any, array: str, start: str, dtype: torch.dtype) -> Pair:
    """The last state, which every form returns beside the states."""
    inputs = {name: arrays.tensor(name, dtype) for name in PRE_ACTIVATIONS[cell]}
    initial = {start: arrays.tensor(start, dtype)} if start else {}
    return _run(op, cell, ("last",), inputs, initial)["last"], arrays.tensor(array)[:, -1]


def _decay(arrays: Arrays, cell: Any, dtype: torch.dtype) -> Pair:
    """What the GPU's kernel is given, against what the formula of the file's note says."""
    gate = {name: arrays.tensor(name, dtype) for name in PRE_ACTIVATIONS[cell]}
    opened = {name: torch.sigmoid(x) for name, x in gate.items()}
    if cell == "gru":
        expected = 1 - opened["z_pre"]
    else:
        expected = opened["f_pre"] / (opened["f_pre"] + opened["i_pre"])
    return log_decay(cell, torch.cat(list(gate.values()), -1)).exp(), expected


def _stepped(
    decay: Tensor, added: Tensor, *, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token through the parallel form, which continues from a state."""
    state = initial_state
    outputs = []
    for t in range(added.shape[1]):
        now = slice(t, t + 1)
        output, state = linear_scan(decay[:, now], added[:, now], initial_state=state)
        outputs.append(output)
    assert state is not None
    return torch.cat(outputs, 1), state


_FORMS: dict[str, Op] = {
    "parallel": linear_scan,
    "reference": linear_scan_reference,
    "steps": _stepped,
}
