"""Utterances as features and labels, packed into windows of exactly so many chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.objectives import IGNORED
from workloads.tasks import audio
from workloads.tasks.audio import CHUNK, FEATURES, FrontEnd
from workloads.tasks.data import Arrays, generator_of
from workloads.tasks.headway import counted
from workloads.tasks.recordings import SPLITS, Recordings, Utterance
from workloads.tasks.transcripts import ALPHABET, chunks_needed, error_rate, frequency_loss

TEST_GAP = 4
"""Chunks of silence between utterances that are scored."""
_SHORTEST_GAP, _LONGEST_GAP = 2, 6
_TEST_SEED = 2**63

Window = tuple[tuple[int, int], ...]
"""Utterances of a window, each with the chunk at which it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """Utterances of all splits as features and labels.

    `features` (chunks, FEATURES) and `labels` of all utterances stand one after another, and
    utterance i is at `chunk_starts[i]` to `[i + 1]`, and so on; `audio` has the samples of test
    utterances alone. `split` is an index of SPLITS; `trainable` are the train utterances that can
    be said in their chunks, shortest first. `augment`: batches have parts hidden.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.uint8]
    audio: NDArray[np.int16]
    chunk_starts: NDArray[np.int64]
    label_starts: NDArray[np.int64]
    audio_starts: NDArray[np.int64]
    split: NDArray[np.uint8]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    trainable: NDArray[np.int64]
    facts: Mapping[str, Scalar]
    augment: bool = False
    silence: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "silence", self.front_end().silence().numpy())

    def front_end(self) -> FrontEnd:
        return FrontEnd(
            mean=torch.from_numpy(np.array(self.mean)),
            deviation=torch.from_numpy(np.array(self.deviation)),
        )

    def chunks(self, utterance: int) -> NDArray[np.float32]:
        return self.features[self.chunk_starts[utterance] : self.chunk_starts[utterance + 1]]

    def letters(self, utterance: int) -> NDArray[np.uint8]:
        return self.labels[self.label_starts[utterance] : self.label_starts[utterance + 1]]

    def text(self, utterance: int) -> str:
        return "".join(ALPHABET[label] for label in self.letters(utterance))

    def samples(self, utterance: int) -> NDArray[np.int16]:
        return self.audio[self.audio_starts[utterance] : self.audio_starts[utterance + 1]]

    def of(self, split: str) -> NDArray[np.int64]:
        """The utterances of a split."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Windows of train utterances (sequences, seq_len, FEATURES), and the labels of each
        (sequences, labels of the longest), IGNORED after its last.

        Raises:
            ValueError: no train utterance fits, or none of those that it will be scored on.
        """
        lengths = np.diff(self.chunk_starts)[self.trainable]
        if (shortest := max(int(lengths[0]), self._shortest("test"))) > seq_len:
            raise ValueError(
                f"seq_len: {seq_len} chunks hold no utterance to train or none to test; the "
                f"shortest that do are {shortest}"
            )
        generator = generator_of(seed, update)
        windows = [self._drawn(lengths, seq_len, generator) for _ in range(sequences)]
        inputs = self.inputs(windows, seq_len)
        if self.augment:
            audio.hide(inputs, generator)
        return inputs, self.targets(windows)

    def _drawn(
        self, lengths: NDArray[np.int64], seq_len: int, generator: np.random.Generator
    ) -> Window:
        """Utterances of these lengths, shortest first, one after another: each drawn among all that
        still fit."""
        window: list[tuple[int, int]] = []
        at = min(int(generator.integers(_LONGEST_GAP + 1)), seq_len - int(lengths[0]))
        while fitting := int(np.searchsorted(lengths, seq_len - at, side="right")):
            drawn = int(generator.integers(fitting))
            window.append((int(self.trainable[drawn]), at))
            at += int(lengths[drawn])
            at += int(generator.integers(_SHORTEST_GAP, _LONGEST_GAP + 1))
        return tuple(window)

    def packed(self, seq_len: int, longest: int | None = None, split: str = "test") -> list[Window]:
        """Every utterance of a split of at most `longest` chunks (by default seq_len) in windows,
        each once, in an order that is always the same.

        Raises:
            ValueError: there is none of that length.
        """
        longest = seq_len if longest is None else longest
        if not len(self.of(split)):
            raise ValueError(f"these data have no {split} utterance")
        if (shortest := self._shortest(split)) > longest:
            raise ValueError(
                f"seq_len: no {split} utterance fits into {seq_len} chunks; the shortest has "
                f"{shortest}"
            )
        windows: list[Window] = []
        window: list[tuple[int, int]] = []
        at = 0
        order = np.random.Generator(np.random.Philox(key=_TEST_SEED)).permutation(self.of(split))
        for utterance in order.tolist():
            length = len(self.chunks(utterance))
            if length > longest:
                continue
            if at + length > seq_len:
                windows.append(tuple(window))
                window, at = [], 0
            window.append((utterance, at))
            at += length + TEST_GAP
        return [*windows, tuple(window)]

    def _shortest(self, split: str) -> int:
        return int(np.diff(self.chunk_starts)[self.of(split)].min())

    def inputs(self, windows: Sequence[Window], seq_len: int) -> NDArray[np.float32]:
        """The features of windows (windows, seq_len, FEATURES), silence where nobody speaks."""
        found = np.empty((len(windows), seq_len, FEATURES), dtype=np.float32)
        found[:] = self.silence
        for row, window in zip(found, windows, strict=True):
            for utterance, at in window:
                chunks = self.chunks(utterance)
                row[at : at + len(chunks)] = chunks
        return found

    def targets(self, windows: Sequence[Window]) -> NDArray[np.int64]:
        """The labels of windows, a space between utterances."""
        space = np.array([ALPHABET.index(" ")], dtype=np.uint8)
        rows = [
            np.concatenate([part for one, _ in window for part in (space, self.letters(one))])[1:]
            for window in windows
        ]
        found = np.full((len(rows), max(map(len, rows))), IGNORED, dtype=np.int64)
        for line, row in zip(found, rows, strict=True):
            line[: len(row)] = row
        return found

    def said(self, window: Window) -> str:
        """The transcript of a window."""
        return " ".join(self.text(utterance) for utterance, _ in window)

    def sound(self, window: Window, seq_len: int) -> NDArray[np.int16]:
        """The samples of a window of test utterances (seq_len * CHUNK,)."""
        found = np.zeros(seq_len * CHUNK, dtype=np.int16)
        for utterance, at in window:
            samples = self.samples(utterance)
            found[at * CHUNK : at * CHUNK + len(samples)] = samples
        return found


def encoded(recordings: Recordings) -> Arrays:
    """What `Speech` is made of, and the facts about it. An utterance to validate that cannot be
    said in its chunks is left out, for it has no loss.

    Raises:
        ValueError: there is nothing to train or nothing to test.
    """
    heard = [one for one in recordings.utterances if one.text and len(one.samples)]
    utterances = [one for one in heard if one.split != "validation" or _sayable(one)]
    of = {split: [one for one in utterances if one.split == split] for split in SPLITS}
    for split in ("train", "test"):
        if not of[split]:
            raise ValueError(f"there is no utterance to {split}: {len(utterances)} are too few")
    energies = [audio.offline(one.samples) for one in counted(utterances, "hearing")]
    learnt = torch.cat(
        [e for e, one in zip(energies, utterances, strict=True) if one.split == "train"]
    ).flatten(0, 1)
    front_end = FrontEnd(mean=learnt.mean(0), deviation=learnt.std(0).clamp(min=1e-3))
    features = [front_end.standardised(one).numpy() for one in energies]
    labels = [np.array([ALPHABET.index(c) for c in one.text], np.uint8) for one in utterances]
    sound = [one.samples if one.split == "test" else one.samples[:0] for one in utterances]
    trainable = [i for i, one in enumerate(utterances) if one.split == "train" and _sayable(one)]
    if not trainable:
        raise ValueError("no utterance to train is slow enough to be spelled in its 40 ms chunks")
    return Arrays(
        arrays={
            "features": np.concatenate(features),
            "labels": np.concatenate(labels),
            "audio": np.concatenate(sound),
            "chunk_starts": _starts(features),
            "label_starts": _starts(labels),
            "audio_starts": _starts(sound),
            "split": np.array([SPLITS.index(one.split) for one in utterances], np.uint8),
            "mean": front_end.mean.numpy(),
            "deviation": front_end.deviation.numpy(),
            "trainable": np.array(
                sorted(trainable, key=lambda i: (len(features[i]), i)), dtype=np.int64
            ),
        },
        facts={
            "data_source": recordings.source,
            "data_licence": recordings.licence,
            "split": recordings.split,
            **_sizes(of),
            "train_utterances_too_fast": len(of["train"]) - len(trainable),
            "validation_utterances_too_fast": len(heard) - len(utterances),
            **_baselines({split: [one.text for one in part] for split, part in of.items()}),
        },
    )


def _sayable(utterance: Utterance) -> bool:
    return chunks_needed(utterance.text) <= audio.chunk_count(len(utterance.samples))


def _starts(parts: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def _sizes(of: Mapping[str, Sequence[Utterance]]) -> dict[str, Scalar]:
    seconds = {
        split: round(sum(len(one.samples) for one in part) / audio.RATE, 1)
        for split, part in of.items()
    }
    return {
        **{f"{split}_utterances": len(part) for split, part in of.items()},
        **{f"{split}_seconds": length for split, length in seconds.items()},
    }


def _baselines(texts: Mapping[str, Sequence[str]]) -> dict[str, Scalar]:
    """What scores who hears nothing, from the texts of each split."""
    known = set(texts["train"])
    words = Counter(word for text in texts["train"] for word in text.split())
    silent = [("", text) for text in texts["test"]]
    facts: dict[str, Scalar] = {
        "test_words": sum(len(text.split()) for text in texts["test"]),
        "test_texts_also_in_train": sum(text in known for text in texts["test"]),
        "most_frequent_word": min(words, key=lambda word: (-words[word], word)),
        "baseline_word_error_rate": error_rate(silent, words=True),
        "baseline_character_error_rate": error_rate(silent, words=False),
    }
    if other := [("", text) for text in texts["held_out"]]:
        facts["baseline_held_out_word_error_rate"] = error_rate(other, words=True)
        facts["baseline_held_out_character_error_rate"] = error_rate(other, words=False)
    if texts["validation"]:
        loss = frequency_loss(texts["train"], texts["validation"])
        facts["baseline_validation_loss"] = loss
    return facts
