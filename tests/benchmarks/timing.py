"""Our clock beside `torch.utils.benchmark` on the same training step, in turns.

Each round times one step object with `workloads.timing.sample` and with `Timer.blocked_autorange`,
in an order that changes; both rest Python's garbage collector and run one thread. Rounds are short,
so that what slows the machine down for a second slows both. Printed is the median of each over all
rounds, and the median of the rounds' ratios with its 95 % interval. They agree to within 2 %.

    python -m tests.benchmarks.timing [--rounds 40] [--architectures lstm gru transformer]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch.utils import benchmark

from tests.workloads.tiny_cells import measure_cell
from workloads import device as devices
from workloads import timing
from workloads.check import check
from workloads.subject import Subject

DRAWS = 5000
"""Of rounds, with replacement, for the interval."""
SECONDS = 0.1
"""Of calls, each time that one of the two is asked."""


def ours(step: Callable[[], object], device: torch.device) -> list[float]:
    return list(timing.sample(step, device=device, min_seconds=SECONDS, max_seconds=SECONDS))


def theirs(step: Callable[[], object]) -> list[float]:
    timer = benchmark.Timer("step()", globals={"step": step}, num_threads=1)
    return list(timer.blocked_autorange(min_run_time=SECONDS).times)


def compare(architecture: str, seq_len: int, rounds: int) -> None:
    cell = measure_cell(architecture=architecture, seq_len=seq_len, batch_size=4, size=200_000)
    device = devices.open_device(cell)
    step = Subject(cell, check(cell), device).training_step()
    for _ in range(3):
        step()
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        takes = [("ours", lambda: ours(step, device)), ("theirs", lambda: theirs(step))]
        for name, take in takes if number % 2 else reversed(takes):
            found[name].append(statistics.median(take()))
    mine, other = (statistics.median(found[name]) for name in ("ours", "theirs"))
    ratios = np.array(found["ours"]) / np.array(found["theirs"])
    drawn = np.random.default_rng(0).choice(ratios, (DRAWS, rounds))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    print(
        f"{architecture:20} {seq_len:5} tokens: ours {mine * 1e3:8.3f} ms, "
        f"torch.utils.benchmark {other * 1e3:8.3f} ms, "
        f"ratio {np.median(ratios):.3f} ({low:.3f} to {high:.3f})",
        flush=True,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--architectures", nargs="+", default=["lstm", "gru", "transformer"])
    asked = arguments.parse_args()
    for architecture in asked.architectures:
        for seq_len in (64, 512):
            compare(architecture, seq_len, asked.rounds)


if __name__ == "__main__":
    main()
