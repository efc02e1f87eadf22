"""The report says what the tables say: whole, escaped, deterministic, and alone in one file."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import quantities, report
from orchestrator.analysis import tables as analysis
from orchestrator.analysis.tables import Tables
from orchestrator.conclusion import answer
from orchestrator.plan import Primary
from orchestrator.plots.plot import draw_all
from tests.orchestrator.made_tables import CONTEXTS, LAWS, MANY_LAWS, Metric, tables
from tests.simulated_world import Law, SimulatedWorld, enveloped, measure_cells, plan_of

NASTY = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would see: tags, addresses, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def render(world: Tables, folder: Path) -> str:
    draw_all(world, folder)
    return report.render(world, folder)


def changed(world: Tables, challenger: str, **columns: Any) -> Tables:
    """The same tables with other columns in the crossovers of one challenger."""
    rows = [
        {**row, **columns} if row["challenger"] == challenger else row
        for row in world.crossovers.to_pylist()
    ]
    return replace(world, crossovers=pa.Table.from_pylist(rows, world.crossovers.schema))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    cut = Metric(reasons={("transformer", 2048): "out_of_memory"})
    return Page(render(tables([cut]), tmp_path_factory.mktemp("plots")))


def test_opens_with_question_answer_and_counts(page: Page) -> None:
    question = page.text.index("From which context length does attention pay for itself?")
    said = page.text.index("transformer (torch transformer) overtakes lstm (torch lstm)")
    counts = page.text.index("160 cells planned: 160 finished, 0 failed, 0 lost, 0 pending")
    assert question < said < counts < page.text.index("Comparisons with lstm")
    assert "5 out of memory" in page.text


def test_says_where_numbers_come_from_and_how_to_repeat_them(page: Page) -> None:
    for words in ("0123456789ab", "torch 2.13.0", "f" * 64, "python -m orchestrator sweep"):
        assert words in page.text


def test_loads_nothing_and_runs_nothing(page: Page) -> None:
    assert page.addresses
    assert all(re.match(r"data:image/svg\+xml;base64,|#", address) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_forbids_requests_by_policy(tmp_path: Path) -> None:
    html = report.render(tables(), tmp_path)
    assert "Content-Security-Policy" in html
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import", html)


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    assert render(tables(), tmp_path / "a") == render(tables(), tmp_path / "b")


def test_text_of_others_is_escaped(tmp_path: Path) -> None:
    laws = {NASTY: LAWS["lstm"], f'"{NASTY}&': LAWS["transformer"]}
    world = tables(
        [Metric(laws=laws, title=NASTY, reasons={(NASTY, 2048): "timeout"})],
        primary=None,
        question=NASTY,
        name=NASTY,
        spec_yaml=NASTY,
        token_unit=NASTY,
    )
    rows = [{**row, "message": NASTY, "commit": NASTY} for row in world.cells.to_pylist()]
    world = replace(world, cells=pa.Table.from_pylist(rows, world.cells.schema))
    html = render(world, tmp_path)
    assert "<script" not in html
    page = Page(html)
    assert "script" not in page.tags
    assert page.text.count(NASTY) > 10


@pytest.mark.parametrize(
    "world",
    [
        tables(status="pending"),
        tables(contexts=(256,)),
        tables([Metric(laws={"lstm": LAWS["lstm"]})]),
        tables(replicates=2),
        tables([Metric("accuracy", kind="train", better="greater", scale="difference", unit="1")]),
        tables([Metric(reasons={("lstm", c): "unsupported" for c in CONTEXTS})]),
    ],
    ids=["pending", "one context", "one label", "two replicates", "train only", "no baseline"],
)
def test_is_whole_whatever_a_sweep_holds(world: Tables, tmp_path: Path) -> None:
    page = Page(render(world, tmp_path))
    assert page.text.endswith("may rank differently.")
    assert "None" not in page.text and "nan" not in page.text.split()


def test_an_absent_number_is_its_reason(tmp_path: Path) -> None:
    world = tables([Metric(reasons={("gru", 2048): "out_of_memory"})])
    rows = re.findall(r"<tr>.*?</tr>", report.render(world, tmp_path), re.DOTALL)
    (gru,) = (row for row in rows if ">gru<" in row and "ms" in row and "reason" in row)
    assert "out of memory" in gru.rpartition("<td")[2]


def test_failures_are_told_with_their_message(tmp_path: Path) -> None:
    world = tables()
    rows = world.cells.to_pylist()
    rows[0] |= {"status": "failed", "message": "RuntimeError: kernel went missing"}
    world = replace(world, cells=pa.Table.from_pylist(rows, world.cells.schema))
    page = Page(report.render(world, tmp_path))
    assert "159 finished, 1 failed" in page.text
    assert "RuntimeError: kernel went missing" in page.text


def test_differing_code_is_said(tmp_path: Path) -> None:
    world = tables()
    rows = world.cells.to_pylist()
    rows[0] |= {"source_hash": "another"}
    mixed = replace(world, cells=pa.Table.from_pylist(rows, world.cells.schema))
    warning = "The code differed between cells."
    assert warning not in Page(report.render(world, tmp_path)).text
    assert warning in Page(report.render(mixed, tmp_path)).text


def test_stays_below_five_megabytes_with_ten_thousand_cells(tmp_path: Path) -> None:
    contexts = [2**n for n in range(5, 15)]
    laws = {f"label {i}": LAWS["lstm"] for i in range(10)}
    metrics = [Metric(f"metric_{i}", laws=laws) for i in range(4)]
    world = tables(metrics, contexts=contexts, batches=(1, 2, 4, 8, 16))
    assert world.cells.num_rows == 10_000
    # One real figure under many names stands for the figures of so many metrics and batches.
    draw_all(tables(), tmp_path)
    (drawn,) = tmp_path.glob("crossover-*.svg")
    for i in range(80):
        (tmp_path / f"crossover-{i:02d}.svg").write_bytes(drawn.read_bytes())
    html = report.render(world, tmp_path)
    assert len(html.encode()) < 5_000_000
    assert "too large to send" in html


def test_a_world_with_known_laws_is_reported(tmp_path: Path) -> None:
    laws = {
        "lstm": Law(linear=2e-5),
        "transformer": Law(constant=2e-3, linear=1e-5, quadratic=5e-9, out_of_memory_from=2048),
    }
    cells = measure_cells(laws, [128, 256, 384, 512, 1024, 2048])
    plan = plan_of(cells, primary=Primary(challenger="transformer", metric="train_step_time"))
    world = SimulatedWorld(laws=laws)
    built = analysis.build(plan, enveloped(world.execute(cells)))
    page = Page(render(built, tmp_path))
    assert "on a simulated processor" in page.text.lower()
    assert "transformer stops at 2048: out of memory" in page.text


def test_long_tables_fold_and_the_headline_stays(tmp_path: Path) -> None:
    metrics = [Metric(name, title=name, laws=MANY_LAWS) for name in ("train_step_time", "other")]
    html = report.render(tables(metrics, contexts=(128, 512)), tmp_path)
    folded = "".join(re.findall(r"<details>.*?</details>", html, re.DOTALL))
    page, hidden = Page(html), Page(folded)
    assert page.tags.count("details") == page.tags.count("summary")
    assert "transformer (torch transformer) overtakes lstm" in page.text
    assert "(primary)" in page.text and "(primary)" not in hidden.text
    assert "Challenger" in hidden.text and "Local exponent" in hidden.text
    (numbers,) = re.findall(r"<details open>.*?</details>", html, re.DOTALL)
    first = re.findall(r'<th scope="row">(.*?)</th>', numbers)
    assert first[:2] == ["lstm", "transformer"] and sorted(first) == sorted(MANY_LAWS)


def test_short_tables_do_not_fold(page: Page) -> None:
    assert "details" not in page.tags


def test_every_label_is_told_with_its_family(tmp_path: Path) -> None:
    html = report.render(tables(), tmp_path)
    assert Page(html).text.count("recurrent network") == 2  # lstm and gru, in the fairness table
    old = tables()
    old = replace(old, cells=old.cells.drop_columns(["family"]))
    assert "recurrent network" not in report.render(old, tmp_path)


def test_families_are_those_of_the_plugins_at_hand() -> None:
    laws = {name: Law(linear=1e-5) for name in ("lstm", "a_file_long_gone")}
    cells = measure_cells(laws, [128, 256])
    built = analysis.build(plan_of(cells), [])
    rows = built.cells.select(["architecture", "family"]).to_pylist()
    told = {row["architecture"]: row["family"] for row in rows}
    assert told == {"lstm": "recurrent network", "a_file_long_gone": None}


def test_needs_no_drawing_library() -> None:
    code = "import sys, orchestrator.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The answer


def test_answer_where_they_cross() -> None:
    said = answer(tables())
    assert "about 181 bytes (95 % interval 165 to 199)" in said
    assert "at shorter contexts lstm is ahead" in said
    assert "Example CPU @ 2.0 GHz (1 thread)" in said and "batch 8" in said and "1M" in said


def test_answer_turns_round_with_the_direction() -> None:
    said = answer(changed(tables(), "transformer", direction="lstm"))
    assert "lstm (torch lstm) overtakes transformer" in said
    assert "at shorter contexts transformer is ahead" in said


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"high_open": True}, "at least 165, open towards longer contexts"),
        ({"low_open": True}, "at most 199, open towards shorter contexts"),
        ({"low_open": True, "high_open": True}, "open on both sides"),
        ({"in_zone": True}, "overlaps the zone asked about, 256 to 512"),
        ({"verdict": "baseline_always"}, "lstm (torch lstm) is ahead of transformer"),
        ({"verdict": "challenger_always"}, "transformer (torch transformer) is ahead of lstm"),
        ({"verdict": "equivalent"}, "within 5 % of each other"),
        ({"verdict": "uncertain", "low_open": True}, "if there is one, lies below 199 bytes"),
        ({"verdict": "uncertain", "note": "undertrained"}, "fewer than 500 updates"),
        (
            {"verdict": "uncertain", "note": "neither is better than what needs no model"},
            "too small for a verdict between lstm (torch lstm) and transformer (torch transformer)",
        ),
    ],
)
def test_answer_by_verdict(columns: dict[str, Any], words: str) -> None:
    assert words in answer(changed(tables(), "transformer", **columns))


def test_answer_of_a_sweep_too_small() -> None:
    said = answer(tables(replicates=2))
    assert "too small for a verdict" in said and "2 rounds" in said and "needs 5" in said


def test_pairs_that_lack_the_same_share_a_sentence() -> None:
    said = answer(tables(replicates=2, primary=None))
    assert said.count("too small for a verdict") == said.count("and needs 5") == 1
    assert "between lstm (torch lstm) and any of " in said
    assert all(f"{label} (torch {label})" in said for label in LAWS)


def test_answer_while_nothing_is_finished() -> None:
    assert answer(tables(status="pending")).startswith("No answer yet: none of the 160")


def test_answer_without_a_primary_tells_every_pair() -> None:
    said = answer(tables(primary=None))
    assert all(f"{label} (torch {label})" in said for label in LAWS)


def test_answer_names_where_a_curve_stopped() -> None:
    cut = tables([Metric(reasons={("transformer", 1024): "out_of_memory"})])
    assert "transformer ran out of memory at 1,024 bytes" in answer(cut)


def test_answer_says_what_other_code_for_the_same_method_moves() -> None:
    laws = {name: LAWS[name] for name in ("lstm", "transformer")}
    materialised = "transformer(attention=materialised)"
    slower = laws | {materialised: lambda n: 2.0e-3 + 9e-6 * n + 8e-9 * n * n}
    told = answer(tables([Metric(laws=slower)]))
    assert (
        "The same method by other code: transformer(attention=materialised) (torch"
        f" {materialised}) overtakes lstm (torch lstm)" in told
    )
    assert re.search(r", which moves the crossing by a factor of [\d.]+\.$", told)
    never = laws | {materialised: lambda n: 1.0}
    assert told.partition(" The same")[0] in answer(tables([Metric(laws=never)]))
    assert answer(tables([Metric(laws=never)])).endswith("they do not change places there.")
    assert "other code" not in answer(tables([Metric(laws=laws)]))


def test_answer_without_numbers_of_the_primary() -> None:
    world = changed(tables(primary=("mamba", "train_step_time", 8)), "transformer", primary=False)
    assert answer(world) == (
        "No answer: there are no finished measurements yet that compare mamba with lstm by train"
        " step time."
    )


def test_answer_with_two_crossings() -> None:
    world = tables()
    (row,) = (r for r in world.crossovers.to_pylist() if r["primary"])
    again = {**row, "crossing": 1, "direction": "lstm", "seq_len": 1500.0, "low": 1400.0}
    rows = [row, {**again, "high": 1600.0}]
    twice = replace(world, crossovers=pa.Table.from_pylist(rows, world.crossovers.schema))
    assert "and lstm is ahead again from about 1,500 on (95 % interval 1,400 to 1,600)" in (
        answer(twice)
    )


# Numbers in words


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00213, "s", "2.13 ms"),
        (59.97, "s", "60 s"),
        (3 * 2**20, "bytes", "3 MiB"),
        (1000, "bytes", "1,000 B"),
        (52_310, "1/s", "52.3 k/s"),
        (0.934, "1", "0.934"),
        (2.3456, "nats per token", "2.35 nats per token"),
        (0, "s", "0 s"),
        (None, "s", "–"),
    ],
)
def test_quantities(value: float | None, unit: str, text: str) -> None:
    assert quantities.quantity(value, unit) == text


@given(st.floats(1e-9, 1e9))
def test_figures_lose_less_than_a_percent(value: float) -> None:
    assert float(quantities.figures(value).replace(",", "")) == pytest.approx(value, rel=0.006)


def test_intervals_share_a_unit_where_they_can() -> None:
    assert quantities.interval(0.0021, 0.0023, "s") == "2.10 to 2.30 ms"
    assert quantities.interval(0.0009, 0.0011, "s") == "900 µs to 1.10 ms"
    assert quantities.interval(None, 1.0, "s") == ""


@pytest.mark.parametrize(("adjusted", "said"), [(0.3, True), (0.01, False)])
def test_a_verdict_that_the_number_of_comparisons_takes_back_says_so(
    adjusted: float, said: bool, tmp_path: Path
) -> None:
    world = tables()
    rows = [
        {**row, "verdict": "baseline_always", "p_adjusted": adjusted}
        for row in world.crossovers.to_pylist()
    ]
    changed = replace(world, crossovers=pa.Table.from_pylist(rows, world.crossovers.schema))
    assert ("taken by itself" in render(changed, tmp_path)) is said
