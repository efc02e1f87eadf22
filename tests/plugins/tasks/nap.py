"""A task whose evaluation sleeps: a train cell of known length that takes no core, so that a
machine of two cores can be a cluster of many slots.

While the file `gate` is there, none ends; beside it each Ray node that has begun a cell leaves a
file that ends with its raylet's number.
"""

from __future__ import annotations

import os
import time
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
    """seconds: how long a cell sleeps. gate: a file that keeps it asleep."""

    seconds: float = 1.0
    gate: str = ""


def prepare(options: Options, folder: Path) -> TaskData:
    return TaskData(
        train=_TOKENS,
        validation=_TOKENS,
        train_documents=_ONE_DOCUMENT,
        validation_documents=_ONE_DOCUMENT,
        token_bytes=np.ones(VOCAB_SIZE, dtype=np.int32),
        facts={"data_source": "made"},
    )


def _slept(trained: TrainedModel) -> Evaluation:
    options = trained.cell.task_options
    seconds, gate = float(str(options.get("seconds", 1.0))), options.get("gate")
    time.sleep(seconds)
    if gate:
        Path(f"{gate}.{os.environ.get('RAY_RAYLET_PID')}").touch()
        while Path(str(gate)).exists():
            time.sleep(0.05)
    return Evaluation(samples=(seconds,))


TASK = Task(
    title="nap",
    version=1,
    options=Options,
    token_unit=lambda options: "tokens",
    ends=lambda options: next_token(VOCAB_SIZE),
    prepare=prepare,
    metrics={"slept": Metric(title="time asleep", version=1, unit="s", evaluate=_slept)},
)
