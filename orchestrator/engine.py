"""Where a sweep's cells run: here one after another, here side by side on Ray, or on a cluster.

Three ways, one shape. Ray is imported when it is asked for, after the settings it reads on import.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator import runtime
from orchestrator.budget import Budget
from orchestrator.inline import run_inline
from orchestrator.isolation import Isolation
from orchestrator.preparation import Job, Machines
from workloads import environment
from workloads.cell import KINDS, Cell
from workloads.environment import Environment
from workloads.record import RunRecord
from workloads.tasks.headway import Hear

Say = Callable[[str], None]
PeakBytes = Callable[[Cell], int]
Answers = Generator[tuple[Cell, RunRecord], None, None]
Run = Callable[[Sequence[Cell], PeakBytes, Budget, Say], Answers]
"""Cells in, (cell, record) out; closing it stops what runs."""
Width = Callable[[Sequence[Cell], PeakBytes], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Engine:
    """Machines that are ready: what their environment is, how they prepare, how they answer cells,
    and how many cells of each kind they run side by side."""

    environment: Environment
    machines: Machines
    run: Run
    width: Width


@dataclass(frozen=True, slots=True)
class _Here:
    """This machine, where everywhere is here."""

    isolation: Isolation

    def everywhere(self, job: Job, hear: Hear) -> None:
        self.isolation.call(job, hear=hear)

    def once(self, job: Job) -> Job:
        return self.isolation.call(job)


@contextlib.contextmanager
def inline(device: str, cores: Sequence[int]) -> Iterator[Engine]:
    """This machine, without Ray."""

    def run(cells: Sequence[Cell], peak_bytes: PeakBytes, budget: Budget, say: Say) -> Answers:
        return run_inline(cells, isolation, cores=cores, budget=budget)

    with Isolation() as isolation:
        yield Engine(
            environment.describe(device),
            _Here(isolation),
            run,
            lambda cells, peak_bytes: dict.fromkeys(KINDS, 1),
        )


@contextlib.contextmanager
def on_ray(device: str, cores: Sequence[int]) -> Iterator[Engine]:
    """This machine, with a Ray of its own."""
    with Isolation(for_cells=False) as isolation:
        isolation.start()  # warms up while Ray starts
        runtime.set_ray_environment()
        from orchestrator.scheduler import RaySession, ray_started, run_on_ray, width

        def run(cells: Sequence[Cell], peak_bytes: PeakBytes, budget: Budget, say: Say) -> Answers:
            isolation.close()  # each worker has its own
            return run_on_ray(cells, session, peak_bytes=peak_bytes, budget=budget, say=say)

        session: RaySession
        with ray_started(cores) as session:
            yield Engine(
                environment.describe(device),
                _Here(isolation),
                run,
                lambda cells, peak_bytes: width(cells, session, peak_bytes),
            )


@contextlib.contextmanager
def on_cluster(address: str, device: str, say: Say) -> Iterator[Engine]:
    """The nodes of the Ray cluster at this address that have the device class.

    Raises:
        UserError: it cannot be joined, or its nodes are not fit; says why.
    """
    runtime.set_ray_environment()
    from orchestrator.scheduler import cluster_joined, run_on_ray, width

    with cluster_joined(address, device, say) as session:
        assert session.environment is not None
        yield Engine(
            session.environment,
            session,
            lambda cells, peak_bytes, budget, tell: run_on_ray(
                cells, session, peak_bytes=peak_bytes, budget=budget, say=tell
            ),
            lambda cells, peak_bytes: width(cells, session, peak_bytes),
        )
