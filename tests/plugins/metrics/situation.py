"""What a child finds itself in: written, as JSON, to the file that WORKLOADS_SITUATION names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    found = {
        "environment": dict(os.environ),
        "cores": sorted(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
    }
    Path(os.environ["WORKLOADS_SITUATION"]).write_text(json.dumps(found))
    return (1.0,)


METRIC = Metric(title="situation", version=1, unit="1", measure=measure)
