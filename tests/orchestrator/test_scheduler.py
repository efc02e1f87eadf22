"""Cells on a real Ray runtime: each answered once whatever dies, measure cells alone, train cells
side by side."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator import runtime
from tests.workloads.tiny_cells import measure_cell, train_cell
from workloads import environment
from workloads.cell import Cell
from workloads.record import RunRecord

pytestmark = [
    pytest.mark.slow,
    # Ray leaves pipes and sockets of its own to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PLUGINS = Path(__file__).parents[1] / "plugins"
Execute = Callable[[Sequence[Cell]], list[tuple[Cell, RunRecord]]]


@pytest.fixture(scope="module")
def execute() -> Iterator[Execute]:
    """Runs cells on one Ray runtime for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKLOADS_PLUGINS", str(PLUGINS))
        for name, value in runtime.SETTINGS.items():
            patch.setenv(name, value)
        from orchestrator.scheduler import ray_started, run_on_ray

        with ray_started(environment.cores()) as session:
            yield lambda cells: list(run_on_ray(cells, session))
            folder = session.folder
    assert folder is not None and not folder.exists()
    assert runtime.processes_of(folder) == []


def instant_cell(seed: int, architecture: str = "none", **fields: object) -> Cell:
    return train_cell(
        architecture=architecture,
        task="instant",
        task_options={},
        seq_len=4,
        seed=seed,
        tokens_per_update=4,
        **{"metrics": ("one",), "tokens": 4, **fields},
    )


def faulty_measure_cell(round: int, **options: str) -> Cell:
    return measure_cell(architecture="faulty", options={"fault": "strike", **options}, round=round)


def spans(answers: list[tuple[Cell, RunRecord]], kind: str) -> list[tuple[float, float]]:
    """When cells of this kind ran, in order."""
    records = [record for cell, record in answers if cell.kind == kind]
    return sorted((r.started_at, r.started_at + r.seconds) for r in records)


def test_cells_much_shorter_than_a_start_leave_no_slot_idle(execute: Execute) -> None:
    answers = execute([instant_cell(seed, metrics=("server",)) for seed in range(150)])
    found = [m for _, record in answers for m in record.measurements if m.metric == "server"]
    servers = [measurement.samples[0] for measurement in found]
    assert len(set(servers)) == len(environment.cores())
    assert min(map(servers.count, servers)) > 150 / len(environment.cores()) / 4


def test_measure_cells_run_alone_and_train_cells_side_by_side(execute: Execute) -> None:
    cells = [measure_cell(round=number) for number in range(4)]
    cells += [instant_cell(seed, tokens=4 * 1500) for seed in range(4)]
    answers = execute(cells)
    assert sorted(cell.id for cell, _ in answers) == sorted(cell.id for cell in cells)
    assert all(cell.id == record.cell.id for cell, record in answers)
    assert {record.status for _, record in answers} == {"finished"}
    everything = sorted(spans(answers, "measure") + spans(answers, "train")[:1])
    assert all(one[1] <= next_[0] for one, next_ in itertools.pairwise(everything))
    if len(os.sched_getaffinity(0)) > 1:
        together = itertools.pairwise(spans(answers, "train"))
        assert any(next_[0] < one[1] for one, next_ in together)


def test_a_dead_worker_is_replaced_and_what_stays_dead_is_lost(
    execute: Execute, tmp_path: Path
) -> None:
    """One cell kills its worker once, another each time; the others do not care."""
    note = tmp_path / "struck"
    once = faulty_measure_cell(0, note=str(note))
    always = faulty_measure_cell(1)
    others = [measure_cell(round=number, metrics=("state_bytes",)) for number in range(3)]
    answers = execute([others[0], once, others[1], always, others[2]])
    assert len(answers) == 5
    records = {cell.id: record for cell, record in answers}
    assert note.exists() and records[once.id].status == "finished"
    assert {records[cell.id].status for cell in others} == {"finished"}
    lost = records[always.id]
    assert (lost.status, lost.message) == ("lost", "its worker died 3 times")
    assert lost.measurements == () and lost.traceback is None


def test_nothing_to_run_is_nothing_done(execute: Execute) -> None:
    assert execute([]) == []


def test_what_cells_ask_of_a_machine() -> None:
    from orchestrator.scheduler import _resources as resources

    measure, train = measure_cell(), train_cell()
    assert resources(measure, 8, 4) == {"CPU": 8}
    assert resources(train, 8, 0) == {"CPU": 1}
    assert resources(train, 8, 2) == {"CPU": 4}, "two fit into memory"
    assert resources(train_cell(device="cpu:3"), 8, 8) == {"CPU": 3}
    assert resources(train_cell(device="cpu:16"), 8, 1) == {"CPU": 8}
    for cell in (measure_cell(device="nvidia-h100"), train_cell(device="nvidia-h100")):
        assert resources(cell, 8, 8) == {"CPU": 1, "GPU": 1}
