"""A recogniser to compare with: what pocketsphinx makes of clips with the models it comes with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads.cell import Scalar
from workloads.tasks import audio, sources
from workloads.tasks.audio import CHUNK_SECONDS
from workloads.tasks.transcripts import error_rate, spelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A recogniser's word error rate, and the CPU seconds that each chunk took it: taken once, so
    what else the machine was doing then must not count."""

    word_error_rate: float
    seconds: tuple[float, ...]

    def facts(self) -> dict[str, Scalar]:
        name = "reference_pocketsphinx"
        return {
            f"{name}": f"{sources.named('pocketsphinx')}, en-us; not trained here",
            f"{name}_word_error_rate": self.word_error_rate,
            f"{name}_chunk_latency": float(np.median(self.seconds)),
            f"{name}_chunk_latency_p99": float(np.quantile(self.seconds, 0.99)),
            f"{name}_real_time_factor": float(np.mean(self.seconds)) / CHUNK_SECONDS,
        }


def reference(spoken: Sequence[tuple[Path, str]]) -> Reference:
    """The recogniser of the package pocketsphinx with its own models, on clips of 16 kHz, 40 ms at
    a time.

    Raises:
        ImportError: the package is not installed.
        ValueError: a clip has another rate.
    """
    # It comes without types.
    from pocketsphinx import Decoder  # type: ignore[import-untyped]

    rate = 16_000
    decoder = Decoder(samprate=rate, loglevel="FATAL")
    pairs: list[tuple[str, str]] = []
    seconds: list[float] = []
    for file, text in spoken:
        samples, found = audio.read_wav(file)
        if found != rate:
            raise ValueError(f"{file}: the recogniser hears {rate} samples a second, not {found}")
        raw = (samples * 2**15).astype("<i2")
        step = round(rate * CHUNK_SECONDS)
        decoder.start_utt()
        for start in range(0, len(raw), step):
            begun = time.thread_time()
            decoder.process_raw(raw[start : start + step].tobytes())
            seconds.append(time.thread_time() - begun)
        begun = time.thread_time()
        decoder.end_utt()
        seconds[-1] += time.thread_time() - begun
        hypothesis = decoder.hyp()
        pairs.append((spelled(hypothesis.hypstr) if hypothesis else "", text))
    return Reference(word_error_rate=error_rate(pairs, words=True), seconds=tuple(seconds))
