"""Captions of pictures as symbols, and what is guessed of them without any picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from workloads.tasks.data import generator_of

CHARACTERS = "".join(chr(code) for code in range(32, 127) if not chr(code).isupper())
SYMBOLS = 1 + len(CHARACTERS)
"""Symbol 0 begins and ends a caption; character i of CHARACTERS is symbol i + 1."""
_ASCII = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-"})

Codes = NDArray[np.uint8]


def plain(caption: str) -> str:
    """Lower case and ASCII: without accents, `?` for what has no letter there."""
    spaced = " ".join(caption.translate(_ASCII).lower().split())
    bare = (c for c in unicodedata.normalize("NFKD", spaced) if not unicodedata.combining(c))
    return "".join(c if c in CHARACTERS else "?" for c in bare)


def encoded(captions: Iterable[str], longest: int) -> Codes:
    """Plain captions as symbols (N, longest + 1)."""
    rows = [[CHARACTERS.index(c) + 1 for c in caption] for caption in captions]
    return np.array([row + [0] * (longest + 1 - len(row)) for row in rows], dtype=np.uint8)


def candidates(symbols: Codes, number: int) -> NDArray[np.int64]:
    """For each test pair its own number and those of other captions, drawn from numbers that depend
    on nothing but the place in the test set."""
    _, first, which = np.unique(symbols, axis=0, return_index=True, return_inverse=True)
    if len(first) < number:
        raise ValueError(
            f"candidates: {number} different captions are asked for, the test set has {len(first)}"
        )
    rows = []
    for own, caption in enumerate(which.ravel().tolist()):
        others = np.delete(first, caption)
        generator = generator_of(0, own)
        rows.append([own, *generator.choice(others, size=number - 1, replace=False).tolist()])
    return np.array(rows, dtype=np.int64)


def _steps(symbols: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each scored symbol of all captions, and the one before it."""
    after = symbols.astype(np.int64)
    before = np.concatenate([np.zeros_like(after[:, :1]), after[:, :-1]], axis=1)
    there = np.arange(after.shape[1]) <= np.count_nonzero(after, axis=1)[:, None]
    return before[there], after[there]


def bigram_accuracy(train: Codes, test: Codes) -> float:
    """Of saying what most often came after the last symbol in the training captions."""
    counts = np.zeros((SYMBOLS, SYMBOLS), dtype=np.int64)
    np.add.at(counts, _steps(train), 1)
    before, after = _steps(test)
    return float((counts.argmax(1)[before] == after).mean())


def most_frequent_accuracy(train: Codes, test: Codes) -> float:
    """Of always saying the most frequent symbol of the training captions."""
    most = np.bincount(_steps(train)[1]).argmax()
    return float((_steps(test)[1] == most).mean())
