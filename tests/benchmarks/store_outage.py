"""What an outage of the MLflow server costs a sweep: wall time with and without it, in interleaved
pairs.

Each sweep runs 100 cells of half a second on Ray and records them on a real server of its own. In
one of a pair the server is killed (SIGKILL) in the middle and brought back after 30 s. Printed: the
wall time of each whole command, the median ratio, and how many cells the server has in the end.

    python -m tests.benchmarks.store_outage [--pairs 3] [--outage 30]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from orchestrator.store import MlflowStore
from tests.mlflow_server import Server

PLUGINS = Path(__file__).parents[1] / "plugins"
KILLED_AFTER = 20.0
SWEEP = """
name: outage
question: What does an outage of the store cost?
architectures: [none]
task: language_modelling
model: {parameters: 2_000, num_layers: 1}
measure:
  seq_len: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
  batch_size: [1]
  rounds: 10
  metrics: [pause]
compare: {baseline: none, zone: [1, 10]}
"""


def sweep(outage: float) -> tuple[float, int]:
    """Run the sweep, the server away for so many seconds; wall seconds, and cells recorded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "sweep.yaml").write_text(SWEEP)
        server = Server(path / "mlflow.db")
        server.start()
        away = threading.Thread(target=_interrupt, args=(server, outage))
        started = time.monotonic()
        if outage:
            away.start()
        command = [sys.executable, "-m", "orchestrator", "sweep", "sweep.yaml"]
        subprocess.run(
            [*command, "--tracking-uri", server.uri],
            cwd=path,
            env={**os.environ, "WORKLOADS_PLUGINS": str(PLUGINS)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.monotonic() - started
        if outage:
            away.join()
        store = MlflowStore(server.uri, "outage", path)
        recorded = len(store.records())
        server.kill()
        return seconds, recorded


def _interrupt(server: Server, outage: float) -> None:
    time.sleep(KILLED_AFTER)
    server.kill()
    time.sleep(outage)
    server.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--outage", type=float, default=30.0)
    arguments = parser.parse_args()
    ratios = []
    for pair in range(arguments.pairs):
        # Alternating which comes first: the machine may drift within a pair too.
        order = (0.0, arguments.outage) if pair % 2 == 0 else (arguments.outage, 0.0)
        found = {outage: sweep(outage) for outage in order}
        (plain, kept), (hurt, saved) = found[0.0], found[arguments.outage]
        ratios.append(hurt / plain)
        print(
            f"pair {pair}: without {plain:.1f} s ({kept} cells recorded), "
            f"with {hurt:.1f} s ({saved} cells recorded), ratio {hurt / plain:.3f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
