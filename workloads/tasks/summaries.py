"""Where documents and their summaries come from: articles and their leads, sources and their
docstrings, data sets of the Hugging Face hub, a user's own files."""

from __future__ import annotations

import ast
import inspect
import platform
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workloads.tasks import sources, wiki
from workloads.tasks.headway import counted

SPLITS = sources.SPLITS
LEAD_WORDS, BODY_WORDS = 40, 300
MODULE_WORDS, FUNCTION_WORDS = 20, 5
"""Fewer words make no summary."""
EXPORT = (
    "gensim",
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
)
"""The package that ships articles, and the file."""
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A document and its summary. `short` ones are the functions."""

    name: str
    document: str
    summary: str
    short: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Pairs of each split, and what is to be said of them."""

    source: str
    licence: str
    split: str
    pairs: Mapping[str, Sequence[Pair]]


def without_leaks(found: Corpus) -> Corpus:
    """The same with no document in two splits, and none that has its summary word by word.

    Raises:
        ValueError: that leaves a split empty.
    """
    seen: set[str] = set()
    pairs: dict[str, Sequence[Pair]] = {}
    for split in SPLITS:
        pairs[split] = [
            pair
            for pair in found.pairs[split]
            if pair.document not in seen and pair.document.strip() and not _leaks(pair)
        ]
        if not pairs[split]:
            raise ValueError(f"{found.source}: no pair is left for the {split} split")
        seen.update(pair.document for pair in pairs[split])
    return replace(found, pairs=pairs)


def _leaks(pair: Pair) -> bool:
    """Whether the document has the summary word by word, or there is none."""
    return " ".join(pair.summary.split()) in " ".join(pair.document.split())


def library() -> Corpus:
    """Training, validation and test modules of the standard library; functions train alone."""
    found = docstrings(validation=15, test=15)
    for split in ("validation", "test"):
        found[split] = [pair for pair in found[split] if not pair.short]
    return Corpus(
        source=_library(),
        licence="PSF-2.0",
        split="by a hash of the file's path: 15 in 100 validate, 15 test",
        pairs=found,
    )


def library_and_encyclopaedia() -> Corpus:
    """The standard library to train on, articles to validate and test. Raises ValueError where
    there are none here."""
    train = docstrings(validation=0, test=0)["train"]
    return Corpus(
        source=f"train: {_library()}; test: English Wikipedia of 2016 ({sources.named(EXPORT[0])})",
        licence="PSF-2.0; CC BY-SA",
        split="the library trains; articles validate or test by a hash of their title",
        pairs={"train": train, **encyclopaedia()},
    )


def _library() -> str:
    return f"Python standard library sources ({platform.python_version()})"


def encyclopaedia() -> dict[str, list[Pair]]:
    """Body and lead of the articles that have enough of both, of the splits validation and test."""
    found: dict[str, list[Pair]] = {"validation": [], "test": []}
    for article in counted(wiki.articles(sources.needed(*EXPORT)), "reading articles"):
        if len(article.lead.split()) >= LEAD_WORDS and len(article.body.split()) >= BODY_WORDS:
            split = sources.split_of(article.title, validation=50, test=50)
            found[split].append(
                Pair(name=article.title, document=article.body, summary=article.lead)
            )
    return found


def docstrings(*, validation: int, test: int, folder: str = "") -> dict[str, list[Pair]]:
    """Modules and functions of the standard library (or of one folder of it) with their docstrings;
    of a hundred files so many validate and so many test."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for path in counted(sorted((root / folder).rglob("*.py")), "reading modules"):
        name = path.relative_to(root)
        if _NOT_LIBRARY.isdisjoint(name.parts):
            split = sources.split_of(name.as_posix(), validation=validation, test=test)
            text = path.read_text(encoding="utf-8", errors="replace")
            found[split] += documented(text, name.as_posix())
    return found


def documented(source: str, name: str) -> Iterator[Pair]:
    """The module and the functions of one file that have a docstring long enough, each as its
    source without that docstring. Nothing, where the file is not of this Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in the library's own sources
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    # Not `splitlines`, which knows more ends of lines than Python does.
    lines = source.split("\n")
    for node in _definitions(tree):
        is_module = isinstance(node, ast.Module)
        first, last, fewest = 1, len(lines), MODULE_WORDS
        if not isinstance(node, ast.Module):
            first, last, fewest = node.lineno, node.end_lineno or node.lineno, FUNCTION_WORDS
        summary = inspect.cleandoc(ast.get_docstring(node) or "")
        said = node.body[0] if node.body else None
        if said is None or len(node.body) < 2 or len(summary.split()) < fewest:
            continue
        begin, end = said.lineno, said.end_lineno or said.lineno
        before = lines[begin - 1].encode()[: said.col_offset]
        if before.strip() or node.body[1].lineno <= end:
            continue  # it shares a line with code
        document = textwrap.dedent("\n".join(lines[first - 1 : begin - 1] + lines[end:last]))
        place = "" if is_module else f":{first}"
        yield Pair(name=name + place, document=document, summary=summary, short=not is_module)


def _definitions(
    node: ast.AST,
) -> Iterator[ast.Module | ast.FunctionDef | ast.AsyncFunctionDef]:
    """A module and its functions at any depth. Expressions, most of a tree, are not looked into."""
    if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for part in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, part, ()):
            yield from _definitions(child)


def hub(dataset: str, config: str, splits: Mapping[str, str], columns: tuple[str, str]) -> Corpus:
    """A data set with a column of documents and one of summaries; `splits`: its names of ours.
    Raises ValueError where it cannot be had or lacks a column."""
    rows = {
        ours: sources.hub_rows(dataset, config, theirs, columns) for ours, theirs in splits.items()
    }
    return Corpus(
        source=sources.hub_source(dataset, config),
        licence=rows["train"].info.license or "not stated by the data set",
        split="the data set's own",
        pairs={
            split: [
                Pair(name=str(place), document=str(row[columns[0]]), summary=str(row[columns[1]]))
                for place, row in enumerate(found)
            ]
            for split, found in rows.items()
        },
    )


def own(path: str, columns: tuple[str, str]) -> Corpus:
    """Parquet of a user's own with such columns. Raises ValueError where there is other."""
    documents, summaries = (sources.own_documents(path, one) for one in columns)
    pairs: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for (name, document), (_, summary) in zip(documents, summaries, strict=True):
        if ".parquet#" not in name:
            raise ValueError(f"{path}: {name} is no Parquet file, and a text alone has no summary")
        split = sources.split_of(document, validation=10, test=10)
        pairs[split].append(Pair(name=name, document=document, summary=summary))
    return Corpus(
        source=f"own documents in {path}",
        licence="the user's own",
        split="by a hash of the document: 10 in 100 validate, 10 test",
        pairs=pairs,
    )
