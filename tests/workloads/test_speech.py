"""Sound becomes the same chunks as a stream and as a whole, and so does what a model says to it;
what is scored is another recording than what was trained on."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.signal
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
from workloads.tasks import audio, packaged_models, recordings, speech
from workloads.tasks.audio import CHUNK, FEATURES, RATE
from workloads.tasks.data import cache_folder
from workloads.tasks.listening import TIMED_CHUNKS, Listener
from workloads.tasks.recordings import SPLITS
from workloads.tasks.speech import TASK, Options
from workloads.tasks.transcripts import (
    ALPHABET,
    collapsed,
    distance,
    error_rate,
    frequency_loss,
    spelled,
)
from workloads.tasks.utterances import Speech, Window, encoded
from workloads.train import TrainedModel

SCRIPT = Path(__file__).parents[2] / "infra/speech.sh"
REAL = pytest.mark.skipif(
    TASK.missing(Options()) is not None, reason=f"no recordings here: {TASK.missing(Options())}"
)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return TASK.prepare(
        Options(source="synthetic", augment=False), tmp_path_factory.mktemp("tones")
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return TASK.prepare(Options(), tmp_path_factory.mktemp("real"))


def write_wav(file: Path, samples: np.ndarray, rate: int = RATE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as to:
        to.setnchannels(1)
        to.setsampwidth(2)
        to.setframerate(rate)
        to.writeframes((samples * 2**15).astype("<i2").tobytes())


def hum(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Something to hear: noise that swells."""
    generator = np.random.default_rng(seed)
    count = round(seconds * rate)
    return 0.3 * generator.uniform(-1, 1, count) * np.hanning(count)


def packages(root: Path, prompts: dict[str, str]) -> None:
    """The folders that `infra/speech.sh` makes, with generated sound in them."""
    folder = root / "packages"
    for seed, name in enumerate(prompts):
        write_wav(folder / "/".join(recordings.PROMPTS) / f"{name}.wav", hum(1 + seed % 3, seed))
    transcripts = folder / "/".join(recordings.TRANSCRIPTS)
    transcripts.parent.mkdir(parents=True)
    with gzip.open(transcripts, "wt", encoding="utf-8") as to:
        to.write("; a remark: of the list\n\n")
        to.writelines(f"{name}: {text}\n" for name, text in prompts.items())
    clips = folder / "/".join(recordings.CLIPS)
    write_wav(clips / "austen-1.wav", hum(1.5, 99, 16_000), 16_000)
    (clips / "transcription").write_text("<s> had he married </s> (austen-1)\n")


def model_for(data: Speech, architecture: str, **fields: Any) -> TrainedModel:
    cell = train_cell(
        **{"architecture": architecture, "task": "speech", "task_options": {}, "seq_len": 40}
        | fields
    )
    model = build(check(cell).shape, seed=0, device="cpu").eval()
    return TrainedModel(cell=cell, model=model, data=data, device=torch.device("cpu"))


def evaluate(name: str, trained: TrainedModel) -> Evaluation:
    metric = TASK.metrics[name]
    assert metric.evaluate is not None
    return metric.evaluate(trained)


# Sound


@pytest.mark.parametrize("rate", [16_000, 44_100, 11_025, 8_000])
def test_another_rate_is_brought_down_without_folding_over(rate: int) -> None:
    time = np.arange(rate) / rate
    kept, folded = (torch.from_numpy(np.sin(2 * np.pi * f * time)).float() for f in (440, 5200))
    inside = slice(400, 7600)
    found = audio.resample(kept, rate).numpy()
    assert len(found) == RATE
    expected = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-3)
    if rate > 2 * 5200:
        assert np.abs(audio.resample(folded, rate).numpy()[inside]).max() < 2e-3


def test_resampling_agrees_with_scipy() -> None:
    low = scipy.signal.firwin(201, 3000, fs=16_000)
    sound = np.convolve(np.random.default_rng(0).normal(size=8000), low, "same")
    found = audio.resample(torch.from_numpy(sound).float(), 16_000).numpy()
    expected = scipy.signal.resample_poly(sound, 1, 2)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=3e-3)


def test_a_tone_is_loudest_in_its_band() -> None:
    filters = audio.mel_filters()
    assert filters.shape == (24, 129) and (filters.sum(1) > 0).all()
    for frequency in (250, 1000, 3000):
        tone = np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE) * 2**14
        energies = audio.offline(tone.astype(np.int16))[2:-3].mean((0, 1))
        nearest = filters[:, round(frequency * 256 / RATE)].argmax()
        assert abs(int(energies.argmax()) - int(nearest)) <= 1


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 100))
def test_chunks_that_come_one_by_one_are_those_of_the_whole(count: int, seed: int) -> None:
    samples = np.random.default_rng(seed).integers(-(2**14), 2**14, count).astype(np.int16)
    front_end = audio.FrontEnd(mean=torch.zeros(24), deviation=torch.ones(24))
    whole = front_end.standardised(audio.offline(samples))
    heard = np.zeros(len(whole) * CHUNK, dtype=np.int16)
    heard[:count] = samples
    past = torch.zeros(audio.PAST)
    for number, chunk in enumerate(torch.split(audio.as_floats(heard), CHUNK)):
        features, past = front_end.chunk(chunk, past)
        torch.testing.assert_close(features, whole[number], rtol=1e-4, atol=1e-4)


def test_a_chunk_hears_nothing_that_comes_after_it() -> None:
    samples = (hum(0.5) * 2**15).astype(np.int16)
    other = samples.copy()
    other[5 * CHUNK :] = 0
    same = (audio.offline(samples) == audio.offline(other)).all(-1).all(-1)
    assert same[:5].all() and not same[5:-1].any()


@pytest.mark.parametrize(("width", "largest"), [(1, 127 / 128), (2, 1.0), (4, 1.0)])
def test_wav_files_of_all_widths_are_read(tmp_path: Path, width: int, largest: float) -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as to:
        to.setnchannels(2)
        to.setsampwidth(width)
        to.setframerate(RATE)
        top = 255 if width == 1 else 2 ** (8 * width - 1) - 1
        to.writeframes(np.array([[top, top]] * 3, f"<{'u' if width == 1 else 'i'}{width}"))
    samples, rate = audio.read_wav(stream.getvalue())
    assert rate == RATE and samples == pytest.approx([largest] * 3, abs=1e-4)


def test_what_is_no_wav_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"ID3 and so on")
    with pytest.raises(ValueError, match=r"a\.wav: is not a WAV file"):
        audio.read_wav(tmp_path / "a.wav")


# Text and errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Press 1 to mute, 42 or 162.", "press one to mute forty two or one six two"),
        ("dash [-]", "dash"),
        ("I’ve 'quoted' o'clock", "i've quoted o'clock"),
        ("press * or #; Café", "press star or pound cafe"),
        ("(3 seconds of silence) <beep>", ""),
        ("A.M. 20 07", "a m twenty zero seven"),
    ],
)
def test_transcripts_are_spelled_in_the_alphabet(text: str, expected: str) -> None:
    assert spelled(text) == expected


def slow_distance(a: str, b: str) -> int:
    """The recursion itself (Levenshtein 1966)."""
    if not a or not b:
        return len(a) + len(b)
    change = slow_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(change, slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1)


@settings(max_examples=40, deadline=None)
@given(a=st.text("abc", max_size=5), b=st.text("abc", max_size=5))
def test_distances_are_levenshteins(a: str, b: str) -> None:
    assert distance(a, b) == slow_distance(a, b)


def test_error_rates_by_hand() -> None:
    pairs = [("the cat sat", "the cat sat down"), ("", "no"), ("a b c", "a x c")]
    assert error_rate(pairs, words=True) == pytest.approx((1 + 1 + 1) / 8)
    assert error_rate(pairs, words=False) == pytest.approx((5 + 2 + 1) / (16 + 2 + 5))
    assert error_rate([("two words", "one")], words=True) == 2.0


def test_the_loss_of_who_knows_frequencies_alone_by_hand() -> None:
    shares = {"a": 3, "b": 2, " ": 2}
    expected = -np.mean([np.log(shares[letter] / (4 + 28)) for letter in "ab b"])
    assert frequency_loss(["a", "ba"], ["ab", "b"]) == pytest.approx(expected)


def test_a_path_loses_repeats_then_blanks() -> None:
    path = [ALPHABET.index(c) for c in "--hh-e-ll-l-oo  -- "]
    assert collapsed(np.array(path)) == "hello"
    assert collapsed(np.array([0, 0])) == collapsed(np.array([], int)) == ""


# Batches


@settings(max_examples=12, deadline=None)
@given(seq_len=st.integers(24, 400), seed=st.integers(0, 50), update=st.integers(0, 9))
def test_windows_are_exactly_full_and_hold_whole_utterances(
    tones: Speech, seq_len: int, seed: int, update: int
) -> None:
    inputs, targets = tones.batch(3, seq_len, seed=seed, update=update)
    assert inputs.shape == (3, seq_len, FEATURES) and inputs.dtype == np.float32
    again, other = (tones.batch(3, seq_len, seed=seed, update=u) for u in (update, update + 1))
    assert (again[0] == inputs).all() and (again[1] == targets).all()
    assert other[0].shape == inputs.shape and not (other[0] == inputs).all()
    texts = {tones.text(one) for one in tones.of("train")}
    for row in targets:
        labels = row[row != IGNORED]
        assert (row[len(labels) :] == IGNORED).all() and 0 < len(labels) <= seq_len
        assert labels.min() >= 1 and labels.max() < len(ALPHABET)
        said = "".join(ALPHABET[label] for label in labels)
        assert any(said.startswith(text) for text in texts)


def test_inputs_are_sound_and_silence_and_nothing_of_the_target(tones: Speech) -> None:
    """Every chunk of a window is one of an utterance's own, or silence; and other letters for the
    same sound would leave every input as it is."""
    inputs, _ = tones.batch(4, 100, seed=0, update=1)
    known = {chunk.tobytes() for chunk in (*tones.features, tones.silence)}
    assert all(chunk.tobytes() in known for row in inputs for chunk in row)
    mute = replace(tones, labels=np.full_like(tones.labels, 3))
    assert (mute.batch(4, 100, seed=0, update=1)[0] == inputs).all()


@settings(max_examples=8, deadline=None)
@given(seq_len=st.integers(24, 300), seed=st.integers(0, 50))
def test_augmentation_hides_some_and_keeps_what_is_said(
    tones: Speech, seq_len: int, seed: int
) -> None:
    hiding = replace(tones, augment=True)
    plain, targets = tones.batch(4, seq_len, seed=seed, update=1)
    inputs, same = hiding.batch(4, seq_len, seed=seed, update=1)
    again, _ = hiding.batch(4, seq_len, seed=seed, update=1)
    assert (targets == same).all() and (inputs == again).all() and inputs.dtype == plain.dtype
    assert not (inputs == plain).all() and (inputs == 0).mean() < 0.75
    shown = inputs != 0
    assert np.abs(inputs - plain)[shown].max() < 0.6
    window = tones.packed(60)[:1]
    assert (hiding.inputs(window, 60) == tones.inputs(window, 60)).all()


def test_a_window_too_short_for_any_utterance_is_refused(tones: Speech) -> None:
    with pytest.raises(
        ValueError, match="seq_len: 3 chunks hold no utterance to train or none to test"
    ):
        tones.batch(1, 3, seed=0, update=0)
    with pytest.raises(ValueError, match="seq_len: no test utterance fits into 3"):
        tones.packed(3)
    with pytest.raises(Unsupported, match="no test utterance fits into 3"):
        evaluate("character_error_rate_by_length", model_for(tones, "gru", eval_seq_len=(3,)))


@pytest.mark.parametrize("seq_len", [60, 100, 333])
def test_the_test_set_has_each_utterance_once_and_no_other(tones: Speech, seq_len: int) -> None:
    windows = tones.packed(seq_len)
    placed = [one for window in windows for one, _ in window]
    assert set(placed) == set(tones.of("test").tolist()) and len(set(placed)) == len(placed)
    for window in windows:
        ends = [at + len(tones.chunks(one)) for one, at in window]
        starts = [at for _, at in window]
        assert ends[-1] <= seq_len and all(a < b for a, b in zip(ends, starts[1:], strict=False))


def test_splits_share_no_recording(tones: Speech) -> None:
    of = [{tones.chunks(one).tobytes() for one in tones.of(s)} for s in SPLITS]
    assert [len(part) for part in of] == [300, 40, 10, 40]
    assert len(set.union(*of)) == sum(map(len, of))
    assert set(tones.trainable.tolist()) <= set(tones.of("train").tolist())


# Streaming


@pytest.mark.parametrize("architecture", ["lstm", "gru", "transformer", "mamba2"])
def test_a_stream_says_what_the_whole_says(tones: Speech, architecture: str) -> None:
    trained = model_for(tones, architecture, num_layers=2, size=30_000)
    window = max(tones.packed(60), key=len)
    with torch.inference_mode():
        whole = trained.model(torch.from_numpy(tones.inputs([window], 60)))[0]
    listener = Listener(trained.model, tones.front_end(), trained.device, room=60)
    sound = audio.as_floats(tones.sound(window, 60))
    stream = torch.stack([listener.hear(chunk) for chunk in torch.split(sound, CHUNK)])
    assert stream.shape == (60, len(ALPHABET))
    torch.testing.assert_close(stream, whole, rtol=1e-3, atol=1e-4)


def test_latencies_are_of_one_thread_and_one_run(tones: Speech) -> None:
    trained = model_for(tones, "gru")
    before = torch.get_num_threads()
    samples = np.array(evaluate("chunk_latency", trained).samples)
    assert torch.get_num_threads() == before
    assert len(samples) == TIMED_CHUNKS and (samples > 0).all()
    (p99,) = evaluate("chunk_latency_p99", trained).samples
    assert p99 == pytest.approx(np.quantile(samples, 0.99))
    assert evaluate("real_time_factor", trained).samples == pytest.approx((samples.mean() / 0.04,))


# Scores


class Perfect(torch.nn.Module):
    """Says the letters of each window at once, and blanks after them."""

    def __init__(self, data: Speech, windows: list[Window], seq_len: int) -> None:
        super().__init__()
        self.said = {
            data.inputs([one], seq_len)[0].tobytes(): data.targets([one])[0] for one in windows
        }

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = torch.zeros(*inputs.shape[:2], len(ALPHABET))
        for row, window in zip(outputs, inputs.numpy(), strict=True):
            row[:, 0] = 1
            at = 0
            for label in self.said[window.tobytes()]:
                at += int(at > 0 and row[at - 1, label] == 2)
                row[at, label] = 2
                at += 1
        return outputs


def test_who_says_every_letter_makes_no_error(tones: Speech) -> None:
    trained = model_for(tones, "gru", eval_seq_len=(60, 80))
    for seq_len in (40, 60, 80):
        model: Any = Perfect(tones, tones.packed(seq_len, 40), seq_len)
        found = TrainedModel(cell=trained.cell, model=model, data=tones, device=trained.device)
        pairs = speech._pairs(found, seq_len, 40)
        assert error_rate(pairs, words=True) == 0
        assert error_rate(pairs, words=False) == 0
    held_out = [((int(one), 0),) for one in tones.of("held_out")]
    room = max(len(tones.chunks(int(one))) for one in tones.of("held_out")) + 4
    model = Perfect(tones, held_out, room)
    cell = train_cell(task="speech", task_options={}, seq_len=room)
    found = TrainedModel(cell=cell, model=model, data=tones, device=trained.device)
    assert evaluate("held_out_character_error_rate", found).samples == (0.0,)


@pytest.mark.parametrize("rows", [1, 100])
def test_the_validation_loss_is_ctc_over_each_validation_utterance_once(
    tones: Speech, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(speech, "MICRO_BATCH_TOKENS", rows * 60)
    trained = model_for(tones, "gru", seq_len=60)
    (found,) = evaluate("validation_loss", trained).samples
    windows = tones.packed(60, split="validation")
    placed = [one for window in windows for one, _ in window]
    assert sorted(placed) == tones.of("validation").tolist()
    with torch.inference_mode():
        outputs = trained.model(torch.from_numpy(tones.inputs(windows, 60)))
    losses = []
    for said, window in zip(outputs, windows, strict=True):
        labels = torch.tensor([ALPHABET.index(letter) for letter in tones.said(window)])
        said = said.log_softmax(-1)[:, None]
        losses.append(
            torch.nn.functional.ctc_loss(said, labels[None], (60,), (len(labels),), reduction="sum")
        )
    letters = sum(len(tones.said(window)) for window in windows)
    assert found == pytest.approx(float(sum(losses)) / letters, rel=1e-5)


def test_without_utterances_to_validate_there_is_no_validation_loss(tones: Speech) -> None:
    with pytest.raises(Unsupported, match="no validation utterance fits into 3 chunks"):
        evaluate("validation_loss", model_for(tones, "gru", seq_len=3))
    without = replace(tones, split=np.minimum(tones.split, 2))
    with pytest.raises(Unsupported, match="these data have no validation utterance"):
        evaluate("validation_loss", model_for(without, "gru"))


def test_an_utterance_that_no_path_can_say_is_not_validated() -> None:
    sound = (hum(1) * 2**15).astype(np.int16)
    spoken = [
        recordings.Utterance(text=text, samples=sound, split=split)
        for text, split in [
            ("one two", "train"),
            ("two", "test"),
            ("x" * 14, "train"),
            ("x" * 14, "validation"),
            ("x" * 13, "validation"),
        ]
    ]
    data = encoded(
        recordings.Recordings(source="here", licence="none", split="none", utterances=spoken)
    )
    assert data.facts["validation_utterances"] == data.facts["validation_utterances_too_fast"] == 1
    assert data.facts["train_utterances_too_fast"] == 1
    assert data.facts["baseline_validation_loss"] == frequency_loss(
        ["one two", "x" * 14], ["x" * 13]
    )


def test_each_length_is_scored_on_the_same_utterances(tones: Speech) -> None:
    trained = model_for(tones, "lstm", seq_len=60, eval_seq_len=(40, 120))
    curve = evaluate("character_error_rate_by_length", trained)
    assert (curve.coordinate, curve.at) == ("eval_seq_len", (40, 60, 120))
    words = [
        sorted(" ".join(meant for _, meant in speech._pairs(trained, n, 40)).split())
        for n in (40, 60, 120)
    ]
    assert words[0] == words[1] == words[2]


def test_saying_nothing_is_wrong_about_everything(tones: Speech) -> None:
    for name in ("word_error_rate", "character_error_rate", "held_out_character_error_rate"):
        assert tones.facts[f"baseline_{name}"] == 1.0


def test_without_a_model_trainings_most_frequent_word_is_said_or_nothing(tones: Speech) -> None:
    trained = model_for(tones, "gru", seq_len=100)
    word = str(tones.facts["most_frequent_word"])
    texts = [tones.text(one).split() for one in tones.of("train")]
    counts = {w: sum(text.count(w) for text in texts) for text in texts for w in text}
    assert counts[word] == max(counts.values())
    (found,) = evaluate("baseline_word_error_rate", trained).samples
    tests = [tones.text(one).split() for one in tones.of("test")]
    assert found <= 1.0 and found >= 1 - sum(word in text for text in tests) / len(tests)


def test_a_small_model_learns_tones_and_runs_as_a_cell(tmp_path: Path) -> None:
    cell = train_cell(
        architecture="gru",
        task="speech",
        task_options={"source": "synthetic", "augment": False},
        seq_len=64,
        tokens=64 * 8 * 100,
        tokens_per_update=64 * 8,
        learning_rate=1e-2,
        metrics=("validation_loss", "character_error_rate", "held_out_character_error_rate"),
    )
    events = list(run(cell, tmp_path))
    found = {e.metric: e for e in events if isinstance(e, Measurement)}
    facts = {k: v for e in events if isinstance(e, Facts) for k, v in e.values.items()}
    assert facts["data_source"] == "synthetic: tones that spell letters, no speech"
    assert found["training_loss"].unit == "nats per label"
    assert found["character_error_rate"].samples[0] < 0.5
    assert found["validation_loss"].samples[0] < facts["baseline_validation_loss"]  # type: ignore


# Where it comes from


PROMPTS = {f"digits/{n}": f"Number {n}." for n in range(30)} | {"beep": "[a tone]"}


def test_packages_are_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packages(tmp_path, PROMPTS)
    again = tmp_path / "packages" / "/".join(recordings.PROMPTS)
    (again / "digits/99.wav").write_bytes((again / "digits/1.wav").read_bytes())
    monkeypatch.setenv("WORKLOADS_CACHE", str(tmp_path))
    assert TASK.missing(Options()) is None
    data = TASK.prepare(Options(), tmp_path)
    assert sum(len(data.of(split)) for split in ("train", "validation", "test")) == 30
    assert "in 100 utterances 15 test, 10 validate" in str(data.facts["split"])
    assert [data.text(int(one)) for one in data.of("held_out")] == ["had he married"]
    assert "number twenty nine" in {data.text(one) for one in range(31)}
    assert len(data.chunks(int(data.of("held_out")[0]))) == -(-12_000 // CHUNK) + 1
    heard = data.features[: data.chunk_starts[-2]]
    assert np.isfinite(heard).all() and abs(float(heard.mean())) < 0.2


def test_without_the_packages_the_mend_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packages(tmp_path, PROMPTS)
    monkeypatch.setenv("WORKLOADS_CACHE", str(tmp_path))
    monkeypatch.setattr(recordings, "CLIPS", ("pocketsphinx-testdata", "usr/share/nowhere"))
    why = TASK.missing(Options()) or ""
    assert "pocketsphinx-testdata" in why and "`infra/speech.sh`" in why and "`make venv`" in why
    with pytest.raises(ValueError, match=r"infra/speech\.sh"):
        TASK.prepare(Options(), tmp_path)
    assert TASK.missing(Options(source="synthetic")) is None
    assert TASK.missing(Options(source="huggingface")) is None


def test_own_recordings_are_wav_files_with_texts(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for n in range(40):
        write_wav(folder / f"day/{n}.wav", hum(0.8, n, 11_025), 11_025)
        (folder / f"day/{n}.txt").write_text(f"Take {n}!")
    options = Options(path=str(folder))
    assert TASK.missing(options) is None
    data = TASK.prepare(options, tmp_path)
    assert "take seven" in {data.text(one) for one in range(40)}
    assert data.facts["data_source"] == "own recordings: mine"
    trained = model_for(data, "gru", seq_len=50)
    with pytest.raises(Unsupported, match="no speaker held out"):
        evaluate("held_out_character_error_rate", trained)
    (folder / "day/3.txt").unlink()
    with pytest.raises(ValueError, match=r"3\.wav: has no 3\.txt beside it"):
        TASK.prepare(options, tmp_path)
    assert "no .wav file" in (TASK.missing(Options(path=str(tmp_path / "none"))) or "")


def hub_folder(folder: Path, sounds: list[Any]) -> Options:
    folder.mkdir()
    rows = {
        "audio": sounds,
        "text": [f"ROW {n}" for n in range(len(sounds))],
        "speaker_id": [n % 4 for n in range(len(sounds))],
    }
    pq.write_table(pa.table(rows), folder / "validation.parquet")
    return Options(source="huggingface", dataset=str(folder), config="")


@pytest.fixture
def quiet_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("quiet_hub")
@pytest.mark.parametrize("shape", ["arrays", "bytes"])
def test_rows_of_a_hub_are_heard(tmp_path: Path, shape: str) -> None:
    sounds: list[Any] = []
    for n in range(40):
        if shape == "arrays":
            sounds.append({"array": hum(0.8, n, 16_000).tolist(), "sampling_rate": 16_000})
        else:
            write_wav(tmp_path / "one.wav", hum(0.8, n, 16_000), 16_000)
            sounds.append({"bytes": (tmp_path / "one.wav").read_bytes(), "path": "one.wav"})
    data = TASK.prepare(hub_folder(tmp_path / "rows", sounds), tmp_path)
    assert data.facts["held_out_utterances"] == 10
    assert "row seventeen" in {data.text(one) for one in range(40)}
    assert "rows" in str(data.facts["data_source"])


@pytest.mark.usefixtures("quiet_hub")
def test_a_column_marked_as_sound_is_read_without_a_decoder(tmp_path: Path) -> None:
    write_wav(tmp_path / "one.wav", hum(0.8))
    folder = tmp_path / "rows"
    folder.mkdir()
    row = {"bytes": (tmp_path / "one.wav").read_bytes(), "path": None}
    features = datasets.Features({"audio": datasets.Audio(), "text": datasets.Value("string")})
    table = pa.table({"audio": [row] * 30, "text": ["one"] * 30})
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(table, folder / "validation.parquet")
    options = Options(source="huggingface", dataset=str(folder), config="")
    assert TASK.prepare(options, tmp_path).facts["held_out_utterances"] == 0


@pytest.mark.usefixtures("quiet_hub")
def test_rows_that_cannot_be_heard_say_what_is_lacking(tmp_path: Path) -> None:
    flac = [{"bytes": b"fLaC....", "path": "one.flac"}] * 5
    with pytest.raises(ValueError, match="pip install torchcodec"):
        TASK.prepare(hub_folder(tmp_path / "flac", flac), tmp_path)
    options = hub_folder(tmp_path / "named", flac)
    with pytest.raises(ValueError, match="has no column 'sound'; it has audio, text"):
        TASK.prepare(
            Options(source="huggingface", dataset=options.dataset, config="", audio_column="sound"),
            tmp_path,
        )
    nowhere = Options(source="huggingface", dataset=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="the data set cannot be had"):
        TASK.prepare(nowhere, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "radio"}, "source must be 'packaged', 'huggingface' or 'synthetic'"),
        ({"dataset": "a/b"}, "dataset belongs to `source: huggingface`"),
        ({"source": "synthetic", "path": "x"}, "path: your own recordings"),
        ({"source": "synthetic", "reference": True}, "reference: packaged models"),
        ({"path": "x", "reference": True}, "reference: packaged models"),
        ({"pth": "x"}, "Did you mean 'path'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_options(Options, options)


# The real recordings


@REAL
def test_the_prompts_are_the_known_ones(real: Speech) -> None:
    facts = real.facts
    sizes = [facts[f"{split}_utterances"] for split in SPLITS]
    assert sizes == [418, 88, 5, 45] and facts["train_utterances_too_fast"] == 0
    assert facts["held_out_seconds"] == pytest.approx(24.7, abs=0.1)
    assert "CC BY-SA 3.0" in str(facts["data_licence"])
    texts = {split: {real.text(int(one)) for one in real.of(split)} for split in SPLITS}
    assert "he was not an ill disposed young man" in texts["held_out"]
    letters = {split: sum(len(text) == 1 for text in texts[split]) for split in texts}
    assert letters["train"] > 10 and letters["test"] >= 1


@REAL
def test_a_real_stream_says_what_the_whole_says(real: Speech) -> None:
    trained = model_for(real, "gru")
    window = real.packed(125)[0]
    with torch.inference_mode():
        whole = trained.model(torch.from_numpy(real.inputs([window], 125)))[0]
    listener = Listener(trained.model, real.front_end(), trained.device, room=125)
    sound = audio.as_floats(real.sound(window, 125))
    stream = torch.stack([listener.hear(chunk) for chunk in torch.split(sound, CHUNK)])
    torch.testing.assert_close(stream, whole, rtol=1e-3, atol=1e-4)


@REAL
def test_packaged_models_are_references() -> None:
    spoken = recordings.clips()
    assert len(spoken) == 5
    found = packaged_models.facts(spoken[1:2])
    assert found["reference_pocketsphinx_held_out_word_error_rate"] == pytest.approx(2 / 8)
    told = {name for name, value in found.items() if isinstance(value, str)}
    assert told == {"reference_pocketsphinx", "reference_silero_vad"}
    for name in found.keys() - told:
        metric = next(name.removeprefix(f"{one}_") for one in told if name.startswith(one))
        assert metric in TASK.metrics


# The script


def fetch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_where_apt_is_absent_the_script_says_so_and_succeeds(tmp_path: Path) -> None:
    done = fetch(PATH=str(tmp_path), HOME=str(tmp_path))
    assert done.returncode == 0 and "cannot be fetched" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_the_known_one_is_refused(tmp_path: Path) -> None:
    debs = tmp_path / "debs"
    debs.mkdir()
    (debs / "asterisk-core-sounds-en-wav_1.6.1-1_all.deb").write_bytes(b"!<arch>\nnot it")
    done = fetch(str(debs), PATH=os.environ["PATH"], WORKLOADS_CACHE=str(tmp_path / "cache"))
    if "cannot be fetched" in done.stdout:
        pytest.skip("dpkg is not here")
    assert done.returncode == 1 and "is not the file that is known here" in done.stderr
    assert list((tmp_path / "cache/packages").iterdir()) == []


@REAL
def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    if not (cache_folder() / "packages").exists():
        pytest.skip("the recordings are installed system-wide here")
    done = fetch(PATH=os.environ["PATH"], WORKLOADS_CACHE=str(cache_folder()))
    assert done.returncode == 0 and "its data are in" in done.stdout
