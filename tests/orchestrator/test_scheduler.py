"""Cells on a real Ray runtime: each answered once whatever dies, measure cells alone, train cells
side by side."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import runtime
from orchestrator.budget import BUDGET_SPENT, Budget
from orchestrator.errors import UserError
from tests.workloads.tiny_cells import measure_cell, train_cell
from workloads import environment
from workloads.cell import Cell, Limits
from workloads.record import RunRecord

if TYPE_CHECKING:
    from orchestrator.scheduler import RaySession

pytestmark = [
    pytest.mark.slow,
    # Ray leaves pipes and sockets of its own to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PLUGINS = Path(__file__).parents[1] / "plugins"
Execute = Callable[[Sequence[Cell]], list[tuple[Cell, RunRecord]]]


MEBIBYTE = 1 << 20
PATIENCE = 60.0
SECRETS = {"MLFLOW_TRACKING_PASSWORD": "secret", "PGPASSWORD": "secret", "HF_TOKEN": "secret"}


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    """One Ray runtime for all tests here, started by someone who knows secrets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKLOADS_PLUGINS", str(PLUGINS))
        for name, value in {**runtime.SETTINGS, **SECRETS}.items():
            patch.setenv(name, value)
        from orchestrator.scheduler import ray_started

        with ray_started(environment.cores()) as one:
            yield one
            folder = one.folder
    assert folder is not None and not folder.exists()
    assert runtime.processes_of(folder) == []


@pytest.fixture
def execute(session: RaySession) -> Execute:
    """Runs cells, of which a train cell is predicted to peak at a hundred MiB."""
    from orchestrator.scheduler import run_on_ray

    return lambda cells: list(run_on_ray(cells, session, peak_bytes=lambda cell: 100 * MEBIBYTE))


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


@pytest.mark.parametrize(
    ("dies", "ends"),
    [("once", "finished"), pytest.param("always", "lost", marks=pytest.mark.exhaustive)],
)
def test_a_cell_that_tune_gives_up_early_has_its_tries_all_the_same(
    dies: str, ends: str, execute: Execute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where one death is reported twice, or a dead node not known to be dead."""
    from orchestrator.scheduler import tune_run

    monkeypatch.setattr(tune_run, "MAX_WORKER_FAILURES", 0)
    note = {"note": str(tmp_path / "struck")} if dies == "once" else {}
    ((_, record),) = execute([faulty_measure_cell(0, **note)])
    assert record.status == ends
    assert record.message == ("its worker died 3 times" if ends == "lost" else None)


def test_nothing_to_run_is_nothing_done(execute: Execute) -> None:
    assert execute([]) == []


def faulty_train_cell(fault: str, memory_bytes: int | None = None) -> Cell:
    return instant_cell(
        0,
        architecture="faulty",
        options={"fault": fault},
        limits=Limits(memory_bytes=memory_bytes),
    )


def test_what_needs_more_than_was_reserved_runs_again_alone(session: RaySession) -> None:
    """One needs more than its share and less than its limit; the other all there is. The machine
    is taken to have memory for as many cells of 100 MiB as it has cores, and no more."""
    from orchestrator.scheduler import run_on_ray

    memory = 640 * MEBIBYTE * len(environment.cores())
    little = replace(session, nodes=tuple(replace(one, memory=memory) for one in session.nodes))
    said: list[str] = []
    needs = instant_cell(
        0, architecture="ballast", options={"bytes": 300 * MEBIBYTE}, size=0, shell={"d_model": 8}
    )
    hoards = faulty_train_cell("hoard", 400 * MEBIBYTE)
    small = [instant_cell(seed) for seed in range(1, 4)]
    cells = [needs, *small, hoards]
    peak = 100 * MEBIBYTE
    answers = run_on_ray(cells, little, peak_bytes=lambda cell: peak, say=said.append)
    records = {cell.id: record for cell, record in answers}
    assert len(records) == 5
    assert (
        sorted(said)
        == [
            f"{cell.label}: more memory than predicted; runs again alone"
            for cell in (needs, hoards)
        ]
        or len(environment.cores()) == 1
    )
    assert (records[needs.id].status, records[needs.id].reason) == ("finished", "undertrained")
    stopped = records[hoards.id]
    assert (stopped.status, stopped.reason) == ("finished", "out_of_memory")
    (measurement,) = stopped.measurements
    assert "over the cap of 419,430,400 bytes" in (measurement.detail or "")
    assert [records[cell.id].device_share for cell in (needs, hoards)] == [1.0, 1.0]
    assert {records[cell.id].device_share < 1 for cell in small} == {len(environment.cores()) > 1}


def test_the_end_of_the_budget_stops_what_runs(session: RaySession) -> None:
    from orchestrator.scheduler import run_on_ray

    hanging = [
        measure_cell(architecture="faulty", options={"fault": "hang"}, round=number)
        for number in range(3)
    ]
    quick = measure_cell(metrics=("state_bytes",))
    budget = Budget(allowed=3.0)
    answers = list(run_on_ray([quick, *hanging], session, peak_bytes=lambda cell: 0, budget=budget))
    assert budget.exhausted and budget.spent < 3.0 + 10.0
    ended = {record.message for _, record in answers if record.status == "lost"}
    assert ended == {BUDGET_SPENT} and len(answers) <= 2
    assert list(run_on_ray(hanging, session, peak_bytes=lambda cell: 0, budget=budget)) == []


def test_an_interrupt_stops_the_cells(
    session: RaySession, execute: Execute, tmp_path: Path
) -> None:
    """In the middle of a cell that would never end; what comes next runs as ever."""
    from orchestrator.scheduler import run_on_ray

    note = tmp_path / "grandchild"
    options = {"fault": "descend", "note": str(note)}
    endless = [
        measure_cell(architecture="faulty", options=options, round=number) for number in range(3)
    ]

    def interrupt() -> None:
        while not (note.exists() and note.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(run_on_ray(endless, session, peak_bytes=lambda cell: 0))
    deadline = time.monotonic() + PATIENCE
    while runs(int(note.read_text())):
        assert time.monotonic() < deadline, "a cell's process outlived its sweep"
        time.sleep(0.05)
    quick = measure_cell(metrics=("state_bytes",))
    assert [record.status for _, record in execute([quick])] == ["finished"]


def runs(pid: int) -> bool:
    """True while there is such a process; a zombie runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_knows_no_secret(session: RaySession) -> None:
    """Neither from us, who started its runtime, nor from its own node."""
    import ray
    from ray import tune

    from orchestrator.scheduler.worker import CellRunner, Post

    class Spy(CellRunner):
        def variables(self) -> tuple[dict[str, str], bytes]:
            return dict(os.environ), Path("/proc/self/environ").read_bytes()

    told = tune.with_parameters(Spy, assignments={}, post=Post((), None, None))
    own = {"env_vars": {"AWS_SECRET_ACCESS_KEY": "a node's own"}}
    actor = ray.remote(told).options(runtime_env=own).remote({})
    variables, at_start = ray.get(actor.variables.remote())
    assert not {*SECRETS, "AWS_SECRET_ACCESS_KEY"} & set(variables)
    assert not any(name.encode() in at_start for name in SECRETS)
    assert variables["WORKLOADS_PLUGINS"] == str(PLUGINS)
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret", "the driver needs it"
    ray.kill(actor)


def as_cluster(session: RaySession, **changes: Any) -> RaySession:
    """The same runtime, as if it had been joined and not started."""
    from orchestrator.scheduler.session import Expected
    from orchestrator.scheduler.survey import code_hash

    here = environment.describe("cpu:1")
    expected = Expected(code_hash(), here.fingerprint)
    there = replace(session, cores=(), folder=None, expected=expected, environment=here)
    return replace(there, **changes)


def test_a_measure_cell_keeps_the_rest_of_a_larger_node_free(
    session: RaySession, tmp_path: Path
) -> None:
    import ray

    from orchestrator.scheduler import run_on_ray
    from orchestrator.scheduler.placement import NodeShape

    note = tmp_path / "note"
    cell = measure_cell(architecture="faulty", options={"fault": "hang", "note": str(note)})
    free: list[float] = []

    def look() -> None:
        while not note.with_suffix(".waiting").exists():
            time.sleep(0.05)
        deadline = time.monotonic() + PATIENCE
        while (left := ray.available_resources().get("CPU", 0.0)) and time.monotonic() < deadline:
            time.sleep(0.05)
        free.append(left)
        note.touch()

    threading.Thread(target=look, daemon=True).start()
    smaller = as_cluster(session, nodes=(NodeShape(cpus=1, memory=1 << 34),))
    ((_, record),) = run_on_ray([cell], smaller, peak_bytes=lambda cell: 0)
    assert (record.status, free) == ("finished", [0.0])
    assert record.node is not None and len(record.node) == len("12345678-12345678")


def test_a_node_says_what_it_is_and_where_there_is_no_class_one_is_waited_for(
    session: RaySession,
) -> None:
    from orchestrator.scheduler.nodes import surveyed, with_class
    from orchestrator.scheduler.survey import code_hash

    (node,) = surveyed("cpu:1")
    assert (node.code, node.problem) == (code_hash(), None)
    assert node.environment == environment.describe("cpu:1")
    assert (node.shape,) == session.nodes
    said: list[str] = []
    with pytest.raises(UserError, match="none came within"):
        with_class("nvidia-h100-80gb-hbm3", node.code, said.append, patience=1.0)
    (line,) = said
    assert line.startswith("no node of the cluster has nvidia-h100-80gb-hbm3 yet (there is: ")
    assert with_class("cpu:1", node.code, said.append) == [node]


def test_a_worker_says_how_its_machine_differs() -> None:
    from orchestrator.scheduler.session import Expected
    from orchestrator.scheduler.survey import code_hash
    from orchestrator.scheduler.worker import mismatch

    here = environment.describe("cpu:1").fingerprint
    assert mismatch(Expected(code_hash(), here), "cpu:1") is None
    assert "install the same version" in (mismatch(Expected("other", here), "cpu:1") or "")
    assert "cannot be drawn together" in (mismatch(Expected(code_hash(), "other"), "cpu:1") or "")
