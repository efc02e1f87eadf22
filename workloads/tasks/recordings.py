"""Recordings with transcripts, and where they come from: Debian's packages of telephone prompts and
book clips, a data set of the hub, a user's own WAV files, or tones that spell letters.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.tasks import audio, sources
from workloads.tasks.audio import CHUNK
from workloads.tasks.data import cache_folder, generator_of
from workloads.tasks.transcripts import spelled

SPLITS = ("train", "test", "held_out", "validation")
"""In an order that stays: prepared data and the tones count on it."""
TEST_PERCENT, VALIDATION_PERCENT = 15, 10
_BY_HASH = (
    f"in 100 utterances {TEST_PERCENT} test, {VALIDATION_PERCENT} validate, by a hash of the name"
)
PROMPTS = ("asterisk-core-sounds-en-wav", "usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = (
    "asterisk-core-sounds-en",
    "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz",
)
CLIPS = ("pocketsphinx-testdata", "usr/share/pocketsphinx/test/data/librivox")
_MEND = "`infra/speech.sh` (from Debian's packages, where apt-get is), or `make venv`"
_TONES = "abcdefgh"
_SYNTHETIC = {"train": 300, "test": 40, "held_out": 10, "validation": 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """What somebody said: `samples` at 8 kHz, and its `text` in letters of the alphabet."""

    text: str
    samples: NDArray[np.int16]
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recordings:
    """Utterances with their source, licence and split in words."""

    source: str
    licence: str
    split: str
    utterances: Iterable[Utterance]


def _split(name: str) -> str:
    return sources.split_of(name, validation=VALIDATION_PERCENT, test=TEST_PERCENT)


# Debian's packages


def package_path(package: str, path: str) -> Path | None:
    """A file of a Debian package: where `infra/speech.sh` unpacks it, or where it is installed."""
    for root in (cache_folder() / "packages" / package, Path("/")):
        if (root / path).exists():
            return root / path
    return None


def absent() -> str | None:
    """Which package is not here, with the mend."""
    for package, path in (PROMPTS, TRANSCRIPTS, CLIPS):
        if package_path(package, path) is None:
            return f"its recordings come with Debian's package {package}, not found here: {_MEND}"
    return None


def _of_package(package: str, path: str) -> Path:
    found = package_path(package, path)
    if found is None:
        raise ValueError(f"Debian's package {package} is not found here: {_MEND}")
    return found


def packaged() -> Recordings:
    """The telephone prompts, and the clips of another speaker."""
    return Recordings(
        source="asterisk-core-sounds-en-wav 1.6.1-1 (Allison Smith); "
        "pocketsphinx-testdata 0.8+5prealpha+1-15 (LibriVox)",
        licence="CC BY-SA 3.0; held out: public domain",
        split=f"{_BY_HASH}; held out: another speaker",
        utterances=_packaged(),
    )


def _packaged() -> Iterator[Utterance]:
    folder = _of_package(*PROMPTS)
    seen: set[bytes] = set()
    for name, text in prompts(_of_package(*TRANSCRIPTS)):
        file = folder / f"{name}.wav"
        if not text or not file.exists():
            continue
        samples = audio.quantised(*audio.read_wav(file))
        if (digest := hashlib.sha256(samples.tobytes()).digest()) not in seen:
            seen.add(digest)
            yield Utterance(text=text, samples=samples, split=_split(name))
    for file, text in clips():
        samples = audio.quantised(*audio.read_wav(file))
        yield Utterance(text=text, samples=samples, split="held_out")


def prompts(transcripts: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each prompt: lines `name: text`, and remarks after a semicolon."""
    with gzip.open(transcripts, "rt", encoding="utf-8") as lines:
        for line in lines:
            name, colon, text = line.partition(": ")
            if colon and not line.startswith(";"):
                yield name.strip(), spelled(text)


def clips() -> list[tuple[Path, str]]:
    """The LibriVox clips with their text: lines `<s> text </s> (name)`."""
    folder = _of_package(*CLIPS)
    lines = (folder / "transcription").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"<s>(.*)</s>\s*\((.*)\)", line.strip()) for line in lines]
    return [(folder / f"{one[2]}.wav", spelled(one[1])) for one in found if one]


# Other sources


def own(path: str) -> Recordings:
    """A user's own WAV files, each with its text beside it."""
    root = Path(path).expanduser()
    return Recordings(
        source=f"own recordings: {Path(path).name}",
        licence="the user's own",
        split=_BY_HASH,
        utterances=_own(root),
    )


def _own(root: Path) -> Iterator[Utterance]:
    for file in sorted(root.rglob("*.wav")):
        words = file.with_suffix(".txt")
        if not words.exists():
            raise ValueError(f"{file}: has no {words.name} beside it, with what is said")
        name = file.relative_to(root).with_suffix("").as_posix()
        text = spelled(words.read_text(encoding="utf-8"))
        samples = audio.quantised(*audio.read_wav(file))
        yield Utterance(text=text, samples=samples, split=_split(name))


def hub(dataset: str, config: str, split: str, audio_column: str, text_column: str) -> Recordings:
    """The rows of a data set; where they name more than two speakers, one is held out."""
    rows = sources.hub_rows(dataset, config, split, (audio_column, text_column))
    feature = rows.features[audio_column]
    if type(feature).__name__ == "Audio" and importlib.util.find_spec("torchcodec") is None:
        rows = rows.cast_column(audio_column, type(feature)(decode=False))
    named = "speaker_id" in rows.column_names
    speakers = [str(one) for one in rows["speaker_id"]] if named else [""] * len(rows)
    away = _held_out_speaker(speakers)

    def utterances() -> Iterator[Utterance]:
        for number, row in enumerate(rows):
            name = f"{split}#{number}"
            yield Utterance(
                text=spelled(str(row[text_column])),
                samples=audio.quantised(*_heard(row[audio_column], name)),
                split="held_out" if speakers[number] == away else _split(name),
            )

    return Recordings(
        source=sources.hub_source(dataset, config),
        licence="see the data set's card",
        split=f"{_BY_HASH}; held out: one speaker, where they are named",
        utterances=utterances(),
    )


def _held_out_speaker(speakers: Sequence[str]) -> str | None:
    known = sorted(set(speakers), key=lambda one: hashlib.sha256(one.encode()).digest())
    return known[0] if len(known) > 2 else None


def _heard(found: Any, name: str) -> tuple[NDArray[np.float32], int]:
    """Samples and rate of a row: decoded, or the bytes of a WAV file."""
    if isinstance(found, Mapping) and found.get("array") is None:
        if not found.get("bytes"):
            raise ValueError(f"{name}: has neither an `array` of samples nor `bytes` of a file")
        if not found["bytes"].startswith(b"RIFF"):
            raise ValueError(
                f"{name}: its sound is no WAV file; other kinds need a decoder: "
                "pip install torchcodec, and FFmpeg"
            )
        return audio.read_wav(found["bytes"], name)
    samples = np.asarray(found["array"], dtype=np.float32)
    return samples if samples.ndim == 1 else samples.mean(0), int(found["sampling_rate"])


def synthetic() -> Recordings:
    """Words whose letters are tones, a third of an octave apart; the other voice has overtones."""
    return Recordings(
        source="synthetic: tones that spell letters, no speech",
        licence="none",
        split="drawn apart; held out: tones with overtones",
        utterances=_synthetic(),
    )


def _synthetic() -> Iterator[Utterance]:
    for split, count in _SYNTHETIC.items():
        for number in range(count):
            generator = generator_of(SPLITS.index(split), number)
            words = [
                "".join(generator.choice(list(_TONES), size=generator.integers(1, 4)))
                for _ in range(generator.integers(1, 4))
            ]
            text = " ".join(words)
            sound = [_tone(letter, split == "held_out", generator) for letter in text]
            samples = np.concatenate([*sound, np.zeros(2 * CHUNK)])
            samples += generator.normal(0, 0.003, len(samples))
            yield Utterance(
                text=text,
                samples=audio.quantised(samples.astype(np.float32), audio.RATE),
                split=split,
            )


def _tone(letter: str, overtones: bool, generator: np.random.Generator) -> NDArray[np.float64]:
    length, gap = generator.integers(3 * CHUNK, 5 * CHUNK), np.zeros(CHUNK)
    if letter == " ":
        return np.zeros(length)
    turns = 300 * 2 ** (_TONES.index(letter) / 3) * np.arange(length) / audio.RATE
    wave = np.sin(2 * np.pi * turns)
    if overtones:
        wave = 0.7 * wave + 0.3 * np.sin(4 * np.pi * turns)
    return np.concatenate([generator.uniform(0.2, 0.6) * wave * np.hanning(length) ** 0.25, gap])
