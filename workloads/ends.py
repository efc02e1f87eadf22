"""The two ends of a model: what enters at each position, and what leaves it. A task decides them;
what lies between is the architecture's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """At each position one token of `vocab_size` enters, or a vector of `features` numbers, and a
    vector of `outputs` numbers leaves."""

    vocab_size: int = 0
    features: int = 0
    outputs: int

    def __post_init__(self) -> None:
        if (self.vocab_size > 0) == (self.features > 0) or self.outputs < 1:
            raise ValueError(f"tokens enter or vectors do, and numbers leave; not {self}")

    @property
    def says_tokens(self) -> bool:
        """Whether what leaves scores each of the tokens that may enter."""
        return self.vocab_size == self.outputs

    @property
    def entering(self) -> int:
        """Rows of the matrix that takes a position in: one a token, or one a feature."""
        return self.vocab_size or self.features


def next_token(vocab_size: int) -> Ends:
    """Tokens in, a score for each token of the vocabulary out."""
    return Ends(vocab_size=vocab_size, outputs=vocab_size)
