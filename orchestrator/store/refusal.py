"""Why a store does not do what it was asked, in one sentence that says what to do about it and
shows no password."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from orchestrator.errors import StoreError, StoreRefused
from orchestrator.store.uri import without_password, without_users

_LONGEST = 500
_OTHER_NAME = "Invalid Host header"
"""How MLflow's server answers whoever calls it by a name that is not among its --allowed-hosts."""
_NO_ENTRY = ("password authentication failed", "no password supplied")
"""How PostgreSQL and its client say that the password is wrong or not there: no code comes with
it."""
_STATUS = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}
_VARIABLES = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def explained(uri: str, error: Exception) -> StoreError:
    """What MLflow or what lies under it raised, as one of our own."""
    address, status, text = without_password(uri), _status(error), str(error)
    if status == 401:
        return StoreRefused(f"{address}: {_unknown(uri)}")
    if status == 403 and _OTHER_NAME in text:
        return StoreRefused(f"{address}: {_other_name(uri)}")
    if status == 403:
        return StoreRefused(f"{address}: {_not_permitted()}")
    if isinstance(error, ImportError):
        return StoreRefused(f"{address}: {_no_driver(error)}")
    line = (text.splitlines() or [type(error).__name__])[0]
    shown = without_users(line.replace(uri.rstrip("/"), address.rstrip("/")))
    kind = StoreRefused if any(word in text for word in _NO_ENTRY) else StoreError
    return kind(f"{address}: {shown[:_LONGEST]}")


def _status(error: Exception) -> int | None:
    """The HTTP status that stands behind it: of the API by MLflow's own error, of files by
    `requests`'."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if status is not None else _STATUS.get(getattr(error, "error_code", ""))


def _unknown(uri: str) -> str:
    """401. A user without a password, or the other way round, MLflow does not send at all."""
    from mlflow.utils.credentials import read_mlflow_creds

    user, password = read_mlflow_creds()
    if "@" in urlsplit(uri).netloc:
        return (
            f"refuses the user in its address, or their password; leave both out, set {_VARIABLES}"
        )
    if user and password:
        return f"refuses the user {user!r}, or their password; set {_VARIABLES} to what it knows"
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return "refuses the token; set MLFLOW_TRACKING_TOKEN to one that it knows"
    return f"lets nobody in without a user and a password; set {_VARIABLES}"


def _other_name(uri: str) -> str:
    host = urlsplit(uri).netloc.rpartition("@")[2]
    return (
        f"does not go by the name {host} (it answers 403, {_OTHER_NAME!r}); start the server with "
        f"{host} among its --allowed-hosts, or call it by a name that is"
    )


def _not_permitted() -> str:
    """403. Whoever makes an experiment may do everything in it, and others may read."""
    from mlflow.utils.credentials import read_mlflow_creds

    return (
        f"the user {read_mlflow_creds().username!r} may not write there (it answers 403, "
        "'Permission denied'): the sweep's experiment is somebody else's. Have them, or the "
        "server's administrator, grant MANAGE on it, or give the sweep another name"
    )


def _no_driver(error: ImportError) -> str:
    return (
        f"this kind of database needs its driver ({error}); for PostgreSQL: "
        "pip install 'psycopg[binary]'"
    )
