"""All searches of a sweep, as far as their trials are answered."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.search import Search, Setting
from orchestrator.tuning.check import Check
from orchestrator.tuning.sampler import rounded
from orchestrator.tuning.study import Study
from orchestrator.tuning.trials import Asked, Tried, concerning
from workloads.cell import Cell

Point = tuple[str, int, int]
"""What is trained with one setting: a label, a size, a length."""


def point(cell: Cell) -> Point:
    return cell.label, cell.size, cell.seq_len


def tuned(
    templates: Sequence[Cell], asked: Asked, tried: Tried
) -> tuple[list[Search], dict[Point, Setting]]:
    """The searches as far as they have come, and the setting of each point whose searches are over.

    Args:
        templates: one train cell per label, size and length, of the seed of trials and without a
            learning rate.
        asked: what the file asks for.
        tried: what is on record.
    """
    lengths = sorted({cell.seq_len for cell in templates})
    ends = dict.fromkeys((lengths[0], lengths[-1]))
    studies = {
        point(cell): Study(cell, concerning(cell, asked), tried, beside=len(asked.space) - 1)
        for cell in templates
        if cell.seq_len in ends
    }
    for study in studies.values():
        study.explore()
    for size, end in {(size, end) for _, size, end in studies}:
        same = [study for (_, *at), study in studies.items() if at == [size, end]]
        if all(study.is_over for study in same) and any(study.edge for study in same):
            for study in same:
                study.widen()
    searches = [study.search() for study in studies.values()]
    settings: dict[Point, Setting] = {}
    for cell in templates:
        of_ends = [studies[cell.label, cell.size, end] for end in ends]
        over = all(study.is_over for study in of_ends)
        of_label = concerning(cell, asked)
        check = Check(cell, of_label, tried, _between(cell.seq_len, of_ends) if over else None)
        if over:
            check.carry_out()
        else:
            check.wait()
        searches.append(check.search())
        if check.is_over:
            settings[point(cell)] = check.setting
    return searches, settings


def _between(length: int, ends: Sequence[Study]) -> Setting | None:
    """The setting at a length between the ends' optima: logarithms over the logarithm of length."""
    found = [(study.search().seq_len, study.setting()) for study in ends]
    known = [(seq_len, setting) for seq_len, setting in found if setting is not None]
    if not known:
        return None
    (low, first), (high, last) = known[0], known[-1]
    part = 0.0 if low == high else math.log(length / low) / math.log(high / low)
    return {
        name: rounded(math.exp((1 - part) * math.log(first[name]) + part * math.log(last[name])))
        for name in first
    }
