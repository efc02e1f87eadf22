"""The files of MLflow runs, past MLflow where their folders are on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import artifact_path, durable
from orchestrator.store.connection import Connection

if TYPE_CHECKING:
    from mlflow.entities import Run


class Artifacts:
    """The files of the runs in one store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unsynced: Path | None = None

    def write(self, run: Run, name: str, content: bytes) -> None:
        """Give the run this file; one on this machine is there whole or not at all, and on disk
        after `sync`."""
        folder = artifact_path.local_folder(run.info.artifact_uri)
        if folder is None:
            self._connection.client().log_text(run.info.run_id, content.decode(), name)
            return
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_whole(folder / name, content, self._connection.allowed)
        self._unsynced = folder

    def sync(self) -> None:
        """Put on disk the files written until now: one wait for all."""
        if self._unsynced is not None:
            durable.sync(self._unsynced)
            self._unsynced = None

    def read(self, run: Run, name: str) -> bytes:
        """The content of the run's file."""
        folder = artifact_path.local_folder(run.info.artifact_uri)
        if folder is not None:
            return artifact_path.find(folder, name, self._connection.database).read_bytes()
        client = self._connection.client()
        with tempfile.TemporaryDirectory() as there:
            return Path(client.download_artifacts(run.info.run_id, name, there)).read_bytes()
