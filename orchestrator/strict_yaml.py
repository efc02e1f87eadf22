"""YAML as plain data with a line for every place, refusing what a sweep file never needs.

Refused: files over 1 MB, anchors and aliases (an alias bomb grows without bound), keys given twice
(YAML would keep the last in silence), tags, and nesting deeper than any sweep. Scalars follow YAML
1.2: only `true` and `false` are booleans, `1e-3` is a number, `0o7` and `1:30` are text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

Place = tuple[str | int, ...]

_NUMBERS = (
    (re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), lambda text: int(text.replace("_", ""))),
    (
        re.compile(r"[-+]?([0-9][0-9_]*)?(\.[0-9_]*)?([eE][-+]?[0-9]+)?$"),
        lambda text: float(text.replace("_", "")),
    ),
)
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


class YamlFault(ValueError):
    """The text is not YAML that we read; the message says where and why."""


@dataclass(slots=True)
class Document:
    """The data, and the line (from 1) on which each place stands."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)


def read_text(path: Path) -> str:
    """The file's text. Raises YamlFault where it is missing, a folder, too large, or not UTF-8."""
    try:
        if path.is_dir():
            raise YamlFault("is a directory, not a sweep file")
        if path.stat().st_size > MAX_BYTES:
            raise YamlFault(f"is larger than {MAX_BYTES:,} bytes; a sweep file is a page of text")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise YamlFault("there is no such file") from None
    except UnicodeDecodeError as error:
        raise YamlFault(f"is not UTF-8 text (byte {error.start}: {error.reason})") from None
    except OSError as error:
        raise YamlFault(f"cannot be read ({error.strerror})") from None


def parse(text: str) -> Document:
    """The one document in the text. Raises YamlFault."""
    document = Document()
    try:
        # Before composing a tree: events are cheap, and deep nesting would overflow the stack.
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            _refuse(event, depth)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YamlFault(f"is not YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise YamlFault(f"is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise YamlFault("is nested too deeply") from None
    if node is None:
        raise YamlFault("is empty")
    document.data = _construct(node, (), document.lines)
    return document


def _refuse(event: yaml.Event, depth: int) -> None:
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise YamlFault(f"line {line}: anchors and aliases are not read; write the value out")
    if getattr(event, "tag", None):
        raise YamlFault(f"line {line}: tags ({event.tag}) are not read")
    if depth > MAX_DEPTH:
        raise YamlFault(f"line {line}: is nested deeper than {MAX_DEPTH} levels")


def _construct(node: yaml.Node, place: Place, lines: dict[Place, int]) -> Any:
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*place, i), lines) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, lines)
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style in ("'", '"', "|", ">") else _scalar(node.value)


def _mapping(node: yaml.MappingNode, place: Place, lines: dict[Place, int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlFault(f"line {line}: a key must be a word")
        key = key_node.value
        if key in result:
            raise YamlFault(f"line {line}: the key {key!r} is given twice")
        result[key] = _construct(value_node, (*place, key), lines)
        lines[(*place, key)] = line
    return result


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    for pattern, convert in _NUMBERS:
        if pattern.match(text) and any(character.isdigit() for character in text):
            return convert(text)
    return text
