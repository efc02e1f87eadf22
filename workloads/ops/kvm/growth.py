"""How many rows the state of key-value means has: the law of its growth, counted in whole chunks.

The paper's section on state growth (Goldstein and Cheah 2026, "Key-Value Means", arXiv 2605.09877).
A law gives a target for the context seen; the rows never shrink, never outnumber the tokens
summarised, and grow by at most one chunk at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Chunks of `chunk` tokens, the last `window` of them exact; the rest are rows by a law.

    law: `fixed` (`minimum` rows), `power` (floor(factor e^exponent)) or `saturating` (floor(limit e
    / (limit + e))), where e is the tokens seen when the rows are made. The two growing laws are
    rounded down to a multiple of `round` and are at least `minimum`. maximum: an upper bound, 0 for
    none. The first chunk becomes `chunk` rows whatever the law.
    """

    law: str
    chunk: int
    window: int
    minimum: int
    factor: float = 1.0
    exponent: float = 0.5
    limit: int = 0
    round: int = 1
    maximum: int = 0

    @property
    def span(self) -> int:
        """Tokens of a full window."""
        return self.chunk * self.window

    def covered(self, length: int) -> int:
        """How many tokens the state summarises once `length` tokens are mixed: those before the
        last token's window."""
        return max(0, -(-length // self.chunk) * self.chunk - self.span)

    def rows(self, covered: int) -> int:
        """Rows of a state that summarises `covered` tokens, a multiple of `chunk`."""
        chunks = covered // self.chunk
        return _schedule(self, 1 << chunks.bit_length())[chunks]

    def target(self, covered: int) -> int:
        """What the law asks for where the state comes to summarise `covered` tokens."""
        seen = covered - self.chunk + self.span
        rows = self.minimum
        if self.law == "power":
            rows = max(self._rounded(math.floor(self.factor * seen**self.exponent)), rows)
        elif self.law == "saturating":
            rows = max(self._rounded(self.limit * seen // (self.limit + seen)), rows)
        rows = min(rows, covered)
        return min(rows, self.maximum) if self.maximum else rows

    def _rounded(self, rows: int) -> int:
        return rows // self.round * self.round


@lru_cache(maxsize=256)
def _schedule(growth: Growth, chunks: int) -> tuple[int, ...]:
    """Rows after 0..`chunks` chunks have entered the state."""
    rows = [0, growth.chunk]
    for entered in range(2, chunks + 1):
        more = growth.target(entered * growth.chunk) - rows[-1]
        rows.append(rows[-1] + min(max(more, 0), growth.chunk))
    return tuple(rows)
