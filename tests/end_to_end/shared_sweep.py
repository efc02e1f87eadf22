"""A sweep that hangs in the middle until a note is there, in a folder that several machines share,
with what is in that folder and in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from tests.end_to_end.other_machine import command
from tests.end_to_end.sweep_process import SweepProcess

SWEEP = """
name: shared
question: Who drives?
architectures: [none, gru, {faulty: {fault: hang, note: note}}]
task: instant
model: {parameters: [2_000], num_layers: 1}
measure:
  seq_len: [4, 8]
  batch_size: [1]
  rounds: 2
  metrics: [tally, train_step_time]
compare: {baseline: none, zone: [4, 8]}
"""
CELLS = 12


class SharedSweep:
    """The sweep below `folder`; its results lie in `root`, beside the store where none is given."""

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.folder, self.results = folder, (root or folder / "results") / "shared"
        self.note, self.tally = folder / "note", folder / "tally"

    def start(self, machine: str, *options: str, through: Sequence[str] = ()) -> SweepProcess:
        """The sweep on the machine of that name, `through` a command that runs commands."""
        return SweepProcess(
            self.folder,
            SWEEP,
            "--inline",
            *options,
            command=[*through, *command(self.folder, machine)],
            WORKLOADS_TALLY=str(self.tally),
        )

    def start_and_hang(
        self, machine: str, *options: str, through: Sequence[str] = ()
    ) -> SweepProcess:
        """A driver in the middle of a cell that hangs, everything before it on record, also in the
        store, whose writer is idle."""
        sweep = self.start(machine, *options, through=through)
        sweep.wait_for(self.note.with_suffix(".waiting").exists)
        sweep.wait_for(lambda: len(self.records()) == len(self.executed()) - 1)
        sweep.wait_for(lambda: self.confirmed() == len(self.records()))
        return sweep

    def lose_locks(self) -> None:
        """The file system's locks do not reach the next machine: it will lock another file."""
        (self.results / "driver.lock").unlink()
        (self.results / "mlflow/writer.lock").unlink(missing_ok=True)

    def records(self) -> list[Path]:
        return sorted(self.results.glob("journal/[!.]*.json"))

    def confirmed(self) -> int:
        """Runs that the ledger says are complete."""
        text = "".join(path.read_text() for path in self.results.glob("mlflow/*.jsonl"))
        lines = [json.loads(line) for line in text.splitlines()]
        return len({row[0] for line in lines for row in line.get("runs", ())})

    def executed(self) -> list[str]:
        return self.tally.read_text().split() if self.tally.exists() else []

    def runs(self) -> list[Run]:
        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("shared")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))

    def written(self) -> dict[str, Any]:
        """All that a driver writes: the journal, the results and every run of the store."""
        kept = [*self.records(), *self.results.glob("leases/*"), self.results / "report.html"]
        kept += self.results.glob("mlflow/*.jsonl")
        return {
            "runs": {run.info.run_id: (run.info.status, run.data.tags) for run in self.runs()},
            "files": {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept},
        }
