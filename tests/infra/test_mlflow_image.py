"""What the MLflow image starts, started here on loopback and SQLite: nothing without its secrets,
nothing without a password, nothing under a foreign name."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mlflow_server import ImageServer, until

pytestmark = pytest.mark.slow

API = "/api/2.0/mlflow/experiments/search?max_results=1"
NEEDED = ("MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD")


@pytest.fixture
def made() -> dict[str, str]:
    return {name: secrets.token_hex(32) for name in NEEDED}


@pytest.fixture
def running(tmp_path: Path, made: dict[str, str]) -> Iterator[ImageServer]:
    server = ImageServer(tmp_path, made)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_it_serves_those_who_have_the_password(running: ImageServer, made: dict[str, str]) -> None:
    password = made["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert running.status("/health") == 200
    assert running.status(API) == 401
    assert running.status(API, "admin", "password1234") == 401
    assert running.status(API, "admin", password) == 200
    assert running.status(API, "admin", password, host="mlflow:5000") == 200
    assert running.status(API, "admin", password, host="evil.example") == 403


@pytest.mark.parametrize("missing", NEEDED)
def test_it_does_not_start_without_a_secret(
    tmp_path: Path, made: dict[str, str], missing: str
) -> None:
    server = ImageServer(tmp_path, {**made, missing: ""})
    process = server.begin()
    try:
        # MLflow starts its workers again and again; what counts is that none ever answers.
        until(lambda: process.poll() is not None or missing in server.log.read_text())
        assert server.status("/health") == 0
    finally:
        server.kill()
