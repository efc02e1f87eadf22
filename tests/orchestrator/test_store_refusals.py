"""A store that does not let us in: what is said of it shows no password, and nobody waits for
it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from orchestrator import follower
from orchestrator.errors import StoreError, StoreRefused
from orchestrator.follower import StoreWriter
from orchestrator.journal import Journal, Merged
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from orchestrator.store import MlflowStore, resolve_uri, without_password
from orchestrator.store.refusal import explained
from tests.mlflow_server import until
from tests.orchestrator.made_records import cell, envelope, plan

SHOWN = {
    "http://127.0.0.1:5000": "http://127.0.0.1:5000",
    "http://me:hidden@host:5000/path": "http://***@host:5000/path",
    "postgresql+psycopg://me:hidden@host/db": "postgresql+psycopg://***@host/db",
    "postgresql://me:hid@den@host/db": "postgresql://***@host/db",
    "postgresql://me:hid/den@host/db": "postgresql://***@host/db",
    "postgresql://host/db?user=me&password=hidden": "postgresql://host/db?***",
    "sqlite:////home/me@work/mlflow.db?timeout=3": "sqlite:////home/me@work/mlflow.db?timeout=3",
}


@pytest.mark.parametrize("uri", SHOWN)
def test_an_address_is_shown_without_its_password(uri: str, tmp_path: Path) -> None:
    assert without_password(uri) == SHOWN[uri] == MlflowStore(uri, "sweep", tmp_path).address


@pytest.mark.parametrize("password", ["hid@den", "hid/den", "hid?den", "hid#den", "hid den"])
def test_a_password_that_would_be_taken_for_something_else_is_refused(password: str) -> None:
    with pytest.raises(StoreError, match="write @ as %40") as refused:
        resolve_uri(f"postgresql://me:{password}@host:5432/db")
    assert "hid" not in str(refused.value) and "den" not in str(refused.value)


def test_a_port_that_is_none_may_be_a_password() -> None:
    with pytest.raises(StoreError, match="cannot be read as an address") as refused:
        resolve_uri("postgresql://me:hidden@host:port/db")
    assert "hidden" not in str(refused.value)
    uri = "postgresql://me:hid%40den@host:5432/db?sslmode=require"
    assert resolve_uri(uri) == uri


def test_what_mlflow_says_is_shown_without_the_password() -> None:
    uri = "http://me:hidden@host:1/"
    for said in (uri.rstrip("/") + "/api/2.0", "http://me:hidden@host:1/api"):
        error = MlflowException(f"API request to {said} failed\nwith more\nlines")
        assert str(explained(uri, error)) == (
            f"http://***@host:1/: API request to {without_password(said)} failed"
        )


def test_a_database_without_its_driver_says_what_to_install(tmp_path: Path) -> None:
    store = MlflowStore("mssql+pymssql://me:hidden@127.0.0.1:1/db", "sweep", tmp_path)
    with pytest.raises(StoreRefused, match=r"needs its driver \(No module named 'pymssql'\)") as no:
        store.records()
    assert "hidden" not in str(no.value)


# -- the thread that follows ---------------------------------------------------------------------


class ClosedStore:
    """A store that does what `trouble` says: the seam, doubled."""

    def __init__(self, trouble: StoreError | None) -> None:
        self.trouble, self.tries = trouble, 0
        self.written: list[str] = []

    def begin(self, plan: Plan) -> None:
        self.tries += 1
        if self.trouble is not None:
            raise self.trouble

    def behind(self, merged: Sequence[Merged]) -> list[Merged]:
        return [one for one in merged if one.cell.id not in self.written]

    def write(self, merged: Sequence[Merged]) -> None:
        self.begin(plan())
        self.written += [one.cell.id for one in merged]

    def end(self) -> None:
        assert self.trouble is None

    def finish(
        self, plan: Plan, medians: Mapping[str, Sequence[tuple[int, float]]], results: Path
    ) -> None:
        raise AssertionError("a writer does not finish a sweep")

    def records(self) -> list[Envelope]:
        raise AssertionError("a writer does not read the store")


class Writing:
    """A writer of one record into a store."""

    def __init__(self, folder: Path, store: ClosedStore, told: bool = False) -> None:
        self.journal, self.said = Journal(folder / "journal"), list[str]()
        self.journal.append(envelope(cell(128)))
        self.writer = StoreWriter(store, self.journal, plan(), folder, self.said.append, told=told)
        self.writer.start()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GATHER_SECONDS", "FIRST_PAUSE_SECONDS", "LAST_PAUSE_SECONDS"):
        monkeypatch.setattr(follower, name, 0.05)


def test_the_end_does_not_wait_for_a_store_that_lets_nobody_in(tmp_path: Path) -> None:
    down, closed = (
        Writing(tmp_path / kind.__name__, ClosedStore(kind("store: no")))
        for kind in (StoreError, StoreRefused)
    )
    # One that is down may come back: it is asked until the patience ends.
    assert down.writer.close(1.0) == closed.writer.close(60.0) == 1
    assert down.said == closed.said and len(closed.said) == 1
    assert not closed.writer._thread.is_alive()


def test_what_was_said_already_is_not_said_again_until_it_is_news(tmp_path: Path) -> None:
    store = ClosedStore(StoreRefused("store: no"))
    writing = Writing(tmp_path, store, told=True)
    until(lambda: store.tries > 2)
    assert writing.said == []
    store.trouble = None
    until(lambda: bool(store.written))
    store.trouble = StoreError("store: gone")
    writing.journal.append(envelope(cell(256)))
    writing.writer.notify()
    until(lambda: bool(writing.said))
    assert writing.writer.close(0.2) == 1
    assert len(writing.said) == 1 and "gone" in writing.said[0]
