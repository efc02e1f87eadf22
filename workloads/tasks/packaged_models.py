"""Models to compare with that come with a package and are not trained here: the recogniser
pocketsphinx with the models that it ships, and the voice detector silero-vad, an LSTM behind a few
convolutions. Each hears clips of 16 kHz, once a machine; what it took is CPU time of one thread,
so that what else the machine was doing then does not count."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workloads.cell import Scalar
from workloads.tasks import audio, sources
from workloads.tasks.headway import counted
from workloads.tasks.transcripts import error_rate, spelled

VERSION = 1

POCKETSPHINX = ("pocketsphinx", "pocketsphinx")
SILERO_VAD = ("silero-vad", "silero_vad/data/silero_vad.jit")
"""Packages, and of what in them `sources.package_file` finds the place."""

_HEARD = 16_000
_CHUNK = 640
"""40 ms, as a position of the task."""

_VOICE_CHUNK = 256
"""32 ms at 8 kHz: the one length that silero-vad takes there."""


def missing() -> str | None:
    """Why there are no packaged models, with the mend."""
    for package, path in (POCKETSPHINX, SILERO_VAD):
        if sources.package_file(package, path) is None:
            return sources.absent(package)
    return None


def names() -> str:
    """The packages with their versions, for the name of a folder."""
    return "-".join(sources.named(package) for package, _ in (POCKETSPHINX, SILERO_VAD))


def facts(spoken: Sequence[tuple[Path, str]]) -> dict[str, Scalar]:
    """Of each model what it is, and what it reaches in the metrics of the task, on clips with their
    texts. The detector says nothing but whether someone speaks, so it has times alone.

    Raises:
        ValueError: a package is not installed, or a clip has another rate.
    """
    sounds = [_sound(file) for file, _ in spoken]
    said, seconds = _recognised(sounds)
    pairs = [(spelled(words), text) for words, (_, text) in zip(said, spoken, strict=True)]
    recogniser, voice = "reference_pocketsphinx", "reference_silero_vad"
    return {
        recogniser: f"{sources.named('pocketsphinx')}, en-us (hidden Markov models, trigrams)",
        f"{recogniser}_held_out_word_error_rate": error_rate(pairs, words=True),
        f"{recogniser}_held_out_character_error_rate": error_rate(pairs, words=False),
        **_times(recogniser, seconds, _CHUNK / _HEARD),
        voice: f"{sources.named('silero-vad')} (convolutions, LSTM; says who speaks, in 32 ms)",
        **_times(voice, _detected(sounds), _VOICE_CHUNK / audio.RATE),
    }


def _times(name: str, seconds: Sequence[float], chunk: float) -> dict[str, Scalar]:
    return {
        f"{name}_chunk_latency": float(np.median(seconds)),
        f"{name}_chunk_latency_p99": float(np.quantile(seconds, 0.99)),
        f"{name}_real_time_factor": float(np.mean(seconds)) / chunk,
    }


def _sound(file: Path) -> Tensor:
    samples, rate = audio.read_wav(file)
    if rate != _HEARD:
        raise ValueError(f"{file}: the recogniser hears {_HEARD} samples a second, not {rate}")
    return torch.from_numpy(samples)


def _recognised(sounds: Sequence[Tensor]) -> tuple[list[str], list[float]]:
    """What is said in each clip, and the CPU seconds that each chunk took."""
    sources.needed(*POCKETSPHINX)
    # It comes without types.
    from pocketsphinx import Decoder  # type: ignore[import-untyped]

    decoder = Decoder(samprate=_HEARD, loglevel="FATAL")
    said: list[str] = []
    seconds: list[float] = []
    for sound in counted(sounds, "recognising with pocketsphinx"):
        decoder.start_utt()
        for chunk in torch.split((sound * 2**15).to(torch.int16), _CHUNK):
            begun = time.thread_time()
            decoder.process_raw(chunk.numpy().tobytes())
            seconds.append(time.thread_time() - begun)
        begun = time.thread_time()
        decoder.end_utt()
        seconds[-1] += time.thread_time() - begun
        hypothesis = decoder.hyp()
        said.append(hypothesis.hypstr if hypothesis else "")
    return said, seconds


@torch.inference_mode()
def _detected(sounds: Sequence[Tensor]) -> list[float]:
    """The CPU seconds that each chunk of 32 ms took the detector, one after the other with its
    state, at the 8 kHz that the task hears."""
    with warnings.catch_warnings():
        # The package comes in no other form that torch reads.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        file = str(sources.needed(*SILERO_VAD))
        model = torch.jit.load(file)  # type: ignore[no-untyped-call]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: list[float] = []
    try:
        for untimed in (True, False):  # its first calls compile
            for sound in sounds:
                model.reset_states()
                heard = audio.resample(sound, _HEARD)
                for chunk in torch.split(
                    heard[: len(heard) // _VOICE_CHUNK * _VOICE_CHUNK], _VOICE_CHUNK
                ):
                    begun = time.thread_time()
                    float(model(chunk[None], audio.RATE))
                    if not untimed:
                        seconds.append(time.thread_time() - begun)
    finally:
        torch.set_num_threads(threads)
    return seconds
