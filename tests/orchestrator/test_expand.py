"""From a sweep file to its plan: complete blocks in a random order that a longer sweep keeps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.expand import expand
from orchestrator.plan import Plan, Primary
from orchestrator.spec import load_spec
from orchestrator.spec.load import LoadedSpec, validated
from orchestrator.spec.strict_yaml import parse
from tests.orchestrator.sweep_files import ABSENT, changed, load
from workloads.cell import Cell

SWEEPS = sorted(Path("sweeps").glob("*.yaml"))


def plan_of(changes: dict[str, Any] | None = None) -> Plan:
    text = json.dumps(changed(changes or {}))
    return expand(LoadedSpec(path="x.yaml", spec=validated("x.yaml", parse(text)), text=text))


def blocks(plan: Plan) -> list[tuple[tuple[str, int], list[Cell]]]:
    """The cells in runs of equal kind and replicate."""
    runs = itertools.groupby(plan.cells, key=lambda cell: (cell.kind, cell.replicate))
    return [(key, list(cells)) for key, cells in runs]


def point(cell: Cell) -> tuple[object, ...]:
    return cell.label, cell.size, cell.seq_len, cell.batch_size


def test_blocks_are_complete_and_follow_each_other() -> None:
    plan = plan_of()
    found = blocks(plan)
    rounds = [("measure", number) for number in range(3)]
    assert [key for key, _ in found] == [*rounds, ("train", 0), ("train", 1)]
    measured = set(itertools.product(("lstm", "gru", "transformer"), (50_000,), (64, 128), (1, 4)))
    for (kind, _), cells in found:
        points = [point(cell) for cell in cells]
        assert len(points) == len(set(points))
        if kind == "measure":
            assert set(points) == measured


def test_the_order_within_a_block_is_random_and_always_the_same() -> None:
    first, second, third = ([point(c) for c in cells] for _, cells in blocks(plan_of())[:3])
    assert first != second != third != first
    assert first != sorted(first)
    assert plan_of() == plan_of()


def test_more_rounds_and_seeds_leave_the_earlier_as_they_were() -> None:
    few, many = plan_of(), plan_of({"measure.rounds": 5, "train.seeds": 4})
    for key, cells in blocks(few):
        assert dict(blocks(many))[key] == cells
    assert len(many.cells) == len(few.cells) + 2 * 12 + 2 * 3


def test_more_contexts_keep_the_earlier_cells() -> None:
    ids = {cell.id for cell in plan_of({"measure.seq_len": [64, 128, 256]}).cells}
    assert ids > {cell.id for cell in plan_of().cells}


def test_there_are_no_duplicates() -> None:
    ids = [cell.id for cell in plan_of().cells]
    assert len(ids) == len(set(ids))


def test_metrics_without_noise_are_taken_in_the_first_round_only() -> None:
    for cell in plan_of().cells:
        if cell.kind == "measure":
            first = cell.round == 0
            assert cell.metrics == (("train_step_time", "state_bytes")[: 2 if first else 1])


def test_a_metric_that_ignores_an_axis_is_taken_at_its_smallest_value_only() -> None:
    metrics = ["train_step_time", "max_seq_len", "max_batch_size"]
    change = {
        "measure.seq_len": [128, 64],
        "measure.batch_size": [4, 2],
        "measure.metrics": metrics,
    }
    plan = plan_of({**change, "limits.memory_bytes": 10**9, "train": ABSENT})
    asked = {
        name: {(c.seq_len, c.batch_size, c.round) for c in plan.cells if name in c.metrics}
        for name in metrics
    }
    assert len(asked["train_step_time"]) == 4 * 3
    assert asked["max_seq_len"] == {(64, 4, 0), (64, 2, 0)}
    assert asked["max_batch_size"] == {(64, 2, 0), (128, 2, 0)}


def test_what_is_not_timed_is_taken_in_eager_mode_whatever_the_modes() -> None:
    plan = plan_of(
        {
            "measure.execution": ["compiled", "graph"],
            "measure.metrics": ["train_step_time", "peak_memory"],
        }
    )
    cells = [cell for cell in plan.cells if cell.kind == "measure"]
    by_mode = {
        mode: {name for cell in cells if cell.execution == mode for name in cell.metrics}
        for mode in ("eager", "compiled", "graph")
    }
    assert by_mode == {
        "eager": {"peak_memory"},
        "compiled": {"train_step_time"},
        "graph": {"train_step_time"},
    }
    assert {cell.execution for cell in plan.cells if cell.kind == "train"} == {"eager"}


def test_rounds_of_metrics_without_noise_alone_are_one() -> None:
    plan = plan_of({"measure.metrics": ["state_bytes", "parameters"], "train": ABSENT})
    assert {cell.round for cell in plan.cells} == {0}


@pytest.mark.parametrize(
    ("tokens", "seq_len", "batch_size"),
    [(4096, 64, 64), (4096, 300, 14), (100, 128, 1), (1, 64, 1)],
)
def test_constant_tokens_become_whole_sequences(tokens: int, seq_len: int, batch_size: int) -> None:
    change = {"measure.batch_size": ABSENT, "measure.batch_tokens": [tokens]}
    plan = plan_of({**change, "measure.seq_len": [seq_len], "train": ABSENT})
    assert {cell.batch_size for cell in plan.cells} == {batch_size}
    assert {cell.batch for cell in plan.cells} == {f"{tokens} tokens"}


def test_a_learning_rate_is_the_labels_own_else_the_architectures_else_the_default() -> None:
    rates = {"default": 1e-3, "gru": 2e-3, "small": 3e-3}
    architectures = [
        "lstm",
        {"gru": {"label": "plain"}},
        {"gru": {"label": "small"}},
    ]
    plan = plan_of({"architectures": architectures, "train.learning_rate": rates})
    found = {cell.label: cell.learning_rate for cell in plan.cells if cell.kind == "train"}
    assert found == {"lstm": 1e-3, "plain": 2e-3, "small": 3e-3}


def test_one_learning_rate_is_everyones() -> None:
    plan = plan_of({"train.learning_rate": 1})
    assert {cell.learning_rate for cell in plan.cells if cell.kind == "train"} == {1.0}


def test_sizes_are_an_axis() -> None:
    plan = plan_of({"model.parameters": [50_000, 100_000]})
    assert len(plan.cells) == 2 * len(plan_of().cells)
    assert {cell.size for cell in plan.cells} == {50_000, 100_000}


def test_the_comparison_speaks_of_labels() -> None:
    plan = plan_of(
        {
            "architectures": [{"lstm": {"label": "old"}}, {"transformer": {"heads": 2}}],
            "compare.primary": {"challenger": "transformer", "metric": "train_step_time"},
        }
    )
    assert plan.labels == ("old", "transformer(heads=2)")
    assert plan.comparison.baseline == "old"
    primary = Primary(challenger="transformer(heads=2)", metric="train_step_time")
    assert plan.comparison.primary == primary
    assert plan.comparison.zone == (64, 128)


def test_a_plan_on_a_machine_of_another_kind(tmp_path: Path) -> None:
    plan = expand(load(tmp_path, {"device": "nvidia-h100-80gb-hbm3", "precision": "bfloat16"}))
    assert {cell.device for cell in plan.cells} == {"nvidia-h100-80gb-hbm3"}


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "float32"), ("nvidia-h100-80gb-hbm3", "bfloat16")]
)
def test_each_kind_of_device_has_its_own_precision_unless_one_is_named(
    device: str, precision: str, tmp_path: Path
) -> None:
    plan = expand(load(tmp_path, {"device": device}))
    assert {cell.precision for cell in plan.cells} == {precision}
    named = expand(load(tmp_path, {"device": device, "precision": "float32"}))
    assert {cell.precision for cell in named.cells} == {"float32"}


def test_models_that_cannot_be_built_are_named_with_their_lines(tmp_path: Path) -> None:
    architectures = ["lstm", {"transformer": {"heads": -3}}, {"gru": {"label": "g"}}]
    with pytest.raises(SpecError) as caught:
        expand(load(tmp_path, {"architectures": architectures[::2], "model.num_layers": 900}))
    assert len(caught.value.faults) == 2
    first, second = caught.value.faults
    assert first.startswith("line 5: architectures[0]: 50,000 parameters are too few for 900")
    assert second.startswith("line 6: architectures[1]: 50,000 parameters are too few for 900")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_plans(path: Path) -> None:
    plan = expand(load_spec(path))
    assert plan.name == path.stem
    assert plan.cells
    assert all(Cell.from_dict(json.loads(json.dumps(c.to_dict()))) == c for c in plan.cells[:20])


AXES = st.lists(st.sampled_from([64, 96, 128]), min_size=1, max_size=3, unique=True)


@settings(max_examples=25, deadline=None)
@given(AXES, AXES, st.integers(1, 3), st.permutations(list(changed({}))))
def test_the_plan_does_not_depend_on_the_order_of_keys(
    seq_len: list[int], batch_size: list[int], rounds: int, order: list[str]
) -> None:
    data = changed(
        {"measure.seq_len": seq_len, "measure.batch_size": batch_size, "measure.rounds": rounds}
    )
    plans = []
    for content in (data, {key: data[key] for key in order}):
        text = json.dumps(content)
        spec = validated("x.yaml", parse(text))
        plans.append(expand(LoadedSpec(path="x.yaml", spec=spec, text=text)))
    assert [cell.id for cell in plans[0].cells] == [cell.id for cell in plans[1].cells]
    assert plans[0].spec_hash == plans[1].spec_hash
    assert len(plans[0].cells) == 3 * len(seq_len) * len(batch_size) * rounds + 3 * 2
