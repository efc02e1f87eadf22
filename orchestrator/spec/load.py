"""Read and validate a sweep file: a `LoadedSpec`, or every fault in one message."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec import strict_yaml
from orchestrator.spec.references import faults_between_keys
from orchestrator.spec.sentences import Fault, sentences, shortened
from orchestrator.spec.strict_yaml import Document, Place
from orchestrator.spec.sweep_spec import SweepSpec
from workloads.cell import canonical_json

MAX_CELLS = 100_000
MAX_FAULTS = 50
"""Faults that one message names; a file with more is of another kind."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSpec:
    """A valid sweep file: what it says, its own text, and a hash of its meaning.

    `lines` are those of each place, for faults found later. `device` is what `device: auto` was
    resolved to by whoever knows better than this machine's operating system; the hash leaves it
    out.
    """

    path: str
    spec: SweepSpec
    text: str
    lines: Mapping[Place, int] = dataclasses.field(default_factory=dict)
    device: str | None = None

    @property
    def hash(self) -> str:
        """12 hex digits over the content; comments and key order do not matter."""
        content = self.spec.model_dump(mode="json", serialize_as_any=True)
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]

    @property
    def device_class(self) -> str:
        """The device class of every cell."""
        return self.device or self.spec.device_class()

    def error(self, faults: list[Fault]) -> SpecError:
        """Faults found after the border, told as the border tells its own."""
        return SpecError(self.path, _in_order(faults, Document(lines=dict(self.lines))))


def load_spec(path: str | Path) -> LoadedSpec:
    """Read and validate a sweep file.

    Raises:
        SpecError: every fault, each with its line, its place and the near or valid choices.
    """
    try:
        text = strict_yaml.read_text(Path(path))
        document = strict_yaml.parse(text)
    except strict_yaml.YamlFault as fault:
        raise SpecError(str(path), [str(fault)]) from None
    spec = validated(str(path), document)
    return LoadedSpec(path=str(path), spec=spec, text=text, lines=document.lines)


def validated(path: str, document: Document) -> SweepSpec:
    """What the document says. Raises SpecError with every fault."""
    data = document.data
    if not isinstance(data, dict):
        raise SpecError(path, ["is not a mapping with the keys name, question, ..."])
    faults: list[Fault] = []
    spec: SweepSpec | None = None
    try:
        spec = SweepSpec.model_validate(data)
    except ValidationError as error:
        faults += sentences(error, SweepSpec)
    empty = dict(_empty_values(data, ()))
    faults = [f for f in faults if not any(f[0][:n] in empty for n in range(len(f[0]) + 1))]
    faults += empty.items()
    faults += faults_between_keys(data)
    if spec is not None and spec.count() > MAX_CELLS:
        faults.append(((), f"asks for {spec.count():,} cells; {MAX_CELLS:,} is the most"))
    if spec is None or faults or document.faults:
        raise SpecError(path, _in_order(faults, document))
    return spec


def _empty_values(value: Any, place: Place) -> Iterator[Fault]:
    """Keys without a value. An option of a plug-in may be null: its own types decide."""
    if value is None:
        yield place, "has no value; give it one, or leave it out"
    elif isinstance(value, dict):
        for key, item in value.items():
            below = (*place, key)
            if item is None or below not in (("task",), ("architectures",)):
                yield from _empty_values(item, below)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _empty_values(item, (*place, i))


def _in_order(faults: list[Fault], document: Document) -> list[str]:
    """Faults as text in the order of the file, each once, not without end."""
    located = [(line, (place, message)) for line, place, message in document.faults]
    located += [(_line(document.lines, place), (place, why)) for place, why in faults]
    texts = [
        f"line {line}: {_told(*fault)}" if line else _told(*fault)
        for line, fault in sorted(dict.fromkeys(located), key=lambda item: item[0])
    ]
    more = len(texts) - MAX_FAULTS
    return texts if more <= 0 else [*texts[:MAX_FAULTS], f"and {more} faults more"]


def _line(lines: Mapping[Place, int], place: Place) -> int:
    """The line of a place, else of what it would stand in; 0 for the file as a whole."""
    known = place
    while known and known not in lines:
        known = known[:-1]
    return lines.get(known, 0) if known else 0


def _told(place: Place, message: str) -> str:
    """`measure.seq_len[0]: must be ...`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{shortened(part)}"
    text = text.removeprefix(".")
    return f"{text}: {message}" if text else message
