"""All searches of a sweep, as far as their trials are answered."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

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
    templates: Sequence[Cell], asked: Asked, tried: Tried, searched: Sequence[int]
) -> tuple[list[Search], dict[Point, Setting]]:
    """The searches as far as they have come, and the setting of each point whose searches are over.

    Args:
        templates: one train cell per label, size and length, of the seed of trials and without a
            learning rate.
        asked: what the file asks for.
        tried: what is on record.
        searched: the lengths that have a search, ascending.
    """
    studies = {
        point(cell): Study(cell, concerning(cell, asked), tried, beside=len(asked.space) - 1)
        for cell in templates
        if cell.seq_len in searched
    }
    for study in studies.values():
        study.explore()
    for size, length in {(size, length) for _, size, length in studies}:
        same = [study for (_, *at), study in studies.items() if at == [size, length]]
        if all(study.is_over for study in same) and any(study.edge for study in same):
            for study in same:
                study.widen()
    searches = [study.search() for study in studies.values()]
    settings: dict[Point, Setting] = {}
    # Of no label before those of all: one whose range is widened adds trials to every other.
    waiting = {size for (_, size, _), study in studies.items() if not study.is_over}
    for cell in templates:
        mine = [studies[cell.label, cell.size, length] for length in searched]
        over = cell.size not in waiting
        of_label = concerning(cell, asked)
        check = Check(cell, of_label, tried, _between(cell.seq_len, mine) if over else None)
        if over:
            check.carry_out()
        else:
            check.wait()
        searches.append(check.search())
        if check.is_over:
            settings[point(cell)] = check.setting
    return searches, settings


def _between(length: int, studies: Sequence[Study]) -> Setting | None:
    """The setting at a length between the optima of the searches on both sides of it: logarithms
    over the logarithm of length; beyond all of them, that of the nearest."""
    found = [(study.search().seq_len, study.setting()) for study in studies]
    known = [(seq_len, setting) for seq_len, setting in found if setting is not None]
    if not known:
        return None
    lengths = np.log([seq_len for seq_len, _ in known])
    return {
        name: rounded(
            math.exp(
                np.interp(
                    math.log(length), lengths, np.log([setting[name] for _, setting in known])
                )
            )
        )
        for name in known[0][1]
    }
