"""Brackets are matched as a compiler would, asked before they are read, and split by file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workloads.tiny_cells import train_cell
from workloads.events import Facts
from workloads.measurement import Measurement
from workloads.objectives import IGNORED
from workloads.plugins import Evaluation, build_options
from workloads.run import run
from workloads.tasks import brackets, code_files, sources
from workloads.tasks.brackets import TASK, Brackets, Options, scored
from workloads.tasks.code_tokens import (
    KINDS,
    NEWLINE,
    NONE,
    VOCAB_SIZE,
    Stream,
    answerable,
    lexed,
    matched,
    stream_of,
    token_of,
    windows,
)
from workloads.train import TrainedModel

CPP = """\
#include <vector>
namespace c10 { // a ) in a comment
/* and { here
   too */
template <class T>
struct TORCH_API Shelf final : Base<T> {
  int at(int i) const {
    if (i > 1'000) { return rows[i] + f("a)(", ')', R"x(})x"); }
    return 0;
  }
  enum class Colour { red, blue };
};
std::vector<int> few{1, 2};
struct Shelf* make(struct Options o) { return nullptr; }
extern "C" { void g(); }

} // namespace c10
"""
PYTHON = '''\
def f(a, b=r"x)", c=b"""(
("""):  # )
    return {"a": [1, 2.5, f'{a}[']}
'''


def kinds(text: str, language: str = "cpp") -> list[tuple[str, int]]:
    pairs = matched(lexed(text, language))
    assert pairs is not None
    return [(KINDS[pair.kind], pair.lines) for pair in pairs]


def test_each_brace_is_told_by_what_it_opened() -> None:
    braces = [(kind, lines) for kind, lines in kinds(CPP) if kind.startswith("}")]
    block, type_, namespace = KINDS[2:]
    assert braces == [
        (block, 0),  # if
        (block, 3),  # at
        (type_, 0),  # Colour
        (type_, 6),  # Shelf
        (block, 0),  # few
        (block, 0),  # make
        (namespace, 0),  # extern "C"
        (namespace, 15),
    ]


def test_brackets_in_strings_and_comments_do_not_count() -> None:
    assert [kind for kind, _ in kinds(PYTHON, "python")] == [")", "]", "} of a block"]
    found = lexed(PYTHON, "python")
    assert found.words[6:10] == ["=", "r", '"', ","]
    assert found.lines[found.words.index("return")] == 3
    assert lexed("a\n\n\n/* \n */\n b // c", "cpp").words == ["a", NEWLINE, "b"]


@pytest.mark.parametrize("text", ["(]", "f(", ")", "{ ( } )"])
def test_code_that_does_not_match_is_known(text: str) -> None:
    assert matched(lexed(text, "cpp")) is None


def test_tokens_are_within_the_vocabulary_and_brackets_have_their_own() -> None:
    words = ["", "\n", *"()[]{}", "namespace", "3.5", ".5", "0", "a_name", "Größe", '"', "µ", "§"]
    ids = [token_of(word) for word in words]
    assert ids[:8] == list(range(8)) and max(ids) < VOCAB_SIZE
    assert ids[9] == ids[10] == ids[11] == token_of("1'000e-3")


def code(number: int) -> str:
    """A file that no other equals, with pairs of many distances."""
    body = "\n".join(f"  int f{number}_{i}(int a[{i}]) {{ return g(a, {i}); }}" for i in range(9))
    return f"namespace n{number} {{\nstruct S{number} {{\n{body}\n}};\n}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("code")
    for number in range(60):
        (root / f"file{number}.h").write_text(code(number))
    (root / "copy.h").write_text(code(3))
    (root / "half.h").write_text("namespace {")
    (root / "notes.txt").write_text(")))")
    return root


@pytest.fixture(scope="module")
def data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Brackets:
    return TASK.prepare(Options(path=str(folder)), tmp_path_factory.mktemp("cache"))


@settings(max_examples=25, deadline=None)
@given(seq_len=st.integers(2, 300), seed=st.integers(0, 2**31), update=st.integers(0, 2**40))
def test_a_batch_has_its_shape_is_drawn_from_its_numbers_and_always_asks(
    data: Brackets, seq_len: int, seed: int, update: int
) -> None:
    inputs, targets = data.batch(3, seq_len, seed=seed, update=update)
    assert inputs.shape == targets.shape == (3, seq_len)
    assert inputs.dtype == targets.dtype == np.int64
    again, _ = data.batch(3, seq_len, seed=seed, update=update)
    assert (inputs == again).all() and (targets[:, -1] != IGNORED).all()
    if seq_len < 40:  # short windows may well be alike
        return
    others = [data.batch(3, seq_len, seed=seed, update=update + k)[0] for k in range(1, 5)]
    assert any((inputs != other).any() for other in others)


@settings(max_examples=25, deadline=None)
@given(seq_len=st.integers(2, 300), seed=st.integers(0, 2**31))
def test_an_answer_is_of_the_bracket_after_and_can_be_had_from_what_came_before(
    data: Brackets, seq_len: int, seed: int
) -> None:
    """By a stack of its own: the closing bracket is in the input only after it was asked for."""
    inputs, targets = data.batch(4, seq_len, seed=seed, update=0)
    opens = {token_of(c): KINDS.index(k) for c, k in (("(", ")"), ("[", "]"))}
    opening, closing = [token_of(c) for c in "([{"], [token_of(c) for c in ")]}"]
    for tokens, answers in zip(inputs.tolist(), targets.tolist(), strict=True):
        stack: list[int] = []
        for place, token in enumerate(tokens):
            if token in opening:
                stack.append(token)
            elif token in closing and stack:
                stack.pop()
            follows = tokens[place + 1] in closing if place + 1 < seq_len else True
            assert (answers[place] != IGNORED) == bool(follows and stack)
            if follows and stack:
                assert opens.get(stack[-1], 2) == min(answers[place], 2)


def test_what_follows_a_position_is_no_part_of_its_input() -> None:
    """Files that differ only in what closes, and after it: the same input, another answer."""
    found = []
    for text in ("a ( b )", "a ( b ) c"):
        stream = stream_of([(lexed(text, "cpp"), matched(lexed(text, "cpp")) or [])])
        found.append(windows(stream, np.array([3]), 3, 5))
    assert (found[0][0] == found[1][0]).all()
    assert token_of(")") not in found[0][0] and found[0][1].tolist() == [[IGNORED, IGNORED, 0]]


def test_splits_share_no_file_and_copies_fall_together(data: Brackets, folder: Path) -> None:
    names = {
        split: {
            int(number)
            for number in range(60)
            if token_run(stream, lexed(code(number), "cpp").tokens)
        }
        for split, stream in data.streams.items()
    }
    assert all(names.values())
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 60
    assert sum(data.facts[f"{split}_files"] for split in names) == 60  # type: ignore[misc]
    assert data.facts["files_left_out"] == 1


def token_run(stream: Stream, tokens: np.ndarray) -> bool:
    return tokens.tobytes() in np.asarray(stream.tokens).tobytes()


def test_the_packaged_code_is_here_and_is_not_generated() -> None:
    assert TASK.missing(Options(code="both")) is None
    files, licence = code_files.files_of(Options())
    assert "BSD-3" in licence
    some = list(islice(files, 40))
    assert len(some) == 40 and not any("@generated" in file.text[:300] for file in some)
    assert sum(matched(lexed(file.text, "cpp")) is not None for file in some) >= 38
    (module,) = islice(code_files.files_of(Options(code="python"))[0], 1)
    assert module.language == "python" and matched(lexed(module.text, "python")) is not None
    assert "torch 2" in code_files.source_of(Options())


def test_the_scored_brackets_are_the_same_at_each_length_and_stand_for_all(data: Brackets) -> None:
    few = Brackets(options=Options(per_distance=5), streams=data.streams, facts=data.facts, ends={})
    short, long = scored(few, 64), scored(few, 128)
    assert set(short.ends[short.distances <= 32]) == set(long.ends[long.distances <= 32])
    bucket = np.ceil(np.log2(long.distances))
    assert np.bincount(bucket.astype(int)).max() == 5
    within = answerable(data.held_out, 128)
    assert long.weights.sum() == pytest.approx(len(within))
    held = data.held_out
    assert (held.kinds[long.ends] == long.answers).all() and NONE not in long.answers
    with pytest.raises(ValueError, match="seq_len: 1000000 tokens are more than"):
        data.batch(1, 10**6, seed=0, update=0)


def test_a_window_before_the_first_file_is_filled_with_the_token_of_a_new_file() -> None:
    found = lexed("f ( a )", "cpp")
    stream = stream_of([(found, matched(found) or [])])
    inputs, targets = windows(stream, np.array([3]), 6, 5)
    assert inputs[0, :3].tolist() == [0, 0, 0] and inputs[0, 4] == token_of("(")
    assert targets.tolist() == [[IGNORED] * 5 + [0]]


def one_file(text: str, **options: Any) -> Brackets:
    """A file that trains and tests."""
    found = lexed(text, "cpp")
    stream = stream_of([(found, matched(found) or [])])
    streams = {"train": stream, "validation": stream, "test": stream}
    return Brackets(options=Options(**options), streams=streams, facts={})


def test_the_baselines_are_what_they_say() -> None:
    """Counted by hand in one small file."""
    data = one_file("f ( a ) ; g ( a ) ; h [ a ] ; x { }", kinds="signs")
    stream = data.held_out
    ends = np.flatnonzero(stream.kinds != NONE)
    assert stream.kinds[ends].tolist() == [0, 0, 1, 2]
    assert brackets.by_majority(data, stream, ends).tolist() == [0, 0, 0, 0]
    assert brackets.by_last_token(data, stream, ends).tolist() == [0, 0, 0, 2]
    assert brackets.by_last_opened(data, stream, ends).tolist() == [0, 0, 1, 2]
    nested = one_file("f ( a [ b ] c )").held_out
    ends = np.flatnonzero(nested.kinds != NONE)
    assert nested.distances[ends].tolist() == [2, 6]
    assert brackets.by_last_opened(data, nested, ends).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("training", "best"),
    [
        ("f ( a ) ; g ( a ) ; h [ a ] ; x { }", brackets.by_last_opened),
        ("f { g ( a ) ; } f { g ( b ) ; }", brackets.by_last_token),
        ("( ( a ) )", brackets.by_last_token),  # as good as the others: the first of them
    ],
)
def test_the_best_guess_is_chosen_by_the_training_files(
    training: str, best: brackets.Guess
) -> None:
    data = one_file(training)
    other = one_file("f { [ a ] [ b ] }").held_out
    told = Brackets(options=data.options, streams={**data.streams, "test": other}, facts={})
    assert brackets.best_guess(told, 16) is best


class Oracle(torch.nn.Module):
    """Says what a stack says, with the kinds by the tokens around the opening."""

    def forward(self, inputs: Tensor) -> Tensor:
        said = torch.zeros(*inputs.shape, 3)
        opening, closing = [token_of(c) for c in "([{"], [token_of(c) for c in ")]}"]
        for row, tokens in enumerate(inputs.tolist()):
            stack: list[int] = []
            for place, token in enumerate(tokens):
                if token in opening:
                    stack.append(opening.index(token))
                elif token in closing and stack:
                    stack.pop()
                if stack:
                    said[row, place, stack[-1]] = 1.0
        return said


def evaluate(name: str, trained: TrainedModel) -> Evaluation:
    metric = TASK.metrics[name]
    assert metric.evaluate is not None
    return metric.evaluate(trained)


def test_who_counts_brackets_is_always_right_at_every_length(data: Brackets) -> None:
    options = {"kinds": "signs", "per_distance": 20}
    cell = train_cell(task="brackets", task_options=options, seq_len=64, eval_seq_len=(128,))
    trained = TrainedModel(
        cell=cell,
        model=Oracle(),  # type: ignore[arg-type]
        data=Brackets(options=Options(**options), streams=data.streams, facts={}),  # type: ignore[arg-type]
        device=torch.device("cpu"),
    )
    assert evaluate("accuracy", trained).samples == (1.0,)
    for name in ("accuracy_by_distance", "accuracy_by_lines", "accuracy_by_length"):
        curve = evaluate(name, trained)
        assert set(curve.samples) == {1.0} and curve.at is not None
        assert len(curve.at) == len(curve.samples) and list(curve.at) == sorted(curve.at)
    assert evaluate("accuracy_by_length", trained).at == (64, 128)
    assert evaluate("accuracy_by_distance", trained).at[-1] <= 64  # type: ignore[index]


def test_a_tiny_model_learns_and_has_its_metrics(folder: Path, tmp_path: Path) -> None:
    cell = train_cell(
        task="brackets",
        task_options={"path": str(folder), "per_distance": 20},
        seq_len=32,
        tokens=32 * 16 * 60,
        tokens_per_update=32 * 16,
        learning_rate=1e-2,
        metrics=tuple(TASK.metrics),
    )
    events = list(run(cell, tmp_path))
    found = {event.metric: event for event in events if isinstance(event, Measurement)}
    assert set(TASK.metrics) <= set(found)
    assert found["accuracy"].samples[0] > found["baseline_majority_accuracy"].samples[0]
    assert found["accuracy_by_distance"].at == found["baseline_accuracy_by_distance"].at
    guesses = [found[f"baseline_{name}_accuracy"].samples for name in ("last_token", "last_opened")]
    assert found["baseline_accuracy"].samples in guesses
    facts: dict[str, Any] = {}
    for event in events:
        if isinstance(event, Facts):
            facts |= event.values
    assert {"data_source", "data_licence", "split", "data_sha256"} <= set(facts)


def test_a_data_set_is_read_through_datasets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()
    root = tmp_path / "files"
    root.mkdir()
    rows = [f"def f{i}(a):\n    return [a, (a, {i})]\n" for i in range(60)]
    pq.write_table(pa.table({"content": rows}), root / "train.parquet")
    options = Options(source="huggingface", code="python", dataset=str(root), max_files=50)
    data = TASK.prepare(options, tmp_path)
    assert sum(data.facts[f"{s}_files"] for s in sources.SPLITS) == 50  # type: ignore[misc]
    assert str(root) in str(data.facts["data_source"])
    assert (data.batch(2, 8, seed=0, update=0)[1] >= 0).any()
    with pytest.raises(ValueError, match="has no column 'text'; it has content"):
        TASK.prepare(
            Options(source="huggingface", code="python", dataset=str(root), column="text"),
            tmp_path,
        )
    with pytest.raises(ValueError, match="cannot be had"):
        TASK.prepare(
            Options(source="huggingface", code="python", dataset=str(tmp_path / "no")), tmp_path
        )


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "no file" in str(TASK.missing(Options(path=str(tmp_path))))
    (tmp_path / "a.txt").write_text("(")
    assert "no file of code" in str(TASK.missing(Options(path=str(tmp_path))))
    (tmp_path / "a.c").write_text("f(x);")
    assert TASK.missing(Options(path=str(tmp_path))) is None
    with pytest.raises(ValueError, match="of 1 files none with brackets falls to the"):
        TASK.prepare(Options(path=str(tmp_path)), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "web"}, "source must be one of"),
        ({"code": "rust"}, "code must be one of"),
        ({"kinds": "all"}, "kinds must be one of"),
        ({"scored": "train"}, "scored must be one of"),
        ({"per_distance": 0}, "per_distance must be positive"),
        ({"path": "x", "source": "huggingface"}, "path: files of one's own"),
        ({"source": "huggingface"}, "say `code: python`"),
        ({"source": "huggingface", "code": "both"}, "read as `cpp` or as `python`"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)
