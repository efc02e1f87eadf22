"""YAML as plain data with a line for every place, refusing what a sweep file never needs.

Refused: anything but a regular file of at most 100 kB, anchors and aliases (an alias bomb grows
without bound), tags, a second document, and nesting deeper than any sweep. Keys given twice (YAML
would keep the last in silence) are collected as faults, so that they stand in one message with all
others. Scalars follow YAML 1.2: only `true` and `false` are booleans, `1e-3` is a number, `0o7` and
`1:30` are text; so is a number too large to hold.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 100_000
MAX_DEPTH = 20
MAX_DIGITS = 1000

Place = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_DECIMAL = re.compile(
    r"""[-+]? (?: [0-9][0-9_]* (?: \.[0-9_]* (?: [eE][-+]?[0-9]+ )? | [eE][-+]?[0-9]+ )
                | \.[0-9][0-9_]* (?: [eE][-+]?[0-9]+ )? )""",
    re.VERBOSE,
)
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


class YamlFault(ValueError):
    """The text is not YAML that we read; the message says where and why."""


@dataclass(slots=True)
class Document:
    """The data, the line (from 1) on which each place stands, and faults as (line, place, why)."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    faults: list[tuple[int, Place, str]] = field(default_factory=list)


def read_text(path: Path) -> str:
    """The file's text. Raises YamlFault where it is missing, no file, too large, or not UTF-8."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise YamlFault("is a directory, not a sweep file")
            if not stat.S_ISREG(mode):
                raise YamlFault("is not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise YamlFault("there is no such file") from None
    except OSError as error:
        raise YamlFault(f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        if isinstance(error, YamlFault):
            raise
        raise YamlFault(f"cannot be read ({error})") from None
    if len(content) > MAX_BYTES:
        raise YamlFault(f"is larger than {MAX_BYTES:,} bytes; a sweep file is a page of text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise YamlFault(f"is not UTF-8 text (byte {error.start}: {error.reason})") from None


def parse(text: str) -> Document:
    """The one document in the text. Raises YamlFault."""
    document = Document()
    try:
        _Reader(yaml.parse(text, Loader=yaml.SafeLoader), document).read()
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YamlFault(f"{where}is not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlFault(
            f"line {line}: is not YAML: the character {chr(error.character)!r} is not allowed"
        ) from None
    return document


class _Reader:
    """Builds a document from parser events: nothing is expanded, and depth is known before it can
    overflow a stack."""

    def __init__(self, events: Iterator[yaml.Event], document: Document) -> None:
        self._events = events
        self._document = document

    def read(self) -> None:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise YamlFault("is empty")
        self._document.data = self._value(next(self._events), ())
        next(self._events)  # the document's end
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            raise YamlFault(f"line {_line(event)}: a second document begins; one file is one sweep")
        if self._document.data is None:
            raise YamlFault("is empty")

    def _value(self, event: yaml.Event, place: Place) -> Any:
        _refuse(event, len(place))
        self._document.lines.setdefault(place, _line(event))
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(place)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place)
        assert isinstance(event, yaml.ScalarEvent)
        return scalar(event.value) if event.style is None else _whole(event)

    def _sequence(self, place: Place) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*place, len(items))))
        return items

    def _mapping(self, place: Place) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            _refuse(event, len(place))
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise YamlFault(f"line {line}: a key must be a word")
            key = _whole(event)
            if key in items:
                first = self._document.lines[(*place, key)]
                why = f"is given twice, first on line {first}"
                self._document.faults.append((line, (*place, key), why))
            self._document.lines.setdefault((*place, key), line)
            value = self._value(next(self._events), (*place, key))
            items.setdefault(key, value)
        return items


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return int(event.start_mark.line) + 1


def _whole(event: yaml.ScalarEvent) -> str:
    """The text of a scalar. JSON, which YAML includes, writes some characters as two halves."""
    text: str = event.value
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise YamlFault(f"line {_line(event)}: holds half a character ({text!r})") from None


def _refuse(event: yaml.Event, depth: int) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise YamlFault(
            f"line {_line(event)}: anchors and aliases are not read; write the value out"
        )
    if tag := getattr(event, "tag", None):
        raise YamlFault(f"line {_line(event)}: tags ({tag}) are not read")
    if depth > MAX_DEPTH:
        raise YamlFault(f"line {_line(event)}: is nested deeper than {MAX_DEPTH} levels")


def scalar(text: str) -> Any:
    """What a bare word means: a boolean, null, a finite number, else itself."""
    if text in _WORDS:
        return _WORDS[text]
    digits = text.replace("_", "")
    if len(text) <= MAX_DIGITS and _INTEGER.fullmatch(text):
        return int(digits)
    if _DECIMAL.fullmatch(text) and math.isfinite(number := float(digits)):
        return number
    return text
