"""What training makes small: losses over a model's outputs, each summed over what is scored.

Sums and counts are apart, because an update's mean is taken over all its micro-batches at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads import registry
from workloads.cell import Cell
from workloads.ends import Ends
from workloads.plugins import build_options

IGNORED = -100
"""The target of a position that is not scored, where targets are classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss. `total(outputs, targets)` sums it over a batch, from float32 outputs (B, T, O);
    `scored(targets)` says over how many; `unit` is of their quotient. `made(inputs, ends,
    generator)` gives random targets to inputs (B, T + 1) or (B, T + 1, F), of which the first T are
    read: for steps that are timed and not learnt from. `places(targets)` says which of the B * T
    positions are scored, (N,), where others need no outputs: `total` then takes theirs alone, of
    outputs (N, O) and targets (N,); None for all of them."""

    unit: str
    total: Callable[[Tensor, Tensor], Tensor]
    scored: Callable[[Tensor], Tensor]
    made: Callable[[Tensor, Ends, torch.Generator], Tensor]
    places: Callable[[Tensor], Tensor | None] = lambda targets: None


def class_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each target (B, T) or (N,), nats, flat; zero where it is IGNORED."""
    return F.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED
    )


def _scored_places(targets: Tensor) -> Tensor | None:
    """All on an accelerator: to know them it would have to be waited for."""
    if targets.device.type != "cpu":
        return None
    scored = (targets.flatten() != IGNORED).nonzero()[:, 0]
    return scored if len(scored) < targets.numel() else None


def _made_classes(inputs: Tensor, ends: Ends, generator: torch.Generator) -> Tensor:
    if ends.says_tokens:
        return inputs[:, 1:].contiguous()
    size = (inputs.shape[0], inputs.shape[1] - 1)
    return torch.randint(ends.outputs, size, generator=generator)


CROSS_ENTROPY = Objective(
    unit="nats per token",
    total=lambda outputs, targets: class_losses(outputs, targets).sum(),
    scored=lambda targets: (targets != IGNORED).sum(),
    made=_made_classes,
    places=_scored_places,
)
"""Targets are classes, int64 (B, T)."""


def pinball_losses(outputs: Tensor, targets: Tensor, levels: Sequence[float]) -> Tensor:
    """The quantile loss of each target (B, T, H) at each level, from outputs (B, T, H * levels):
    (B, T, H, levels), zero where the target is not a number (Koenker and Bassett 1978)."""
    said = outputs.view(*targets.shape, len(levels))
    over = targets.nan_to_num()[..., None] - said
    level = torch.tensor(levels, device=outputs.device, dtype=outputs.dtype)
    losses = torch.maximum(level * over, (level - 1) * over)
    return losses * ~targets.isnan()[..., None]


def pinball(levels: Sequence[float], unit: str) -> Objective:
    """Targets are numbers, float32 (B, T, H), not a number where nothing is scored. The mean is
    over targets and levels."""
    return Objective(
        unit=unit,
        total=lambda outputs, targets: pinball_losses(outputs, targets, levels).sum(),
        scored=lambda targets: (~targets.isnan()).sum() * len(levels),
        made=lambda inputs, ends, generator: torch.randn(
            inputs.shape[0],
            inputs.shape[1] - 1,
            ends.outputs // len(levels),
            generator=generator,
        ),
    )


def _ctc_total(outputs: Tensor, targets: Tensor) -> Tensor:
    positions, batch = outputs.shape[1], outputs.shape[0]
    lengths = (targets != IGNORED).sum(1)
    return F.ctc_loss(
        outputs.log_softmax(-1).transpose(0, 1),
        targets.clamp(min=0),
        torch.full((batch,), positions, device=outputs.device),
        lengths,
        reduction="sum",
        # An utterance that says more than its frames can hold would cost an infinity.
        zero_infinity=True,
    )


def _made_labels(inputs: Tensor, ends: Ends, generator: torch.Generator) -> Tensor:
    """A label for every fourth position, about what speech has."""
    size = (inputs.shape[0], max(1, (inputs.shape[1] - 1) // 4))
    return torch.randint(1, ends.outputs, size, generator=generator)


CTC = Objective(
    unit="nats per label",
    total=_ctc_total,
    scored=lambda targets: (targets != IGNORED).sum(),
    made=_made_labels,
)
"""Connectionist temporal classification (Graves et al. 2006): targets are the labels of a sequence
in order, int64 (B, L), from 1 up, IGNORED after the last; output 0 is the blank."""


def objective_of(cell: Cell) -> Objective:
    """What the training of a cell makes small."""
    task = registry.load("tasks", cell.task)
    if task.objective is None:
        return CROSS_ENTROPY
    return task.objective(build_options(task.options, cell.task_options))
