"""The seam every architecture fills: a sequence mixer in three forms that must agree.

*parallel* (training and prefill: all positions at once), *step* (decoding: one token, explicit
state), and *prefill* (the parallel form that also returns the state, continuing from one). Prefill
of any split, then steps, equals the parallel form; `tests/workloads/test_mixers.py` holds every
architecture to that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

INIT_STD = 0.02
"""Standard deviation of every linear map at the start, GPT-2's."""


@dataclass(slots=True)
class MixerState:
    """Base of the explicit decoding states: dataclasses whose fields are tensors (or None), and
    plain integers.

    The leading dimension of every tensor is the batch.
    """


class Mixer(nn.Module, ABC):
    """Maps (batch, seq_len, d_model) to the same shape; position t sees positions 0..t only.

    `undecayed` names parameters that hold rates, mixes or norms as matrices: weight decay would
    pull them to a meaning of its own.
    """

    undecayed: ClassVar[tuple[str, ...]] = ()

    def initialise(self, residual_scale: float) -> None:
        """Draw the weights from torch's default CPU generator; runs once, before any cast or move.

        As in GPT-2 (Radford et al. 2019, section 2.3) the weights of linear maps come from N(0,
        0.02), their biases are zero, and the map named `out`, which writes to the residual stream,
        is scaled by `residual_scale`, 1 / sqrt(2 num_layers). A mixer with other needs overrides
        this.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                scale = residual_scale if name.split(".")[-1] == "out" else 1.0
                nn.init.normal_(module.weight, std=INIT_STD * scale)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The parallel form from an empty context: (B, T, D) -> (B, T, D)."""

    @abstractmethod
    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> Any:
        """The state before the first token; buffers that grow with context are allocated for
        `max_len` tokens."""

    @abstractmethod
    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The parallel form continuing from `state`: (B, T, D), state -> (B, T, D), state after T
        more tokens."""

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token: (B, D), state -> (B, D), state. May update the state's buffers in place."""


def detached(state: Any) -> Any:
    """The same state without its past: nothing is learnt through it."""
    return _changed(state, Tensor.detach)


def repeated(state: Any, times: int) -> Any:
    """The state of one sequence as that of a batch of `times`, each with memory of its own."""
    return _changed(state, lambda tensor: tensor.repeat_interleave(times, dim=0))


def refilled(state: Any, tensors: Iterable[Tensor]) -> Any:
    """The state with these tensors in place of its own, in the order of `state_tensors`."""
    given = iter(tensors)
    return _changed(state, lambda _: next(given))


def _changed(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state with every tensor changed, however nested in dataclasses, tuples and lists."""
    if isinstance(state, Tensor):
        return change(state)
    if is_dataclass(state) and not isinstance(state, type):
        return replace(
            state,
            **{f.name: _changed(getattr(state, f.name), change) for f in fields(state) if f.init},
        )
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(_changed(item, change) for item in state))
    if isinstance(state, (list, tuple)):
        return type(state)(_changed(item, change) for item in state)
    return state


def state_tensors(state: Any) -> list[Tensor]:
    """Every tensor in a state, however nested in dataclasses, tuples and lists."""
    if isinstance(state, Tensor):
        return [state]
    if is_dataclass(state):
        return [t for f in fields(state) for t in state_tensors(getattr(state, f.name))]
    if isinstance(state, (list, tuple)):
        return [t for item in state for t in state_tensors(item)]
    return []


def put_token(held: Tensor, slot: int, token: Tensor) -> None:
    """Writes one token's (B, H, ...) to a slot of what is held of all, (B, H, slots, ...).

    As a slice: torch's compiler would build a step anew for each number of an index."""
    held[:, :, slot : slot + 1] = token.unsqueeze(2)


def held_bytes(state: Any) -> int:
    """Bytes of memory behind a state's tensors, each storage counted once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state_tensors(state)
    }
    return sum(storages.values())
