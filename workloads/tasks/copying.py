"""Selective copying: say the few tokens that stood scattered among noise, in their order.

    input     0  0  c  0  a  0  0  0  a  f  0  0  *  *  *  *       (4 data tokens, 0 is noise)
    target    .  .  .  .  .  .  .  .  .  .  .  .  c  a  a  f       (only these are scored)

Generated as in Gu and Dao 2023, "Mamba", section 4.1.1 (there 16 data tokens in 4,096, a vocabulary
of 16): the copying task of Arjovsky et al. 2016 with random room between the data tokens, after the
denoising task of Jing et al. 2019, "Gated Orthogonal Recurrent Units". Where a data token stands
says nothing about where it has to be said: a model must tell data from noise and count. What it
said before is not shown to it: all answers are asked for by the same token, the last of the
vocabulary.

A longer sequence has more noise and as many data tokens; the test set says the same ones at every
length. Nothing is downloaded; no licence applies. Data tokens that a hash chooses, as one word, are
kept for the test: no training sequence has the same ones in the same order.

The baseline knows which data tokens there were but not in which order: it says the sequence's most
frequent one at every place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.ends import next_token
from workloads.objectives import IGNORED
from workloads.plugins import Task, build_options
from workloads.tasks import generated
from workloads.tasks.data import TEST_SEED, generator_of
from workloads.tasks.generated import Examples
from workloads.train import TrainedModel

NOISE = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """vocab_size: tokens, of which the first is noise, the last asks for an answer, and all others
    are data. data_tokens: how many are to be copied, at most half of a sequence.

    test_sequences: how many are scored at each length.
    """

    vocab_size: int = 16
    data_tokens: int = 8
    test_sequences: int = 1000

    def __post_init__(self) -> None:
        if self.vocab_size < 4 or self.data_tokens < 1 or self.test_sequences < 1:
            raise ValueError(
                "vocab_size must be at least 4, data_tokens and test_sequences positive"
            )
        words = (self.vocab_size - 2) ** self.data_tokens
        if words < generated.FEWEST_WORDS:
            raise ValueError(
                f"data_tokens: {self.data_tokens} of {self.vocab_size - 2} kinds make {words} "
                "words, too few to keep some for the test"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying:
    """Sequences made on demand."""

    options: Options

    @property
    def facts(self) -> Mapping[str, Scalar]:
        return {
            "data_source": "generated: selective copying",
            "data_licence": "none",
            "split": "one in eight of the words to copy is kept for the test, by its hash",
            "baseline_accuracy": _commonest_share(_test_words(self.options)),
        }

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        generator = generator_of(seed, update)
        words = _words(self.options, sequences, generator, test=False)
        return scatter(self.options, words, seq_len, generator)


def scatter(
    options: Options, words: NDArray[np.int64], seq_len: int, generator: np.random.Generator
) -> Examples:
    """Inputs and targets, each (B, seq_len), of sequences that hold the words (B, data_tokens) at
    random places.

    Raises:
        ValueError: the length is too short for the data tokens and as many answers.
    """
    count = words.shape[1]
    if seq_len < 2 * count:
        raise ValueError(
            f"seq_len: {count} data tokens and as many answers need at least {2 * count}, "
            f"not {seq_len}"
        )
    room = seq_len - count
    places = np.argsort(generator.random((len(words), room)), axis=1)[:, :count]
    inputs = np.full((len(words), seq_len), NOISE, dtype=np.int64)
    inputs[np.arange(len(words))[:, None], np.sort(places, axis=1)] = words
    inputs[:, room:] = options.vocab_size - 1
    targets = np.full_like(inputs, IGNORED)
    targets[:, room:] = words
    return inputs, targets


def _words(
    options: Options, sequences: int, generator: np.random.Generator, *, test: bool
) -> NDArray[np.int64]:
    """What is to be copied, (sequences, data_tokens)."""
    return generated.draw(
        lambda words: generator.integers(
            NOISE + 1, options.vocab_size - 1, size=(words, options.data_tokens)
        ),
        sequences,
        test=test,
    )


def _test_words(options: Options) -> NDArray[np.int64]:
    return _words(options, options.test_sequences, generator_of(TEST_SEED, 0), test=True)


def _commonest_share(words: NDArray[np.int64]) -> float:
    """Mean share that the most frequent token has in its word."""
    counts = (words[:, :, None] == words[:, None, :]).sum(axis=2)
    return float(counts.max(axis=1).mean() / words.shape[1])


def _test_set(trained: TrainedModel, seq_len: int) -> Examples:
    options = build_options(Options, trained.cell.task_options)
    return scatter(options, _test_words(options), seq_len, generator_of(TEST_SEED, seq_len))


TASK = Task(
    title="selective copying",
    version=1,
    options=Options,
    token_unit=lambda options: "tokens",
    ends=lambda options: next_token(options.vocab_size),
    prepare=lambda options, folder: Copying(options=options),
    metrics=generated.metrics("copying", _test_set),
)
