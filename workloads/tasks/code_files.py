"""Files of source code to learn from: which are read, and their tokens, split by file.

C++ headers that come with the installed torch, the sources of Python's standard library, files of a
data set of the Hugging Face hub, or a folder of one's own. Which split a file belongs to is decided
by a hash of its content, so that copies fall together. Files whose brackets do not match (`#if`
with a half in each branch) are left out.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.tasks import sources
from workloads.tasks.code_tokens import Bracket, Lexed, Stream, lexed, matched, stream_of
from workloads.tasks.data import Arrays, folder_name
from workloads.tasks.headway import counted

PACKAGE, FOLDER = "torch", "torch/include"
SUFFIXES = {".h", ".hpp", ".cuh", ".hh", ".hxx", ".c", ".cc", ".cpp", ".cxx", ".cu", ".py"}
"""Files of code; of these only `.py` is read as Python."""
PYTHON_DATASET = "codeparrot/codeparrot-clean-valid"
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_PARTS = ("tokens", "kinds", "distances", "lines")

Source = Literal["packaged", "huggingface"]
Code = Literal["cpp", "python", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeOptions:
    """code: C++ headers, Python, or both; of a data set, what its files are read as.

    path: a folder (or file) of one's own, by suffix Python or C++. dataset, config, hub_split,
    column: of the hub, a row a file, of which the first max_files are read.
    """

    source: Source = "packaged"
    code: Code = "cpp"
    path: str = ""
    dataset: str = PYTHON_DATASET
    config: str = ""
    hub_split: str = "train"
    column: str = "content"
    max_files: int = 5000

    def __post_init__(self) -> None:
        for name, known in (("source", get_args(Source)), ("code", get_args(Code))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        if self.max_files < 1:
            raise ValueError(f"max_files must be positive, not {self.max_files}")
        if self.path and self.source != "packaged":
            raise ValueError("path: files of one's own leave no room for a data set of the hub")
        if self.source == "huggingface" and self.code == "both":
            raise ValueError("code: the files of a data set are read as `cpp` or as `python`")
        if self.source == "huggingface" and self.dataset == PYTHON_DATASET and self.code == "cpp":
            raise ValueError(f"code: {PYTHON_DATASET} is Python; say `code: python`")


class File(NamedTuple):
    """A source file: what its language is called (`cpp`, `python`), and its text."""

    language: str
    text: str


def missing(options: CodeOptions) -> str | None:
    """What is not on this machine, with the mend."""
    if options.path:
        return sources.first_fault(lambda: _own_code(options.path))
    if options.source == "huggingface":
        return None
    if options.code != "python" and sources.package_file(PACKAGE, FOLDER) is None:
        return (
            "its C++ headers come with torch, which here has no folder `include`; install torch "
            "with pip, or say `code: python`"
        )
    if options.code != "cpp" and not _library().joinpath("ast.py").is_file():
        return "Python's standard library is not here as source files; say `code: cpp`"
    return None


def key_of(options: CodeOptions, version: int) -> str:
    """The name of a folder for what is prepared of these files."""
    name: str = options.code
    content: list[Scalar] = [version, options.code, source_of(options)]
    if options.path:
        name, content = "own", [version, sources.own_hash(options.path)]
    elif options.source == "huggingface":
        name = options.dataset
        content += [name, options.hub_split, options.column, options.max_files]
    return folder_name(name, {"content": content})


def source_of(options: CodeOptions) -> str:
    """The files as records name them."""
    if options.path:
        return f"own files: {Path(options.path).name}"
    if options.source == "huggingface":
        return sources.hub_source(options.dataset, options.config)
    headers = f"C++ headers of {sources.named(PACKAGE)}"
    library = f"Python standard library sources ({platform.python_version()})"
    return {"cpp": headers, "python": library}.get(options.code, f"{headers}; {library}")


def files_of(options: CodeOptions) -> tuple[Iterator[File], str]:
    """Source files in a fixed order, and their licence. Raises ValueError where they cannot be
    had."""
    if options.path:
        return _own(options.path), "the user's own"
    if options.source == "huggingface":
        rows = sources.hub_rows(
            options.dataset, options.config, options.hub_split, (options.column,)
        )
        texts = (File(options.code, str(row[options.column])) for row in rows)
        return islice(texts, options.max_files), rows.info.license or "not stated by the data set"
    kinds: dict[str, tuple[Callable[[], Iterator[File]], str]] = {
        "cpp": (_headers, "BSD-3-Clause, third-party headers under their own"),
        "python": (_modules, "PSF-2.0"),
    }
    taken = [kinds[name] for name in kinds if options.code in (name, "both")]
    return (file for files, _ in taken for file in files()), "; ".join(said for _, said in taken)


def _headers() -> Iterator[File]:
    """Without what says "@generated": thousands of near copies, on both sides of a split."""
    if (root := sources.package_file(PACKAGE, FOLDER)) is None:
        raise ValueError("the installed torch has no folder `include`")
    for path in sorted(root.rglob("*")):
        if path.suffix in SUFFIXES:
            text = path.read_text(encoding="utf-8", errors="replace")
            if "@generated" not in text[:300]:
                yield File("cpp", text)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> Iterator[File]:
    for path in sorted(_library().rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(_library()).parts):
            yield File("python", path.read_text(encoding="utf-8", errors="replace"))


def _own_code(path: str) -> list[Path]:
    found = [file for file in sources.own_files(path) if file.suffix in SUFFIXES]
    if not found:
        raise ValueError(f"{path}: there is no file of code here ({', '.join(sorted(SUFFIXES))})")
    return found


def _own(path: str) -> Iterator[File]:
    for file in _own_code(path):
        language = "python" if file.suffix == ".py" else "cpp"
        yield File(language, file.read_text(encoding="utf-8", errors="replace"))


def build(options: CodeOptions) -> Arrays:
    """The stream of each split. Raises ValueError where the files cannot be had, or none falls to
    one."""
    files, licence = files_of(options)
    split: dict[str, list[tuple[Lexed, list[Bracket]]]] = {name: [] for name in sources.SPLITS}
    seen: set[str] = set()
    unmatched = 0
    for file in counted(files, "reading code"):
        content = hashlib.sha256(file.text.encode("utf-8", errors="replace")).hexdigest()
        if content in seen:
            continue
        seen.add(content)
        found = lexed(file.text, file.language)
        pairs = matched(found)
        if pairs is None:
            unmatched += 1
        else:
            split[sources.split_of(content, validation=10, test=10)].append((found, pairs))
    arrays: dict[str, NDArray[Any]] = {}
    facts: dict[str, Scalar] = {
        "data_source": source_of(options),
        "data_licence": licence,
        "split": "by a hash of each file: 80 % train, 10 % validation, 10 % test",
        "files_left_out": unmatched,
    }
    for name, members in split.items():
        if not any(pairs for _, pairs in members):
            raise ValueError(
                f"of {len(seen)} files none with brackets falls to the {name} split; "
                "more files are needed"
            )
        stream = stream_of(members)
        arrays |= {f"{name}_{part}": getattr(stream, part) for part in _PARTS}
        facts[f"{name}_files"] = len(members)
        facts[f"{name}_tokens"] = len(stream.tokens)
        facts[f"{name}_brackets"] = sum(len(pairs) for _, pairs in members)
    return Arrays(arrays=arrays, facts=facts)


def streams_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Stream]:
    """What was built, by split."""
    return {
        name: Stream(**{part: arrays[f"{name}_{part}"] for part in _PARTS})
        for name in sources.SPLITS
    }
