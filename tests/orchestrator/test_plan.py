"""The plan: what is pending and what is done make up the whole, and rows follow the file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.simulated_world import measure_cell, measure_cells, plan_of, train_cell

CELLS = measure_cells(("lstm", "transformer"), (64, 128), rounds=2)


@given(
    st.lists(st.sets(st.sampled_from(CELLS[0].metrics)), min_size=len(CELLS), max_size=len(CELLS))
)
def test_pending_and_done_make_the_plan(done: list[set[str]]) -> None:
    answered = dict(zip((cell.id for cell in CELLS), done, strict=True))
    plan = plan_of(CELLS)
    pending = plan.pending(lambda c: tuple(m for m in c.metrics if m not in answered[c.id]))
    asked = {cell.id: set(cell.metrics) for cell in CELLS}
    left = {cell.id: set(cell.metrics) for cell in pending}
    assert all(left.values())
    for cell_id, metrics in asked.items():
        assert left.get(cell_id, set()) == metrics - answered[cell_id]
    order = [cell.id for cell in CELLS if cell.id in left]
    assert [cell.id for cell in pending] == order


def test_nothing_is_pending_where_nothing_is_missing() -> None:
    assert plan_of(CELLS).pending(lambda cell: ()) == []


def test_groups_are_in_the_order_of_the_labels() -> None:
    cells = [train_cell(label="b"), measure_cell(label="b"), measure_cell(label="a")]
    cells.append(measure_cell(label="b", seq_len=8))
    plan = plan_of(cells)
    assert plan.labels == ("b", "a")
    assert plan.groups() == {
        ("measure", "b"): [cells[1], cells[3]],
        ("measure", "a"): [cells[2]],
        ("train", "b"): [cells[0]],
    }
