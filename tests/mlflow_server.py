"""Real MLflow tracking servers for tests and benchmarks, a plain one and the one that the image
starts: on loopback, and such that they can be killed and brought back."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.infra import manifests


class Server:
    """`mlflow server` with one worker on a free port of 127.0.0.1, in a session of its own."""

    def __init__(self, database: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = database
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        artifacts = self.database.parent / "artifacts"
        options = {
            "--backend-store-uri": f"sqlite:///{self.database}",
            "--artifacts-destination": artifacts.as_uri(),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "1"}
        with (self.database.parent / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mlflow",
                    "server",
                    *(t for o in options.items() for t in o),
                ],
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class ImageServer:
    """What the MLflow image starts, for one host and with one worker; everything else as it is
    written. Its database is the one that `database`, libpq's variables, names, or SQLite where
    there are none."""

    def __init__(self, folder: Path, secrets: Mapping[str, str], **database: str) -> None:
        self._folder, self._secrets, self._database = folder, secrets, database
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.uri = f"http://{self.host}"
        self.artifacts, self.log = folder / "artifacts", folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.begin()
        until(lambda: self.status("/health") == 200)

    def begin(self) -> subprocess.Popen[bytes]:
        """Start it; whether it will ever answer is another question."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._process

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def status(
        self,
        path: str,
        user: str = "",
        password: str = "",
        host: str = "",
        send: Mapping[str, str] | None = None,
    ) -> int:
        """What it answers: an HTTP status, 0 where it does not."""
        body = None if send is None else json.dumps(send).encode()
        request = urllib.request.Request(self.uri + path, body)
        if body is not None:
            request.add_header("Content-Type", "application/json")
        if user:
            word = base64.b64encode(f"{user}:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {word}")
        if host:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def _command(self) -> list[str]:
        words = manifests.image_command("mlflow")
        changed = {"--host": "127.0.0.1", "--port": str(self.port), "--workers": "1"}
        if not self._database:
            changed["--backend-store-uri"] = f"sqlite:///{self._folder}/mlflow.db"
        for option, value in changed.items():
            words[words.index(option) + 1] = value
        # The published port differs here, so the name by which the server is called does, too.
        hosts = words.index("--allowed-hosts") + 1
        words[hosts] = words[hosts].replace("127.0.0.1:5000", self.host)
        return [sys.executable, "-m", *words]

    def _environment(self) -> dict[str, str]:
        config = (manifests.IMAGES / "mlflow_auth.ini").read_text()
        if not self._database:
            users = f"sqlite:///{self._folder}/users.db"
            config = config.replace("postgresql:///mlflow", users)
        path = self._folder / "mlflow_auth.ini"
        path.write_text(config)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
        own = {
            "MLFLOW_AUTH_CONFIG_PATH": str(path),
            "MLFLOW_ARTIFACTS_DESTINATION": str(self.artifacts),
        }
        image = manifests.image_environment("mlflow")
        return {**plain, **image, **own, **self._secrets, **self._database}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
