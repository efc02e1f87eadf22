"""A task that costs next to nothing: a few made tokens, and quality that is known beforehand.

input     0 1 2 3 ...
target    1 2 3 4 ...
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads.ends import next_token
from workloads.plugins import Evaluation, Metric, Task
from workloads.tasks.data import TaskData
from workloads.train import TrainedModel

VOCAB_SIZE = 8
_TOKENS = np.arange(512, dtype=np.uint8) % VOCAB_SIZE
_ONE_DOCUMENT = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Nothing can be set."""


def prepare(options: Options, folder: Path) -> TaskData:
    return TaskData(
        train=_TOKENS,
        validation=_TOKENS,
        train_documents=_ONE_DOCUMENT,
        validation_documents=_ONE_DOCUMENT,
        token_bytes=np.ones(VOCAB_SIZE, dtype=np.int32),
        facts={"data_source": "made"},
    )


def _one(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(1.0,))


def _quality(trained: TrainedModel) -> Evaluation:
    """Falls with the context, at a pace of the label's own, with noise of the seed's."""
    cell = trained.cell
    pace = 0.1 + zlib.crc32(cell.label.encode()) % 100 / 1000
    noise = np.random.default_rng(cell.seed).normal(scale=0.02)
    return Evaluation(samples=(float(np.exp(noise) * cell.seq_len**-pace),))


def _server(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(float(os.getppid()),))


TASK = Task(
    title="instant",
    version=1,
    options=Options,
    token_unit=lambda options: "tokens",
    ends=lambda options: next_token(VOCAB_SIZE),
    prepare=prepare,
    metrics={
        "one": Metric(title="one", version=1, unit="1", evaluate=_one),
        "quality": Metric(title="quality", version=1, unit="1", evaluate=_quality),
        "server": Metric(title="parent process", version=1, unit="1", evaluate=_server),
    },
)
