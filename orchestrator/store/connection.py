"""The connection to one MLflow store: a client that is made when it is first asked for."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from orchestrator import sqlite_file
from orchestrator.errors import StoreError
from orchestrator.store.refusal import explained
from orchestrator.store.uri import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Read by MLflow when it is imported; a user's own setting wins. A store that is down should be
# known to be down within seconds: what is not recorded now is recorded later.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "PGCONNECT_TIMEOUT": "10",
}
_PAGE = 1000


class Connection:
    """One MLflow store. `database` is its SQLite file, None where it is anything else. `allowed` is
    called before each call of the client, and raises where this process may not write any more."""

    def __init__(self, uri: str, allowed: Callable[[], object] = lambda: None) -> None:
        self.uri = uri
        self.allowed = allowed
        self.address = without_password(uri)
        self.database = sqlite_file.database(uri)
        self._client: MlflowClient | None = None

    def client(self) -> MlflowClient:
        """The client. The first call imports MLflow and may create a database (seconds each)."""
        if self._client is None:
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient

            logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
            if self.database is not None:
                client = _opened(self.uri, self.database)
            else:
                _knock(self.uri)
                client = MlflowClient(self.uri)
            self._client = cast("MlflowClient", _Allowed(client, self.allowed))
        elif self.database is not None and not self.database.exists():
            raise StoreError(f"{self.uri}: the database was removed while it was in use")
        return self._client

    def search(self, experiment: str, filter_: str) -> Iterator[Run]:
        """Every run of the experiment that passes the filter, a page at a time."""
        token = None
        while True:
            page = self.client().search_runs(
                [experiment], filter_, max_results=_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def checkpoint(self) -> None:
        """Put on disk what SQLite has only in its log."""
        if self.database is not None:
            sqlite_file.checkpoint(self.database)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what MLflow and what lies under it raise into a StoreError of one line."""
        try:
            yield
        except StoreError:
            raise
        except _failures() as error:
            raise explained(self.uri, error) from error


class _Allowed:
    """A client that asks before each call."""

    def __init__(self, client: MlflowClient, allowed: Callable[[], object]) -> None:
        self._client, self._allowed = client, allowed

    def __getattr__(self, name: str) -> Any:
        self._allowed()
        return getattr(self._client, name)


def _opened(uri: str, database: Path) -> MlflowClient:
    """A client of a SQLite file, which is made first where it is not there."""
    from mlflow import MlflowClient

    sqlite_file.write_ahead(database)
    with sqlite_file.alone(database):
        if not database.exists():
            # MLflow can neither use nor finish tables that a kill left half made.
            with sqlite_file.appearing(database) as unfinished:
                MlflowClient(f"{sqlite_file.PREFIX}{unfinished}").search_experiments()
        client = MlflowClient(uri)
        # A copy of the file alone, without its log, should have MLflow's tables.
        sqlite_file.checkpoint(database)
    return client


def _knock(uri: str) -> None:
    """Raise what a database says that does not let us in: MLflow itself would ask for minutes. A
    server is asked at the first call."""
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import NullPool, create_engine

    if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
        with create_engine(uri, poolclass=NullPool).connect():
            pass


def _failures() -> tuple[type[Exception], ...]:
    """What a store that is down, damaged or unwilling raises, those of `requests` being OSErrors,
    or one whose driver is not installed."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError
