"""A process that only serves: one graph, one thread, one token after the other. It loads neither
torch nor anything that does.

    python -m workloads.edge.serve GRAPH.onnx INPUTS.npz

Prints a JSON object: `seconds` of each step after the first few, the `conditions` of all of them,
and `peak_bytes`, the most memory that the process held, program files included.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from workloads import conditions, neighbours, process_memory

WARM_UP_STEPS = 20
MAX_STEPS = 1000
MAX_SECONDS = 2.0


def opened(graph: Path) -> Any:
    """ONNX Runtime's session of a graph, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    # As in every cell on a CPU (`device.py`).
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def serve(graph: Path, inputs: Path) -> dict[str, object]:
    session = opened(graph)
    names = [one.name for one in session.get_inputs()]
    with np.load(inputs) as arrays:
        fed = dict(zip(names, (arrays[name] for name in arrays.files), strict=True))
    seconds: list[float] = []
    with neighbours.watched():
        while len(seconds) < WARM_UP_STEPS + MAX_STEPS and sum(seconds) < MAX_SECONDS:
            start = time.perf_counter()
            _, *state = session.run(None, fed)
            seconds.append(time.perf_counter() - start)
            fed |= dict(zip(names[1:], state, strict=True))
    return {
        "seconds": seconds[WARM_UP_STEPS:] or seconds[-1:],
        "conditions": dict(conditions.taken()),
        "peak_bytes": process_memory.peak_bytes(of_files=True),
    }


if __name__ == "__main__":
    json.dump(serve(Path(sys.argv[1]), Path(sys.argv[2])), sys.stdout)
