"""`ui`: the MLflow UI on the right store, on 127.0.0.1."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys

from orchestrator.store import resolve_uri

FIRST_PORT = 5000


def run(arguments: argparse.Namespace) -> int:
    uri = resolve_uri(arguments.tracking_uri)
    if uri.startswith(("http://", "https://")):
        print(f"the store is a server already: open {uri}")
        return 0
    port = _free_port()
    print(f"MLflow UI on {uri}\nopen http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.run(command, env={**os.environ, **quiet}, check=False).returncode


def _free_port() -> int:
    """MLflow's usual port, or the next one that is free."""
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    return FIRST_PORT
