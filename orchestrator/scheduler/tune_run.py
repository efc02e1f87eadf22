"""One Tune run over cells: Tune places them, gives them devices, and retries dead workers.

Tune runs in a thread and reports in events. Its folder is disposable and its snapshots are off:
what happened is in the journal alone.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from orchestrator.scheduler.placement import Share
from orchestrator.scheduler.session import RaySession
from orchestrator.scheduler.worker import Assignment, CellRunner, Post, Ticket, ticket_of

MAX_WORKER_FAILURES = 2
"""How often a cell is tried again whose worker died, before it is `lost`."""
POLL_SECONDS = 0.1
END_SECONDS = 20.0
"""How long Tune may take to end once it was told to."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a cell: `said` is what its worker returned; `placed`, `started`
    and `ended` are of an attempt, which a new worker starts only when it is ready; `retried` says
    that its worker died and another takes over, `died` that Tune tries no more. `over` is the end
    of the run, with the error that ended it."""

    cell_id: str = ""
    placed: bool = False
    started: bool = False
    ended: bool = False
    retried: bool = False
    died: bool = False
    said: Mapping[str, Any] | None = None
    over: bool = False
    error: BaseException | None = None


class _Reporter(tune.Callback):
    """Hands everything to the driver's thread. A hook that raised would end the whole run."""

    def __init__(self, events: queue.Queue[Event]) -> None:
        self._events = events
        # Every worker there ever was, by its id.
        self.actors: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks beside its folder, which nothing ever restores.
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        actor = trial.temporary_state.ray_actor
        assert actor is not None
        known = actor._actor_id.hex() in self.actors
        self.actors[actor._actor_id.hex()] = actor
        self._put(trial, placed=True, started=known)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._put(trial, said=dict(result), started=bool(result.get("ready")))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        # Tune keeps every trial's last result, and statistics of each figure in it, which it writes
        # as one text in the end: of ten thousand cells, half a gigabyte that nobody reads.
        trial.last_result.pop("record", None)
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
        self._put(trial, ended=True)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._put(trial, ended=True, retried=True)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._put(trial, ended=True, died=True)

    def _put(self, trial: Trial, **what: Any) -> None:
        self._events.put(Event(ticket_of(trial.config).cell_id, **what))


# It lists, as an error, the trials it did not complete: which cells those were is said by us.
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)


class _Stop(tune.Stopper):
    """Ends the whole run once it is told to."""

    def __init__(self) -> None:
        self.told = False
        self.heard = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.told:
            self.heard.set()
        return self.told


class TuneRun:
    """Cells in the hands of Tune, for the length of a `with`; what is left at its end is
    stopped."""

    def __init__(
        self, assignments: Sequence[Assignment], session: RaySession, excluded: frozenset[str]
    ) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self._reporter, self._stop = _Reporter(self._events), _Stop()
        self._abandoned = False
        by_id = {one.cell.id: one for one in assignments}
        # Tune unpickles the trainable, and with it what its requests come from, for every trial:
        # that holds the few different ones, and each trial's own text says which is its.
        shares = list(dict.fromkeys(one.share for one in assignments))
        requests = [_request(share, excluded) for share in shares]
        places = {share: place for place, share in enumerate(shares)}
        runner = tune.with_parameters(
            CellRunner,
            assignments=by_id,
            post=Post(session.cores, session.folder, session.expected),
        )
        self._tuner = tune.Tuner(
            tune.with_resources(runner, lambda config: requests[ticket_of(config).place]),
            # As text: an object here reaches some hooks as a placeholder.
            param_space={
                "ticket": tune.grid_search(
                    [Ticket(one.cell.id, places[one.share]).text for one in assignments]
                )
            },
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=str(session.storage),
                name=f"{assignments[0].cell.kind}-{time.monotonic_ns()}",
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=MAX_WORKER_FAILURES),
                stop=self._stop,
                callbacks=[self._reporter],
                verbose=0,
            ),
        )
        self._thread = threading.Thread(target=self._fit, daemon=True, name="tune")

    def __enter__(self) -> TuneRun:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.told = True
        if self._abandoned:
            return
        # Told to stop, an actor would first end its cell, which may take an hour. Tune has to know
        # first, or it would try the cells of dead workers again.
        deadline = time.monotonic() + END_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            if self._stop.heard.wait(POLL_SECONDS):
                break
        for actor in list(self._reporter.actors.values()):
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._thread.join(END_SECONDS)

    def abandon(self) -> None:
        """The cluster is gone: there is nobody left to stop."""
        self._abandoned = True

    def next(self, timeout: float) -> Event | None:
        """What happened next; None where nothing did in this time."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def _fit(self) -> None:
        try:
            self._tuner.fit()
            self._events.put(Event(over=True))
        except BaseException as error:
            self._events.put(Event(over=True, error=error))


def _request(share: Share, excluded: frozenset[str]) -> tune.PlacementGroupFactory:
    """What Tune asks Ray for: the share, on any node but these."""
    resources = dict(share.resources)
    if not excluded:
        return tune.PlacementGroupFactory([resources])
    others = {"ray.io/node-id": f"!in({','.join(sorted(excluded))})"}
    return tune.PlacementGroupFactory([resources], bundle_label_selector=[others])
