"""Which variables a worker is not told, and that whoever starts it still has them."""

from __future__ import annotations

import os

import pytest

from orchestrator.credentials import secret_names, secrets_hidden


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_USERNAME",
        "AWS_PROFILE",
        "PGPASSWORD",
        "PGHOST",
        "AZURE_STORAGE_ACCOUNT",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "HF_TOKEN",
        "GITHUB_TOKEN",
        "DB_PASSWORD",
        "OPENAI_API_KEY",
        "my_secret",
    ],
)
def test_secrets_are_known_by_their_names(name: str) -> None:
    assert secret_names({name: "x"}, of_ray_too=False) == [name]


@pytest.mark.parametrize(
    "name", ["PATH", "PWD", "OLDPWD", "HOME", "WORKLOADS_CACHE", "OMP_NUM_THREADS", "KEYBOARD"]
)
def test_others_are_kept(name: str) -> None:
    assert secret_names({name: "/some/value"}, of_ray_too=True) == []


def test_a_password_in_a_url_is_a_secret_but_a_proxy_is_needed() -> None:
    variables = {"STORE": "postgresql://me:pass@db/x", "HTTPS_PROXY": "http://me:pass@proxy:1"}
    assert secret_names(variables, of_ray_too=True) == ["STORE"]


def test_rays_own_token_is_for_workers_and_not_for_their_children() -> None:
    variables = {"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "token"}
    assert secret_names(variables, of_ray_too=False) == []
    assert secret_names(variables, of_ray_too=True) == ["RAY_AUTH_TOKEN"]


def test_what_is_hidden_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    with secrets_hidden():
        assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hidden"
