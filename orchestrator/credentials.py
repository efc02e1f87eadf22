"""Which environment variables may hold a secret: whoever runs cells is told none of them.

Results are stored by the driver alone, so a worker has no use for the store's credentials, nor for
anyone else's. Ray's own token is the one exception: without it a worker cannot speak to its
cluster; the cell's child, which never does, goes without.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

_STORES = ("MLFLOW_", "AWS_", "PG", "AZURE_", "GOOGLE_", "GCS_", "S3_", "MINIO_", "OPTUNA_")
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PWD$|CREDENTIAL|(API|ACCESS|PRIVATE|ACCOUNT|AUTH)_?KEY|^NETRC$|CONNECTION_STRING"
)
_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_OF_RAY = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# The working directory, not a password; and what reaches the network for public data.
_HARMLESS = re.compile(r"^(OLD)?PWD$|_PROXY$")


def secret_names(variables: Mapping[str, str], *, of_ray_too: bool) -> list[str]:
    """The variables that a worker need not know: a store's, and whatever looks like a secret by its
    name or holds a password in a URL."""
    return sorted(
        name
        for name, value in variables.items()
        if (name in _OF_RAY and of_ray_too) or (name not in _OF_RAY and _is_secret(name, value))
    )


def _is_secret(name: str, value: str) -> bool:
    upper = name.upper()
    if _HARMLESS.search(upper):
        return False
    told = upper.startswith(_STORES) or _SECRET.search(upper) is not None
    return told or _WITH_PASSWORD.search(value) is not None


def forget_secrets() -> None:
    """Take them out of this process's environment, and so of all that it starts from now on."""
    for name in secret_names(os.environ, of_ray_too=False):
        del os.environ[name]


@contextlib.contextmanager
def secrets_hidden() -> Iterator[None]:
    """Start processes inside, and they inherit no secret; afterwards this process has them
    again."""
    hidden = {name: os.environ[name] for name in secret_names(os.environ, of_ray_too=False)}
    forget_secrets()
    try:
        yield
    finally:
        os.environ.update(hidden)
