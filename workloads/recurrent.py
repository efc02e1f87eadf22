"""What the architectures on torch's recurrent modules share: how the weights start, and which
kernel goes over the sequence, a library's (oneDNN, cuDNN) or ATen's own loop over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workloads.ops.gru import gru
from workloads.ops.precision import without_autocast
from workloads.plugins import Unsupported

LOOP_CALLS = 10.0
"""Small operations of a token in ATen's loop over tokens: a product and what is done by element."""


def initialise(rnn: nn.RNNBase) -> None:
    """torch's own U(-1/sqrt(D), 1/sqrt(D)) for the weights, D the hidden width: N(0, 0.02) would
    close the recurrence at small widths. Biases are zero."""
    bound = rnn.hidden_size**-0.5
    w_ih, w_hh, b_ih, b_hh = rnn.all_weights[0]
    nn.init.uniform_(w_ih, -bound, bound)
    nn.init.uniform_(w_hh, -bound, bound)
    nn.init.zeros_(b_ih)
    nn.init.zeros_(b_hh)


def run(rnn: nn.RNNBase, x: Tensor, state: Any = None, *, library: bool = True) -> Any:
    """The module over x (B, T, D) from `state`: its outputs and last state. Without `library`, by
    ATen's loop over tokens. A GRU on a CPU is always that, differentiated by hand.

    Under bfloat16 autocast torch runs cuDNN's recurrences in float16, whose gradients vanish
    without loss scaling; here they then run in float32.
    """
    if isinstance(rnn, nn.GRU) and x.device.type == "cpu" and torch.is_grad_enabled():
        first = x.new_zeros(x.shape[0], rnn.hidden_size) if state is None else state[0]
        states = gru(x, first, *rnn.all_weights[0])
        return states, states[:, -1][None]
    if not library:
        with _without_libraries():
            return run(rnn, x, state)
    if not (x.is_cuda and torch.is_autocast_enabled("cuda")):
        return rnn(x, state)
    with without_autocast(x):
        if isinstance(state, Tensor):
            state = state.float()
        elif state is not None:
            state = tuple(part.float() for part in state)
        return rnn(x.float(), state)


@contextmanager
def _without_libraries() -> Iterator[None]:
    """What is built within it takes neither oneDNN nor cuDNN; its backward does not either."""
    modules: tuple[Any, ...] = torch.backends.mkldnn, torch.backends.cudnn
    before = [module.enabled for module in modules]
    for module in modules:
        module.enabled = False
    try:
        yield
    finally:
        for module, enabled in zip(modules, before, strict=True):
            module.enabled = enabled


def cudnn_kernel(module: str) -> str:
    """The implementation of a module (`torch.nn.LSTM`) on an accelerator. Raises Unsupported where
    torch has no cuDNN."""
    cudnn = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    if torch.version.cuda is not None and not cudnn:
        raise Unsupported(f"this torch is built without cuDNN, the fast kernel of {module}")
    return f"{module} (cuDNN)"


def arithmetic(options: Any, precision: str, device_type: str) -> str:
    """In what a training step computes the recurrence: see `run`."""
    return precision if device_type == "cpu" else "float32"
