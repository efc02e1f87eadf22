"""The same text is scored at every length; its source and split are known; it is prepared once."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.workloads.tiny_cells import train_cell
from workloads.check import check
from workloads.model import build
from workloads.plugins import Evaluation, build_options
from workloads.tasks import corpora, data
from workloads.tasks.data import DamagedData, TaskData
from workloads.tasks.language_modelling import TASK, Options, scored_targets, target_losses
from workloads.train import TrainedModel


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepared(cache: Path) -> TaskData:
    return TASK.prepare(Options(), cache)


def untrained(prepared: TaskData, **fields: Any) -> TrainedModel:
    cell = train_cell(**fields)
    model = build(check(cell).shape, seed=0, device="cpu").eval()
    return TrainedModel(cell=cell, model=model, data=prepared, device=torch.device("cpu"))


def evaluate(name: str, trained: TrainedModel) -> Evaluation:
    metric = TASK.metrics[name]
    assert metric.evaluate is not None
    return metric.evaluate(trained)


def text_of(tokens: np.ndarray) -> str:
    return tokens.tobytes().decode("utf-8", errors="ignore")


def test_the_default_text_is_split_by_year(prepared: TaskData) -> None:
    assert "State of the Union" in str(prepared.facts["data_source"])
    assert prepared.facts["data_licence"] == "public domain (17 USC 105)"
    assert (len(prepared.train_documents), len(prepared.validation_documents)) == (228, 10)
    assert text_of(prepared.train[:200]).lstrip().startswith("Fellow-Citizens of the Senate")
    assert "September the 11th" in text_of(prepared.validation[:200_000])
    assert "September the 11th" not in text_of(prepared.train[:])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_documents_end_with_a_separator_and_nowhere_else(prepared: TaskData, split: str) -> None:
    tokens, starts = getattr(prepared, split), getattr(prepared, f"{split}_documents")
    ends = np.flatnonzero(tokens[:] == 0)
    assert starts[0] == 0 and len(ends) == len(starts) and ends[-1] == len(tokens) - 1
    assert np.array_equal(ends[:-1] + 1, starts[1:])


def test_the_same_targets_are_scored_at_every_length(prepared: TaskData) -> None:
    found = {}
    for seq_len in (64, 100, 256):
        trained = untrained(prepared, architecture="none", seq_len=seq_len)
        found[seq_len] = target_losses(trained)
        assert len(found[seq_len]) == 512
    # Without a mixer a loss depends on its own token and target alone: equal losses, equal targets.
    for seq_len in (100, 256):
        np.testing.assert_allclose(found[seq_len], found[64], rtol=1e-5)


def test_a_window_sees_nothing_of_the_window_before(prepared: TaskData) -> None:
    trained = untrained(prepared, architecture="lstm", seq_len=100)
    targets = scored_targets(trained)
    other = targets.copy()
    other[:100] = 1 + other[:100] % 200
    changed = TrainedModel(
        cell=trained.cell,
        model=trained.model,
        data=TaskData(
            train=prepared.train,
            validation=other,
            train_documents=prepared.train_documents,
            validation_documents=prepared.validation_documents,
            token_bytes=prepared.token_bytes,
            facts={},
        ),
        device=trained.device,
    )
    same = np.isclose(target_losses(trained), target_losses(changed), rtol=1e-6)
    assert same[100:].all() and not same[:99].any()


def test_the_loss_is_the_models_own_cross_entropy(prepared: TaskData) -> None:
    trained = untrained(prepared, seq_len=512)
    tokens = torch.from_numpy(prepared.validation[:513].astype(np.int64))
    with torch.inference_mode():
        logits = trained.model(tokens[None, :-1])[0]
    expected = torch.nn.functional.cross_entropy(logits, tokens[1:])
    assert evaluate("validation_loss", trained).samples == pytest.approx((float(expected),))


def test_bits_per_byte_of_bytes_is_the_loss_in_bits(prepared: TaskData) -> None:
    trained = untrained(prepared)
    (loss,) = evaluate("validation_loss", trained).samples
    assert evaluate("bits_per_byte", trained).samples == pytest.approx((loss / math.log(2),))


def test_what_needs_no_model_is_how_often_each_byte_was_read(prepared: TaskData) -> None:
    told = float(prepared.facts["baseline_validation_loss"] or 0)
    shares = np.bincount(prepared.validation[1:16385], minlength=256) / 16384
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert entropy < told < entropy + 0.1 and 2.9 < told < 3.2
    assert prepared.facts["baseline_bits_per_byte"] == pytest.approx(told / math.log(2))


def test_loss_by_position_averages_to_the_loss(prepared: TaskData) -> None:
    trained = untrained(prepared, seq_len=100, task_options={"validation_tokens": 1000})
    curve = evaluate("loss_by_position", trained)
    assert (curve.coordinate, curve.at) == ("position", (1, 2, 4, 8, 16, 32, 64, 100))
    widths = np.diff([0, *(curve.at or ())])
    (loss,) = evaluate("validation_loss", trained).samples
    assert np.average(curve.samples, weights=widths) == pytest.approx(loss)


def test_bpe_is_learnt_from_the_train_split_and_counts_every_byte(tmp_path: Path) -> None:
    text = "".join(corpora.default_corpus().validation)[:400_000]
    (tmp_path / "speeches.txt").write_text(text, encoding="utf-8")
    own = Options(path=str(tmp_path / "speeches.txt"), validation_tokens=4096)
    options = replace(own, tokenizer="bpe", vocab_size=512)
    prepared, byte_data = TASK.prepare(options, tmp_path), TASK.prepare(own, tmp_path)
    assert (
        prepared.train.dtype == np.uint16 and prepared.train.max() < TASK.ends(options).vocab_size
    )
    assert str(prepared.facts["tokenizer"]).startswith("byte-level BPE 512")
    for split in ("train", "validation"):
        counted = prepared.token_bytes[getattr(prepared, split)].sum()
        assert counted == len(getattr(byte_data, split))
    assert len(prepared.train) < 0.6 * len(byte_data.train)


def test_lengths_are_counted_in_the_tokens_that_were_chosen() -> None:
    assert (TASK.token_unit(Options()), TASK.ends(Options()).vocab_size) == ("bytes", 256)
    bpe = Options(tokenizer="bpe")
    assert (TASK.token_unit(bpe), TASK.ends(bpe).vocab_size) == ("BPE tokens", 4096)


def test_without_the_package_the_standard_library_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    corpus = corpora.default_corpus()
    train, validation = list(corpus.train), list(corpus.validation)
    assert corpus.licence == "PSF-2.0" and "standard library" in corpus.source
    assert len(train) > 300 and 0.02 < len(validation) / len(train) < 0.15
    assert not set(train) & set(validation) - {""}


def test_a_data_set_is_read_through_datasets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()
    folder = tmp_path / "tales"
    folder.mkdir()
    for split, tales in (("train", ["once upon a time", "the end"]), ("validation", ["a wolf"])):
        pq.write_table(pa.table({"tale": tales}), folder / f"{split}.parquet")
    options = Options(dataset=str(folder), text_column="tale", validation_tokens=6)
    prepared = TASK.prepare(options, tmp_path)
    assert prepared.train.tobytes() == b"once upon a time\0the end\0"
    assert prepared.validation.tobytes() == b"a wolf\0"
    assert str(folder) in str(prepared.facts["data_source"])
    with pytest.raises(ValueError, match="has no column 'text'; it has tale"):
        TASK.prepare(Options(dataset=str(folder)), tmp_path)
    with pytest.raises(ValueError, match="the validation text has 6"):
        TASK.prepare(
            Options(dataset=str(folder), text_column="tale", validation_tokens=7), tmp_path
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "words"}, "tokenizer must be 'bytes' or 'bpe', not 'words'"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "vocab_size must lie between 257"),
        ({"tokenizer": "bpe", "vocab_size": 2**21}, "vocab_size must lie between"),
        ({"vocab_size": 512}, "belongs to `tokenizer: bpe`"),
        ({"validation_tokens": 0}, "must be positive"),
        ({"text_column": "body"}, "text_column belongs to a `dataset`"),
        ({"tokeniser": "bytes"}, "Did you mean 'tokenizer'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)


def test_twins_that_prepare_at_once_end_with_one_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: TASK.prepare(Options(), tmp_path), range(4)))
    assert len({str(d.facts["data_sha256"]) for d in found}) == 1
    assert len(list((tmp_path / "language_modelling").glob("[!.]*"))) == 1


def test_prepared_data_are_mapped_and_not_built_again(
    monkeypatch: pytest.MonkeyPatch, cache: Path, prepared: TaskData
) -> None:
    monkeypatch.setattr(corpora, "default_corpus", lambda: pytest.fail("built a second time"))
    again = TASK.prepare(Options(validation_tokens=99), cache)
    assert isinstance(again.train, np.memmap)
    assert again.facts["data_sha256"] == prepared.facts["data_sha256"]


@pytest.mark.parametrize("harm", ["description", "array", "length"])
def test_damaged_data_are_found_with_the_mend(
    cache: Path, tmp_path: Path, prepared: TaskData, harm: str
) -> None:
    (healthy,) = (cache / "language_modelling").glob("[!.]*-bytes-*")
    folder = tmp_path / "damaged"
    shutil.copytree(healthy, folder)
    if harm == "description":
        (folder / "data.json").unlink()
    elif harm == "array":
        (folder / "train.npy").write_bytes((folder / "train.npy").read_bytes()[:1000])
    else:
        np.save(folder / "train.npy", np.zeros(5, dtype=np.uint8))
    with pytest.raises(DamagedData, match="delete the folder"):
        data.load(folder)


def test_the_description_stands_beside_the_tokens(cache: Path, prepared: TaskData) -> None:
    (folder,) = (cache / "language_modelling").glob("[!.]*-bytes-*")
    described = json.loads((folder / "data.json").read_text())
    assert described["arrays"]["train"] == ["|u1", len(prepared.train)]
    assert {"data_source", "data_licence", "tokenizer", "data_sha256"} <= set(described["facts"])


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKLOADS_CACHE", "/somewhere")
    assert data.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("WORKLOADS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data.cache_folder() == Path("/cache/workloads")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_folder() == Path.home() / ".cache" / "workloads"
