"""What the architectures on torch's recurrent modules share: how the weights start, and the kernel
that an NVIDIA GPU must have for them."""

from __future__ import annotations

import torch
from torch import nn

from workloads.plugins import Unsupported


def initialise(rnn: nn.RNNBase) -> None:
    """torch's own U(-1/sqrt(D), 1/sqrt(D)) for the weights, D the hidden width: N(0, 0.02) would
    close the recurrence at small widths. Biases are zero."""
    bound = rnn.hidden_size**-0.5
    w_ih, w_hh, b_ih, b_hh = rnn.all_weights[0]
    nn.init.uniform_(w_ih, -bound, bound)
    nn.init.uniform_(w_hh, -bound, bound)
    nn.init.zeros_(b_ih)
    nn.init.zeros_(b_hh)


def cudnn_kernel(module: str) -> str:
    """The implementation of a module (`torch.nn.LSTM`) on an accelerator. Raises Unsupported where
    torch has no cuDNN."""
    cudnn = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    if torch.version.cuda is not None and not cudnn:
        raise Unsupported(f"this torch is built without cuDNN, the fast kernel of {module}")
    return f"{module} (cuDNN)"
