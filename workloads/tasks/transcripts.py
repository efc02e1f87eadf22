"""What is said, in letters: transcripts, what a path of outputs says, and errors between the two.

Outputs are 26 letters, apostrophe, space and, as output 0, the blank of connectionist temporal
classification (Graves et al. 2006).
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHABET = "- 'abcdefghijklmnopqrstuvwxyz"
"""What each output stands for; the first is the blank."""
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)


def spelled(text: str) -> str:
    """A transcript in letters of the alphabet: numbers, * and # as words, remarks in brackets
    dropped, `I've` kept; empty where nothing is said.

    >>> spelled("Press 12, or # [beep].")
    'press twelve or pound'
    """
    text = unicodedata.normalize("NFKD", re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", text)).lower()
    text = text.replace("’", "'").replace("*", " star ").replace("#", " pound ")
    text = re.sub(r"\d+", lambda found: f" {_number(found[0])} ", text)
    text = re.sub(r"[\u0300-\u036f]", "", text)
    words = (word.strip("'") for word in re.sub(r"[^a-z']", " ", text).split())
    return " ".join(word for word in words if word)


def _number(digits: str) -> str:
    """Below a hundred in words, else digit by digit."""
    number, words = int(digits), _NUMBERS.split()
    if number >= 100 or digits[0] == "0":
        return " ".join(words[int(digit)] for digit in digits)
    if number < 20:
        return words[number]
    ten, one = divmod(number, 10)
    return words[18 + ten] + (f" {words[one]}" if one else "")


def chunks_needed(text: str) -> int:
    """Positions that a text takes at least: one a letter, and a blank between equal ones."""
    return len(text) + sum(a == b for a, b in itertools.pairwise(text))


def collapsed(path: NDArray[np.int64]) -> str:
    """The text of a path of outputs (T,): repeats merged, then blanks dropped."""
    changed = np.concatenate([[True], path[1:] != path[:-1]])[: len(path)]
    letters = "".join(ALPHABET[output] for output in path[changed & (path != 0)])
    return " ".join(letters.split())


def distance(said: Sequence[Any], meant: Sequence[Any]) -> int:
    """Insertions, deletions and substitutions that make one of the other (Levenshtein 1966)."""
    codes = {symbol: code for code, symbol in enumerate({*said, *meant})}
    columns = np.array([codes[symbol] for symbol in meant], dtype=np.int64)
    places = np.arange(len(meant) + 1)
    row = places.copy()
    for done, symbol in enumerate(said, start=1):
        change = np.minimum(row[1:] + 1, row[:-1] + (columns != codes[symbol]))
        # What is inserted along the row: the least of all before, each a step dearer.
        row = np.minimum.accumulate(np.concatenate([[done], change]) - places) + places
    return int(row[-1])


def error_rate(pairs: Sequence[tuple[str, str]], *, words: bool) -> float:
    """Errors for each word, or each character, that was meant, over pairs of said and meant."""
    parts = [(a.split(), b.split()) if words else (a, b) for a, b in pairs]
    return sum(distance(a, b) for a, b in parts) / sum(len(b) for _, b in parts)


def frequency_loss(train: Sequence[str], texts: Sequence[str]) -> float:
    """Nats a letter of texts that are said one after another, to who knows how often each comes in
    training (with one more of each) and hears nothing."""
    counts, said = Counter(" ".join(train)), " ".join(texts)
    total = counts.total() + len(ALPHABET) - 1
    return -sum(math.log((counts[letter] + 1) / total) for letter in said) / len(said)
