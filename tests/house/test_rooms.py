"""The building's own rules, held on every file: what it opens with, is called, and may not say."""

from __future__ import annotations

import ast
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("orchestrator", "workloads", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
CODE = [path for path in FILES if "tests" not in path.relative_to(ROOT).parts]
MAY_BE_EMPTY = "__init__.py"
UNTYPED = "no-untyped-call"
"""The one silenced check that is its own reason: a library's function without types."""
SUBJECTS = ("architecture", "task", "label")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check() -> None:
    assert len(CODE) > 80


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_opens_with_a_sentence_saying_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == MAY_BE_EMPTY and not text:
        return
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no docstring"
    first = docstring.split("\n\n")[0]
    assert len(first.split()) >= 4, first
    assert first.rstrip()[-1] in ".:", f"no sentence: {first}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_is_named_for_nothing(path: Path) -> None:
    words = set(re.split(r"[_/.]", name(path)))
    assert not words & {"utils", "util", "common", "helpers", "helper", "misc", "base", "core"}


@pytest.mark.parametrize("path", CODE, ids=name)
def test_no_code_asks_which_architecture_it_has(path: Path) -> None:
    """Plug-ins answer for themselves: nothing compares an architecture, a task or a label with a
    name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            asks = any(_called(side) in SUBJECTS for side in sides)
            assert not (asks and any(map(_is_text, sides))), f"line {node.lineno}"
        if isinstance(node, ast.Match):
            assert _called(node.subject) not in SUBJECTS, f"line {node.lineno}"


def _is_text(node: ast.expr) -> bool:
    """A text, or a few of them written out."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return any(isinstance(p, ast.Constant) and isinstance(p.value, str) and p.value for p in parts)


def _called(node: ast.expr) -> str | None:
    """The last name of `cell.architecture`, `row["architecture"]` or `architecture`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return node.id if isinstance(node, ast.Name) else None


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_left_for_later(path: Path) -> None:
    """No reminders, and no silenced checker without a reason beside it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    with tokenize.open(path) as file:
        comments = [
            t for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT
        ]
    for comment in comments:
        text, line = comment.string, comment.start[0]
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text), f"line {line}: {text}"
        if "noqa" in text or ("type: ignore" in text and path in CODE):
            reason = len(text.split("#")) > 2 or lines[line - 2].strip().startswith("#")
            assert reason or UNTYPED in text, f"line {line}: {text} has no reason"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_machine_is_named(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert not re.search(r"[\"' ]/(home|root|Users|work)/\w", line), f"line {number}: {line}"


def test_importing_workloads_imports_nothing() -> None:
    for folder in ("workloads", "workloads/architectures", "workloads/metrics", "workloads/tasks"):
        assert not (ROOT / folder / "__init__.py").read_text().strip(), folder
