"""What only MLflow has comes into the journal whole, once, and stays older than what is to come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.adoption import take_over
from orchestrator.errors import LeaseLost
from orchestrator.journal import Journal, merge
from orchestrator.provenance import Envelope
from orchestrator.results import Results
from orchestrator.store import MlflowStore
from tests.orchestrator.made_records import cell, envelope, plan

# MLflow's own use of SQLAlchemy, not ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

RECORDS = [
    envelope(cell(128), status="failed", at=9, epoch=3, sequence=1),
    envelope(cell(128), at=1, epoch=4, sequence=1),
    envelope(cell(256), at=2, epoch=4, sequence=2),
]


@pytest.fixture
def recorded(database: Path) -> Path:
    """A database that has the records of a machine that is gone."""
    store = MlflowStore(f"sqlite:///{database}", "sweep", database.parent / "gone")
    store.begin(plan())
    store.write(list(merge(RECORDS).values()))
    store.end()
    return database


def taken_over(folder: Path, uri: str) -> tuple[list[Envelope], int, list[str]]:
    """The journal of a driver that begins in this folder, the number of its lease, and what it
    said."""
    said: list[str] = []
    results = Results(folder)
    with results.locked() as lease:
        journal = results.journal(lease.check)
        take_over(journal, MlflowStore(uri, "sweep", folder, lease.check), lease, said.append)
        return journal.read(), lease.number, said


def test_an_empty_journal_takes_over_every_record_under_its_key(
    recorded: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{recorded}"
    journal, number, said = taken_over(tmp_path / "new", uri)
    assert journal == RECORDS
    assert number == 5
    assert said == [f"3 records of 2 cells taken over from {uri}"]
    # Again, and where a part was taken over before a kill.
    assert taken_over(tmp_path / "new", uri) == (RECORDS, 6, [])
    next((tmp_path / "new" / "journal").glob(f"{RECORDS[1].key}*")).unlink()
    journal, number, said = taken_over(tmp_path / "new", uri)
    assert (journal, number) == (RECORDS, 7)
    assert said == [f"1 record of 2 cells taken over from {uri}"]


def test_a_journal_that_came_without_its_leases_stays_older(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for one in RECORDS:
        journal.append(one)
    uri = f"sqlite:///{tmp_path / 'none.db'}"
    assert taken_over(tmp_path, uri) == (RECORDS, 5, [])


def test_a_record_that_is_not_what_its_tag_says_is_left_out(recorded: Path, tmp_path: Path) -> None:
    damaged = next(recorded.parent.glob("mlruns/**/record.json"))
    damaged.write_bytes(damaged.read_bytes().replace(b"0.25", b"0.24"))
    journal, _, said = taken_over(tmp_path / "new", f"sqlite:///{recorded}")
    assert 0 < len(journal) < len(RECORDS)
    assert ["SHA-256" in text for text in said] == [True, False]


def test_where_there_is_no_store_yet_nothing_is_asked(tmp_path: Path) -> None:
    """Neither without a database nor where it has nothing of this sweep: MLflow is not even
    imported, which takes seconds."""
    program = (
        "import sqlite3, sys; from pathlib import Path\n"
        "from tests.orchestrator.test_adoption import taken_over\n"
        "for name in list(sys.modules):\n"
        "    if name.partition('.')[0] == 'mlflow': del sys.modules[name]\n"
        "folder = Path(sys.argv[1])\n"
        "print(taken_over(folder / 'one', f'sqlite:///{folder}/no.db'))\n"
        "sqlite3.connect(folder / 'other.db').execute('CREATE TABLE experiments (name TEXT)')\n"
        "print(taken_over(folder / 'two', f'sqlite:///{folder}/other.db'))\n"
        "print('mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.splitlines() == ["([], 1, [])", "([], 1, [])", "False"]
    assert not (tmp_path / "no.db").exists()


def test_a_store_that_does_not_answer_is_said_and_the_sweep_goes_on(tmp_path: Path) -> None:
    journal, number, said = taken_over(tmp_path, "http://127.0.0.1:9")
    assert (journal, number) == ([], 1)
    assert len(said) == 1 and "127.0.0.1:9" in said[0] and "cells run again" in said[0]


def test_a_driver_that_lost_its_lease_takes_nothing_over(recorded: Path, tmp_path: Path) -> None:
    results = Results(tmp_path / "new")
    with results.locked() as lease:
        journal = results.journal(lease.check)
        (results.folder / "leases" / "2").touch()
        store = MlflowStore(f"sqlite:///{recorded}", "sweep", results.folder)
        with pytest.raises(LeaseLost):
            take_over(journal, store, lease, print)
        assert journal.read() == []
