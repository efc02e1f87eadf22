"""`sweep`: run what is not answered yet, with live progress; then analyse and answer."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from orchestrator import engine as engines
from orchestrator import full_disk
from orchestrator.adoption import take_over
from orchestrator.answers import Answers
from orchestrator.budget import Budget
from orchestrator.cost import CostModel, cost_model
from orchestrator.engine import Engine
from orchestrator.errors import EngineLost, SpecError, StoreError
from orchestrator.journal import Journal
from orchestrator.lease import Lease
from orchestrator.plan import Plan
from orchestrator.planning import planned
from orchestrator.preparation import check_data, prepare
from orchestrator.progress import LiveProgress, duration, headway_shown
from orchestrator.recorder import Recorder, Subject
from orchestrator.results import Results
from orchestrator.spec import LoadedSpec, load_spec
from orchestrator.store import MlflowStore, resolve_uri
from orchestrator.sweep import run_sweep
from orchestrator.terminal import Terminal
from orchestrator.verbs.status import STATUSES
from workloads import environment
from workloads.cell import Cell
from workloads.environment import Environment
from workloads.record import RunRecord
from workloads.tasks.data import cache_folder

STORE_PATIENCE = 60.0
"""Seconds that the end of a sweep waits for a store that trails; what is left is caught up
later."""
INTERRUPTED_PATIENCE = 8.0
"""The same for an interrupted one: enough for a first database to be made, for what was begun in it
to be ended, and short enough for who waits."""


def run(arguments: argparse.Namespace) -> int:
    loaded = load_spec(arguments.sweep)
    if arguments.address and loaded.spec.device == "auto":
        raise SpecError(
            loaded.path, ["device: name a device class; `auto` means this machine, not a cluster"]
        )
    first = planned(loaded, ())
    if not arguments.address:
        check_data(loaded, first)
    results = Results.of(first.name, arguments.results)
    store = MlflowStore(resolve_uri(arguments.tracking_uri), first.name, results.folder)
    terminal = Terminal()
    with contextlib.ExitStack() as stack:
        joined: Engine | None = None
        if arguments.address:
            # Before anything is written: the cluster may not be fit, and its environment decides
            # what is answered.
            device = loaded.device_class
            joined = stack.enter_context(
                engines.on_cluster(arguments.address, device, terminal.say)
            )
        lease = stack.enter_context(results.locked(terminal.say, _stop))
        journal = results.journal(lease.check)
        with full_disk.explained(results.folder):
            answers = take_over(journal, store, lease, _warn)
        meter = results.meter(lease.number, lease.check)
        budget = Budget.of(loaded.spec.limits.device_hours, journal.read(), meter)
        sweep = _Sweep(
            loaded,
            first,
            results,
            journal,
            lease,
            store,
            terminal,
            arguments,
            joined,
            told=not answers,
        )
        return sweep.run(budget)


def _stop() -> None:
    """Another driver has taken over: wake this one, which may be waiting for a long cell."""
    os.kill(os.getpid(), signal.SIGTERM)


class _Sweep:
    """One call of the verb."""

    def __init__(
        self,
        loaded: LoadedSpec,
        first: Plan,
        results: Results,
        journal: Journal,
        lease: Lease,
        store: MlflowStore,
        terminal: Terminal,
        arguments: argparse.Namespace,
        joined: Engine | None,
        told: bool,
    ) -> None:
        self._loaded, self._results, self._journal, self._store = loaded, results, journal, store
        self._lease, self._terminal, self._arguments = lease, terminal, arguments
        self._cores, self._joined = environment.cores(), joined
        # By device class; None: whatever this machine is.
        self._environments: Mapping[str, Environment] | None = None
        if joined is not None:
            self._environments = {joined.environment.device: joined.environment}
        self._plan = plan = first if loaded.spec.tune is None else self._planned()
        self._recorder = Recorder(
            Subject(
                uri=store.uri,
                name=plan.name,
                question=plan.question,
                spec_hash=plan.spec_hash,
                journal=str(self._journal.folder),
                results=str(results.folder),
                lease=lease.number,
                told=told,
            ),
            _warn,
        )
        self._recording = False

    def run(self, budget: Budget) -> int:
        """Execute what is pending, as far as the budget goes; conclude; the exit code."""
        answers = self._answers()
        for path, why in self._journal.damaged.items():
            _warn(f"left out: {path}: {why}")
        self._say(f"{self._plan.name}: {self._plan.question}")
        try:
            if answers.pending() and not budget.exhausted:
                answers = self._execute(answers, budget)
            else:
                self._record()
            return self._conclude(answers, budget)
        except KeyboardInterrupt:
            self._lease.check()
            return self._interrupted()
        finally:
            self._recorder.stop()

    def _execute(self, answers: Answers, budget: Budget) -> Answers:
        """Run what is pending; how it stands afterwards, also where the engine was lost."""
        try:
            with contextlib.ExitStack() as stack:
                return self._run(answers, budget, stack)
        except EngineLost as error:
            _warn(f"{error}; what was answered is kept, and the same command goes on")
            return self._answers()

    def _run(self, answers: Answers, budget: Budget, stack: contextlib.ExitStack) -> Answers:
        cache, device = cache_folder(), self._plan.cells[0].device
        engine = self._joined or stack.enter_context(self._engine(device))
        prepare(
            self._plan,
            cache,
            engine.machines,
            engine.environment,
            self._say,
            lambda: headway_shown(self._terminal),
        )
        run: set[str] = set()
        while todo := [cell for cell in answers.pending() if cell.id not in run]:
            run.update(cell.id for cell in todo)
            model = cost_model(device, cache, self._journal.read(), engine.environment)
            answers = self._round(todo, engine, model, budget)
            if budget.exhausted:
                break
            # What tuning has found says how the next cells are trained.
            self._plan = self._planned()
            answers = self._answers()
        return answers

    def _round(
        self, todo: Sequence[Cell], engine: Engine, model: CostModel, budget: Budget
    ) -> Answers:
        """Run these cells; how the plan stands afterwards."""
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(self._progress(todo, model, engine))
            self._record()

            def execute(pending: Sequence[Cell]) -> Iterator[tuple[Cell, RunRecord]]:
                running = engine.run(todo, _peak_bytes(model), budget, progress.say)
                # Whatever ends us, nothing goes on without us.
                stack.callback(running.close)
                return running

            return run_sweep(
                self._plan,
                self._journal,
                execute,
                epoch=self._lease.number,
                model=model,
                follower=self._recorder,
                watcher=progress,
                environments=self._environments,
            )

    def _engine(self, device: str) -> contextlib.AbstractContextManager[Engine]:
        if self._arguments.inline:
            return engines.inline(device, self._cores)
        return engines.on_ray(device, self._cores)

    def _planned(self) -> Plan:
        if self._loaded.spec.tune is None:
            return self._plan
        return planned(self._loaded, self._journal.read(), self._environments)

    def _answers(self) -> Answers:
        return Answers.of(self._plan, self._journal.read(), self._environments)

    def _progress(self, todo: Sequence[Cell], model: CostModel, engine: Engine) -> LiveProgress:
        planned, waiting = len(self._plan.cells), sum(cell.is_open for cell in self._plan.cells)
        seconds = {cell.id: model.predict(cell).seconds for cell in todo}
        progress = LiveProgress(self._terminal, todo, seconds)
        progress.width = engine.width(todo, _peak_bytes(model))
        before = planned - len(todo) - waiting
        then = f", {waiting} wait for what they will say" if waiting else ""
        progress.say(
            f"{planned} cells, {before} answered before, {len(todo)} to run{then}, "
            f"about {duration(progress.seconds_to_go())}; store {self._store.address}"
        )
        return progress

    def _record(self) -> None:
        """Start the store's writer: not before the engine, for importing MLflow takes seconds of a
        core, and the first cell would wait for it."""
        if not self._recording:
            self._recorder.start()
        self._recording = True

    def _conclude(self, answers: Answers, budget: Budget) -> int:
        from orchestrator.conclusion import answer
        from orchestrator.verbs.analyze import analyse, medians

        behind = self._recorder.close(STORE_PATIENCE)
        envelopes = self._journal.read()
        self._lease.check()
        tables = analyse(self._plan, envelopes, self._results, self._recorder.run_ids())
        try:
            self._recorder.finish(medians(tables))
        except StoreError as error:
            _warn(f"the results are not in the store yet: {error}")
        if behind:
            _warn(f"{behind} cells are not in the store yet; the next command records them")
        self._terminal.print(_summary(self._plan, answers))
        self._say(answer(tables))
        self._say(f"report: {_shown(self._results.report)}")
        self._say(f"tables: {_shown(self._results.tables)}, store: {self._store.address}")
        counts = answers.counts()
        failing = counts["failed"] + counts["lost"] + counts["pending"]
        if failing and budget.exhausted:
            self._say(budget.sentence(failing))
        elif failing:
            self._say(f"{failing} cells have no answer; the same command tries them again")
        return 1 if failing else 0

    def _interrupted(self) -> int:
        if self._recording:
            self._recorder.close(INTERRUPTED_PATIENCE)
        answers = self._answers()
        done = answers.counts()["finished"]
        self._say(
            f"interrupted: {done} of {len(self._plan.cells)} cells are answered and kept; "
            "the same command goes on from here"
        )
        return 130

    def _say(self, text: str) -> None:
        self._terminal.say(text)


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _peak_bytes(model: CostModel) -> Callable[[Cell], int]:
    """Predicted bytes at a cell's peak: what packing goes by."""
    return lambda cell: model.predict(cell).peak_bytes


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
