"""A real MLflow database, made once a session and copied for each test: its migrations take a
second or more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.store import MlflowStore


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and nothing in them."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    path.touch()
    MlflowStore(f"sqlite:///{path}", "none", path.parent).records()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    """An empty MLflow database of the test's own."""
    path = tmp_path / "mlflow.db"
    for suffix in ("", "-wal", "-shm"):
        source = empty_database.with_name(empty_database.name + suffix)
        if source.exists():
            shutil.copy(source, path.with_name(path.name + suffix))
    return path
