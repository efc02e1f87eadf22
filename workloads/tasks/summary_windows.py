"""Documents with their summaries as tokens: the windows that training reads, and what a summary is
asked with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.objectives import IGNORED
from workloads.tasks import tokenization
from workloads.tasks.data import generator_of, token_stream
from workloads.tasks.headway import counted
from workloads.tasks.summaries import Pair
from workloads.tasks.tokenization import Tokenizer, Vocabulary

END = tokenization.SEPARATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Documents and summaries as tokens, each kind one after another; where each begins, and last
    where they end."""

    documents: NDArray[np.unsignedinteger[Any]]
    document_starts: NDArray[np.int64]
    summaries: NDArray[np.unsignedinteger[Any]]
    summary_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.document_starts) - 1

    def document(self, place: int) -> NDArray[np.int64]:
        return self._one(self.documents, self.document_starts, place)

    def summary(self, place: int) -> NDArray[np.int64]:
        return self._one(self.summaries, self.summary_starts, place)

    def _one(
        self,
        tokens: NDArray[np.unsignedinteger[Any]],
        starts: NDArray[np.int64],
        place: int,
    ) -> NDArray[np.int64]:
        return tokens[starts[place] : starts[place + 1] - 1].astype(np.int64)

    def targets(self, max_new_tokens: int) -> NDArray[np.int64]:
        """What is said of all documents, one after another."""
        return np.concatenate(
            [ended(self.summary(place), max_new_tokens) for place in range(len(self))]
        )


def tokenized(pairs: Sequence[Pair], tokenizer: Tokenizer, separator: int) -> Pairs:
    """Texts as tokens, in the smallest type that holds the separator too."""
    dtype = np.min_scalar_type(separator).type
    documents, document_starts = token_stream(
        tokenizer.encode(pair.document for pair in counted(pairs, "tokenising")), END, dtype
    )
    summaries, summary_starts = token_stream(
        tokenizer.encode(pair.summary for pair in pairs), END, dtype
    )
    return Pairs(
        documents=documents,
        document_starts=np.append(document_starts, len(documents)),
        summaries=summaries,
        summary_starts=np.append(summary_starts, len(summaries)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summaries:
    """All splits, and what tokens say. `max_new_tokens`: of a summary, END included. `long`: how
    many of the training pairs, which come first, are no functions; `modules`: the share of draws
    that are of these. `targets` and `sizes`: tokens of each training pair's summary with END, and
    of all of it."""

    separator: int
    max_new_tokens: int
    modules: float
    train: Pairs
    validation: Pairs
    test: Pairs
    vocabulary: Vocabulary
    facts: Mapping[str, Scalar]
    long: int
    targets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows of documents with their summaries; the summaries' tokens and END are targets."""
        document_room(self.max_new_tokens, seq_len)
        generator = generator_of(seed, update)
        windows = np.full((sequences, seq_len + 1), END, dtype=np.int64)
        targets = np.full((sequences, seq_len), IGNORED, dtype=np.int64)
        for window, target in zip(windows, targets, strict=True):
            end = seq_len + 1
            # From the last pair to the first, so that what stays empty is before them.
            for document, summary in reversed(self._drawn(end, generator)):
                begin = end - len(summary)
                window[begin:end] = summary
                target[begin - 1 : end - 1] = summary
                window[begin - 1] = self.separator
                end = begin - 1 - len(document)
                window[end : begin - 1] = document
        return windows[:, :-1].copy(), targets

    def _drawn(
        self, room: int, generator: np.random.Generator
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Documents and summaries with END that, with their separators, have `room` tokens
        together; fewer only where no pair can be cut to what is left."""
        drawn = []
        place: int | None = self._draw(generator)
        while place is not None:
            summary = ended(self.train.summary(place), self.max_new_tokens)
            document = cut(self.train.document(place), room - 1 - len(summary))
            drawn.append((document, summary))
            room -= len(document) + 1 + len(summary)
            place = self._next(room, generator)
        return drawn

    def _next(self, room: int, generator: np.random.Generator) -> int | None:
        """A pair that is no longer than what is left, or keeps as much of its document as of its
        summary when it is cut to it."""
        fits = (self.sizes <= room) | (2 * self.targets <= room)
        place = self._draw(generator)
        if fits[place]:
            return place
        enough = np.flatnonzero(fits & (self.sizes >= room))
        return int(generator.choice(enough)) if room and len(enough) else None

    def _draw(self, generator: np.random.Generator) -> int:
        """A training pair: long or short by the share asked for, then each as likely."""
        if self.long in (0, len(self.train)):
            return int(generator.integers(len(self.train)))
        if generator.random() < self.modules:
            return int(generator.integers(self.long))
        return int(generator.integers(self.long, len(self.train)))

    def prompt(self, document: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
        """What a summary is asked with: the document, cut so that the longest has room, and SEP.
        Raises ValueError where there is none."""
        return np.append(cut(document, document_room(self.max_new_tokens, seq_len)), self.separator)


def document_room(max_new_tokens: int, seq_len: int) -> int:
    """The most tokens of a document that leave room for a summary.

    Raises:
        ValueError: there is less than for the summary itself.
    """
    room = seq_len - max_new_tokens
    if room < max_new_tokens:
        raise ValueError(
            f"seq_len: a summary of up to {max_new_tokens} tokens and a document of as many need "
            f"a length of at least {2 * max_new_tokens}, not {seq_len} (the task's "
            "`max_new_tokens` can be less)"
        )
    return room


def cut(document: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """At most `room` tokens of a document: its beginning and its end."""
    if len(document) <= room:
        return document
    tail = room // 2
    return np.concatenate([document[: room - tail], document[len(document) - tail :]])


def ended(summary: NDArray[np.int64], max_new_tokens: int) -> NDArray[np.int64]:
    """A summary, cut to what may be said, with END."""
    return np.append(summary[: max_new_tokens - 1], END)


def validation_windows(
    data: Summaries, seq_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets (validation pairs, seq_len): each document as at the test, its summary,
    and ENDs that are not scored."""
    inputs = np.full((len(data.validation), seq_len), END, dtype=np.int64)
    targets = np.full_like(inputs, IGNORED)
    for place in range(len(data.validation)):
        before = data.prompt(data.validation.document(place), seq_len)
        summary = ended(data.validation.summary(place), data.max_new_tokens)
        inputs[place, : len(before)] = before
        inputs[place, len(before) : len(before) + len(summary) - 1] = summary[:-1]
        targets[place, len(before) - 1 : len(before) - 1 + len(summary)] = summary
    return inputs, targets


def references(data: Summaries) -> tuple[list[str], list[str]]:
    """The test's documents and summaries as texts, whole."""
    documents, summaries = (
        [data.vocabulary.text(one(place)) for place in range(len(data.test))]
        for one in (data.test.document, data.test.summary)
    )
    return documents, summaries
