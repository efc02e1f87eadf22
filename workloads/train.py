"""The training loop: one architecture, one length, one seed, a fixed budget of tokens; the same
recipe for every architecture.

AdamW (Loshchilov and Hutter 2019), betas 0.9 and 0.95, weight decay on matrices only; linear
warm-up, then a cosine to a tenth; gradients clipped (`Optimiser`). Every update sees the same
number of tokens at every length, by accumulation where needed, and at one seed the same sequences
whatever the architecture. bfloat16 is autocast over float32 weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from workloads import sizing
from workloads.cell import Cell, Optimiser
from workloads.ends import next_token
from workloads.events import Facts, Progress
from workloads.measurement import Measurement
from workloads.mixer import Mixer, detached
from workloads.model import Backbone, ModelShape
from workloads.objectives import CROSS_ENTROPY, Objective, class_losses, objective_of
from workloads.plugins import Metric, Unsupported, element_bytes
from workloads.tasks.data import RunningData, TrainingData
from workloads.timing import Pace

# Tokens in one forward and backward pass at most. Part of the protocol, not of a device's limits:
# the sum over micro-batches is the same to rounding, but rounding is part of a number.
MICRO_BATCH_TOKENS = 32_768
# Below this many updates a loss says how fast learning starts, not what was learnt.
MIN_UPDATES = 500
_CHECK_EVERY = 50
_CURVE_POINTS = 100
_PROGRESS_SECONDS = 0.5
_CURVE_SECONDS = 5.0


class Diverged(ArithmeticError):
    """The training loss became infinite or not a number."""

    def __init__(self, update: int, last_finite: float | None) -> None:
        before = "none before it" if last_finite is None else f"the last finite one {last_finite:g}"
        super().__init__(f"the loss of update {update} is not finite, {before}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a budget of tokens becomes updates.

    `sequences` of `seq_len` tokens make one update, in passes of `micro_batch` sequences.
    """

    seq_len: int
    sequences: int
    micro_batch: int
    updates: int
    peak_learning_rate: float

    @property
    def tokens_per_update(self) -> int:
        """Real tokens of one update: whole sequences, at least one."""
        return self.sequences * self.seq_len

    def learning_rate(self, update: int) -> float:
        """Of update 1, 2, ..., `updates`: linear over the first 5 % (at least 10), then a cosine to
        a tenth of the peak."""
        warm_up = max(10, round(0.05 * self.updates))
        if update <= warm_up:
            return self.peak_learning_rate * update / warm_up
        done = (update - warm_up) / max(1, self.updates - warm_up)
        return self.peak_learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def schedule_of(cell: Cell) -> Schedule:
    """The schedule of a cell that trains; without a rate (NaN) where tuning has yet to find it."""
    assert cell.tokens and cell.tokens_per_update
    sequences = max(1, round(cell.tokens_per_update / cell.seq_len))
    return Schedule(
        seq_len=cell.seq_len,
        sequences=sequences,
        micro_batch=min(sequences, max(1, MICRO_BATCH_TOKENS // cell.seq_len)),
        updates=math.ceil(cell.tokens / (sequences * cell.seq_len)),
        peak_learning_rate=math.nan if cell.learning_rate is None else cell.learning_rate,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """What a task's quality metrics are given: `data` is what their own task prepared, `memo` is
    theirs, to share what several need."""

    cell: Cell
    model: Backbone
    data: Any
    device: torch.device
    memo: dict[str, Any] = field(default_factory=dict)


def adamw(
    model: Backbone, learning_rate: float, weight_decay: float = Optimiser().weight_decay
) -> torch.optim.AdamW:
    """AdamW in its fused form; weight decay on matrices, not on biases and norms, nor on what a
    mixer keeps from it."""
    kept = {
        id(getattr(module, name))  # None where an option has left it out
        for module in model.modules()
        if isinstance(module, Mixer)
        for name in module.undecayed
    }
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in kept]
    free = [p for p in model.parameters() if p.ndim < 2 or id(p) in kept]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The arithmetic of a precision around float32 weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def outputs_of(model: Callable[..., Tensor], inputs: Tensor, precision: str) -> Tensor:
    """Outputs (B, T, O) in float32: the forward pass of training and of evaluation."""
    with autocast(precision, inputs.device):
        outputs = model(inputs)
    return outputs.float()


def next_token_losses(model: Backbone, inputs: Tensor, targets: Tensor, precision: str) -> Tensor:
    """Cross-entropy of each target, float32 nats, flat (B * T,), zero where it is IGNORED."""
    return class_losses(outputs_of(model, inputs, precision), targets)


def accumulate(
    model: Backbone,
    inputs: Tensor,
    targets: Tensor,
    micro_batch: int,
    precision: str,
    objective: Objective = CROSS_ENTROPY,
    carried: CarriedState | None = None,
) -> Tensor:
    """Gradients of the mean loss over the scored targets, added up over micro-batches of so many
    sequences, from an empty context or from the `carried` state. Returns that mean, detached."""
    scored = objective.scored(targets)
    total = torch.zeros((), device=inputs.device)
    parts = zip(torch.split(inputs, micro_batch), torch.split(targets, micro_batch), strict=True)
    for number, part in enumerate(parts):
        if carried is None:
            loss = _total(model, *part, precision, objective) / scored
        else:
            outputs = carried.outputs_of(model, part[0], precision, number)
            loss = objective.total(outputs, part[1]) / scored
        torch.autograd.backward(loss)
        total += loss.detach()
    return total


def _total(
    model: Backbone, inputs: Tensor, targets: Tensor, precision: str, objective: Objective
) -> Tensor:
    """The sum of the losses, from the outputs that it reads: where few targets are scored, a head
    over all positions would take a quarter of the time of a small model."""
    places = objective.places(targets)
    if places is None:
        return objective.total(outputs_of(model, inputs, precision), targets)
    outputs = outputs_of(partial(model, places=places), inputs, precision)
    return objective.total(outputs, targets.flatten()[places])


class CarriedState:
    """What the micro-batches of one update leave to those of the next (truncated backpropagation
    through time: the state goes on, gradients do not), for so many tokens of each sequence."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._states: dict[int, list[Any]] = {}

    def outputs_of(self, model: Backbone, inputs: Tensor, precision: str, number: int) -> Tensor:
        """Outputs (B, T, O) in float32 of micro-batch `number`, from the state it left before."""
        with autocast(precision, inputs.device):
            before = self._states.get(number)
            if before is None:
                before = model.empty_state(len(inputs), self._tokens)
            outputs, after = model.carried(inputs, before)
        self._states[number] = detached(after)
        return outputs.float()


def _carried(cell: Cell, model: Backbone, data: TrainingData) -> CarriedState | None:
    """Raises Unsupported where the state grows with the context, ValueError where the task's
    sequences have nothing to do with each other."""
    if not cell.carry_state:
        return None
    if not hasattr(data, "following"):
        raise ValueError(f"carry_state: the sequences of {cell.task} do not go on in each other")
    element = element_bytes(cell.precision)
    lengths = (1 << 16, 1 << 17)
    held = {sizing.state_bytes(model.shape, length, element) for length in lengths}
    if len(held) > 1:
        raise Unsupported(f"carry_state: the state of {cell.label} grows with the context")
    schedule = schedule_of(cell)
    return CarriedState(schedule.updates * schedule.seq_len)


def train(
    cell: Cell, model: Backbone, data: TrainingData, device: torch.device
) -> Generator[Facts | Progress | Measurement, None, TrainedModel]:
    """Train `model` in place; says facts, progress, and the loss curve as it grows.

    Raises:
        Diverged: after the curve up to there was said.
        Unsupported: the cell carries states over that grow with the context.
        ValueError: the task has nothing of that length, or nothing that goes on.
    """
    schedule = schedule_of(cell)
    data.batch(1, schedule.seq_len, seed=cell.replicate, update=0)  # or says why it cannot
    carried = _carried(cell, model, data)
    draw = data.batch if carried is None else cast(RunningData, data).following
    yield Facts(
        {
            "updates": schedule.updates,
            "tokens_per_update": schedule.tokens_per_update,
            "micro_batch": schedule.micro_batch,
        }
    )
    model.train()
    recipe = cell.recipe
    model.drop(recipe.dropout)
    optimizer = adamw(model, schedule.peak_learning_rate, recipe.weight_decay)
    objective = objective_of(cell)
    curve = LossCurve(schedule.updates, objective.unit)
    progress, growth = Pace(_PROGRESS_SECONDS), Pace(_CURVE_SECONDS)
    unread: list[Tensor] = []
    order = hashlib.sha256()
    for update in range(1, schedule.updates + 1):
        batch = draw(schedule.sequences, schedule.seq_len, seed=cell.replicate, update=update)
        for part in batch:
            order.update(np.ascontiguousarray(part).data)
        inputs, targets = (torch.from_numpy(part).to(device) for part in batch)
        how = schedule.micro_batch, cell.precision, objective, carried
        unread.append(accumulate(model, inputs, targets, *how))
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(update)
        optimizer.step()
        optimizer.zero_grad()
        # Losses stay on the device until then: reading each would stop an accelerator each time.
        if len(unread) == _CHECK_EVERY or update == schedule.updates:
            finite = curve.extend(torch.stack(unread).tolist())
            unread.clear()
            if not finite:
                yield curve.measurement()
                raise Diverged(len(curve.losses) + 1, curve.last)
        if progress.due():
            yield Progress(update, schedule.updates)
        if growth.due() and curve.losses:
            yield curve.measurement()
    yield curve.measurement()
    # Equal at one seed whatever the architecture, for whoever wants to see that it is.
    yield Facts({"data_order": order.hexdigest()[:16]})
    return TrainedModel(cell=cell, model=model.eval(), data=data, device=device)


class LossCurve:
    """The training loss of each update so far, and its course in at most a hundred points."""

    def __init__(self, updates: int, unit: str) -> None:
        self.updates, self._metric = updates, Metric(title="training loss", version=1, unit=unit)
        self.losses: list[float] = []

    @property
    def last(self) -> float | None:
        return self.losses[-1] if self.losses else None

    def extend(self, losses: list[float]) -> bool:
        """Take the next losses up to the first that is not finite; False where there is one."""
        for loss in losses:
            if not math.isfinite(loss):
                return False
            self.losses.append(loss)
        return True

    def measurement(self) -> Measurement:
        """By-product `training_loss`: each point the mean over the updates since the last, at the
        last of them."""
        stride = math.ceil(self.updates / _CURVE_POINTS)
        parts = [self.losses[i : i + stride] for i in range(0, len(self.losses), stride)]
        steps = [min((i + 1) * stride, len(self.losses)) for i in range(len(parts))]
        return self._metric.measurement(
            "training_loss",
            [sum(part) / len(part) for part in parts],
            steps=steps,
            reason=None if parts else "diverged",
        )


def rehearse() -> None:
    """Train a tiny model, for a process that others are forked from: what torch does at a first
    update each of them would do again, for milliseconds and a thousand pages of memory.

    Only where torch knows no accelerator: its backward pass would start a thread for each device,
    and a process that has cannot be forked.
    """
    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    torch.set_num_threads(1)
    shape = ModelShape(
        architecture="none", ends=next_token(8), d_model=8, mlp_width=8, num_layers=1
    )
    model = Backbone(shape).train()
    optimizer = adamw(model, 1e-3)
    for _ in range(2):
        tokens = torch.zeros(2, 4, dtype=torch.int64)
        accumulate(model, tokens, tokens, 2, "float32")
        torch.nn.utils.clip_grad_norm_(model.parameters(), Optimiser().clip_norm)
        optimizer.step()
        optimizer.zero_grad()
