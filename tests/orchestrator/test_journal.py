"""The journal: a record is there whole or not at all, reading never stops, and one rule merges."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.journal import (
    MAX_ATTEMPTS,
    Journal,
    exhausted,
    merge,
    merge_cell,
    missing,
)
from tests.orchestrator.made_records import HERE, cell, envelope, timed
from tests.simulated_world import present_version
from workloads.cell import Limits
from workloads.measurement import Reason

VERSIONS = {name: present_version(name) for name in ("train_step_time", "peak_memory")}


def test_records_come_back_whole_and_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    later, earlier = envelope(cell(128), at=9), envelope(cell(256), at=3)
    paths = [journal.append(later), journal.append(earlier)]
    assert Journal(journal.folder).read() == [earlier, later]
    assert sorted(journal.folder.iterdir()) == sorted(paths)


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal").read() == []
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_what_others_append_and_opens_a_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = Journal(tmp_path), Journal(tmp_path)
    first, second = envelope(cell(128), at=1), envelope(cell(256), at=2)
    writer.append(first)
    assert reader.read() == [first]
    opened: list[Path] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        opened.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    path = writer.append(second)
    assert reader.read() == reader.read() == [first, second]
    assert opened == [path]


def test_damaged_and_foreign_files_are_named_and_stop_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    good = envelope(cell())
    path = journal.append(good)
    content = path.read_bytes()
    wrong = {
        "torn.json": content[:-20],
        "empty.json": b"",
        "list.json": b"[1, 2]",
        "newer.json": json.dumps({**good.to_dict(), "schema": 99}).encode(),
        "copy of one.json": content,
        "binary.json": b"\xff\xfe\x00",
    }
    for name, text in wrong.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "notes.txt").write_text("not ours")
    assert journal.read() == [good]
    assert {damaged.name for damaged in journal.damaged} == set(wrong)
    assert "99" in journal.damaged[tmp_path / "newer.json"]
    assert all(journal.damaged.values())


def test_a_changed_number_is_noticed_by_the_cells_id(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    path = journal.append(envelope(cell(128)))
    path.write_text(path.read_text().replace('"seq_len": 128', '"seq_len": 256'))
    assert journal.read() == []
    assert "id" in journal.damaged[path]


def test_a_file_still_being_copied_is_read_when_it_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    one = envelope(cell())
    path = Journal(tmp_path / "elsewhere").append(one)
    target = tmp_path / path.name
    target.write_bytes(path.read_bytes()[:100])
    assert journal.read() == []
    assert target in journal.damaged
    shutil.copy(path, target)
    assert journal.read() == [one]
    assert journal.damaged == {}


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from orchestrator.journal import Journal
from tests.orchestrator.made_records import cell, envelope

left = 0
def boundary(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def killing(function):
    def wrapped(*arguments, **options):
        boundary()
        result = function(*arguments, **options)
        boundary()
        return result
    return wrapped

one = envelope(cell(128))
for at in range(1, 20):
    child = os.fork()
    if not child:
        left = at
        os.fsync, Path.rename, Path.open = map(killing, (os.fsync, Path.rename, Path.open))
        Journal(Path(sys.argv[1]) / str(at)).append(one)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(ended)
    if ended == 0:
        break
"""


def test_a_kill_at_any_boundary_leaves_a_record_whole_or_absent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    outcomes = []
    for boundary, ended in enumerate(map(int, done.stdout.split()), 1):
        journal = Journal(tmp_path / str(boundary))
        records = journal.read()
        assert journal.damaged == {}, f"boundary {boundary}"
        outcomes.append((ended, len(records)))
        again = envelope(cell(256))
        journal.append(again)
        assert again in journal.read()
    assert outcomes[-1] == (0, 1)
    assert {(-signal.SIGKILL, 0), (-signal.SIGKILL, 1)} <= set(outcomes[:-1])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# -- merging -------------------------------------------------------------------------------------


def test_the_newest_finished_measurement_of_each_metric_counts() -> None:
    asked = cell(128, "train_step_time", "peak_memory")
    first = envelope(asked, at=1)
    second = envelope(asked.asking(("peak_memory",)), timed("peak_memory", 7.0, version=2), at=2)
    merged = merge_cell([second, first])
    assert merged.measurements["train_step_time"].samples == (0.25, 0.5, 0.75)
    assert merged.measurements["peak_memory"].samples == (7.0,)
    assert merged.origin == {"train_step_time": first, "peak_memory": second}
    assert merged.newest == second


def test_cells_and_environments_are_kept_apart_and_a_record_counts_once() -> None:
    elsewhere = replace(HERE, packages={"torch": "2.14.0"})
    one, two = envelope(cell(128)), envelope(cell(256))
    other = envelope(cell(128), environment=elsewhere)
    merged = merge([one, two, other, one])
    assert set(merged) == {
        (one.record.cell.id, HERE.fingerprint),
        (two.record.cell.id, HERE.fingerprint),
        (one.record.cell.id, elsewhere.fingerprint),
    }
    assert merged[one.record.cell.id, HERE.fingerprint].envelopes == (one,)


def test_merging_does_not_depend_on_the_order_of_reading() -> None:
    asked = cell(128, "train_step_time", "peak_memory")
    records = [
        envelope(asked, status="failed", at=1),
        envelope(asked, at=2),
        envelope(asked.asking(("peak_memory",)), status="lost", at=3),
    ]
    assert merge(records) == merge(records[::-1])


def test_a_failure_for_one_more_metric_keeps_the_numbers_and_leaves_the_cell_unanswered() -> None:
    asked = cell(128, "train_step_time", "peak_memory")
    merged = merge_cell(
        [
            envelope(asked.asking(("train_step_time",)), at=1),
            envelope(asked.asking(("peak_memory",)), status="failed", at=2),
        ]
    )
    assert list(merged.measurements) == ["train_step_time"]
    assert merged.status == "failed"
    assert missing(asked, merged, VERSIONS) == ("peak_memory",)
    assert missing(asked.asking(("train_step_time",)), merged, VERSIONS) == ()


def test_numbers_of_an_attempt_that_failed_do_not_answer() -> None:
    merged = merge_cell([envelope(cell(), timed("train_step_time", 0.5), status="failed")])
    assert merged.measurements == {}
    assert missing(cell(), merged, VERSIONS) == ("train_step_time",)


def test_a_late_result_beats_the_news_that_it_was_lost() -> None:
    merged = merge_cell([envelope(cell(), at=1), envelope(cell(), status="lost", at=2)])
    assert merged.status == "finished"
    assert missing(cell(), merged, VERSIONS) == ()


def test_nothing_is_answered_by_no_record_or_by_another_version() -> None:
    assert missing(cell(), None, VERSIONS) == ("train_step_time",)
    merged = merge_cell([envelope(cell())])
    assert missing(cell(), merged, {"train_step_time": 99}) == ("train_step_time",)


@pytest.mark.parametrize(
    ("reason", "then", "today", "answered"),
    [
        ("timeout", Limits(cell_seconds=60), Limits(cell_seconds=60), True),
        ("timeout", Limits(cell_seconds=60), Limits(cell_seconds=30), True),
        ("timeout", Limits(cell_seconds=60), Limits(cell_seconds=61), False),
        ("timeout", Limits(memory_bytes=5), Limits(memory_bytes=9), True),
        ("out_of_memory", Limits(memory_bytes=5), Limits(memory_bytes=5), True),
        ("out_of_memory", Limits(memory_bytes=5), Limits(memory_bytes=6), False),
        ("out_of_memory", Limits(memory_bytes=5), Limits(), False),
        ("out_of_memory", Limits(), Limits(memory_bytes=5), True),
        ("out_of_memory", Limits(cell_seconds=60), Limits(cell_seconds=90), True),
        ("diverged", Limits(cell_seconds=60), Limits(cell_seconds=90), True),
        ("unsupported", Limits(memory_bytes=5), Limits(), True),
    ],
)
def test_a_limit_reached_answers_until_that_limit_is_raised(
    reason: Reason, then: Limits, today: Limits, answered: bool
) -> None:
    measurement = timed("train_step_time", reason=reason)
    merged = merge_cell([envelope(cell(limits=then), measurement)])
    assert merged.reason == reason
    assert (missing(cell(limits=today), merged, VERSIONS) == ()) is answered


def test_what_is_measured_under_a_cap_is_asked_anew_under_another() -> None:
    capped = replace(timed("train_step_time", 1.0), memory_bytes=10)
    merged = merge_cell([envelope(cell(limits=Limits(memory_bytes=10)), capped)])
    for today, asked in ((10, ()), (9, ("train_step_time",)), (11, ("train_step_time",))):
        assert missing(cell(limits=Limits(memory_bytes=today)), merged, VERSIONS) == asked


def test_a_failed_retry_with_larger_limits_shows() -> None:
    stopped = envelope(
        cell(limits=Limits(cell_seconds=60)), timed("train_step_time", reason="timeout"), at=1
    )
    larger = cell(limits=Limits(cell_seconds=600))
    merged = merge_cell([stopped, envelope(larger, status="failed", at=2)])
    assert merged.status == "failed"
    assert merged.attempts == 1
    assert missing(larger, merged, VERSIONS) == ("train_step_time",)


def test_attempts_end_at_three_and_start_anew_with_other_limits_or_source() -> None:
    failed = [envelope(cell(), status="failed", at=at) for at in range(MAX_ATTEMPTS)]
    assert not exhausted(None, cell(), "a1")
    assert not exhausted(merge_cell(failed[:-1]), cell(), "a1")
    merged = merge_cell(failed)
    assert merged.attempts == MAX_ATTEMPTS
    assert exhausted(merged, cell(), "a1")
    assert not exhausted(merged, cell(), "b2")
    assert not exhausted(merged, cell(limits=Limits(memory_bytes=9)), "a1")
    changed = merge_cell([*failed, envelope(cell(), status="lost", at=9, source="b2")])
    assert changed.attempts == 1


def test_a_result_in_between_starts_the_count_anew() -> None:
    merged = merge_cell(
        [
            envelope(cell(128, "peak_memory"), status="failed", at=1),
            envelope(cell(128, "train_step_time"), at=2),
            envelope(cell(128, "peak_memory"), status="failed", at=3),
        ]
    )
    assert merged.attempts == 1
