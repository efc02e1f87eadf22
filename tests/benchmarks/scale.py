"""A sweep of ten thousand cells from the command to the report, beside one of a thousand: what a
cell costs, what the driver and the store's writer hold, how far the writer trails; and what
`analyze` takes beside MLflow's own ways to the same figures.

A cell trains one update over sixty tokens; its quality follows a known law. The driver's processes
are watched from outside, twice a second.

- *analyze*: the command, from a bare interpreter to the report; *tables* and *tables from MLflow*:
  reading the records, from the journal or from the store alone, and making the Parquet tables.
- *search_runs*: `mlflow.search_runs` and one `get_metric_history` for each metric of each run,
  MLflow imported before: the raw material of the tables, without making them.

    python -m tests.benchmarks.scale [--cells 1000 10000]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
LABELS = 20
CONTEXTS = [2, 3, 4, 5, 6, 10, 12, 15, 20, 30]
SWEEP = """
name: scale
question: What does a cell cost where there are many?
architectures: [{architectures}]
task: instant
device: cpu
model: {{parameters: [2_000], num_layers: 1}}
train:
  seq_len: {contexts}
  tokens: 60
  tokens_per_update: 60
  seeds: {seeds}
  learning_rate: {{default: 1.0e-3}}
  metrics: [quality]
compare: {{baseline: none 0, zone: [4, 12]}}
"""
WATCH_SECONDS = 0.5


@dataclass(slots=True)
class Watched:
    """A sweep as seen from outside. Seconds are of each look since the first answer; `answered` and
    `recorded` count cells then; `driver` and `writer` are peak resident bytes."""

    seconds: list[float] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    recorded: list[int] = field(default_factory=list)
    executing: int = 0
    driver: int = 0
    writer: int = 0


def sweep_file(folder: Path, cells: int) -> Path:
    named = [(("none", "gru")[number % 2], number) for number in range(LABELS)]
    names = ", ".join(f"{{{name}: {{label: {name} {number}}}}}" for name, number in named)
    seeds, rest = divmod(cells, LABELS * len(CONTEXTS))
    if rest or not seeds:
        sys.exit(f"--cells: must be a multiple of {LABELS * len(CONTEXTS)}, not {cells}")
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(architectures=names, contexts=CONTEXTS, seeds=seeds))
    return path


def command(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WORKLOADS_PLUGINS": str(ROOT / "tests/plugins"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    with (folder / "out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *words], cwd=folder, stdout=out, stderr=out, env=environment
        )


def ended(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait():
        sys.exit((folder / "out").read_text()[-3000:])


def sweep(folder: Path, cells: int) -> Watched:
    """Run it, looking at it until it has ended."""
    watched, began = Watched(), None
    process = command(folder, "-m", "orchestrator", "sweep", "sweep.yaml")
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(WATCH_SECONDS)
        answered = _answered(folder)
        if (answered and answered < cells) or began is not None:
            began = began or time.monotonic()
            watched.seconds.append(time.monotonic() - began)
            watched.answered.append(answered)
            watched.recorded.append(_recorded(folder))
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            watched.driver = max(watched.driver, _peak_bytes(process.pid))
            if answered < cells:
                watched.executing = watched.driver
            for child in driver.children():
                if "orchestrator.recorder" in child.cmdline():
                    watched.writer = max(watched.writer, _peak_bytes(child.pid))
    ended(process, folder)
    return watched


def _answered(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(1 for one in os.scandir(folder / "results/scale/journal") if one.name[0] != ".")
    return 0


def _recorded(folder: Path) -> int:
    """Child runs that have ended. A look at MLflow's table, which disturbs nobody."""
    with contextlib.suppress(sqlite3.Error):
        uri = f"file:{folder}/mlflow.db?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            (count,) = database.execute(
                "SELECT count(*) FROM runs WHERE status = 'FINISHED'"
            ).fetchone()
            return int(count)
    return 0


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def say_of_sweep(cells: int, watched: Watched) -> None:
    last = next(place for place, count in enumerate(watched.answered) if count == cells)
    per_cell = watched.seconds[last] / (cells - watched.answered[0])
    lags = [
        answered - recorded
        for answered, recorded in zip(watched.answered, watched.recorded, strict=True)
    ]
    whole = next(
        (at for at, count in zip(watched.seconds, watched.recorded, strict=True) if count >= cells),
        watched.seconds[-1],
    )
    drained = whole - watched.seconds[last]
    print(
        f"{cells} cells: {per_cell * 1e3:.1f} ms a cell; driver {_mb(watched.executing)} until the "
        f"last answer and {_mb(watched.driver)} at its peak, writer {_mb(watched.writer)}; the "
        f"writer was at most {max(lags)} cells behind, {lags[last]} at the last answer, and had "
        f"all {drained:.1f} s after it"
    )
    for start in range(0, cells, cells // 5):
        end = start + cells // 5
        inside = [
            place
            for place, count in enumerate(watched.answered[: last + 1])
            if start < count <= end
        ]
        if len(inside) > 1:
            first, final = inside[0], inside[-1]
            seconds = watched.seconds[final] - watched.seconds[first]
            count = watched.answered[final] - watched.answered[first]
            print(f"  to cell {end}: {seconds / max(1, count) * 1e3:.1f} ms a cell", flush=True)


def analysis(folder: Path) -> Iterator[tuple[str, float]]:
    """What was timed, and its seconds."""
    began = time.monotonic()
    ended(command(folder, "-m", "orchestrator", "analyze", "sweep.yaml"), folder)
    yield "analyze", time.monotonic() - began
    for name in ("tables", "tables from MLflow", "search_runs"):
        result = folder / "seconds"
        ended(command(folder, "-m", "tests.benchmarks.scale", "--part", name), folder)
        yield name, float(result.read_text())


def tables(journal: bool) -> None:
    """Tables as `analyze` makes them, from the journal or from the store alone."""
    from orchestrator.analysis import tables as tables_of
    from orchestrator.expand import expand
    from orchestrator.journal import Journal
    from orchestrator.results import Results
    from orchestrator.spec import load_spec
    from orchestrator.store import MlflowStore
    from orchestrator.verbs.analyze import gather, on_recorded_device

    results = Results.of("scale", None)
    store = MlflowStore(os.environ["MLFLOW_TRACKING_URI"], "scale", results.folder)
    envelopes = gather(results.journal() if journal else Journal(Path("none")), store)
    plan = expand(on_recorded_device(load_spec(Path("sweep.yaml")), envelopes))
    built = tables_of.build(plan, envelopes, store.run_ids())
    tables_of.write(built, Path("tables"))


def search_runs() -> None:
    import mlflow

    frame = mlflow.search_runs(experiment_names=["scale"], max_results=100_000)
    client = mlflow.MlflowClient()
    for column in frame.columns:
        if column.startswith("metrics."):
            for run_id in frame.run_id[frame[column].notna()]:
                client.get_metric_history(run_id, column.removeprefix("metrics."))


PARTS = {
    "tables": lambda: tables(journal=True),
    "tables from MLflow": lambda: tables(journal=False),
    "search_runs": search_runs,
}


def part(name: str) -> None:
    """Time one part in this process, what it imports left out."""
    # Imports are not timed; the plug-ins load torch when a plan is made.
    import mlflow
    import torch  # noqa: F401  # see above

    import orchestrator.verbs.analyze  # noqa: F401  # see above

    mlflow.MlflowClient().search_experiments()
    began = time.monotonic()
    PARTS[name]()
    Path("seconds").write_text(str(time.monotonic() - began))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000])
    arguments.add_argument("--part", choices=PARTS)
    asked = arguments.parse_args()
    if asked.part:
        part(asked.part)
        return
    for cells in asked.cells:
        with tempfile.TemporaryDirectory(prefix="scale-") as name:
            folder = Path(name)
            sweep_file(folder, cells)
            say_of_sweep(cells, sweep(folder, cells))
            seconds = dict(analysis(folder))
            for what, taken in seconds.items():
                ratio = seconds["search_runs"] / taken
                print(f"  {what}: {taken:.1f} s; search_runs takes {ratio:.1f} times that")
            report = folder / "results/scale/report.html"
            print(f"  report: {report.stat().st_size / 1e6:.1f} MB", flush=True)


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
