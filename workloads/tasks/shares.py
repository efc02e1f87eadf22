"""Metrics that are a share of right answers, and what a model answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.plugins import Evaluation, Metric
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, outputs_of

SOLVED = 0.95
"""Accuracy from which a seed counts as having solved a task."""

Evaluate = Callable[[TrainedModel], Evaluation]


def share(title: str, evaluate: Evaluate) -> Metric:
    """A metric from 0 to 1, of which more is better."""
    return Metric(
        title=title, version=1, unit="1", better="greater", scale="difference", evaluate=evaluate
    )


def solved(accuracy: Callable[[TrainedModel], float]) -> Metric:
    """Whether a seed has solved its task, by its accuracy."""
    return Metric(
        title=f"share of seeds that solve it (accuracy of {SOLVED} or more)",
        version=1,
        unit="1",
        better="greater",
        scale="share",
        evaluate=lambda trained: Evaluation(samples=(float(accuracy(trained) >= SOLVED),)),
    )


@torch.inference_mode()
def classes_said(trained: TrainedModel, inputs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The likeliest class at each position (B, T)."""
    rows = max(1, MICRO_BATCH_TOKENS // inputs.shape[1])
    said = [
        outputs_of(trained.model, part.to(trained.device), trained.cell.precision).argmax(-1)
        for part in torch.split(torch.from_numpy(inputs), rows)
    ]
    return torch.cat(said).cpu().numpy()
