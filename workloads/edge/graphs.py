"""A model as ONNX graphs, in float32 and with int8 weights: what a device at the edge runs.

The step form is exported by `torch.onnx` (one token and the state in, outputs and the state out)
and quantised dynamically by ONNX Runtime: weights of matrix products as int8, one scale a tensor,
activations rounded as they come. Packages: the extra `edge`.

Whole numbers of a state (how long a cache is filled) become constants of its graph: such a graph
takes the step at that place, and no other.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.children import done_in_a_child
from workloads.mixer import refilled, state_tensors
from workloads.plugins import Unsupported

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
FLOAT, INT8 = "float.onnx", "int8.onnx"


def exported(make: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """What `make` returns, which exports, in a child: that takes more memory than a cell at the
    edge is given. Raises MemoryError where this machine's does not suffice, RuntimeError."""
    found = done_in_a_child(make)
    if found is None:
        raise MemoryError("exporting to ONNX takes more memory than this machine has")
    return found


class Step(nn.Module):
    """The step form with a state's tensors as inputs and outputs."""

    def __init__(self, model: Any, state: Any) -> None:
        super().__init__()
        self.model = model
        self.state = state

    def forward(self, token: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, state = self.model.step(token, refilled(self.state, tensors))
        return (outputs, *state_tensors(state))


def check_packages() -> None:
    """Raises Unsupported, with the command that mends it, where a package is missing."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise Unsupported(f"needs more packages: pip install {' '.join(absent)}")


@contextlib.contextmanager
def _exact_log_sigmoids() -> Iterator[None]:
    """Within, log sigmoid x is -softplus(-x). The exporter writes log(sigmoid x), and the sigmoid
    of ONNX Runtime goes no lower than that of -18, where a trained decay may well be."""
    functional: Any = F
    own = functional.logsigmoid
    functional.logsigmoid = lambda x: -F.softplus(-x)
    try:
        yield
    finally:
        functional.logsigmoid = own


def write_graphs(module: nn.Module, inputs: Sequence[Tensor], folder: Path) -> None:
    """Writes `folder/float.onnx` and `folder/int8.onnx`. Best called in a child: the exporter takes
    some hundred megabytes.

    Raises:
        Unsupported: the module does not export; says what the exporter said.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for talkative in ("", "torch.onnx"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(quiet), torch.no_grad(), _exact_log_sigmoids():
            try:
                program = torch.onnx.export(module.eval(), tuple(inputs), dynamo=True)
            except Exception as error:
                said = str(error).strip().splitlines() or [type(error).__name__]
                raise Unsupported(f"does not export to ONNX: {said[0][:200]}") from error
            assert program is not None
            program.save(folder / FLOAT)
            quantize_dynamic(folder / FLOAT, folder / INT8, weight_type=QuantType.QInt8)
