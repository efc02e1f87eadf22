"""Sound as a model hears it: samples of a WAV file at 8 kHz, and log-mel chunks of 40 ms.

A chunk is four frames of 25 ms, one every 10 ms. Every frame ends within its chunk, so a chunk is
known as soon as its last sample is, and the past it needs is 15 ms. Frames: Hann window, power
spectrum of 256 points, 24 triangular bands even on the mel scale (Davis and Mermelstein 1980; mel
as in the HTK book, 2595 log10(1 + f / 700)), natural logarithm over a floor of about -60 dB.
"""

from __future__ import annotations

import io
import math
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

RATE = 8_000
CHUNK = 320
"""Samples of a chunk, 40 ms."""
CHUNK_SECONDS = CHUNK / RATE
BANDS = 24
_HOP, _WINDOW, _POINTS = 80, 200, 256
PAST = _WINDOW - _HOP
"""Samples before a chunk that its frames reach back to."""
FEATURES = CHUNK // _HOP * BANDS
_LOWEST, _HIGHEST = 60.0, 4000.0
_FLOOR = 1e-4
# Zero crossings of the resampling filter on each side, and where it begins to cut: at that share of
# the lower of both bandwidths.
_CROSSINGS, _ROLL_OFF = 16, 0.92
# What augmentation hides at most, how often, and the deviation of loudness in standardised units.
_HIDDEN_BANDS, _HIDDEN_CHUNKS, _CHUNKS_A_STRETCH, _LOUDNESS = 6, 4, 64, 0.1


def read_wav(source: Path | bytes, name: str = "") -> tuple[NDArray[np.float32], int]:
    """Samples of a WAV file between -1 and 1, its channels averaged, and their rate.

    Raises:
        ValueError: it is no WAV file of 8, 16 or 32 bits PCM.
    """
    name = name or str(source if isinstance(source, Path) else "these bytes")
    try:
        with wave.open(str(source) if isinstance(source, Path) else io.BytesIO(source)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{name}: is not a WAV file of PCM samples ({error})") from None
    if width not in (1, 2, 4):
        raise ValueError(f"{name}: has samples of {8 * width} bits; 8, 16 and 32 can be read")
    samples = np.frombuffer(raw, {1: "u1", 2: "<i2", 4: "<i4"}[width]).astype(np.float32)
    if width == 1:
        samples -= 128
    samples /= 2.0 ** (8 * width - 1)
    return samples.reshape(-1, channels).mean(1), rate


def quantised(samples: NDArray[np.float32], rate: int) -> NDArray[np.int16]:
    """Samples at 8 kHz and 16 bits, as the telephone's; louder than full scale is clipped."""
    resampled = resample(torch.from_numpy(np.ascontiguousarray(samples)), rate).numpy()
    return np.clip(np.round(resampled * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


def resample(samples: Tensor, rate: int, to: int = RATE) -> Tensor:
    """Samples (N,) at another rate, ceil(N to / rate) of them: a sinc under a Hann window, which
    lets nothing through that the lower rate cannot hold (Smith, "Digital Audio Resampling")."""
    down, up = rate // math.gcd(rate, to), to // math.gcd(rate, to)
    if down == up or not len(samples):
        return samples
    cut = _ROLL_OFF * min(1.0, up / down)
    reach = math.ceil(_CROSSINGS / cut)
    # Output n lies at n down / up: `up` of them by filters of their own, then `down` inputs on.
    taps = torch.arange(-reach, reach + down + 1, dtype=torch.float64)
    time = taps - (torch.arange(up, dtype=torch.float64) * down / up)[:, None]
    window = torch.cos(math.pi / 2 * (time / reach).clamp(-1, 1)) ** 2
    filters = (cut * torch.sinc(cut * time) * window).to(samples.dtype)
    padded = F.pad(samples, (reach, reach + down))
    found = F.conv1d(padded[None, None], filters[:, None], stride=down)[0]
    return found.T.flatten()[: -(-len(samples) * up // down)]


@cache
def mel_filters() -> Tensor:
    """(BANDS, frequencies): triangles that rise and fall between neighbours on the mel scale."""
    lowest, highest = (2595 * math.log10(1 + f / 700) for f in (_LOWEST, _HIGHEST))
    mels = torch.linspace(lowest, highest, BANDS + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, _POINTS // 2 + 1, dtype=torch.float64)
    low, middle, high = (corners[i : i + BANDS, None] for i in range(3))
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()


def log_mel(samples: Tensor) -> Tensor:
    """Log energies (chunks, frames of a chunk, BANDS) of whole chunks of samples (PAST + chunks *
    CHUNK,), of which the first PAST came before."""
    frames = samples.unfold(0, _WINDOW, _HOP) * torch.hann_window(_WINDOW)
    power = torch.fft.rfft(frames, _POINTS).abs().square()
    energies: Tensor = (power @ mel_filters().T + _FLOOR).log()
    return energies.view(-1, CHUNK // _HOP, BANDS)


def as_floats(samples: NDArray[np.int16]) -> Tensor:
    """16 bits as numbers between -1 and 1."""
    return torch.from_numpy(samples.astype(np.float32)) / 2**15


def offline(samples: NDArray[np.int16]) -> Tensor:
    """Log energies of a whole utterance after silence, filled up to whole chunks, and of one chunk
    of silence after it, into which its last frames reach."""
    filled = chunk_count(len(samples)) * CHUNK - len(samples)
    return log_mel(F.pad(as_floats(samples), (PAST, filled)))


def chunk_count(samples: int) -> int:
    """How many chunks `offline` makes of so many samples."""
    return -(-samples // CHUNK) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """Features of sound: log energies, each band with mean 0 and deviation 1 over what was trained
    on. `mean` and `deviation` are (BANDS,)."""

    mean: Tensor
    deviation: Tensor

    def standardised(self, energies: Tensor) -> Tensor:
        """(chunks, frames, BANDS) -> features (chunks, FEATURES)."""
        return ((energies - self.mean) / self.deviation).flatten(1)

    def silence(self) -> Tensor:
        """The features (FEATURES,) of a chunk in which nothing is heard."""
        return self.standardised(log_mel(torch.zeros(PAST + CHUNK)))[0]

    def chunk(self, samples: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """The features (FEATURES,) of one chunk (CHUNK,) as it comes in, and the past (PAST,) of
        the next one."""
        heard = torch.cat([past, samples])
        return self.standardised(log_mel(heard))[0], heard[-PAST:]


def hide(inputs: NDArray[np.float32], generator: np.random.Generator) -> None:
    """Make each window (T, FEATURES) louder or softer, and put the mean, 0, in place of some
    neighbouring bands and, about twice in five seconds, of some chunks (Park et al. 2019,
    "SpecAugment")."""
    seq_len = inputs.shape[1]
    for window in inputs:
        window += np.float32(generator.normal(0, _LOUDNESS))
        bands = window.reshape(seq_len, -1, BANDS)
        first, count = generator.integers(BANDS), generator.integers(_HIDDEN_BANDS + 1)
        bands[:, :, first : first + count] = 0
        for _ in range(max(1, round(seq_len / _CHUNKS_A_STRETCH))):
            first, count = generator.integers(seq_len), generator.integers(_HIDDEN_CHUNKS + 1)
            window[first : first + count] = 0
