"""One cell on the command line: its record is the last line, its exit code tells how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workloads.tiny_cells import measure_cell, train_cell
from workloads.__main__ import main, parser
from workloads.cell import Cell
from workloads.record import RunRecord

ROOT = Path(__file__).parents[2]
# What a machine without a cluster need not have.
ABSENT = ("ray", "mlflow", "pandas", "pydantic", "pyarrow", "datasets", "tokenizers", "optuna")


def written(cell: Cell, folder: Path) -> str:
    path = folder / "cell.json"
    path.write_text(json.dumps({"id": cell.id, **cell.to_dict()}))
    return str(path)


def last_record(output: str) -> RunRecord:
    return RunRecord.from_dict(json.loads(output.splitlines()[-1]))


def test_the_record_is_the_last_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cell = measure_cell(metrics=("decode_time", "state_bytes"))
    assert main([written(cell, tmp_path)]) == 0
    out, err = capfd.readouterr()
    record = last_record(out)
    assert (record.cell, record.status) == (cell, "finished")
    assert [m.metric for m in record.measurements] == ["decode_time", "state_bytes"]
    assert record.facts["d_model"] and record.seconds > 0
    assert "decode_time" in err and "mlp_width" in err


def test_quiet_says_nothing_but_the_record(tmp_path: Path) -> None:
    """In a process of its own: torch's profiler asks once in a process whether it may speak."""
    asked = [written(measure_cell(metrics=("peak_memory",)), tmp_path), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "workloads", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("kind", ["measure", "train"])
def test_torch_and_numpy_are_all_it_needs(kind: str, tmp_path: Path) -> None:
    cell = measure_cell() if kind == "measure" else train_cell()
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in ABSENT)
    program = f"import runpy, sys\n{blocked}runpy.run_module('workloads', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program, "-", "--cache", str(tmp_path)],
        input=json.dumps(cell.to_dict()),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert last_record(done.stdout).status == "finished"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "a cell is one JSON object"),
        ("{}", "cell is not complete"),
        (json.dumps({**measure_cell().to_dict(), "colour": 1}), "unknown fields: colour"),
        (json.dumps({**measure_cell().to_dict(), "id": "0" * 64}), "its content gives"),
        (json.dumps(measure_cell(architecture="lstn").to_dict()), "Did you mean 'lstm'"),
        (json.dumps(measure_cell(metrics=("speed",)).to_dict()), "unknown metric 'speed'"),
        (json.dumps(measure_cell(size=3).to_dict()), "too few"),
    ],
)
def test_a_wrong_request_gets_one_message(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cell.json"
    path.write_text(text)
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_a_file_that_is_not_there_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-file.json"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_failure_has_its_traceback_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(cell: Cell) -> None:
        raise OSError("the device caught fire")

    monkeypatch.setattr("workloads.run.devices.open_device", broken)
    assert main([written(measure_cell(), tmp_path)]) == 1
    record = last_record(capsys.readouterr().out)
    assert (record.status, record.message) == ("failed", "OSError: the device caught fire")
    assert "in broken" in (record.traceback or "")


def test_an_interrupt_ends_with_130(tmp_path: Path) -> None:
    cell = train_cell(tokens=10**9)
    child = subprocess.Popen(
        [sys.executable, "-m", "workloads", written(cell, tmp_path), "--cache", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stderr is not None and child.stdout is not None
        for line in child.stderr:
            if " of " in line:
                break
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait(timeout=30) == 130
        assert rest.endswith("interrupted\n") and "Traceback" not in rest
        assert child.stdout.read() == ""


def test_the_flags_say_only_where_and_how_loudly() -> None:
    flags = {flag for action in parser()._actions for flag in action.option_strings}
    assert flags == {"-h", "--help", "--cache", "--quiet"}
