"""What a sweep asks of the place where its runs are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from orchestrator.journal import Merged
from orchestrator.provenance import Envelope

Medians = Mapping[str, Sequence[tuple[int, float]]]
"""Curves over context by name (`train_step_time/lstm/batch 8`): length in tokens, value."""


class Described(Protocol):
    """What the store says of a sweep: a `Plan`, or less."""

    @property
    def name(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def spec_hash(self) -> str: ...


class RunStore(Protocol):
    """Where a sweep's runs are kept; `MlflowStore` says what each method does. All but `behind` may
    raise StoreError, and may be called again."""

    def begin(self, sweep: Described) -> None: ...

    def behind(self, merged: Sequence[Merged]) -> list[Merged]: ...

    def write(self, merged: Sequence[Merged]) -> None: ...

    def end(self) -> None: ...

    def finish(self, sweep: Described, medians: Medians, results: Path) -> None: ...

    def records(self) -> list[Envelope]: ...
