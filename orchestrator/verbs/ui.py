"""`ui`: the MLflow UI on the right store, on 127.0.0.1."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys

from orchestrator.store import resolve_uri, without_password

FIRST_PORT = 5000


def run(arguments: argparse.Namespace) -> int:
    uri = resolve_uri(arguments.tracking_uri)
    if uri.startswith(("http://", "https://")):
        print(f"the store is a server already: open {without_password(uri)}")
        return 0
    port = _free_port()
    address = without_password(uri)
    print(f"MLflow UI on {address}\nopen http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {
        # Not in the command line, which everyone on this machine may read.
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return subprocess.run(command, env={**os.environ, **settings}, check=False).returncode


def _free_port() -> int:
    """MLflow's usual port, or the next one that is free."""
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    return FIRST_PORT
