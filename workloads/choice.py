"""A plug-in chosen in one line of text, `name(option=value)`, for what has no YAML around it."""

from __future__ import annotations

import re

from workloads.cell import Scalar

_CHOICE = re.compile(r"(?P<name>[\w@.-]+)(?:\((?P<options>.*)\))?")


def parsed(text: str) -> tuple[str, dict[str, Scalar]]:
    """`name(key=value, key=value)` -> the name and its options.

    Raises:
        ValueError: it is not written so.
    """
    found = _CHOICE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a name, nor a name(option=value)")
    options: dict[str, Scalar] = {}
    for pair in filter(None, map(str.strip, (found["options"] or "").split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: {pair!r} is not option=value")
        options[key.strip()] = _value(value.strip())
    return found["name"], options


def _value(text: str) -> Scalar:
    if text in ("true", "false", "True", "False"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
