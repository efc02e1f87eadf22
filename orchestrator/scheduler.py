"""Execute cells on Ray: Tune places them, gives them devices, and retries dead workers.

The only file that imports ray. Actors are reused and each cell runs in a child of its own
(`isolation.py`), so a cell costs hundredths of a second instead of Tune's usual seconds. Tune's
folder is disposable and its snapshots are off: what happened is in the journal alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from orchestrator import runtime
from orchestrator.isolation import Isolation
from workloads import environment
from workloads.cell import Cell
from workloads.record import RunRecord

MAX_WORKER_FAILURES = 2
"""How often Tune tries a cell again whose worker died, before it is `lost`."""

_Answer = tuple[str, str | None] | BaseException | None


@dataclass(frozen=True, slots=True)
class RaySession:
    """A Ray runtime that is up, with `cpus` on each machine. What is this machine's own, its
    `cores` and the `folder` of the runtime's files, is empty on a cluster."""

    storage: Path
    cpus: int
    cores: tuple[int, ...] = ()
    folder: Path | None = None


class CellRunner(tune.Trainable):
    """A reused actor: one warm fork server, one cell at a time. One `step` is one cell."""

    def setup(  # type: ignore[override]  # Tune passes what `with_parameters` was given
        self, config: dict[str, Any], cells: Mapping[str, Cell], session: RaySession
    ) -> None:
        self._cells, self._session = cells, session
        self._cores = session.cores or environment.cores()
        self._isolation = Isolation()
        # Without waiting until it is warm: an actor that is idle takes over the cell of one that is
        # still starting, which Tune then ends, starts anew, and so on, for as long as cells take
        # less time than starting does.
        self._isolation.start()
        self._first = True

    def step(self) -> dict[str, Any]:
        cell = self._cells[self.config["cell"]]
        if self._first:
            self._begin(cell)
        record = self._isolation.run_cell(cell, cores=runtime.cores_for(cell, self._cores))
        return {"record": record.to_json(), "done": True}

    def _begin(self, cell: Cell) -> None:
        self._first = False
        self._isolation.wait_until_warm()
        if cell.kind == "measure":
            # Starting is over; from here on the runtime, too, keeps off the cells' cores.
            taken = runtime.cores_for(cell, self._cores)
            runtime.keep_off(taken, self._cores, self._session.folder)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def cleanup(self) -> None:
        self._isolation.close()


class _Collector(tune.Callback):
    """Hands every answer to the driver's thread. A hook that raised would end the whole run."""

    def __init__(self, answers: queue.Queue[_Answer]) -> None:
        self._answers = answers

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks beside its folder, which nothing ever restores.
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._answers.put((trial.config["cell"], result["record"]))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        # Tune keeps every trial's last result; ten thousand records would stay in memory.
        trial.last_result.pop("record", None)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._answers.put((trial.config["cell"], None))


def run_on_ray(
    cells: Sequence[Cell], session: RaySession, *, train_slots: int = 0
) -> Iterator[tuple[Cell, RunRecord]]:
    """Answer the cells: measure cells first, each with a whole device to itself; then train cells,
    which share.

    `train_slots` bounds how many train cells a machine runs side by side, so that their predicted
    memory fits (0: as many as there are cores).
    """
    for kind in ("measure", "train"):
        batch = [cell for cell in cells if cell.kind == kind]
        for share, group in _by_share(batch, session.cpus, train_slots).items():
            if session.folder is not None:
                runtime.keep_off((), session.cores, session.folder)
            yield from _run_tune(group, dict(share), session)


@contextlib.contextmanager
def ray_started(cores: Sequence[int], address: str | None = None) -> Iterator[RaySession]:
    """Ray up, on these cores of this machine or as the cluster at `address`, and down again. Its
    messages are for its developers: errors only."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with runtime.runtime_folder() as folder, warnings.catch_warnings():
        # Ray announces changes of its own defaults to whoever starts it.
        warnings.simplefilter("ignore", FutureWarning)
        # A cluster's workers do not inherit where plug-ins lie.
        plugins = {"WORKLOADS_PLUGINS": os.environ.get("WORKLOADS_PLUGINS", "")}
        options: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": plugins}}
        if address is None:
            options = {
                "num_cpus": len(cores),
                "include_dashboard": False,
                "object_store_memory": 100 << 20,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(folder),
            }
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            # Ray ends the process on SIGTERM; here it ends a sweep in order.
            signal.signal(signal.SIGTERM, on_term)
            storage = folder / "tune"
            if address is None:
                yield RaySession(storage, len(cores), tuple(cores), folder)
            else:
                yield RaySession(storage, _cpus_of_a_machine())
        finally:
            ray.shutdown()
            runtime.keep_off((), cores)


def _cpus_of_a_machine() -> int:
    """CPUs of the largest machine: who asks for as many has one to itself."""
    machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return max(int(one["Resources"].get("CPU", 1)) for one in machines if one["Alive"])


def _by_share(
    cells: Sequence[Cell], cpus: int, train_slots: int
) -> dict[tuple[tuple[str, float], ...], list[Cell]]:
    """Cells grouped by the resources each asks for: actors are reused within equal resources."""
    groups: dict[tuple[tuple[str, float], ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(_resources(cell, cpus, train_slots).items()), []).append(cell)
    return groups


def _resources(cell: Cell, cpus: int, train_slots: int) -> dict[str, float]:
    """A measure cell asks for a whole device (a machine's CPUs, or a GPU); a train cell for a GPU
    too, or for its share of the CPUs."""
    if not environment.is_cpu(cell.device):
        return {"CPU": 1, "GPU": 1}
    if cell.kind == "measure":
        return {"CPU": cpus}
    by_memory = cpus / train_slots if train_slots else 1
    return {"CPU": min(cpus, max(environment.threads_of(cell.device), by_memory))}


def _run_tune(
    cells: Sequence[Cell], resources: dict[str, float], session: RaySession
) -> Iterator[tuple[Cell, RunRecord]]:
    """One Tune run over cells of equal resources, in its own thread; answers as they come."""
    by_id: dict[str, Cell] = {cell.id: cell for cell in cells}
    answers: queue.Queue[_Answer] = queue.Queue()
    trainable = tune.with_resources(
        tune.with_parameters(CellRunner, cells=dict(by_id), session=session), resources
    )
    tuner = tune.Tuner(
        trainable,
        # The id as text: an object here reaches some hooks as a placeholder.
        param_space={"cell": tune.grid_search(list(by_id))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(session.storage),
            name=f"{cells[0].kind}-{time.monotonic_ns()}",
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=MAX_WORKER_FAILURES),
            callbacks=[_Collector(answers)],
            verbose=0,
        ),
    )
    thread = threading.Thread(target=_fit, args=(tuner, answers), daemon=True, name="tune")
    thread.start()
    started_at = time.time()
    while (answer := answers.get()) is not None:
        if isinstance(answer, BaseException):
            raise RuntimeError(f"Ray Tune stopped: {answer}") from answer
        cell_id, record = answer
        # A worker that dies after it answered is an error to Tune, but its cell is answered.
        cell = by_id.pop(cell_id, None)
        if cell is None:
            continue
        yield cell, _lost(cell, started_at) if record is None else _parse(record)
    thread.join()


def _fit(tuner: tune.Tuner, answers: queue.Queue[_Answer]) -> None:
    try:
        tuner.fit()
        answers.put(None)
    except BaseException as error:
        answers.put(error)


def _parse(record: str) -> RunRecord:
    return RunRecord.from_dict(json.loads(record))


def _lost(cell: Cell, started_at: float) -> RunRecord:
    """The record of a cell whose worker died each time it was tried."""
    return RunRecord(
        cell=cell,
        status="lost",
        environment=environment.describe(cell.device),
        started_at=started_at,
        seconds=time.time() - started_at,
        message=f"its worker died {MAX_WORKER_FAILURES + 1} times",
    )
