"""Every plot draws whatever a sweep may hold, deterministically, and never past a curve's end."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from orchestrator.analysis.tables import Tables
from orchestrator.plots import lines, margin, plot, ratio_panel, style, training, winners
from orchestrator.plots.fitting import fitted
from orchestrator.plots.series import labels
from orchestrator.plots.stacking import nearest, spread
from tests.orchestrator.made_tables import (
    LAWS,
    MANY_CONTEXTS,
    MANY_LAWS,
    Law,
    Metric,
    family,
    tables,
)

ACCURACY = Metric(
    "accuracy",
    "accuracy",
    unit="1",
    better="greater",
    scale="difference",
    kind="train",
    noise=0.02,
    laws={"lstm": lambda n: 0.95 - n / 3000, "transformer": lambda n: 0.6 + n / 6000},
)
LOSS = Metric(
    "validation_loss",
    "validation loss",
    unit="nats per token",
    kind="train",
    noise=0.01,
    laws={"lstm": lambda n: 2.4 - 0.02 * n**0.3, "transformer": lambda n: 2.6 - 0.06 * n**0.3},
    reasons={("transformer", 128): "undertrained"},
)
MEMORY = [
    Metric(name, name.replace("_", " "), unit="bytes", noise=0.0, laws={"lstm": law, "gru": law})
    for name, law in (("peak_memory", lambda n: 1e6 + 9e3 * n), ("state_bytes", lambda n: 4096.0))
]
CUT = Metric(
    reasons={
        ("transformer", 1024): "out_of_memory",
        ("transformer", 2048): "out_of_memory",
        ("gru", 300): "timeout",
    }
)
ONE_LABEL = Metric(laws={"lstm": LAWS["lstm"]})
NOWHERE = Metric(reasons={("gru", context): "unsupported" for context in (128, 256)})

WORLDS: dict[str, Tables] = {
    "full": tables([CUT, *MEMORY, LOSS, ACCURACY], batches=(8,)),
    "cut short": tables([CUT]),
    "one label": tables([ONE_LABEL]),
    "one context": tables(contexts=(256,)),
    "a label without numbers": tables([NOWHERE], contexts=(128, 256)),
    "train only": tables([LOSS, ACCURACY]),
    "measure only": tables([Metric(), *MEMORY]),
    "two replicates": tables(replicates=2),
    "many labels": tables([Metric(laws={f"label {i}": LAWS["lstm"] for i in range(20)})]),
    "hostile labels": tables(
        [Metric(laws={"$\\frac{": LAWS["lstm"], "<script>&": LAWS["gru"], "x" * 90: LAWS["gru"]})]
    ),
    "fast": tables([Metric(laws={"lstm": lambda n: 3e-9 * n, "gru": lambda n: 3.1e-9 * n})]),
}

MANY_CUT = {("transformer", 4096): "out_of_memory", ("rwkv7", 128): "unsupported"}
MANY_CUT |= {("mamba", context): "timeout" for context in (2048, 4096)}
MANY_LOSSES = {
    label: lambda n, i=place: 2.4 + 0.013 * i - (0.02 + 0.0015 * i) * n**0.3
    for place, label in enumerate(MANY_LAWS)
}
MANY = tables(
    [
        Metric(laws=MANY_LAWS, reasons=MANY_CUT),
        *(replace(metric, laws=MANY_LAWS) for metric in MEMORY),
        replace(LOSS, laws=MANY_LOSSES),
    ],
    contexts=MANY_CONTEXTS,
    replicates=5,
)
"""Twenty labels of seven families, most of which end close together in the loss."""

LOOKS = style.looks(labels(WORLDS["cut short"]))


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with matplotlib.rc_context(dict(style.RC)):
        yield


def drawings(world: Tables, name: str) -> dict[str, Figure]:
    return {drawing.name: drawing.figure for drawing in plot.load(name).draw(world)}


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes meet, among everything visible with words in it."""
    figure.draw_without_rendering()
    found = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip()
    ]
    return [
        (one, other)
        for i, (one, box) in enumerate(found)
        for other, beside in found[i + 1 :]
        if one != other
        and min(box.x1, beside.x1) - max(box.x0, beside.x0) > 1
        and min(box.y1, beside.y1) - max(box.y0, beside.y0) > 1
    ]


def _corners(text: Text) -> tuple[tuple[float, float], tuple[float, float]]:
    """The x and the y of a text's two opposite corners."""
    box = text.get_window_extent()
    return (box.x0, box.x1), (box.y0, box.y1)


def outside(figure: Figure) -> list[str]:
    """Texts that the figure's edge cuts off."""
    figure.draw_without_rendering()
    return [
        text.get_text()
        for text in figure.findobj(Text)
        if text.get_visible()
        and text.get_text().strip()
        and not all(map(figure.bbox.padded(1).contains, *_corners(text)))
    ]


def test_the_folder_is_the_registry() -> None:
    assert {"crossover", "winners", "memory", "training", "predicted"} <= set(plot.names())
    assert not {"style", "plot", "lines", "series"} & set(plot.names())


@pytest.mark.parametrize("world", WORLDS)
def test_draws_whatever_a_sweep_holds(world: str, tmp_path: Path) -> None:
    paths = plot.draw_all(WORLDS[world], tmp_path)
    assert any(path.name.startswith("crossover-") for path in paths)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    for path in paths:
        if path.suffix == ".svg":
            text = ElementTree.fromstring(path.read_bytes())
            assert text.find(".//{http://purl.org/dc/elements/1.1/}description") is not None
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("world", "name"),
    [*((world, "crossover") for world in WORLDS), *(("full", name) for name in plot.names())],
)
def test_no_text_covers_another_or_leaves_the_figure(world: str, name: str) -> None:
    for figure in drawings(WORLDS[world], name).values():
        assert overlaps(figure) == []
        assert outside(figure) == []


def test_nothing_pending_is_drawn(tmp_path: Path) -> None:
    stale = tmp_path / "crossover-old.svg"
    stale.write_text("<svg/>")
    assert plot.draw_all(tables(status="pending"), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    first = plot.draw_all(tables(), tmp_path / "a")
    second = plot.draw_all(tables(), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_curve_stops_where_it_was_cut() -> None:
    (figure,) = drawings(WORLDS["cut short"], "crossover").values()
    colour = LOOKS["transformer"].colour
    for axes in figure.axes[:2]:
        reach = [max(xs(line)) for line in axes.lines if line.get_color() == colour]
        assert max(reach) == 512
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "out of memory from 1,024" in words


def test_a_line_is_not_drawn_across_a_gap() -> None:
    (figure,) = drawings(WORLDS["cut short"], "crossover").values()
    colour = LOOKS["gru"].colour
    lines_of_gru = [xs(line) for line in figure.axes[0].lines if line.get_color() == colour]
    assert [128, 256] in lines_of_gru
    assert [384, 448, 512, 1024, 2048] in lines_of_gru


def test_an_undertrained_point_is_hollow() -> None:
    (figure,) = (f for name, f in drawings(tables([LOSS]), "crossover").items() if "loss" in name)
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [xs(line) for line in hollow] == [[128]]


def test_a_crossing_is_marked_where_the_table_says() -> None:
    world = tables([Metric()])
    (row,) = (r for r in world.crossovers.to_pylist() if r["challenger"] == "transformer")
    (figure,) = drawings(world, "crossover").values()
    colour = LOOKS["transformer"].colour
    rings = [line for line in figure.axes[1].lines if line.get_markerfacecolor() == "none"]
    assert row["seq_len"] in [xs(line)[0] for line in rings]
    bars = [xs(line) for line in figure.axes[2].lines if line.get_color() == colour]
    assert [row["low"], row["high"]] in bars


def test_an_open_end_is_an_arrow_at_the_edge() -> None:
    world = tables([Metric()])
    rows = [
        {**row, "high_open": True, "high": 2048.0} if row["seq_len"] else row
        for row in world.crossovers.to_pylist()
    ]
    opened = replace(world, crossovers=world.crossovers.from_pylist(rows, world.crossovers.schema))
    (figure,) = drawings(opened, "crossover").values()
    ends = [line for line in figure.axes[2].lines if line.get_marker() == ">"]
    assert ends and all(xs(end)[0] == figure.axes[2].get_xlim()[1] for end in ends)


def test_which_side_is_better_follows_the_metric() -> None:
    def above(world: Tables) -> str:
        (figure,) = drawings(world, "crossover").values()
        (text,) = (t.get_text() for t in figure.axes[1].texts if t.get_text().startswith("↑"))
        return text

    assert above(tables([Metric()])) == "↑ lstm ahead"
    assert above(tables([ACCURACY])) == "↑ challenger ahead"


def test_the_winners_map_shows_the_best_set_and_nothing_else() -> None:
    world = tables([Metric()])
    (figure,) = (drawing.figure for drawing in winners.draw(world))
    shown = [
        line for line in figure.axes[0].lines if line.get_transform() == figure.axes[0].transData
    ]
    assert len(shown) == sum(world.winners["in_best_set"].to_pylist())


def test_a_training_curve_is_drawn_per_seed_against_tokens() -> None:
    world = tables([LOSS], contexts=(128,))
    (figure,) = (drawing.figure for drawing in training.draw(world))
    curves = [line for line in figure.axes[0].lines if len(xs(line)) == 10]
    assert len(curves) == 2 * 5
    assert max(xs(curves[0])) == 500 * 4096


def test_looks_are_told_apart_without_colour() -> None:
    looks = list(style.looks(map(str, range(36))).values())
    assert len({(look.marker, str(look.line)) for look in looks}) == 36
    assert len({(look.colour, look.marker) for look in looks}) == 36


# Twenty labels


def hue(colour: str) -> float:
    return colorsys.rgb_to_hsv(*matplotlib.colors.to_rgb(colour))[0]


def luminance(colour: str) -> float:
    return float(np.dot(matplotlib.colors.to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def test_many_labels_all_look_different_also_in_grey() -> None:
    looks = lines.looks(MANY)
    assert set(looks) == set(MANY.sweep.labels) and len(looks) == 20
    assert len({look.colour for look in looks.values()}) == 20
    assert len({(look.marker, str(look.line)) for look in looks.values()}) == 20


def test_kin_share_a_hue_and_differ_in_lightness() -> None:
    looks = lines.looks(MANY)
    kin: dict[str | None, list[style.Look]] = {}
    for label, look in looks.items():
        assert look.family == family(label)
        kin.setdefault(look.family, []).append(look)
    hues = [hue(members[0].colour) for members in kin.values()]
    assert all(abs(one - other) > 0.02 for one, other in pairwise(sorted(hues)))
    for members, its in zip(kin.values(), hues, strict=True):
        assert all(abs(hue(look.colour) - its) < 0.012 for look in members)
        shades = sorted(luminance(look.colour) for look in members)
        assert all(lighter - darker > 0.03 for darker, lighter in pairwise(shades))


def test_few_labels_keep_their_colours_whatever_their_families() -> None:
    few = [f"label {i}" for i in range(style.FEW)]
    kin = dict.fromkeys(few, "attention")
    assert style.looks(few, kin, few[:2]) == style.looks(few)
    assert all(look.depth == "among" for look in style.looks(few).values())
    assert style.crowded(style.looks([*few, "one more"]))


def test_many_labels_of_unknown_families_are_still_told_apart() -> None:
    """Tables of an older version have no families; a user's own words for one are all grey."""
    old = replace(MANY, cells=MANY.cells.drop_columns(["family"]))
    for looks in (lines.looks(old), style.looks(map(str, range(20)), {"0": "my own kin"})):
        assert len({(look.colour, look.marker, str(look.line)) for look in looks.values()}) == 20
    assert not style.families(lines.looks(old))
    figures = drawings(old, "crossover").values()
    assert all(overlaps(figure) == outside(figure) == [] for figure in figures)


@pytest.mark.parametrize("name", plot.names())
def test_texts_keep_clear_among_twenty_labels(name: str) -> None:
    figures = drawings(MANY, name)
    assert figures
    for figure in figures.values():
        assert overlaps(figure) == []
        assert outside(figure) == []


@pytest.mark.parametrize("name", ["crossover", "memory"])
def test_the_pair_of_the_answer_stands_in_front(name: str) -> None:
    looks = lines.looks(MANY)
    pair = {looks[label].colour for label in ("lstm", "transformer")}
    for figure in drawings(MANY, name).values():
        for axes in figure.axes[: 2 if name == "crossover" else None]:
            curves = [line for line in axes.lines if len(xs(line)) > 3]
            ours = [line for line in curves if line.get_color() in pair]
            others = [line for line in curves if line not in ours]
            others = [line for line in others if line.get_color() not in ("black", "k")]
            thick = [line for line in ours if line.get_linewidth() > 1]
            assert thick and others
            assert min(map(Line2D.get_zorder, thick)) > max(map(Line2D.get_zorder, others))
            assert max(map(Line2D.get_linewidth, others)) < 1
            bands = {matplotlib.colors.to_hex(band.get_facecolor()[0]) for band in axes.collections}
            assert bands <= pair


def test_the_shell_does_not_squeeze_the_ratios_of_those_that_compete() -> None:
    def span(laws: dict[str, Law]) -> tuple[float, float]:
        (figure,) = drawings(tables([Metric(laws=laws)]), "crossover").values()
        return figure.axes[1].get_ylim()

    assert span({**MANY_LAWS, "none": lambda n: 1e-6}) == span(MANY_LAWS)


def test_names_of_many_lines_stand_at_their_ends_order_with_leaders() -> None:
    figure = next(f for n, f in drawings(MANY, "crossover").items() if "train_step" in n)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    told = {text.get_text(): text.get_window_extent() for text in axes.texts}
    looks = lines.looks(MANY)
    shown = {margin.cut(label, looks[label]): label for label in MANY.sweep.labels}
    boxes = sorted((told[name] for name in shown), key=lambda box: -box.y0)
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))
    reaching = [name for name, label in shown.items() if (label, 4096) not in MANY_CUT]
    ends = [MANY_LAWS[shown[name]](4096) for name in reaching]
    by_height = sorted(reaching, key=lambda name: -told[name].y0)
    assert [MANY_LAWS[shown[name]](4096) for name in by_height] == sorted(ends, reverse=True)
    leaders = [line for line in axes.lines if line.get_linewidth() < 0.5]
    assert len(leaders) == len(reaching)


def test_a_pair_that_crosses_twice_takes_two_lines_of_its_row() -> None:
    rows = MANY.crossovers.to_pylist()
    again = [{**row, "crossing": 1, "seq_len": 3000.0} for row in rows if row["seq_len"]]
    both = sorted([*rows, *again], key=lambda row: (row["metric"], row["challenger"]))
    twice = replace(MANY, crossovers=MANY.crossovers.from_pylist(both, MANY.crossovers.schema))
    for figure in drawings(twice, "crossover").values():
        assert overlaps(figure) == []


def test_figures_of_many_are_equal_for_equal_tables(tmp_path: Path) -> None:
    small = tables([Metric(laws=MANY_LAWS, reasons=MANY_CUT)], contexts=MANY_CONTEXTS)
    first, second = (plot.draw_all(small, tmp_path / folder) for folder in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@given(
    contexts=st.lists(st.integers(16, 2**20), min_size=1, max_size=40, unique=True),
    inches=st.floats(2, 8),
)
def test_context_labels_never_meet(contexts: list[int], inches: float) -> None:
    shown = style.labelled(contexts, inches)
    span = math.log2(max(contexts) / min(contexts)) or 1.0
    places = [math.log2(c / min(contexts)) / span * inches * 0.9 for c in shown]
    widths = [0.072 * len(f"{c:,}") for c in shown]
    for i in range(len(shown) - 1):
        assert places[i + 1] - places[i] >= (widths[i] + widths[i + 1]) / 2
    assert set(shown) <= set(contexts) and min(contexts) in shown


@given(low=st.floats(1e-9, 1e9), factor=st.floats(1.3, 1e6), binary=st.booleans())
def test_log_ticks_are_few_and_inside(low: float, factor: float, binary: bool) -> None:
    ticks = style.log_ticks(low, low * factor, binary=binary)
    assert 2 <= len(ticks) <= 8
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


@given(low=st.floats(-6, -0.06), high=st.floats(0.06, 6))
def test_ratio_ticks_hold_one_and_are_few(low: float, high: float) -> None:
    ticks, texts = ratio_panel.ratio_ticks(low, high)
    assert len(ticks) == len(texts) <= 9
    assert min(map(abs, ticks)) < 1e-12


@pytest.mark.parametrize("push", [spread, nearest])
@given(ends=st.lists(st.floats(0, 3), min_size=1, max_size=12))
def test_names_in_the_margin_never_meet(
    push: Callable[[list[float], list[float], float], list[float]], ends: list[float]
) -> None:
    ordered = sorted(ends, reverse=True)
    placed = push(ordered, [0.2] * len(ordered), 3.0)
    assert all(one - other >= 0.2 - 1e-9 for one, other in pairwise(placed))
    assert placed[-1] >= 0.1 - 1e-9 and placed[0] <= 2.9 + 1e-9


def test_a_name_is_cut_in_its_middle_to_what_the_margin_holds() -> None:
    assert fitted("short", 1.0, 7.5) == "short"
    assert fitted("W" * 90, 0.0, 7.5) == "WW…W"
    texts = [fitted(f"gated_delta_net_{i}_heads", 1.2, 7.5) for i in range(12)]
    assert len(set(texts)) == 12 and all("…" in text for text in texts)


def test_names_that_meet_are_pushed_to_both_sides() -> None:
    assert nearest([1.5, 1.5, 1.5], [0.2] * 3, 3.0) == pytest.approx([1.7, 1.5, 1.3])
    assert nearest([2.5, 1.0], [0.2] * 2, 3.0) == pytest.approx([2.5, 1.0])
    assert nearest([0.0, 0.0], [0.2] * 2, 3.0) == pytest.approx([0.3, 0.1])
