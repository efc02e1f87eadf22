"""What a measured metric is given: one cell's model, built when it is needed, and generated inputs
of its size.

Nothing is learnt here, so inputs and targets are random, drawn on the CPU from the round alone:
every architecture sees the same ones.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from workloads import execution
from workloads.cell import Cell
from workloads.check import Built
from workloads.model import Backbone, ModelShape, build, dtype_of
from workloads.objectives import Objective, objective_of
from workloads.train import adamw, outputs_of

P = ParamSpec("P")
R = TypeVar("R")
Prefill = Callable[[Tensor, list[Any]], tuple[Tensor, list[Any]]]

# Weights move at this rate in a timed step; no number here depends on it.
_LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """One training step over one batch: forward, loss, backward, AdamW, gradients dropped. Clipping
    and data loading are left out. `scored` targets make the loss a mean. `forward` is the model,
    as it is executed."""

    model: Backbone
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.AdamW
    inputs: Tensor
    targets: Tensor
    objective: Objective
    scored: int
    precision: str

    def __call__(self) -> None:
        outputs = outputs_of(self.forward, self.inputs, self.precision)
        torch.autograd.backward(self.objective.total(outputs, self.targets) / self.scored)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def held_bytes(self) -> int:
        """Bytes of what lives from step to step: weights, buffers, gradients, moments, the batch;
        each storage once."""
        tensors = [self.inputs, self.targets, *self.model.parameters(), *self.model.buffers()]
        tensors += [p.grad for p in self.model.parameters() if p.grad is not None]
        tensors += [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())


class Subject:
    """One measure cell, ready to be measured; nothing is built before a metric asks for it."""

    def __init__(self, cell: Cell, built: Built, device: torch.device) -> None:
        assert cell.batch_size is not None
        self.cell = cell
        self.built = built
        self.device = device
        self.batch_size = cell.batch_size
        self.dtype = dtype_of(cell.precision)

    @property
    def shape(self) -> ModelShape:
        return self.built.shape

    @cached_property
    def model(self) -> Backbone:
        """The model for inference, weights in the cell's precision; shared until `free`."""
        seed = self.cell.replicate
        return build(self.shape, seed=seed, device=self.device, dtype=self.dtype).eval()

    @cached_property
    def made(self) -> Tensor:
        """Random inputs: a context, and one position more. Token ids, int64 (batch_size, seq_len +
        1), or vectors in the cell's precision, (batch_size, seq_len + 1, features)."""
        return self._made().to(self.device)

    def _made(self) -> Tensor:
        ends = self.shape.ends
        size = (self.batch_size, self.cell.seq_len + 1)
        if ends.vocab_size:
            return torch.randint(ends.vocab_size, size, generator=self._generator())
        return torch.randn(*size, ends.features, generator=self._generator()).to(self.dtype)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.cell.replicate)

    def executed(self, function: Callable[P, R]) -> Callable[P, R]:
        """A function of the model, in the cell's mode of execution. Raises Unsupported."""
        return execution.ready(function, self.cell.execution, self.device)

    def training_step(self, *, executed: bool = False) -> TrainingStep:
        """A training step of a model of its own, with float32 weights and an optimiser that has not
        stepped yet; eager, unless it is to be `executed` in the cell's own mode."""
        model = build(self.shape, seed=self.cell.replicate, device=self.device).train()
        made, objective = self._made(), objective_of(self.cell)
        targets = objective.made(made, self.shape.ends, self._generator())
        inputs = made[:, :-1].contiguous()
        return TrainingStep(
            model=model,
            forward=self.executed(model) if executed else model,
            optimizer=adamw(model, _LEARNING_RATE),
            inputs=(inputs if self.shape.ends.vocab_size else inputs.float()).to(self.device),
            targets=targets.to(self.device),
            objective=objective,
            scored=int(objective.scored(targets)),
            precision=self.cell.precision,
        )

    @torch.inference_mode()
    def prefilled(
        self, room: int = 0, prefill: Prefill | None = None
    ) -> tuple[Tensor, list[object]]:
        """The whole context through prefill: the last outputs (batch_size, outputs), and the state
        after it with room for so many tokens more."""
        state = self.model.empty_state(self.batch_size, self.cell.seq_len + room)
        return (prefill or self.model.prefill)(self.made[:, :-1], state)

    def free(self) -> None:
        """Drop model and inputs, and give an accelerator's unused memory back."""
        for name in ("model", "made"):
            self.__dict__.pop(name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
