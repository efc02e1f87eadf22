"""`sweep`: run what is not answered yet, with live progress; then analyse and answer."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.table import Table

from orchestrator import runtime
from orchestrator.answers import Answers
from orchestrator.cost import CostModel, cost_model
from orchestrator.errors import SpecError, StoreError
from orchestrator.expand import expand
from orchestrator.isolation import Isolation
from orchestrator.plan import Plan
from orchestrator.preparation import prepare
from orchestrator.progress import LiveProgress, duration
from orchestrator.recorder import Recorder, Subject
from orchestrator.results import Results
from orchestrator.spec import load_spec
from orchestrator.store import MlflowStore, resolve_uri
from orchestrator.sweep import run_sweep
from orchestrator.terminal import Terminal
from orchestrator.verbs.status import STATUSES
from workloads import environment
from workloads.cell import Cell
from workloads.record import RunRecord
from workloads.tasks.data import cache_folder

Engine = Callable[[Sequence[Cell], int], Iterator[tuple[Cell, RunRecord]]]
"""Executes cells, at most so many train cells side by side."""

STORE_PATIENCE = 60.0
"""Seconds that the end of a sweep waits for a store that trails; what is left is caught up
later."""
INTERRUPTED_PATIENCE = 8.0
"""The same for an interrupted one: enough for a first database to be made, for what was begun in it
to be ended, and short enough for who waits."""
MEMORY_SHARE = 0.8
"""Of the machine's memory, what train cells that run side by side may be predicted to take."""


def run(arguments: argparse.Namespace) -> int:
    loaded = load_spec(arguments.sweep)
    if arguments.address and loaded.spec.device == "auto":
        raise SpecError(
            loaded.path, ["device: name a device class; `auto` means this machine, not a cluster"]
        )
    plan = expand(loaded)
    results = Results.of(plan.name, arguments.results)
    store = MlflowStore(resolve_uri(arguments.tracking_uri), plan.name, results.folder)
    terminal = Terminal()
    with results.locked():
        return _Sweep(plan, results, store, terminal, arguments).run()


class _Sweep:
    """One call of the verb."""

    def __init__(
        self,
        plan: Plan,
        results: Results,
        store: MlflowStore,
        terminal: Terminal,
        arguments: argparse.Namespace,
    ) -> None:
        self._plan, self._results, self._store = plan, results, store
        self._terminal, self._arguments = terminal, arguments
        self._cores = environment.cores()
        self._journal = results.journal()
        self._recorder = Recorder(
            Subject(
                uri=store.uri,
                name=plan.name,
                question=plan.question,
                spec_hash=plan.spec_hash,
                journal=str(self._journal.folder),
                results=str(results.folder),
            ),
            self._warn,
        )
        self._recording = False

    def run(self) -> int:
        envelopes = self._journal.read()
        for path, why in self._journal.damaged.items():
            self._warn(f"left out: {path}: {why}")
        answers = Answers.of(self._plan, envelopes)
        self._say(f"{self._plan.name}: {self._plan.question}")
        try:
            if answers.pending():
                answers = self._execute(answers)
            else:
                self._record()
            return self._conclude(answers)
        except KeyboardInterrupt:
            return self._interrupted()
        finally:
            self._recorder.stop()

    def _execute(self, answers: Answers) -> Answers:
        cache = cache_folder()
        with contextlib.ExitStack() as stack:
            isolation = stack.enter_context(Isolation())
            isolation.start()  # warms up while Ray starts
            engine = stack.enter_context(self._engine(isolation))
            prepare(self._plan, cache, isolation, self._say)
            model = cost_model(self._plan.cells[0].device, cache, self._journal.read())
            slots = _train_slots(self._plan, model, self._cores)
            progress = stack.enter_context(self._progress(answers, model, slots))
            self._record()
            return run_sweep(
                self._plan,
                self._journal,
                lambda cells: engine(cells, slots),
                model=model,
                follower=self._recorder,
                watcher=progress,
            )

    def _progress(self, answers: Answers, model: CostModel, slots: int) -> LiveProgress:
        pending, planned = answers.pending(), len(self._plan.cells)
        seconds = {cell.id: model.predict(cell).seconds for cell in pending}
        progress = LiveProgress(self._terminal, pending, seconds)
        progress.width = {"measure": 1, "train": 1 if self._arguments.inline else slots}
        progress.say(
            f"{planned} cells, {planned - len(pending)} answered before, {len(pending)} to run, "
            f"about {duration(progress.seconds_to_go())}; store {self._store.address}"
        )
        return progress

    def _record(self) -> None:
        """Start the store's writer: not before the engine, for importing MLflow takes seconds of a
        core, and the first cell would wait for it."""
        self._recorder.start()
        self._recording = True

    @contextlib.contextmanager
    def _engine(self, isolation: Isolation) -> Iterator[Engine]:
        """What executes cells, ready to: on Ray, or here, in children of this fork server."""
        if self._arguments.inline:
            from orchestrator.inline import run_inline

            yield lambda cells, slots: run_inline(cells, isolation, cores=self._cores)
            return
        runtime.set_ray_environment()
        # After the environment is set, for Ray reads it when it is imported.
        from orchestrator.scheduler import ray_started, run_on_ray

        with ray_started(self._cores, self._arguments.address) as session:

            def on_ray(cells: Sequence[Cell], slots: int) -> Iterator[tuple[Cell, RunRecord]]:
                isolation.close()  # each worker has its own
                return run_on_ray(cells, session, train_slots=slots)

            yield on_ray

    def _conclude(self, answers: Answers) -> int:
        from orchestrator.conclusion import answer
        from orchestrator.verbs.analyze import analyse, medians

        behind = self._recorder.close(STORE_PATIENCE)
        envelopes = self._journal.read()
        tables = analyse(self._plan, envelopes, self._results, self._recorder.run_ids())
        try:
            self._recorder.finish(medians(tables))
        except StoreError as error:
            self._warn(f"the results are not in the store yet: {error}")
        if behind:
            self._warn(f"{behind} cells are not in the store yet; the next command records them")
        self._terminal.print(_summary(self._plan, answers))
        self._say(answer(tables))
        self._say(f"report: {_shown(self._results.report)}")
        self._say(f"tables: {_shown(self._results.tables)}, store: {self._store.address}")
        counts = answers.counts()
        failing = counts["failed"] + counts["lost"] + counts["pending"]
        if failing:
            self._say(f"{failing} cells have no answer; the same command tries them again")
        return 1 if failing else 0

    def _interrupted(self) -> int:
        if self._recording:
            self._recorder.close(INTERRUPTED_PATIENCE)
        answers = Answers.of(self._plan, self._journal.read())
        done = answers.counts()["finished"]
        self._say(
            f"interrupted: {done} of {len(self._plan.cells)} cells are answered and kept; "
            "the same command goes on from here"
        )
        return 130

    def _say(self, text: str) -> None:
        self._terminal.say(text)

    def _warn(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _train_slots(plan: Plan, model: CostModel, cores: Sequence[int]) -> int:
    """How many train cells run side by side: one a core, as far as their memory goes."""
    peaks = [model.predict(cell).peak_bytes for cell in plan.cells if cell.kind == "train"]
    if not peaks or not environment.is_cpu(plan.cells[0].device):
        return 1
    threads = environment.threads_of(plan.cells[0].device)
    by_memory = int(MEMORY_SHARE * _memory_bytes() / max(peaks))
    return max(1, min(len(cores) // threads, by_memory))


def _memory_bytes() -> int:
    text = Path("/proc/meminfo").read_text()
    return int(text.partition("MemTotal:")[2].split(None, 1)[0]) * 1024


def _summary(plan: Plan, answers: Answers) -> Table:
    """Cells by label and status."""
    counts = answers.counts()
    statuses = [status for status in STATUSES if counts[status]]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("label")
    for status in statuses:
        table.add_column(status, justify="right")
    for label in plan.labels:
        of_label = [answers.status(cell) for cell in plan.cells if cell.label == label]
        table.add_row(label, *(str(of_label.count(status)) for status in statuses))
    return table


def _shown(path: Path) -> str:
    """A path relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
