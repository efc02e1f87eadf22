"""Source text to tokens in which each closing bracket is matched, and told by what it closes.

    text      namespace c10 { int at(int i) { return v[i]; } }
    tokens    namespace c10 { int at ( int i ) { return v [ i ] ; } }
    closes                                   )                ]   B N

Every length counts these tokens: each bracket, other sign, keyword and end of line (several in a
row count once), one token for any string or character, one for any number, and each name as one of
some 400 by its hash. Comments are left out and strings are one token: no bracket in them counts.
"""

from __future__ import annotations

import re
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.objectives import IGNORED

KINDS = (")", "]", "} of a block", "} of a type", "} of a namespace")
NONE = 255
"""The kind where no bracket closes next."""
_CLOSES = {")": "(", "]": "[", "}": "{"}

STRING, NUMBER, NEWLINE = '"', "0", "\n"
_KEYWORDS = (
    "and as assert async await auto bool break case catch char class const constexpr continue "
    "decltype def default define del delete do double elif else endif enum except explicit "
    "extern False final finally float for friend from global goto if ifdef ifndef import in "
    "include inline int is lambda long mutable namespace new None noexcept nonlocal not "
    "nullptr operator or override pass pragma private protected public raise return self "
    "short signed sizeof static static_cast std struct switch template this throw True try "
    "typedef typename union unsigned using virtual void volatile while with yield "
)
# Id 0 stands at the beginning of each file.
_FIXED = ("", NEWLINE, *"()[]{}", *(c for c in string.punctuation if c not in "()[]{}"), NUMBER)
_IDS = {word: number for number, word in enumerate((*_FIXED, *_KEYWORDS.split()))}
VOCAB_SIZE = 512

# What is no code: comments and strings. Each way begins with a letter of its own, which makes the
# search fast; so a string's prefix stays a word. A quote after a digit parts thousands.
_NO_CODE = {
    "cpp": re.compile(
        r"""//(?:[^\\\n]|\\(?:\r?\n|.))* | /\*[\s\S]*?\*/
        | R"(?P<raw>[^()\\\s"]{0,16})\([\s\S]*?\)(?P=raw)"
        | "(?:\\(?:\r?\n|.)|[^"\\\n])*" | '(?<![\da-fA-F]')(?:\\.|[^'\\\n])+'""",
        re.VERBOSE,
    ),
    "python": re.compile(
        r"""\#[^\n]*
        | "{3}(?:\\[\s\S]|[^\\])*?"{3} | '{3}(?:\\[\s\S]|[^\\])*?'{3}
        | "(?:\\[\s\S]|[^"\\\n])*" | '(?:\\[\s\S]|[^'\\\n])*'""",
        re.VERBOSE,
    ),
}
_WORD = re.compile(r"\.?\d(?:[\w.']|(?<=[eEpP])[+-])*|\w+|\n|[^\w\s]")


class Bracket(NamedTuple):
    """A matched pair: the tokens at which it opens and closes, the lines between, and its place
    among KINDS."""

    opening: int
    closing: int
    lines: int
    kind: int


class Lexed(NamedTuple):
    """The tokens of a file as words and by their ids, (N,), and the line that each is on, (N,)."""

    words: list[str]
    tokens: NDArray[np.uint16]
    lines: NDArray[np.int32]


def lexed(text: str, language: str) -> Lexed:
    """Comments are gone, `"` is any string, and a newline the end of one line or more."""
    words = _WORD.findall(_NO_CODE[language].sub(_stand_in, text))
    tokens = np.fromiter(map(token_of, words), dtype=np.uint16, count=len(words))
    ends_line = tokens == token_of(NEWLINE)
    # The first of several in a row, none at the beginning.
    kept = ~ends_line
    kept[1:] |= kept[:-1]
    lines = 1 + np.cumsum(ends_line) - ends_line
    return Lexed(list(compress(words, kept)), tokens[kept], lines[kept].astype(np.int32))


def _stand_in(match: re.Match[str]) -> str:
    """What a comment or string leaves: its line ends, for the count of lines."""
    found = match.group()
    return (" " if found[0] in "/#" else STRING) + NEWLINE * found.count(NEWLINE)


def matched(found: Lexed) -> list[Bracket] | None:
    """The pairs of brackets in the order in which they close; None where they do not match."""
    words, pairs, unclosed = found.words, list[Bracket](), list[int]()
    first, last = token_of("("), token_of("}")
    for place in np.flatnonzero((found.tokens >= first) & (found.tokens <= last)).tolist():
        if (opens := _CLOSES.get(words[place])) is None:
            unclosed.append(place)
        elif not unclosed or words[unclosed[-1]] != opens:
            return None
        else:
            opening = unclosed.pop()
            lines = int(found.lines[place] - found.lines[opening])
            pairs.append(Bracket(opening, place, lines, kind_of(words, opening)))
    return None if unclosed else pairs


def kind_of(words: Sequence[str], opening: int) -> int:
    """What the bracket opened at a place will close, as a place among KINDS. A brace is told by
    its statement up to there, without what stands in brackets or angle brackets."""
    if words[opening] != "{":
        return {"(": 0, "[": 1}[words[opening]]
    statement = _statement(words, opening)
    if "namespace" in statement or statement[:1] == [STRING]:  # extern "C" {
        return 4
    last = next(
        (word for word in reversed(words[max(0, opening - 8) : opening]) if word != NEWLINE), ""
    )
    if last in (")", "const", "noexcept", "override", "final", "mutable", "try", "else", "do") and (
        last != "final" or not {"class", "struct"} & set(statement)
    ):
        return 2
    return 3 if {"class", "struct", "union", "enum"} & set(statement) else 2


def _statement(words: Sequence[str], end: int, at_most: int = 200) -> list[str]:
    """The words of the statement that goes up to `end`, last first."""
    found: list[str] = []
    depth = angle = 0
    for place in range(end - 1, max(-1, end - 1 - at_most), -1):
        word = words[place]
        if word in (")", "]"):
            depth += 1
        elif word in ("(", "["):
            if depth == 0:
                break
            depth -= 1
        elif depth == 0:
            if word in (";", "{", "}"):
                break
            if word == ">" and words[place - 1] != "-":
                angle += 1
            elif word == "<" and angle:
                angle -= 1
            elif angle == 0 and word != NEWLINE:
                found.append(word)
    return found


@lru_cache(maxsize=2**16)
def token_of(word: str) -> int:
    """The id of a token: its own, or that of its hash."""
    known = _IDS.get(word)
    if known is not None:
        return known
    if word[0].isdigit() or word[0] == ".":
        return _IDS[NUMBER]
    return len(_IDS) + zlib.crc32(word.encode()) % (VOCAB_SIZE - len(_IDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Files one after another. Where a bracket closes after position t: its place among KINDS, its
    distance in tokens from opening to closing, and in lines; elsewhere NONE, 0 and 0. (N,) each."""

    tokens: NDArray[np.uint16]
    kinds: NDArray[np.uint8]
    distances: NDArray[np.int32]
    lines: NDArray[np.int32]


def stream_of(files: Sequence[tuple[Lexed, list[Bracket]]]) -> Stream:
    """Each file after a token of its own kind, id 0."""
    size = sum(len(found.words) + 1 for found, _ in files)
    stream = Stream(
        tokens=np.zeros(size, dtype=np.uint16),
        kinds=np.full(size, NONE, dtype=np.uint8),
        distances=np.zeros(size, dtype=np.int32),
        lines=np.zeros(size, dtype=np.int32),
    )
    start = 0
    for found, pairs in files:
        stream.tokens[start + 1 : start + 1 + len(found.tokens)] = found.tokens
        if pairs:
            table = np.array(pairs)
            before = start + table[:, 1]  # word w is token start + 1 + w; the one before it is read
            stream.kinds[before] = table[:, 3]
            stream.distances[before] = table[:, 1] - table[:, 0]
            stream.lines[before] = table[:, 2]
        start += len(found.words) + 1
    return stream


def answerable(stream: Stream, seq_len: int) -> NDArray[np.int64]:
    """Positions after which a bracket closes that opens within the `seq_len` tokens up to there.
    Raises ValueError where there are none."""
    found = np.flatnonzero((stream.distances > 0) & (stream.distances <= seq_len))
    if not len(found):
        raise ValueError(f"seq_len: no bracket closes within {seq_len} tokens of its opening")
    return found


def windows(
    stream: Stream, ends: NDArray[np.int64], seq_len: int, answers: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The `seq_len` tokens up to each end, and the answers, IGNORED where no bracket closes next or
    its opening stands before the window. Before the first file its own token is repeated."""
    rows = np.maximum(ends[:, None] + np.arange(1 - seq_len, 1), 0)
    distances = stream.distances[rows]
    inside = (distances > 0) & (distances <= np.arange(1, seq_len + 1))
    kinds = np.minimum(stream.kinds[rows], answers - 1).astype(np.int64)
    return stream.tokens[rows].astype(np.int64), np.where(inside, kinds, IGNORED)
