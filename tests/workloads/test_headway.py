"""Who waits for data hears how far they are, and who does not listen pays nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.tasks import headway
from workloads.tasks.headway import Headway, counted, heard


@given(st.lists(st.integers()))
def test_items_come_as_they_are(items: list[int]) -> None:
    assert list(counted(items, "counting")) == items
    said: list[Headway] = []
    with heard(by=said.append):
        assert list(counted(iter(items), "counting")) == items
    assert said[-1] == Headway("counting", len(items), len(items))
    assert list(counted(items, "counting")) == items
    assert said[-1].done == len(items)


def test_it_counts_up_to_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headway, "_SECONDS_BETWEEN", 0.0)
    said: list[Headway] = []
    with heard(by=said.append):
        list(counted("abc", "spelling"))
        list(counted((letter for letter in "ab"), "spelling"))
    assert [(one.done, one.total) for one in said] == [
        *[(0, 3), (1, 3), (2, 3), (3, 3)],
        *[(0, None), (1, None), (2, 2)],
    ]
    assert said[1].words == "spelling: 1 of 3" and said[5].words == "spelling: 1"


def test_it_is_not_told_at_every_item() -> None:
    said: list[Headway] = []
    with heard(by=said.append):
        list(counted(range(100_000), "running"))
    assert len(said) < 1_000


def test_a_task_tells_while_it_prepares_and_not_when_it_has(tmp_path: Path) -> None:
    from workloads import registry
    from workloads.plugins import build_options

    task = registry.load("tasks", "language_modelling")
    (tmp_path / "mine").mkdir()
    for number in range(20):
        (tmp_path / f"mine/{number}.txt").write_text(f"some words, {number} of them\n" * 100)
    options = build_options(
        task.options, {"path": str(tmp_path / "mine"), "validation_tokens": 100}
    )
    said: list[Headway] = []
    with heard(by=said.append):
        task.prepare(options, tmp_path / "cache")
        assert {one.doing for one in said} == {"tokenising"}
        assert sum(one.done for one in said if one.done == one.total) == 20
        del said[:]
        task.prepare(options, tmp_path / "cache")
    assert said == []
