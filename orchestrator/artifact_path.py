"""Where a file of an MLflow run lies on this machine, also after the store's folder was copied."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit


def local_folder(uri: str) -> Path | None:
    """The folder of a local artifact URI, which may be a plain path; None where it is remote."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(uri)


def find(folder: Path, name: str, database: Path | None) -> Path:
    """The file in the run's own folder; where that is not on this machine, beside the database, at
    the longest end of the folder's path that is there.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    places = [folder]
    if database is not None:
        ends = (folder.parts[-length:] for length in range(len(folder.parts) - 1, 1, -1))
        places += [database.parent.joinpath(*end) for end in ends]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"{folder / name} is not there")
