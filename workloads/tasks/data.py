"""Prepared task data: arrays as memory maps with a description beside them, written once a machine.

A folder appears under its name by one rename, with everything in it, so that what can be seen is
complete, and a killed build leaves nothing that could be taken for data. Of processes that want the
same data at once one builds them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workloads.cell import Scalar, canonical_json

TEST_SEED = 2**63
"""Test examples that are drawn come from numbers that no training seed has."""
DATA_SCHEMA = 1
_DESCRIPTION = "data.json"
_STREAMS = ("train", "validation", "train_documents", "validation_documents", "token_bytes")

Tokens = NDArray[np.unsignedinteger[Any]]


class TrainingData(Protocol):
    """What a model learns from. `facts` say source and licence."""

    @property
    def facts(self) -> Mapping[str, Scalar]: ...

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Inputs and targets of one update: token ids (sequences, seq_len) or vectors (sequences,
        seq_len, features), and whatever the task's objective takes. Depends on the arguments alone:
        neither on the architecture nor on what was drawn before.

        Raises:
            ValueError: there is nothing of that length.
        """
        ...


def generator_of(seed: int, update: int) -> np.random.Generator:
    """The random numbers of one update (Philox, a counter per update)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, update]))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """Token streams of a task, which is to predict the next token.

    `train` and `validation` are one-dimensional token ids; `train_documents` and
    `validation_documents` are the positions at which their documents begin. `token_bytes[id]` is
    the bytes of text that a token stands for. `facts` say source, licence and tokenizer.
    """

    train: Tokens
    validation: Tokens
    train_documents: NDArray[np.int64]
    validation_documents: NDArray[np.int64]
    token_bytes: NDArray[np.int32]
    facts: Mapping[str, Scalar]

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows of the text, drawn uniformly; every next token is a target."""
        if len(self.train) <= seq_len:
            raise ValueError(
                f"seq_len: {seq_len} is longer than the text, {len(self.train)} tokens"
            )
        starts = generator_of(seed, update).integers(0, len(self.train) - seq_len, size=sequences)
        return self._windows(starts, seq_len)

    def following(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows that run through the text, each from a place of its own, and from its beginning
        again after its end."""
        starts = generator_of(seed, 0).integers(0, len(self.train), size=sequences)
        return self._windows(starts + update * seq_len, seq_len)

    def _windows(
        self, starts: NDArray[np.int64], seq_len: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        places = (starts[:, None] + np.arange(seq_len + 1)) % len(self.train)
        windows = self.train[places].astype(np.int64)
        return windows[:, :-1].copy(), windows[:, 1:].copy()


class RunningData(TrainingData, Protocol):
    """Training data that also run on from update to update."""

    def following(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """As `batch`, but each sequence goes on where the same one of the update before ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """What a task prepares once per machine: arrays by name, and `facts`, which say source, licence
    and split."""

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Scalar]


class DamagedData(ValueError):
    """A folder of prepared data is not what was written; the message says how to mend it."""


def cache_folder() -> Path:
    """Where prepared data live: WORKLOADS_CACHE, else `workloads` in the user's cache folder."""
    if own := os.environ.get("WORKLOADS_CACHE"):
        return Path(own)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "workloads"


def folder_name(said: str, deciding: Mapping[str, Any]) -> str:
    """The name of a folder of prepared data: what people call them, and a hash of all that decides
    what is in it."""
    words = "".join(c if c.isalnum() else " " for c in said.lower()).split()
    content = canonical_json({"said": said, **deciding})
    return f"{'-'.join(words)[:60]}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def prepared(folder: Path, build: Callable[[], Arrays]) -> Arrays:
    """The arrays in `folder` as memory maps; `build` makes them where they are not there yet, in
    one process of this machine while others wait.

    Raises:
        DamagedData: the folder is there, and is not what was written.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not folder.exists():
                _write(build(), folder)
    return load(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The only builder of this folder here. A killed one's lock is free at once."""
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepared_tokens(folder: Path, build: Callable[[], TaskData]) -> TaskData:
    """The same for token streams."""

    def arrays() -> Arrays:
        data = build()
        return Arrays(arrays={name: getattr(data, name) for name in _STREAMS}, facts=data.facts)

    found = prepared(folder, arrays)
    return TaskData(**{name: found.arrays[name] for name in _STREAMS}, facts=found.facts)


def load(folder: Path) -> Arrays:
    """The arrays that were written to `folder`, mapped and not read. Raises DamagedData."""
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        if description["schema"] != DATA_SCHEMA:
            raise ValueError(f"schema {description['schema']}, this version reads {DATA_SCHEMA}")
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in description["arrays"]
        }
        for name, array in arrays.items():
            if [array.dtype.str, *array.shape] != description["arrays"][name]:
                raise ValueError(f"{name} has {array.shape} {array.dtype} elements")
        return Arrays(arrays=arrays, facts=description["facts"])
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedData(
            f"prepared data in {folder} are damaged ({error}); delete the folder, and they are "
            "prepared anew"
        ) from None


def _write(data: Arrays, folder: Path) -> None:
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        described: dict[str, list[str | int]] = {}
        digest = hashlib.sha256()
        for name, array in data.arrays.items():
            np.save(draft / f"{name}.npy", array)
            described[name] = [array.dtype.str, *array.shape]
            digest.update(np.ascontiguousarray(array).data)
        facts = {**data.facts, "data_sha256": digest.hexdigest()}
        description = {"schema": DATA_SCHEMA, "facts": facts, "arrays": described}
        (draft / _DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
        draft.rename(folder)
    except OSError:
        # A twin may have come first, where no lock holds between machines; rename refuses to
        # replace a folder with content.
        if not (folder / _DESCRIPTION).exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def token_stream(
    documents: Iterable[NDArray[Any]], separator: int, dtype: type[np.unsignedinteger[Any]]
) -> tuple[Tokens, NDArray[np.int64]]:
    """Documents one after another, each followed by the separator, and where each begins."""
    end = np.array([separator], dtype=dtype)
    pieces: list[Tokens] = []
    starts: list[int] = []
    length = 0
    for document in documents:
        starts.append(length)
        pieces += [document.astype(dtype, copy=False), end]
        length += len(document) + 1
    return np.concatenate(pieces or [end[:0]]), np.array(starts, dtype=np.int64)
