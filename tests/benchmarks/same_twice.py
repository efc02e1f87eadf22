"""An A/A test on this machine as it is: one architecture under two labels, really measured, once
with the MLflow store there and once with a store that nobody can reach, so that nothing is written.

The records are then judged 1,000 times with the labels exchanged at random within rounds: any
verdict is false, and the band should leave zero in 5 % of the draws. The same with one label 5 %
slower, which should be found in 80 %. *Found* is what the simultaneous band says (it leaves zero
somewhere, on the right side), *verdict* what the sweep would have answered: within 5 % it may say
`equivalent`.

    python -m tests.benchmarks.same_twice [--rounds 10]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from orchestrator.analysis.judgement import judge
from orchestrator.analysis.statistics import Floats
from orchestrator.journal import Journal
from workloads.cell import Cell

ROOT = Path(__file__).parents[2]
CONTEXTS = (64, 128, 256, 512)
METRICS = ("train_step_time", "prefill_time")
DRAWS = 1000
SLOWER = float(np.log(1.05))
MARGIN = float(np.log1p(0.05))
GONE = "http://127.0.0.1:9"
"""Nobody listens at the discard port."""
SWEEP = """
name: same_twice
question: Are two names of one thing told apart?
architectures: [{{gru: {{label: one}}}}, {{gru: {{label: other}}}}]
task: language_modelling
device: cpu
model: {{parameters: [100_000], num_layers: 2}}
measure:
  seq_len: {contexts}
  batch_size: [4]
  rounds: {rounds}
  metrics: {metrics}
compare: {{baseline: one, zone: [128, 256]}}
"""


def measured(folder: Path, rounds: int, *options: str) -> dict[str, Floats]:
    """Log ratios (rounds, contexts) of the two labels, by metric, from a real sweep."""
    text = SWEEP.format(contexts=list(CONTEXTS), rounds=rounds, metrics=list(METRICS))
    (folder / "sweep.yaml").write_text(text)
    subprocess.run(
        [sys.executable, "-m", "orchestrator", "sweep", "sweep.yaml", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        check=True,
        capture_output=True,
    )
    found = {name: np.full((2, rounds, len(CONTEXTS)), np.nan) for name in METRICS}
    for envelope in Journal(folder / "results/same_twice/journal").read():
        cell: Cell = envelope.record.cell
        assert cell.round is not None
        for one in envelope.record.measurements:
            place = ("one", "other").index(cell.label), cell.round, CONTEXTS.index(cell.seq_len)
            found[one.metric][place] = np.median(one.samples)
    return {name: np.log(values[1]) - np.log(values[0]) for name, values in found.items()}


def judged(ratios: Floats, shift: float, seed: int) -> tuple[float, Counter[str], float]:
    """Of the draws: the share in which the band leaves zero (with a shift, on its side), the
    outcomes, and the median of the smallest effect that would be seen in 80 %."""
    random = np.random.default_rng(seed)
    found, outcomes, effects = 0, Counter[str](), []
    for _ in range(DRAWS):
        # A round's contexts keep what they have in common: labels change places in all of them.
        signs = random.choice([-1.0, 1.0], (len(ratios), 1))
        judgement = judge(ratios * signs + shift, np.array(CONTEXTS, dtype=float), MARGIN)
        found += bool((judgement.low > 0).any() or (not shift and (judgement.high < 0).any()))
        outcomes[judgement.outcome] += 1
        effects.append(judgement.smallest_effect)
    return found / DRAWS, outcomes, float(np.median(effects))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    for store, options in (("store there", ()), ("store gone", ("--tracking-uri", GONE))):
        with tempfile.TemporaryDirectory() as folder:
            by_metric = measured(Path(folder), rounds, *options)
        for metric, ratios in by_metric.items():
            scatter = float(np.nanmedian(ratios.std(0, ddof=1)))
            print(f"{store}, {metric}: {rounds} rounds, log ratios scatter by {scatter:.3f}")
            for name, shift in (("the same", 0.0), ("5 % slower", SLOWER)):
                share, outcomes, effect = judged(ratios, shift, seed=1)
                said = ", ".join(f"{what} {n / DRAWS:.3f}" for what, n in outcomes.most_common())
                print(f"  {name:<10}  found {share:.3f}   verdicts: {said}")
            print(f"  smallest effect seen in 80 %: {effect:.1%}", flush=True)


if __name__ == "__main__":
    main()
