"""Needle in a haystack of real text: a code was mentioned somewhere; say it at the end.

    input     ... of the Union / The code of Oslo is 47. / and the people ... The code of Oslo is 4
    target    ................................................................................. 4 7

Kamradt 2023, as a task to train on: pieces of the text that language modelling reads (State of the
Union messages, or the standard library's sources where that package is absent; public domain,
PSF-2.0), into which sentences are put, each at a random place, that give codes to cities; the last
words ask for one of them. Bytes. Only the digits of the answer are scored, each given those before
it, and an answer is right when all are. Training reads the text's train split, the test its
validation split.

A model that has not seen the sentence guesses right once in 10^digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.ends import next_token
from workloads.objectives import IGNORED
from workloads.plugins import Evaluation, Task, build_options
from workloads.tasks import corpora, tokenization
from workloads.tasks.buckets import by_doubling, doubling_to
from workloads.tasks.data import (
    TEST_SEED,
    TaskData,
    Tokens,
    folder_name,
    generator_of,
    prepared_tokens,
    token_stream,
)
from workloads.tasks.headway import counted
from workloads.tasks.shares import classes_said, share
from workloads.train import TrainedModel

VERSION = 1
CITIES = (
    *("Oslo", "Lima", "Rome", "Cairo", "Delhi", "Tokyo", "Paris", "Quito", "Accra", "Hanoi"),
    *("Dakar", "Seoul", "Minsk", "Sofia", "Tunis", "Kyiv", "Doha", "Bern", "Riga", "Baku"),
)
_LONGEST = max(map(len, CITIES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """facts: sentences in a sequence, of different cities. digits: of a code. test_sequences: how
    many are scored."""

    facts: int = 1
    digits: int = 2
    test_sequences: int = 500

    def __post_init__(self) -> None:
        if not 1 <= self.facts <= len(CITIES):
            raise ValueError(f"facts must lie between 1 and {len(CITIES)}, not {self.facts}")
        if not 1 <= self.digits <= 9 or self.test_sequences < 1:
            raise ValueError("digits must lie between 1 and 9, test_sequences must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """Sequences made on demand from two splits of a text."""

    options: Options
    text: TaskData

    @property
    def facts(self) -> Mapping[str, Scalar]:
        return {**self.text.facts, "baseline_accuracy": 10.0**-self.options.digits}

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        generator = generator_of(seed, update)
        inputs, targets, _ = generate(self.options, self.text.train, sequences, seq_len, generator)
        return inputs, targets


def generate(
    options: Options,
    text: Tokens,
    sequences: int,
    seq_len: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets, each (sequences, seq_len), and how many bytes lie between the code and
    the answer, (sequences,).

    Raises:
        ValueError: the length has no room for the sentences, or the text is shorter.
    """
    least = (options.facts + 1) * len(_sentence("x" * _LONGEST, "0" * options.digits))
    if seq_len < least or len(text) <= seq_len:
        raise ValueError(
            f"seq_len: {options.facts} facts and a question need {least} bytes and the text has "
            f"{len(text)}; not {seq_len}"
        )
    inputs = np.empty((sequences, seq_len), dtype=np.int64)
    targets = np.full_like(inputs, IGNORED)
    distances = np.empty(sequences, dtype=np.int64)
    for row in range(sequences):
        whole, distances[row] = _one(options, text, seq_len + 1, generator)
        inputs[row] = whole[:-1]
        # The answer's digits are the last that leave; the first follows "is ".
        targets[row, -options.digits :] = whole[-options.digits :]
    return inputs, targets, distances


def _one(
    options: Options, text: Tokens, length: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """`length` bytes that end with the answer, and the distance of its code."""
    cities = [CITIES[i] for i in generator.permutation(len(CITIES))[: options.facts]]
    codes = [
        "".join(map(str, generator.integers(0, 10, options.digits))) for _ in range(options.facts)
    ]
    asked = int(generator.integers(options.facts))
    sentences = [_sentence(*fact) for fact in zip(cities, codes, strict=True)]
    question = _sentence(cities[asked], codes[asked])[: -len(_END)]
    room = length - len(question) - sum(map(len, sentences))
    start = int(generator.integers(len(text) - room))
    hay = bytes(text[start : start + room])
    places = np.sort(generator.integers(0, room + 1, options.facts))
    pieces, said, before = b"", 0, 0
    for number, (place, sentence) in enumerate(zip(places, sentences, strict=True)):
        pieces += hay[before:place] + sentence
        before = place
        if number == asked:
            said = len(pieces) - len(_END)
    whole = pieces + hay[before:] + question
    return np.frombuffer(whole, dtype=np.uint8).astype(np.int64), length - said


_END = b".\n"


def _sentence(city: str, code: str) -> bytes:
    return f"\nThe code of {city} is {code}".encode() + _END


def prepare(options: Options, folder: Path) -> Needles:
    """The text's bytes, prepared once per machine."""
    key = folder_name(corpora.default_source(), {"version": VERSION})
    return Needles(options=options, text=prepared_tokens(folder / "needle" / key, _build))


def _build() -> TaskData:
    corpus, tokenizer = corpora.default_corpus(), tokenization.byte_tokenizer()
    streams = [
        token_stream(
            tokenizer.encode(counted(documents, "tokenising")), tokenization.SEPARATOR, np.uint8
        )
        for documents in (corpus.train, corpus.validation)
    ]
    return TaskData(
        train=streams[0][0],
        validation=streams[1][0],
        train_documents=streams[0][1],
        validation_documents=streams[1][1],
        token_bytes=tokenizer.token_bytes,
        facts={
            "data_source": f"generated sentences in {corpus.source}",
            "data_licence": corpus.licence,
            "split": "that of the text",
        },
    )


Answers = tuple[NDArray[np.bool_], NDArray[np.int64]]


def _answers(trained: TrainedModel, facts: int) -> Answers:
    """Whether each question of the test set with so many facts was answered rightly, and the
    distance of its code; computed once."""
    key = f"answers {facts}"
    if key not in trained.memo:
        trained.memo[key] = _ask(trained, facts)
    answers: Answers = trained.memo[key]
    return answers


def _ask(trained: TrainedModel, facts: int) -> Answers:
    asked: Options = build_options(Options, trained.cell.task_options)
    options = replace(asked, facts=facts)
    drawn = options.test_sequences, trained.cell.seq_len, generator_of(TEST_SEED, 0)
    inputs, targets, distances = generate(options, trained.data.text.validation, *drawn)
    said = classes_said(trained, inputs)
    answer = slice(-options.digits, None)
    return (said[:, answer] == targets[:, answer]).all(axis=1), distances


def _own(trained: TrainedModel) -> Answers:
    options: Options = build_options(Options, trained.cell.task_options)
    return _answers(trained, options.facts)


def _accuracy(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(float(_own(trained)[0].mean()),))


def _accuracy_by_distance(trained: TrainedModel) -> Evaluation:
    right, distance = _own(trained)
    at, means = by_doubling(distance, right)
    return Evaluation(samples=means, coordinate="distance", at=at)


def _accuracy_by_facts(trained: TrainedModel) -> Evaluation:
    """1, 2, 4, ... facts, as many as there is room for."""
    options: Options = build_options(Options, trained.cell.task_options)
    sentence = len(_sentence("x" * _LONGEST, "0" * options.digits))
    most = min(len(CITIES), trained.cell.seq_len // sentence - 1)
    counts = doubling_to(most)
    return Evaluation(
        samples=tuple(float(_answers(trained, count)[0].mean()) for count in counts),
        coordinate="facts",
        at=tuple(map(float, counts)),
    )


TASK = Task(
    title="needle in real text",
    version=VERSION,
    options=Options,
    token_unit=lambda options: "bytes",
    ends=lambda options: next_token(256),
    prepare=prepare,
    metrics={
        "accuracy": share("accuracy of the answers", _accuracy),
        "accuracy_by_distance": share(
            "accuracy by bytes between code and answer", _accuracy_by_distance
        ),
        "accuracy_by_facts": share("accuracy by number of facts", _accuracy_by_facts),
    },
)
