"""What pydantic found, as sentences for people: each fault with its place in the file."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.spec.strict_yaml import Place
from workloads import plugins

Fault = tuple[Place, str]

TAG = "\0"
"""Begins the name of a union's branch, which pydantic puts into places; no known key does."""
SHOWN = 60
"""Characters of a value or a name that a message repeats."""


class FaultsBelow(ValueError):
    """Several faults found by one validator, each at a place below its own."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(message for _, message in self.faults))


def sentences(error: ValidationError, root: type[BaseModel]) -> Iterator[Fault]:
    """Every fault in `error`."""
    for found in error.errors():
        place = _without_branches(found["loc"])
        cause = found.get("ctx", {}).get("error")
        if isinstance(cause, FaultsBelow):
            yield from (((*place, *below), message) for below, message in cause.faults)
        elif found["type"] == "extra_forbidden":
            # The key itself, whatever the user has called it.
            place = (*_without_branches(found["loc"][:-1]), found["loc"][-1])
            yield place, _unknown_key(place, root)
        else:
            yield place, sentence(found)


def _without_branches(place: Place) -> Place:
    return tuple(part for part in place if not str(part).startswith(TAG))


def sentence(error: Any) -> str:
    """One of pydantic's errors, without its place."""
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] in ("too_short", "string_too_short") and not error["input"]:
        return "is empty"
    given = error["input"]
    plainly = ""
    if error["type"] == "int_type" and isinstance(given, float) and given.is_integer():
        plainly = f" (write {given:.0f})"
    return f"must be {requirement(error)}, not {shown(given)}{plainly}"


def requirement(error: Any) -> str:
    """What was required: `a whole number`, `at least 1`."""
    kind, context = error["type"], error.get("ctx", {})
    plain = _REQUIRED.get(kind)
    if plain is not None:
        return plain.format(**{name: _number(value) for name, value in context.items()})
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    return str(error["msg"]).removeprefix("Input should be ")


_REQUIRED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list, as in [a, b]",
    "dict_type": "a mapping, as in {{key: value}}",
    "model_type": "a mapping, as in {{key: value}}",
    "model_attributes_type": "a mapping, as in {{key: value}}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_long": "text of at most {max_length} characters",
    "none_required": "null",
}


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(value: Any) -> str:
    """A value as the file has it, short."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return shortened(repr(value) if isinstance(value, str) else json.dumps(value))


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def shorten(names: list[str], most: int = 5) -> str:
    """`a, b, c and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown WHAT 'NAME'`, with near names and all known ones."""
    return plugins.unknown(what, shortened(name), known)


def _unknown_key(place: Place, root: type[BaseModel]) -> str:
    *parent, key = place
    known = list(_model_at(root, parent).model_fields)
    elsewhere = [
        part
        for part, field in root.model_fields.items()
        if [part] != parent and any(key in m.model_fields for m in _models(field.annotation))
    ]
    if elsewhere:
        *before, last = elsewhere
        return f"belongs under {', '.join(before)} or {last}" if before else f"belongs under {last}"
    return unknown("key", str(key), known)


def _model_at(root: type[BaseModel], place: Iterable[str | int]) -> type[BaseModel]:
    model = root
    for part in place:
        found = list(_models(model.model_fields[str(part)].annotation))
        model = found[0]
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation: `Train | None` holds Train."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from _models(argument)
