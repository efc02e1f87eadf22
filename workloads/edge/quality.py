"""What int8 costs a trained model: its loss on the same tokens through both graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from workloads.edge import graphs, serve
from workloads.mixer import state_tensors
from workloads.model import Backbone
from workloads.plugins import Unsupported

Floats = NDArray[np.float32]
TOLERANCE = 1e-3
"""A float32 graph whose outputs are further from the model's is not the model."""


def losses(model: Backbone, tokens: Tensor) -> tuple[float, float]:
    """Nats per token of (windows, seq_len + 1) `tokens` in float32 and in int8, each window read
    from an empty state.

    Taken through the step form, token by token; where a state holds whole numbers, its graph is of
    one place only, and the parallel form is taken instead.

    Raises:
        MemoryError: exporting did not fit into this machine's memory.
        Unsupported: neither form exports as the model it is.
    """
    graphs.check_packages()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        reasons = folder / "reasons.txt"

        def compare() -> tuple[float, ...]:
            said = []
            for form in (_by_steps, _in_parallel):
                try:
                    return form(model, tokens, folder)
                except Unsupported as error:
                    said.append(str(error))
            reasons.write_text("; in parallel: ".join(said), encoding="utf-8")
            return ()

        found = graphs.exported(compare)
        if not found:
            raise Unsupported(f"by steps: {reasons.read_text(encoding='utf-8')}")
    float32, int8 = found
    return float32, int8


def _by_steps(model: Backbone, tokens: Tensor, folder: Path) -> tuple[float, float]:
    windows, length = tokens.shape[0], tokens.shape[1] - 1
    state = model.empty_state(windows, length)
    inputs = [tokens[:, 0].contiguous(), *(tensor.clone() for tensor in state_tensors(state))]
    start = [tensor.numpy().copy() for tensor in inputs[1:]]

    def outputs(graph: Path) -> Floats:
        session, fed = _session(graph), list(start)
        found = []
        for position in range(length):
            logits, *fed = session([tokens[:, position].numpy(), *fed])
            found.append(logits)
        return np.stack(found, 1)

    return _compared(model, tokens, graphs.Step(model, state), inputs, outputs, folder)


def _in_parallel(model: Backbone, tokens: Tensor, folder: Path) -> tuple[float, float]:
    inputs = [tokens[:1, :-1].contiguous()]

    def outputs(graph: Path) -> Floats:
        session = _session(graph)
        return np.concatenate([session([row[None].numpy()])[0] for row in tokens[:, :-1]])

    return _compared(model, tokens, model, inputs, outputs, folder)


def _compared(
    model: Backbone,
    tokens: Tensor,
    form: torch.nn.Module,
    inputs: list[Tensor],
    outputs: Callable[[Path], Floats],
    folder: Path,
) -> tuple[float, float]:
    """The two losses. Raises Unsupported where the form does not export, or its float32 graph is
    not the model."""
    graphs.write_graphs(form, inputs, folder)
    with torch.no_grad():
        wanted = model(tokens[:, :-1])
    found = torch.from_numpy(outputs(folder / graphs.FLOAT))
    scale = float(wanted.abs().max())
    if not torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * scale):
        apart = float((found - wanted).abs().max()) / scale
        raise Unsupported(f"its float32 graph differs from the model by {apart:.1e} of the largest")
    int8 = torch.from_numpy(outputs(folder / graphs.INT8))
    targets = tokens[:, 1:]
    return _loss(found, targets), _loss(int8, targets)


def _loss(logits: Tensor, targets: Tensor) -> float:
    return float(F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten()))


def _session(graph: Path) -> Callable[[list[Any]], list[Any]]:
    """Values of the graph's inputs in their order -> those of its outputs."""
    session = serve.opened(graph)
    names = [one.name for one in session.get_inputs()]
    return lambda values: session.run(None, dict(zip(names, values, strict=True)))
