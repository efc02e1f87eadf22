"""The report: one self-contained HTML file from finished tables and figures.

No clock is in it and nothing is loaded from elsewhere, so that the same tables give the same bytes
and the file can be sent by mail. Whatever stands in the tables is text and is escaped.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator import account, quantities
from orchestrator.analysis.certificate import KERNEL_CLASS
from orchestrator.analysis.tables import Tables, block_of
from orchestrator.conclusion import answer
from orchestrator.plots.series import (
    Frame,
    batch_words,
    conditions,
    families,
    file_name,
    frames,
    front,
    mode_words,
)

Row = dict[str, Any]

IMAGE_BYTES = 4_200_000
"""Budget of embedded images as text: with it a report stays below five megabytes. Figures beyond it
are named and remain in `plots/`."""

LONG = 12
"""A table of more rows is folded, but for the first comparison and the first metric's numbers."""

MAX_FAILURES = 60
"""Groups of equal failures told one by one; the rest are counted, and stand in `cells.parquet`."""


def render(tables: Tables, plots: Path) -> str:
    """The report as HTML text. `plots` is the folder that `draw_all` filled from these tables."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        quantities.quantity,
        quantities.interval,
        quantities.count,
        quantities.size,
        quantities.percent,
        quantities.probability,
        quantities.span,
    ):
        environment.globals[function.__name__] = function
    environment.globals["figures_of"] = quantities.figures
    cells = tables.cells.to_pylist()
    shown = frames(tables)
    embedded, left_out = figures(tables, plots)
    verdicts = tables.crossovers.to_pylist()
    return environment.get_template("report.html.j2").render(
        sweep=tables.sweep,
        drawn=tables.sweep.environments.get(tables.sweep.environment or "", {}),
        answer=answer(tables),
        counts=account.counts(cells),
        comparisons=folded(comparisons(tables, shown), open_first=True),
        has_primary=any(row["primary"] for row in verdicts),
        tests=len({_pair(row) for row in verdicts if row["p_adjusted"] is not None}),
        figures=embedded,
        left_out=left_out,
        summary=[pivot(tables, frame) for frame in shown],
        scaling=folded(scaling(tables, shown)),
        fairness=account.fairness(cells),
        certificate=certificate(tables, shown),
        searches=searches(tables),
        article=tables.article.to_pylist(),
        families=families(tables),
        front=front(tables),
        long=LONG,
        failures=account.failures(cells),
        max_failures=MAX_FAILURES,
        prediction=account.prediction(cells),
        environments=account.environments(tables, cells),
        sources=account.sources(cells),
    )


@dataclass(frozen=True, slots=True)
class EmbeddedFigure:
    """A figure as the report holds it: a `data:` address, its caption, its name in `plots/`."""

    name: str
    caption: str
    address: str


def figures(tables: Tables, folder: Path) -> tuple[list[EmbeddedFigure], list[str]]:
    """The figures in the order of their weight (primary comparison, winners, others by name), as
    far as the budget goes, and the names of those beyond it."""
    first = _primary_figure(tables)
    found = sorted(
        folder.glob("*.svg"),
        key=lambda path: (path.stem != first, not path.stem.startswith("winners"), path.stem),
    )
    embedded, left_out, used = [], [], 0
    for path in found:
        content = path.read_bytes()
        address = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
        used += len(address)
        if used > IMAGE_BYTES:
            left_out.append(path.stem)
            continue
        told = re.search(rb"<dc:description>(.*?)</dc:description>", content, re.DOTALL)
        caption = unescape(told.group(1).decode()) if told else path.stem
        embedded.append(EmbeddedFigure(path.stem, caption, address))
    return embedded, left_out


def _primary_figure(tables: Tables) -> str | None:
    row = next((row for row in tables.crossovers.to_pylist() if row["primary"]), None)
    if row is None:
        return None
    return file_name(
        tables,
        "crossover",
        metric=row["metric"],
        task=row["task"],
        size=row["size"],
        batch=row["batch"],
        execution=row["execution"],
    )


def _pair(row: Row) -> tuple[Any, ...]:
    return *block_of(row), row["challenger"]


def _told(tables: Tables, row: Row) -> str:
    """A comparison's conditions in words."""
    words = [quantities.size(row["size"]) + " parameters"]
    if row["batch"] is not None:
        words.append(batch_words(row["batch"]))
    return ", ".join([*words, *mode_words(tables, row["execution"])])


def comparisons(tables: Tables, shown: list[Frame]) -> list[dict[str, Any]]:
    """The rows of the crossovers table by block, the primary comparison's block and row first; of
    codes of two kinds each says which (`kinds`)."""
    unlike = {
        _pair(row): row["figure"].partition(":")[0]
        for row in tables.certificate.to_pylist()
        if row["clause"] == KERNEL_CLASS and row["holds"] is False
    }
    known = {frame.key: frame for frame in shown}
    titles = {frame.metric: frame.title for frame in shown}
    blocks: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(tables.crossovers.to_pylist(), key=lambda row: not row["primary"]):
        row["kinds"] = unlike.get(_pair(row))
        blocks.setdefault(_pair(row)[:-1], []).append(row)
    return [
        {
            "title": titles.get(key[0], key[0]),
            "conditions": _told(tables, rows[0]),
            "log": key not in known or known[key].log,
            "rows": rows,
        }
        for key, rows in blocks.items()
    ]


def certificate(tables: Tables, shown: list[Frame]) -> list[dict[str, Any]]:
    """The clauses of the fairness certificate by block, the primary comparison's first: a row per
    challenger, a column per clause."""
    titles = {frame.metric: frame.title for frame in shown}
    first = next((_pair(row)[:-1] for row in tables.crossovers.to_pylist() if row["primary"]), None)
    blocks: dict[tuple[Any, ...], list[Row]] = {}
    for row in tables.certificate.to_pylist():
        blocks.setdefault(_pair(row)[:-1], []).append(row)
    found = []
    for key in sorted(blocks, key=lambda key: key != first):
        by_challenger: dict[str, dict[str, Row]] = {}
        for row in blocks[key]:
            by_challenger.setdefault(row["challenger"], {})[row["clause"]] = row
        found.append(
            {
                "title": titles.get(key[0], key[0]),
                "conditions": _told(tables, blocks[key][0]),
                "clauses": list(dict.fromkeys(row["clause"] for row in blocks[key])),
                "rows": [{"challenger": name, "clauses": of} for name, of in by_challenger.items()],
            }
        )
    return found


def searches(tables: Tables) -> list[Row]:
    """A row per search of tuning: its trials, the tokens they took, and what it chose."""
    found: dict[str, Row] = {}
    for trial in tables.tuning.to_pylist():
        more = {"trials": 0, "spent": 0, "others": _others(trial["chosen_setting"])}
        row = found.setdefault(trial["study"], {**trial, **more})
        row["trials"] += 1
        row["spent"] += trial["tokens"]
    return list(found.values())


def _others(chosen: str | None) -> str:
    """What a search chose beside the rate, in words: `dropout 0.1, forget bias 2`."""
    setting = json.loads(chosen) if chosen else {}
    return ", ".join(
        f"{name.replace('_', ' ')} {quantities.figures(value)}"
        for name, value in setting.items()
        if name != "learning_rate"
    )


def folded(blocks: list[dict[str, Any]], *, open_first: bool = False) -> list[dict[str, Any]]:
    """The blocks as tables: a long one is a table by itself that opens on demand, unless it is the
    first and that is what the reader came for; short neighbours share one."""
    found: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        fold = len(block["rows"]) > LONG and not (open_first and place == 0)
        if fold or not found or found[-1]["folded"]:
            found.append({"folded": fold, "blocks": []})
        found[-1]["blocks"].append(block)
    return found


def pivot(tables: Tables, frame: Frame) -> dict[str, Any]:
    """One metric's medians as a table: a row per label, a column per context. Where the rows are
    many, the pair of the answer comes first. `others` are beside the labels and not compared: what
    needs no model, and models that were not trained here."""
    by_label: dict[str, dict[int, Row]] = {}
    rows = frame.rows
    if len({row["label"] for row in rows}) > LONG:
        order = {label: place for place, label in enumerate(front(tables))}
        rows = tuple(sorted(rows, key=lambda row: order.get(row["label"], len(order))))
    for row in rows:
        by_label.setdefault(row["label"], {})[row["seq_len"]] = row
    others: dict[str, dict[int, float]] = {}
    for row in frame.rows:
        if row["trivial"] is not None:
            others.setdefault("needs no model", {})[row["seq_len"]] = row["trivial"]
    for row in tables.references.to_pylist():
        if (row["metric"], row["task"]) == (frame.metric, frame.task):
            others.setdefault(f"reference: {row['title']}, not trained here", {})[
                row["seq_len"]
            ] = row["value"]
    return {
        "title": frame.title,
        "conditions": conditions(tables, frame),
        **_unit(frame),
        "better": frame.better,
        "contexts": frame.contexts,
        "replicates": sorted({row["replicates"] or 0 for row in frame.rows}),
        "rows": by_label,
        "others": others,
    }


def _unit(frame: Frame) -> dict[str, Any]:
    """`unit` where every number carries it, with its prefix, else `plain`, said once; `digits` are
    one more there, for losses lie close together."""
    if quantities.prefixed(frame.unit):
        return {"unit": frame.unit, "plain": "", "digits": 3}
    return {"unit": "", "plain": frame.unit, "digits": 4}


def scaling(tables: Tables, shown: list[Frame]) -> list[dict[str, Any]]:
    """The rows of the scaling table that say something, by block, with their metric's title."""
    rows = [
        row
        for row in tables.scaling.to_pylist()
        if row["local_exponent"] is not None or row["constant"] is not None
    ]
    blocks = [(frame, [row for row in rows if frame.holds(row)]) for frame in shown]
    return [
        {"title": frame.title, "conditions": _told(tables, mine[0]), **_unit(frame), "rows": mine}
        for frame, mine in blocks
        if mine
    ]
