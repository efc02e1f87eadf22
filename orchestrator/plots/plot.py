"""What a plot's file exports, and drawing all of them: the folder is the registry.

A file `orchestrator/plots/NAME.py` exports `PLOT`. It reads finished tables and draws; a number
that a figure needs and no table holds belongs into `orchestrator/analysis`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from orchestrator.analysis.tables import Tables
from orchestrator.plots.style import RC

PNG_DPI = 150


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished figure. `name` is its file's, `caption` says in words what to see; it travels in
    the file's own metadata, so that the report needs no second list of figures."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A kind of figure. `needs` names tables that must have rows, else nothing is drawn;
    draw(tables) yields its figures, none where the sweep holds nothing to show."""

    needs: tuple[str, ...]
    draw: Callable[[Tables], Iterator[Drawing]]


def names() -> list[str]:
    """Every plot's name, sorted. Reads the folder, imports nothing."""
    return sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if "\nPLOT" in path.read_text(encoding="utf-8")
    )


def load(name: str) -> Plot:
    """The plot that the file of that name exports."""
    plot: Plot = importlib.import_module(f"orchestrator.plots.{name}").PLOT
    return plot


def draw_all(tables: Tables, folder: Path) -> list[Path]:
    """Draws every figure the tables give into `folder`, as PNG and as SVG, each file whole or not
    at all; returns their paths in the order drawn. Figures of an earlier call that these tables do
    not give are removed. Equal tables give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with matplotlib.rc_context(dict(RC)):
        for name in names():
            plot = load(name)
            if all(getattr(tables, table).num_rows for table in plot.needs):
                for drawing in plot.draw(tables):
                    written += _save(drawing, folder)
    for path in folder.iterdir():
        if path.suffix in (".png", ".svg") and path not in written:
            path.unlink()
    return written


def _save(drawing: Drawing, folder: Path) -> list[Path]:
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Title": drawing.name, "Description": drawing.caption},
        "svg": {"Title": drawing.name, "Description": drawing.caption, "Date": None},
    }
    paths = []
    for form in ("png", "svg"):
        path = folder / f"{drawing.name}.{form}"
        unfinished = folder / f".{drawing.name}.{os.getpid()}.{form}"
        try:
            drawing.figure.savefig(unfinished, dpi=PNG_DPI, format=form, metadata=metadata[form])
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        paths.append(path)
    return paths
