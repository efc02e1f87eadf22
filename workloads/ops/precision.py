"""Gates, cumulative sums and states keep float32 where products around them do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on x's device inside; costs nothing where there is none, as in a decoding
    step."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def in_state_dtype(
    form: Callable[..., tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor | None],
    state: Tensor,
    *more: object,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """`form` of the inputs, the state and `more`, all tensors in the state's dtype, without
    autocast: its output in the dtype of `like`, and its new state."""
    with without_autocast(like):
        cast = [x if x is None else x.to(state.dtype) for x in inputs]
        output, state = form(*cast, state, *more)
    return output.to(like.dtype), state
