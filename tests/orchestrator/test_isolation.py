"""A cell in a child of its own: however it ends, there is a record with what was measured, nothing
is left behind, and the next cell is answered as if nothing had been."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import jobs
from orchestrator.guard import Ended
from orchestrator.isolation import Isolation, child_environment, is_cut_short
from tests.workloads.tiny_cells import measure_cell
from workloads import registry
from workloads.cell import Cell, Limits
from workloads.events import Started, encode
from workloads.record import RunRecord
from workloads.tasks.headway import Headway

PLUGINS = Path(__file__).parents[1] / "plugins"
PATIENCE = 120.0


@pytest.fixture(scope="module")
def isolation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Isolation]:
    """One server for all tests here, as in a sweep."""
    with pytest.MonkeyPatch.context() as patch, Isolation() as one:
        patch.setenv("WORKLOADS_PLUGINS", str(PLUGINS))
        patch.setenv("WORKLOADS_SITUATION", str(tmp_path_factory.mktemp("s") / "situation.json"))
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        one.wait_until_warm()
        yield one


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKLOADS_PLUGINS", str(PLUGINS))


def faulty(fault: str, *metrics: str, note: str = "", **limits: Any) -> Cell:
    """A cell whose training goes wrong in this way; prefill and state are well."""
    return measure_cell(
        architecture="faulty",
        options={"fault": fault} | ({"note": note} if note else {}),
        metrics=metrics or ("state_bytes", "train_step_time"),
        limits=Limits(**limits),
    )


def sound() -> Cell:
    return measure_cell(metrics=("state_bytes",))


def answered(record: RunRecord) -> list[str]:
    return [m.metric for m in record.measurements if m.samples]


def gone(pid: int) -> bool:
    """True where no such process is running; a zombie runs no more."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def eventually(happened: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def fork_server() -> int:
    """Ours, beside whatever other tests of this process have started."""
    (found,) = [
        child
        for child in children(os.getpid())
        if b"orchestrator.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return found


@pytest.mark.parametrize(
    ("fault", "said", "trace"),
    [
        ("segfault", "died of SIGSEGV", "faulty.py"),
        ("suicide", "died of SIGKILL", "wrote nothing"),
        ("exit", "left with exit code 3", "leaving with three"),
        ("raise", "LookupError: no such thing", "in _raise"),
        ("shout", "left with exit code 1", "line 199999 of a great many"),
    ],
)
def test_a_crash_is_a_failed_record_with_the_figures_so_far(
    isolation: Isolation, fault: str, said: str, trace: str
) -> None:
    record = isolation.run_cell(faulty(fault))
    assert record.status == "failed"
    assert said in (record.message or "")
    assert trace in (record.traceback or "")
    assert len(record.traceback or "") < 10_000
    assert answered(record) == ["state_bytes"]
    assert record.facts["implementation"] == "faulty"
    assert isolation.run_cell(sound()).status == "finished"


def test_a_deadline_kills_and_keeps_what_was_measured(isolation: Isolation) -> None:
    clock = time.monotonic()
    record = isolation.run_cell(faulty("hang", cell_seconds=2.0))
    assert 2.0 < time.monotonic() - clock < 2.0 + PATIENCE
    assert (record.status, record.reason) == ("finished", "timeout")
    assert answered(record) == ["state_bytes"]
    late = record.measurement("train_step_time")
    assert late is not None and re.match(
        r"stopped after 2\.\d s, at [\d,]+ bytes", late.detail or ""
    )
    assert isolation.run_cell(sound()).status == "finished"


def test_the_memory_cap_takes_one_metric_and_leaves_the_others(isolation: Isolation) -> None:
    cell = faulty("hoard", "train_step_time", "prefill_time", "state_bytes", memory_bytes=200 << 20)
    record = isolation.run_cell(cell)
    assert (record.status, record.reason) == ("finished", "out_of_memory")
    assert answered(record) == ["prefill_time", "state_bytes"]
    stopped = record.measurement("train_step_time")
    assert stopped is not None and "over the cap of 209,715,200 bytes" in (stopped.detail or "")
    used = int(re.findall(r"[\d,]{9,}", stopped.detail or "")[0].replace(",", ""))
    # Noticed within a few polls of a few megabytes each.
    assert 200 << 20 < used < 600 << 20


def test_a_search_that_takes_the_whole_time_leaves_the_others_as_much(isolation: Isolation) -> None:
    limits = Limits(cell_seconds=3.0, memory_bytes=4_000_000_000)
    cell = measure_cell(metrics=("state_bytes", "max_batch_size"), limits=limits)
    record = isolation.run_cell(cell)
    found = {m.metric: (m.reason, m.samples) for m in record.measurements}
    assert found["max_batch_size"] == ("timeout", ())
    assert found["state_bytes"][0] is None and record.status == "finished"


def test_a_metric_that_was_there_stays_where_the_cap_stops_it_the_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was disturbed is taken once more."""
    cell = measure_cell(metrics=("train_step_time", "prefill_time"))
    taken = {
        name: registry.metric(cell.task, name).measurement(name, (0.5,)) for name in cell.metrics
    }
    first = [Started("train_step_time"), taken["train_step_time"]]
    second = [Started("prefill_time"), taken["prefill_time"]]
    told = iter(
        [
            Ended([encode(event) for event in first], "out_of_memory", "too much"),
            Ended([encode(event) for event in second]),
        ]
    )
    with Isolation() as alone:
        monkeypatch.setattr(alone, "wait_until_warm", lambda: None)
        monkeypatch.setattr(alone, "_run_with_retry", lambda *given: next(told))
        record = alone.run_cell(cell)
    assert record.reason is None and answered(record) == ["train_step_time", "prefill_time"]


def test_no_cap_below_what_a_cell_needs(isolation: Isolation) -> None:
    record = isolation.run_cell(
        measure_cell(metrics=("train_step_time",), limits=Limits(memory_bytes=500 << 20))
    )
    assert (record.status, record.reason) == ("finished", None)


def test_what_was_reserved_is_a_cap_that_says_nothing_of_the_cell(isolation: Isolation) -> None:
    cell = faulty("hoard", "train_step_time", memory_bytes=400 << 20)
    reserved = 100 << 20
    record = isolation.run_cell(cell, reserved_bytes=reserved)
    assert record.reason == "out_of_memory" and record.cell == cell
    assert "over the cap of 104,857,600 bytes" in (record.measurements[0].detail or "")
    assert is_cut_short(record, reserved_bytes=reserved)
    assert not is_cut_short(record, reserved_bytes=400 << 20), "the file's own limit came first"
    assert not is_cut_short(record)


def test_time_given_for_now_is_a_deadline_that_says_nothing_of_the_cell(
    isolation: Isolation,
) -> None:
    record = isolation.run_cell(faulty("hang", "train_step_time"), seconds=1.0)
    assert record.reason == "timeout"
    assert is_cut_short(record, seconds=1.0) and not is_cut_short(record)


def test_what_a_cell_started_itself_ends_with_it(isolation: Isolation, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    record = isolation.run_cell(faulty("descend", note=str(note), cell_seconds=2.0))
    assert record.reason == "timeout"
    assert eventually(lambda: gone(int(note.read_text())))


def test_what_a_crashed_cell_left_behind_ends_too(isolation: Isolation, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    record = isolation.run_cell(faulty("abandon", note=str(note)))
    assert record.status == "failed"
    assert eventually(lambda: gone(int(note.read_text())))


def _driver(cell: Cell) -> subprocess.Popen[bytes]:
    """A process that runs this one cell."""
    program = (
        "import json, sys\n"
        "from orchestrator.isolation import Isolation\n"
        "from workloads.cell import Cell\n"
        "with Isolation() as isolation:\n"
        "    isolation.run_cell(Cell.from_dict(json.load(sys.stdin)))\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert driver.stdin is not None
    with driver.stdin:
        driver.stdin.write(json.dumps(cell.to_dict()).encode())
    return driver


def test_a_killed_driver_leaves_no_process(tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    driver = _driver(faulty("descend", note=str(note)))
    assert eventually(lambda: note.exists() and note.read_text())
    (server,) = children(driver.pid)
    (child,) = children(server)
    driver.kill()
    driver.wait()
    assert eventually(lambda: gone(server) and gone(child) and gone(int(note.read_text())))


def test_a_server_killed_within_a_cell_is_replaced(tmp_path: Path) -> None:
    """The cell is run again, and what the first try had started is gone."""
    note = tmp_path / "grandchild"
    driver = _driver(faulty("descend", note=str(note)))
    try:
        assert eventually(lambda: note.exists() and note.read_text())
        (server,) = children(driver.pid)
        (child,) = children(server)
        grandchild = int(note.read_text())
        note.unlink()
        os.kill(server, signal.SIGKILL)
        assert eventually(lambda: gone(child) and gone(grandchild))
        assert eventually(lambda: note.exists() and note.read_text()), "not run again"
    finally:
        driver.kill()
        driver.wait()


def test_a_server_whose_client_dies_while_it_warms_up_does_not_wait_to_be_warm(
    tmp_path: Path,
) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "architectures").mkdir()
    (tmp_path / "architectures/slow.py").write_text(
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(600)\n"
        "ARCHITECTURE = None\n"
    )
    code = (
        "import os, pathlib, time\n"
        "from orchestrator.isolation import Isolation\n"
        "isolation = Isolation()\n"
        "isolation.start()\n"
        "print(isolation._process.pid, flush=True)\n"
        f"while not pathlib.Path({str(begun)!r}).exists(): time.sleep(0.05)\n"
        "os._exit(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "WORKLOADS_PLUGINS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert eventually(lambda: gone(int(done.stdout)))


def test_a_server_killed_between_cells_is_not_missed(isolation: Isolation) -> None:
    server = fork_server()
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: gone(server))
    assert isolation.run_cell(sound()).status == "finished"


def test_what_a_child_finds(isolation: Isolation) -> None:
    """Its own core, its own threads, no credentials, and the kernel takes it first."""
    core = sorted(os.sched_getaffinity(0))[-1]
    path = Path(os.environ["WORKLOADS_SITUATION"])
    record = isolation.run_cell(measure_cell(metrics=("situation",)), cores=[core])
    assert record.status == "finished", record.traceback
    found = json.loads(path.read_text())
    assert found["cores"] == [core]
    assert (found["torch_threads"], found["threads"]) == (1, 1)
    assert found["oom_score_adj"] == 1000
    assert not [k for k in found["environment"] if k.startswith(("MLFLOW_", "AWS_"))]
    cell = measure_cell(metrics=("situation",), device="cpu:2")
    assert isolation.run_cell(cell).status == "finished"
    assert json.loads(path.read_text())["torch_threads"] == 2


def test_the_server_has_one_thread_when_it_forks(isolation: Isolation) -> None:
    isolation.run_cell(sound())
    server = fork_server()
    assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1


def test_children_do_not_hear_of_each_other(isolation: Isolation) -> None:
    """What one child loads or sets is gone in the next."""
    first = isolation.run_cell(measure_cell(metrics=("state_bytes", "peak_memory")))
    again = isolation.run_cell(measure_cell(metrics=("state_bytes", "peak_memory")))
    assert [m.samples for m in first.measurements] == [m.samples for m in again.measurements]


def test_a_job_that_fails_says_why(isolation: Isolation) -> None:
    with pytest.raises(RuntimeError, match="validation_tokens"):
        isolation.call(
            {
                "job": "prepare",
                "task": "language_modelling",
                "options": {"validation_tokens": 10**12},
            }
        )


def test_a_preparation_is_heard_of_and_answers_all_the_same(
    isolation: Isolation, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("some words\n" * 500)
    said: list[Headway] = []
    job = {
        "job": "prepare",
        "task": "language_modelling",
        "options": {"path": str(tmp_path), "validation_tokens": 10},
    }
    assert isolation.call(job, hear=said.append) == {"prepared": "language_modelling"}
    assert said[-1] == Headway("tokenising", 1, 1)


def test_the_environment_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = child_environment()
    assert not {"MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"} & set(found)
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["WORKLOADS_PLUGINS"] == os.environ["WORKLOADS_PLUGINS"]


def test_children_share_what_triton_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("WORKLOADS_CACHE", str(tmp_path))
    assert child_environment()["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    assert child_environment()["TRITON_CACHE_DIR"] == "elsewhere", "a user's own"


def test_test_plugins_are_found() -> None:
    assert "faulty" in registry.names("architectures")
    assert "instant" in registry.names("tasks")


@pytest.mark.parametrize(("device", "built"), [("cpu:1", True), ("nvidia-h100-80gb-hbm3", False)])
def test_the_server_builds_nothing_for_an_accelerator(
    device: str, built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry build asks CUDA's driver for its devices, and no child forked after that can use it."""
    seen: list[Cell] = []
    monkeypatch.setattr("workloads.check.check", seen.append)
    cell = measure_cell(device=device)
    jobs.foresee({"job": "cell", "cell": cell.to_dict()})
    assert (seen == [cell]) is built
