"""The shell's switches hold for every architecture alike, and stacks of several mixers behave as
one."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.workloads.tiny_cells import measure_cell
from workloads import plugins, registry, sizing
from workloads.cell import Cell
from workloads.mixer import held_bytes
from workloads.model import Backbone, ModelShape, build, non_embedding_parameters, total_parameters
from workloads.registry import UnknownPlugin
from workloads.sizing import CannotMatch

BATCH, LENGTH = 2, 12
SWITCHES: list[dict[str, Any]] = [
    {"short_conv": True},
    {"mlp": False},
    {"tied_head": True},
    {"short_conv": True, "mlp": False, "tied_head": True},
]
STACKS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("gru", {}),
    ("transformer", {}),
    ("stacked_rnn", {}),
    ("stacked_rnn", {"cell": "gru"}),
    ("hybrid", {"pattern": ("gru", "transformer(heads=2)", "lstm")}),
]


def shape_of(name: str, options: dict[str, Any], **shell: Any) -> ModelShape:
    size = 60_000
    if shell.get("mlp") is False:
        size, shell = 0, {"d_model": 32, **shell}
    return sizing.shape_for(
        measure_cell(architecture=name, options=options, size=size, num_layers=3, shell=shell)
    )


def tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(256, (BATCH, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shell", [{}, *SWITCHES], ids=str)
@pytest.mark.parametrize(("name", "options"), STACKS, ids=str)
@torch.no_grad()
def test_the_three_forms_agree_whatever_the_shell(
    name: str, options: dict[str, Any], shell: dict[str, Any]
) -> None:
    model = build(shape_of(name, options, **shell), seed=1, device="cpu", dtype=torch.float64)
    text, expected = tokens(), model(tokens())
    for split in ((1,), (2, 5), (LENGTH,)):
        state, end = model.empty_state(BATCH, LENGTH), 0
        for chunk in split:
            logits, state = model.prefill(text[:, end : end + chunk], state)
            end += chunk
        for position in range(end, LENGTH):
            logits, state = model.step(text[:, position], state)
        torch.testing.assert_close(logits, expected[:, -1], rtol=0, atol=1e-10)
    assert held_bytes(state) == BATCH * sizing.state_bytes(model.shape, LENGTH, 8)
    changed = text.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 256
    torch.testing.assert_close(model(changed)[:, :7], expected[:, :7], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shell", [{}, *SWITCHES], ids=str)
@pytest.mark.parametrize(("name", "options"), STACKS, ids=str)
@pytest.mark.parametrize("size", [1_000_000, 20_000_000])
def test_parameters_are_met_and_counted_whatever_the_shell(
    name: str, options: dict[str, Any], shell: dict[str, Any], size: int
) -> None:
    shape = sizing.shape_for(
        measure_cell(architecture=name, options=options, size=size, num_layers=3, shell=shell)
    )
    with torch.device("meta"):
        model = Backbone(shape)
    assert sizing.parameters(shape) == non_embedding_parameters(model)
    assert sizing.total_parameters(shape) == total_parameters(model)
    if name != "none":
        assert sizing.parameters(shape) == pytest.approx(size, rel=sizing.TOLERANCE)


def test_a_fixed_width_stays_and_the_mlp_moves() -> None:
    fixed = {"d_model": 96}
    free = sizing.shape_for(measure_cell(architecture="gru", size=0, num_layers=2, shell=fixed))
    assert (free.d_model, free.mlp_width) == (96, 384)
    shape = shape_of("gru", {}, d_model=32)
    assert shape.d_model == 32
    assert sizing.parameters(shape) == pytest.approx(60_000, rel=sizing.TOLERANCE)
    with pytest.raises(CannotMatch, match="d_model 256"):
        shape_of("gru", {}, d_model=256)


def test_widths_alone_that_cannot_meet_a_size_say_which_sizes_they_have() -> None:
    cell = measure_cell(architecture="transformer", size=60_000, num_layers=3, shell={"mlp": False})
    with pytest.raises(CannotMatch, match=r"no nearer than 49,\d+ \(d_model 64\) and 62,"):
        sizing.shape_for(cell)


def test_a_tied_head_is_the_embeddings_matrix_and_there_may_be_no_mlp() -> None:
    model = build(shape_of("gru", {}, tied_head=True, mlp=False), seed=0, device="cpu")
    assert model.head.weight is model.embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert not any("mlp" in name or "head" in name for name in names)


def test_bare_layers_have_one_norm_and_no_residual_stream() -> None:
    model = build(shape_of("stacked_rnn", {}), seed=0, device="cpu")
    assert sum(isinstance(module, nn.RMSNorm) for module in model.modules()) == 1
    x = model.embedding(tokens())
    layer = model.blocks[0]
    torch.testing.assert_close(layer(x), layer.mixer(x))


def test_switches_are_part_of_a_cells_id_only_where_they_are_used() -> None:
    plain = measure_cell()
    content = plain.to_dict()
    del content["shell"]
    assert Cell.from_dict({**content, "id": plain.id}).id == plain.id
    ids = {measure_cell(shell=shell).id for shell in ({}, *SWITCHES)}
    assert len(ids) == 1 + len(SWITCHES)
    listed = measure_cell(architecture="hybrid", options={"pattern": ("gru", "lstm")})
    assert Cell.from_dict(json.loads(json.dumps(listed.to_dict()))) == listed


def test_a_pattern_repeats_to_the_depth_and_its_members_have_options() -> None:
    options = {"pattern": ("gru", "transformer(heads=2)")}
    layers = registry.stack("hybrid", options, 5)
    titles = [architecture.title for architecture, _ in layers]
    assert titles == ["GRU", "transformer", "GRU", "transformer", "GRU"]
    assert layers[1][1].heads == 2


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ((), "is empty"),
        (("gru", "tranformer"), "Did you mean 'transformer'"),
        (("none",), "is no mixer"),
        (("hybrid",), "is no mixer"),
        (("transformer(heads)",), "is not option=value"),
        (("transformer(head=2)",), "unknown option 'head'"),
        (("transformer(heads=0)",), "at least 1"),
        (("a b",), "is not a name"),
    ],
    ids=str,
)
def test_a_pattern_that_cannot_be_says_why(pattern: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        plugins.build_options(
            registry.load("architectures", "hybrid").options, {"pattern": pattern}
        )


def test_a_model_without_room_for_the_whole_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="3 layers do not fit into a model of 2"):
        registry.stack("hybrid", {"pattern": ("gru", "gru", "transformer")}, 2)


OWN = '''
"""Passes every token on."""
from workloads import registry
ARCHITECTURE = registry.load("architectures", "{base}")
'''


def test_a_users_file_is_an_architecture_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKLOADS_PLUGINS", "")
    file = tmp_path / "mine.py"
    found = []
    for base in ("gru", "lstm"):
        file.write_text(OWN.format(base=base))
        name = registry.register_file(file)
        found.append(name)
        assert name in registry.names("architectures")
        assert registry.load("architectures", name).title == base.upper()
        assert sizing.shape_for(measure_cell(architecture=name)).architecture == name
    first, second = found
    assert first.startswith("mine@") and second.startswith("mine@") and first != second


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, "no such file"), ("import nowhere", "No module named"), ("x = 1", "no ARCHITECTURE")],
)
def test_a_users_file_that_is_none_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, why: str
) -> None:
    monkeypatch.setenv("WORKLOADS_PLUGINS", "")
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UnknownPlugin, match=why):
        registry.register_file(file)


def test_a_users_file_whose_path_would_be_taken_for_two_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = str(tmp_path / "others")
    monkeypatch.setenv("WORKLOADS_PLUGINS", others)
    file = tmp_path / f"before{os.pathsep}after" / "mine.py"
    file.parent.mkdir()
    file.write_text(OWN.format(base="gru"))
    monkeypatch.chdir(file.parent)
    with pytest.raises(UnknownPlugin, match="separates the paths in WORKLOADS_PLUGINS") as caught:
        registry.register_file("mine.py")
    assert str(file) in str(caught.value)
    assert os.environ["WORKLOADS_PLUGINS"] == others


def test_every_pair_of_switches_is_a_model_of_its_own() -> None:
    shapes = [shape_of("gru", {}, **shell) for shell in ({}, *SWITCHES)]
    assert all(one != other for one, other in itertools.combinations(shapes, 2))
