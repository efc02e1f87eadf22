"""The command line: its verbs and flags, its exit codes, and how it ends when it is stopped."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli, provenance
from orchestrator.errors import SweepLocked, UserError
from orchestrator.expand import expand
from orchestrator.results import Results
from orchestrator.spec import load_spec
from tests.orchestrator.made_records import envelope, timed
from tests.orchestrator.sweep_files import write
from workloads import environment
from workloads.cell import Cell

HEAVY = ("torch", "ray", "mlflow", "pandas", "pydantic", "rich", "matplotlib", "numpy", "yaml")
INTERFACE = {
    "plan": {"SWEEP.yaml", "--json", "--results"},
    "sweep": {"SWEEP.yaml", "--address", "--inline", "--tracking-uri", "--results"},
    "status": {"SWEEP.yaml", "--watch", "--tracking-uri", "--results"},
    "analyze": {"SWEEP.yaml", "--tracking-uri", "--results"},
    "doctor": set(),
    "ui": {"--tracking-uri"},
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in an empty folder, with the process's own signal handlers given back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def verbs() -> dict[str, argparse.ArgumentParser]:
    actions = cli.parser()._subparsers
    assert actions is not None
    (choices,) = (action.choices for action in actions._group_actions)
    assert isinstance(choices, dict)
    return choices


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(cli.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": root, "COLUMNS": "100"},
    )


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# The interface.


def test_verbs_and_flags_are_those_of_the_contract() -> None:
    """No flag may change a number; a new one is a decision, not an accident."""
    found = {
        name: {
            action.metavar if not action.option_strings else action.option_strings[-1]
            for action in verb._actions
            if action.dest != "help"
        }
        for name, verb in verbs().items()
    }
    assert found == INTERFACE


@pytest.mark.parametrize("verb", [[], *([name] for name in INTERFACE)], ids=" ".join)
def test_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*verb, "--help"])
    assert ended.value.code == 0
    assert "usage: python -m orchestrator" in capsys.readouterr().out


def test_help_is_light() -> None:
    code = (
        "import sys, runpy; sys.argv = ['orchestrator', '--help']\n"
        "try: runpy.run_module('orchestrator', run_name='__main__')\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["plan"], ["plan", "x", "--fast"], ["sweep", "x", "--inline", "--address", "a"]],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


# Exit codes.


def verb_that(monkeypatch: pytest.MonkeyPatch, does: Callable[[argparse.Namespace], int]) -> None:
    """Makes `doctor` do something else."""
    module = types.ModuleType("orchestrator.verbs.doctor")
    module.run = does  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "orchestrator.verbs.doctor", module)


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("no such thing"), 2), (KeyboardInterrupt(), 130)]
)
def test_exit_codes_of_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise error

    verb_that(monkeypatch, run)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == (f"{error}\n" if code == 2 else "")


@pytest.mark.parametrize("code", [0, 1, 130])
def test_a_verbs_own_code_is_the_programs(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    verb_that(monkeypatch, lambda arguments: code)
    assert cli.main(["doctor"]) == code


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    verb_that(monkeypatch, lambda arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_shutdown_end_with_130(number: signal.Signals) -> None:
    code = (
        "import sys, types, time, os, signal\n"
        "verb = types.ModuleType('verb')\n"
        f"verb.run = lambda a: (os.kill(os.getpid(), {int(number)}), time.sleep(30))\n"
        "sys.modules['orchestrator.verbs.doctor'] = verb\n"
        "from orchestrator.cli import main\n"
        "raise SystemExit(main(['doctor']))"
    )
    done = python("-c", code)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", [["plan", "--json"], ["status"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_failure(tmp_path: Path, verb: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    path = write(tmp_path)
    root = str(Path(cli.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *verb, str(path)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# Bad input: exit 2, one message, nothing written.

BAD: dict[str, bytes] = {
    "unknown key": b"nmae: x\n",
    "not YAML": b"a: b: c\n",
    "empty": b"",
    "10 MB": b"#" * 10_000_000,
    "alias bomb": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "not UTF-8": b"name: \xff\n",
    "a binary": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("verb", ["plan", "sweep", "status", "analyze"])
@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_bad_files_end_with_2_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, content: bytes
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert cli.main([verb, str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{path}: ")
    assert "Traceback" not in err
    assert everything_below(tmp_path) == {"bad.yaml"}


@pytest.mark.parametrize("verb", ["plan", "sweep", "status", "analyze"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.yaml", "there is no such file"),
        (".", "is a directory, not a sweep file"),
        ("pipe", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
    ],
)
def test_what_is_no_file_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, name: str, message: str
) -> None:
    os.mkfifo("pipe")
    assert cli.main([verb, name]) == 2
    assert capsys.readouterr().err == f"{name}: {message}\n"
    assert everything_below(tmp_path) == {"pipe"}


def test_a_whole_program_tells_two_faults_without_a_traceback(tmp_path: Path) -> None:
    path = write(tmp_path, {"measure.seq_len": [64, -5], "architectures": ["lstm", "transfomer"]})
    done = python("-m", "orchestrator", "plan", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2
    assert "architectures[1]: unknown architecture 'transfomer'. Did you mean" in done.stderr
    assert "measure.seq_len[1]: must be at least 1, not -5" in done.stderr


def test_a_cluster_needs_a_device_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {"device": "auto"})
    assert cli.main(["sweep", str(path), "--address", "127.0.0.1:1"]) == 2
    assert "device: name a device class" in capsys.readouterr().err
    assert everything_below(tmp_path) == {"sweep.yaml"}


@pytest.mark.parametrize("verb", ["plan", "sweep", "status", "analyze"])
def test_results_that_are_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    path = write(tmp_path)
    assert cli.main([verb, str(path), "--results", str(path)]) == 2
    assert capsys.readouterr().err == f"{path}: is not a folder; results are kept in one\n"
    assert everything_below(tmp_path) == {"sweep.yaml"}


def test_results_that_cannot_be_written() -> None:
    with (
        pytest.raises(UserError, match="/proc/results/made: cannot be written"),
        Results.of("made", "/proc/results").locked(),
    ):
        pass


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    results = Results.of("made", tmp_path)
    with results.locked(), pytest.raises(SweepLocked) as caught, results.locked():
        pass
    assert f"process {os.getpid()} is working on this sweep" in str(caught.value)
    with results.locked():
        pass


# plan and status.


def record(path: Path, change: Callable[[Cell], Any] = lambda cell: envelope(cell)) -> None:
    """Puts records of the sweep's cells into its journal; None leaves a cell out."""
    plan = expand(load_spec(path))
    journal = Results.of(plan.name).journal()
    for cell in plan.cells:
        made = change(cell)
        if made is not None:
            journal.append(made)


def here(cell: Cell, *measurements: Any, **facts: Any) -> Any:
    source = facts.pop("source", provenance.source().hash)
    where = facts.pop("environment", environment.describe(cell.device))
    return envelope(cell, *measurements, environment=where, source=source, **facts)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def test_plan_prints_cells_and_what_they_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    code, out = printed(capsys, "plan", str(path))
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines[0] == ["made:", "Which", "is", "faster?"]
    rows = [line[:5] for line in lines[2:8]]
    assert rows == [
        [kind, label, contexts, number, "0"]
        for kind, contexts, number in (("measure", "64-128", "12"), ("train", "64", "2"))
        for label in ("lstm", "gru", "transformer")
    ]
    assert "42 cells on cpu:1, 0 answered, 42 to run" in out
    assert "lengths count bytes" in out
    assert "6 cells train for fewer than 500 updates, which gives no verdict" in out
    assert everything_below(tmp_path) == {"sweep.yaml"}


def test_plan_as_json_is_what_a_cell_is_run_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    code, out = printed(capsys, "plan", str(path), "--json")
    content = json.loads(out)
    plan = expand(load_spec(path))
    assert code == 0
    assert [Cell.from_dict(cell) for cell in content["cells"]] == list(plan.cells)
    assert [cell["id"] for cell in content["cells"]] == [cell.id for cell in plan.cells]
    assert content["counts"] == {"pending": 42}
    assert content["spec_hash"] == plan.spec_hash
    assert set(content["predictions"]) == {cell.id for cell in plan.cells}
    predicted = sum(one["seconds"] for one in content["predictions"].values())
    assert content["predicted_seconds"] == pytest.approx(predicted)


def test_plan_counts_what_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    record(path, lambda cell: here(cell) if cell.kind == "measure" else None)
    _, out = printed(capsys, "plan", str(path))
    assert "42 cells on cpu:1, 36 answered, 6 to run" in out
    assert "corrected by earlier records" in out
    record(path, lambda cell: here(cell) if cell.kind == "train" else None)
    _, out = printed(capsys, "plan", str(path))
    assert "42 answered, 0 to run" in out
    assert "to go" not in out


def test_plan_looks_into_the_results_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    record(path, here)
    _, out = printed(capsys, "plan", str(path), "--results", "elsewhere")
    assert "0 answered" in out
    assert not Path("elsewhere").exists()


def test_plan_says_which_files_are_no_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    record(path, lambda cell: here(cell) if cell.seed == 0 and cell.label == "gru" else None)
    damaged = next(Path("results/made/journal").iterdir())
    damaged.write_text("{")
    assert cli.main(["plan", str(path)]) == 0
    assert capsys.readouterr().err.startswith(f"left out: {damaged.resolve()}: ")


def rows(out: str) -> dict[tuple[str, str], list[int]]:
    """finished, failed, lost, pending by kind and label."""
    table = [line.split() for line in out.splitlines() if line[:5] in ("measu", "train")]
    return {(line[0], line[1]): [int(number) for number in line[2:]] for line in table}


def test_status_while_nothing_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = printed(capsys, "status", str(write(tmp_path)))
    assert code == 0
    assert rows(out)["measure", "gru"] == [0, 0, 0, 12]
    assert everything_below(tmp_path) == {"sweep.yaml"}


def test_status_of_what_was_answered_failed_lost_and_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)

    def change(cell: Cell) -> Any:
        if cell.kind == "train":
            return here(cell, status={"lstm": "failed", "gru": "lost"}.get(cell.label, "finished"))
        if cell.label == "gru" and cell.seq_len == 128:
            limited = (timed(name, reason="out_of_memory") for name in cell.metrics)
            return here(cell, *limited)
        return here(cell) if cell.label == "gru" else None

    record(path, change)
    code, out = printed(capsys, "status", str(path))
    assert code == 1
    assert rows(out) == {
        ("measure", "lstm"): [0, 0, 0, 12],
        ("measure", "gru"): [12, 0, 0, 0],
        ("measure", "transformer"): [0, 0, 0, 12],
        ("train", "lstm"): [0, 2, 0, 0],
        ("train", "gru"): [0, 0, 2, 0],
        ("train", "transformer"): [2, 0, 0, 0],
    }
    assert "failed: train lstm, context 64, seed 0 and 1 more: it broke" in out
    assert "lost: train gru, context 64, seed 0 and 1 more: it broke" in out
    (cut,) = (line for line in out.splitlines() if line.startswith("out of memory: measure gru"))
    assert cut.endswith(" and 5 more")


def test_status_of_the_given_up_the_elsewhere_and_the_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    elsewhere = replace(environment.describe("cpu:1"), driver="another")

    def change(cell: Cell) -> Any:
        if cell.kind == "train":
            return here(cell, status="failed")
        if cell.label == "lstm":
            return here(cell, environment=elsewhere)
        return here(cell, source="old") if cell.label == "gru" else None

    for _ in range(3):
        record(path, change)
    code, out = printed(capsys, "status", str(path))
    assert code == 1
    assert "6 cells failed as often as allowed" in out
    assert "12 cells answered in another environment only" in out
    assert "12 cells answered by other source code than today's" in out
    _, out = printed(capsys, "plan", str(path))
    assert "42 cells on cpu:1, 12 answered, 24 to run" in out
    assert "6 cells failed as often as allowed" in out


def test_status_where_auto_was_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"device": "auto"})
    record(path, lambda cell: here(replace(cell, device="cpu:2")))
    _, out = printed(capsys, "status", str(path))
    assert "42 cells answered in another environment only" not in out
    assert rows(out)["measure", "gru"] == [12, 0, 0, 0]
