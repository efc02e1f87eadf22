"""How far the preparation of data has come: said by what builds, heard by who waits for it.

Builders pass what they go through to `counted`; nobody has to listen.
"""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")
_SECONDS_BETWEEN = 0.1


@dataclass(frozen=True, slots=True)
class Headway:
    """So many of `total` are done; None where nobody knows yet how many there are."""

    doing: str
    done: int
    total: int | None

    @property
    def words(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        return f"{self.doing}: {self.done:,}{of}"


Hear = Callable[[Headway], None]
_listener: ContextVar[Hear | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def heard(by: Hear) -> Iterator[None]:
    """What is counted meanwhile is told to `by`."""
    token = _listener.set(by)
    try:
        yield
    finally:
        _listener.reset(token)


def counted(items: Iterable[_Item], doing: str) -> Iterator[_Item]:
    """The items; how many of them have been taken is told now and then, and at the end."""
    hear = _listener.get()
    if hear is None:
        yield from items
        return
    total = operator.length_hint(items, -1)
    done, last = 0, -_SECONDS_BETWEEN
    for item in items:
        if time.monotonic() - last >= _SECONDS_BETWEEN:
            last = time.monotonic()
            hear(Headway(doing, done, None if total < 0 else total))
        yield item
        done += 1
    hear(Headway(doing, done, done))
