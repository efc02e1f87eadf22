"""A mixer's sequential forms run over a whole context, to be held against its parallel form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from workloads.mixer import Mixer


def decode(mixer: Mixer, x: Tensor, chunks: Iterable[int] = ()) -> tuple[Tensor, Any]:
    """Prefill of x (B, T, D) chunk after chunk, then steps to the end: the outputs (B, T, D) and
    the last state."""
    state = mixer.empty_state(x.shape[0], x.shape[1], x.device, x.dtype)
    outputs, position = [], 0
    for chunk in chunks:
        output, state = mixer.prefill(x[:, position : position + chunk], state)
        outputs.append(output)
        position += chunk
    for token in x[:, position:].unbind(1):
        output, state = mixer.step(token, state)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state
