"""One comparison of a challenger with the baseline, as the tables hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.tables import Tables, block_of
from orchestrator.quantities import count

Row = dict[str, Any]
MOST_LISTED = 6
"""Labels in a list within a sentence."""

_UNKNOWN: Row = {
    "title": None,
    "implementation": None,
    "kind": "measure",
    "scale": "ratio",
    "better": "smaller",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdicts on one pair by one metric: `rows`, several where it changes places again."""

    tables: Tables
    rows: list[Row]

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def challenger(self) -> str:
        return str(self.first["challenger"])

    @property
    def baseline(self) -> str:
        return str(self.first["baseline"])

    @property
    def unit(self) -> str:
        """What a context counts."""
        return self.tables.sweep.token_unit

    @property
    def metric(self) -> str:
        """The metric's title, as it stands within a sentence."""
        title = str(self.summary()["title"] or self.first["metric"].replace("_", " "))
        return title if title[1:2].isupper() else title[:1].lower() + title[1:]

    @property
    def contrasts(self) -> list[Row]:
        """The contrasts of the pair that have a number."""
        return [
            contrast
            for contrast in self.tables.contrasts.to_pylist()
            if block_of(contrast) == block_of(self.first)
            and contrast["challenger"] == self.challenger
            and contrast["estimate"] is not None
        ]

    @property
    def is_of_one_context(self) -> bool:
        """Whether nothing could cross: as of what does not depend on the context."""
        return len({contrast["seq_len"] for contrast in self.contrasts}) == 1

    @property
    def contexts(self) -> str:
        """From where to where the two were compared."""
        contexts = [contrast["seq_len"] for contrast in self.contrasts]
        if not contexts:
            return f"none {self.unit}"
        if self.is_of_one_context:
            return f"{count(contexts[0])} {self.unit} alone"
        return f"{count(min(contexts))} to {count(max(contexts))} {self.unit}"

    @property
    def replicates(self) -> str:
        """How many there are of each: `5 rounds`, `1 seed`."""
        noun = "round" if self.summary()["kind"] == "measure" else "seed"
        return plural(self.first["replicates"] or 0, noun)

    def clauses(self, holds: bool | None) -> dict[str, str]:
        """The clauses of the fairness certificate that hold, do not, or are not known (None), each
        with its figure."""
        return {
            row["clause"]: row["figure"]
            for row in self.tables.certificate.to_pylist()
            if block_of(row) == block_of(self.first)
            and row["challenger"] == self.challenger
            and row["holds"] is holds
        }

    def summary(self, label: str | None = None) -> Row:
        """A row of the summary of the same block: its title, scale, kind and implementation."""
        return next(
            (
                row
                for row in self.tables.summary.to_pylist()
                if block_of(row) == block_of(self.first) and label in (None, row["label"])
            ),
            _UNKNOWN,
        )

    def same_method(self) -> set[str]:
        """The other labels that compute what the challenger does, by other code; none where that
        is not known, as in tables of an older version."""
        cells = self.tables.cells
        if "method" not in cells.column_names:
            return set()
        methods = dict(zip(cells["label"].to_pylist(), cells["method"].to_pylist(), strict=True))
        mine = methods.get(self.challenger)
        alike = {label for label, method in methods.items() if method == mine is not None}
        return alike - {self.challenger}

    def named(self, label: str) -> str:
        """A label with the code that ran under it, where that is what was compared: what is learnt
        does not depend on it."""
        summary = self.summary(label)
        code = summary["implementation"] if summary["kind"] == "measure" else None
        return f"{label} ({code})" if code else label


def plural(number: int, noun: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of very many the first and how many more."""
    if len(words) > MOST_LISTED:
        words = [*words[: MOST_LISTED - 1], f"{len(words) - MOST_LISTED + 1} more"]
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last
