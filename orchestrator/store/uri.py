"""Which MLflow store is meant: the URI a user gave, or the one taken where none is given."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from orchestrator import sqlite_file
from orchestrator.errors import StoreError

DEFAULT_STORE = "sqlite:///mlflow.db"


def resolve_uri(explicit: str | None) -> str:
    """The store's URI: the one given, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the working
    directory. A relative SQLite path becomes absolute.

    Raises:
        StoreError: a file store, which MLflow no longer writes; or an address that can be read in
            two ways, one of which takes a part of the password for the name of a host.
    """
    uri = explicit or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise StoreError(
            f"{without_password(uri)}: MLflow no longer writes to plain folders. Name a database, "
            f"such as {DEFAULT_STORE}, or a server, such as http://127.0.0.1:5000"
        )
    database = sqlite_file.database(uri)
    if database is None:
        if not _is_plain(uri):
            raise StoreError(
                f"{without_password(uri)}: cannot be read as an address; within a user's name and "
                "password write @ as %40, / as %2F, ? as %3F, # as %23 and : as %3A"
            )
        return uri
    _, mark, query = uri.partition("?")
    return f"{sqlite_file.PREFIX}{database}{mark}{query}"


def without_password(uri: str) -> str:
    """The URI as it may be shown: without users, and without a query, which may name some, too."""
    if sqlite_file.database(uri) is not None:
        return uri
    place, mark, _ = re.sub("//.*@", "//***@", uri).partition("?")
    return f"{place}{mark and '?***'}"


def without_users(text: str) -> str:
    """A text as it may be shown, which may have URIs in it."""
    return re.sub(r"//[^\s/@]*@", "//***@", text)


def _is_plain(uri: str) -> bool:
    """Whether its parts are where they seem to be, whoever reads it."""
    place, _, _ = uri.rpartition("@")
    _, _, users = place.partition("//")
    try:
        return not re.search(r"[\s/?#@]", users) and urlsplit(uri).port != 0
    except ValueError:
        return False
