"""State tracking: after every element of a group, say what all elements so far come to.

    parity    input     1  0  1  1  0  1           S3    input     bac  cab  bac  bca
              target    1  1  0  1  1  0                 target    bac  acb  bca  cab

The word problem, as in Merrill et al. 2024, "The Illusion of State in State-Space Models", and
Grazzi et al. 2025, "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues": elements
are drawn uniformly, and each target composes the state before it with the element that enters.
`parity` is addition modulo 2, `modular_counting` modulo `modulus`; `s3` and `s5` are all
permutations of 3 and of 5 things, given by what becomes of `abc` (`bac` puts b for a and a for b),
later ones done to the result of earlier ones. Order matters in these two, and S5 is not solvable:
no network of fixed depth whose layers are computed in parallel, as in attention or a diagonal
linear recurrence, tracks it at every length unless TC0 = NC1. A recurrence through a nonlinearity,
or through a full matrix that the input decides, can.

Every position is trained on, so that a sequence trains all shorter lengths too. What is judged is
the last position alone, the state after exactly so many elements. A mean over positions would be
flattered by the first ones, which compose next to nothing, and beyond the training length by those
within it. The last target is equally often each element whatever all inputs but one are: who misses
one element is right no more often than who guesses, in 1 / (elements of the group) of the cases at
any length. That guess is the baseline.

Nothing is downloaded; no licence applies. Words that a hash chooses are kept for the test.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.ends import next_token
from workloads.objectives import IGNORED
from workloads.plugins import Task, build_options, unknown
from workloads.tasks import generated
from workloads.tasks.data import TEST_SEED, generator_of
from workloads.tasks.generated import Examples
from workloads.train import TrainedModel

PROBLEMS = ("parity", "modular_counting", "s3", "s5")
_MODULUS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """problem: which group. modulus: of `modular_counting`, how many numbers are counted through.

    test_sequences: how many are scored at each length.
    """

    problem: Literal["parity", "modular_counting", "s3", "s5"] = "parity"
    modulus: int = _MODULUS
    test_sequences: int = 1000

    def __post_init__(self) -> None:
        if self.problem not in PROBLEMS:
            raise ValueError(unknown("problem", self.problem, PROBLEMS))
        if self.problem != "modular_counting" and self.modulus != _MODULUS:
            raise ValueError(f"modulus belongs to `problem: modular_counting`, not {self.problem}")
        if not 2 <= self.modulus <= 1000:
            raise ValueError(f"modulus must lie between 2 and 1000, not {self.modulus}")
        if self.test_sequences < 1:
            raise ValueError(f"test_sequences must be positive, not {self.test_sequences}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTracking:
    """Words made on demand."""

    options: Options

    @property
    def facts(self) -> Mapping[str, Scalar]:
        return {
            "data_source": f"generated: word problem, {self.options.problem}",
            "data_licence": "none",
            "split": "one word in eight is kept for the test, by its hash",
            "baseline_accuracy": 1 / elements(self.options),
        }

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The target of every position is the state there."""
        words = generate(self.options, sequences, seq_len, generator_of(seed, update), test=False)
        return words, states(self.options, words)


def generate(
    options: Options, sequences: int, seq_len: int, generator: np.random.Generator, *, test: bool
) -> NDArray[np.int64]:
    """Elements (sequences, seq_len), drawn uniformly from the words that are kept for the test, or
    from the others.

    Raises:
        ValueError: the length has too few words to keep some.
    """
    count = elements(options)
    if count**seq_len < generated.FEWEST_WORDS:
        raise ValueError(
            f"seq_len: {options.problem} has {count**seq_len} words of length {seq_len}, too few "
            "to keep some for the test"
        )
    return generated.draw(
        lambda words: generator.integers(count, size=(words, seq_len)), sequences, test=test
    )


def elements(options: Options) -> int:
    """How many elements the group has, and so how many tokens there are."""
    return len(_products(options.problem, options.modulus))


def states(options: Options, words: NDArray[np.int64]) -> NDArray[np.int64]:
    """At each position of the words (B, T), the product of all elements up to it (B, T)."""
    products = _products(options.problem, options.modulus)
    found = words.copy()
    for position in range(1, words.shape[1]):
        found[:, position] = products[found[:, position - 1], words[:, position]]
    return found


@cache
def _products(problem: str, modulus: int) -> NDArray[np.int64]:
    """The group's table (G, G): by the state and the element that enters, the state after it."""
    if problem in ("s3", "s5"):
        return _permutation_products(int(problem[1:]))
    numbers = np.arange(2 if problem == "parity" else modulus)
    return (numbers[:, None] + numbers) % len(numbers)


def _permutation_products(things: int) -> NDArray[np.int64]:
    """Permutations are numbered in lexicographic order, 0 is the identity; `rows[p, thing]` is what
    permutation p puts for the thing."""
    rows = np.array(list(itertools.permutations(range(things))), dtype=np.int64)
    digits = things ** np.arange(things)[::-1]
    composed = rows[:, rows]  # (entering, state, thing): what the one puts for the other's
    return np.searchsorted(rows @ digits, composed @ digits).T


def _test_set(trained: TrainedModel, seq_len: int) -> Examples:
    options = build_options(Options, trained.cell.task_options)
    generator = generator_of(TEST_SEED, seq_len)
    words = generate(options, options.test_sequences, seq_len, generator, test=True)
    targets = np.full_like(words, IGNORED)
    targets[:, -1] = states(options, words)[:, -1]
    return words, targets


TASK = Task(
    title="state tracking",
    version=1,
    options=Options,
    token_unit=lambda options: "tokens",
    ends=lambda options: next_token(elements(options)),
    prepare=lambda options, folder: StateTracking(options=options),
    metrics=generated.metrics("state tracking", _test_set),
)
