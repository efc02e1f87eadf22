"""Conversations as one stream of tokens that knows where its messages are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.tasks import tokenization
from workloads.tasks.dialogues import Dialogue
from workloads.tasks.headway import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Conversations one after another as tokens. Of each message: `begins`, where the token 0
    stands that begins it; `words`, its first token after the speaker's name; `ends`, the token 0
    after it; `first`, the number of its conversation's first message."""

    tokens: NDArray[np.unsignedinteger[Any]]
    begins: NDArray[np.int64]
    words: NDArray[np.int64]
    ends: NDArray[np.int64]
    first: NDArray[np.int64]

    def said(self, messages: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of these messages that may be scored, one after another: words and the end."""
        parts = zip(self.words[messages], self.ends[messages], strict=True)
        return np.concatenate([self.tokens[start : end + 1] for start, end in parts]).astype(int)

    def after(self, messages: int, *, longest: int) -> NDArray[np.int64]:
        """The messages of at most `longest` tokens that have so many before them in their
        conversation. Raises ValueError where there is none."""
        before = np.arange(len(self.begins)) - self.first
        found = np.flatnonzero((self.ends - self.begins <= longest) & (before >= messages))
        if not len(found):
            raise ValueError(
                f"no message of at most {longest} tokens has {messages} before it in a validation "
                "conversation"
            )
        return found


def stream(
    dialogues: Sequence[Dialogue], tokenizer: tokenization.Tokenizer, vocab_size: int
) -> Stream:
    """Each message as token 0, its speaker's name and its words; token 0 again after a
    conversation's last."""
    separator = np.array([tokenization.SEPARATOR])
    texts = (part for d in dialogues for who, text in d for part in (f"{who}:", f" {text}"))
    encoded = tokenizer.encode(texts)
    pieces: list[NDArray[Any]] = []
    numbers: list[tuple[int, int, int, int]] = []
    length = 0
    for dialogue in counted(dialogues, "tokenising"):
        first = len(numbers)
        for _ in dialogue:
            name, words = next(encoded), next(encoded)
            pieces += [separator, name, words]
            begins, length = length, length + 1 + len(name) + len(words)
            numbers.append((begins, begins + 1 + len(name), length, first))
        pieces.append(separator)
        length += 1
    begins_at, words_at, ends_at, first_of = np.array(numbers, dtype=np.int64).T
    return Stream(
        tokens=np.concatenate(pieces).astype(np.min_scalar_type(vocab_size - 1)),
        begins=begins_at,
        words=words_at,
        ends=ends_at,
        first=first_of,
    )
