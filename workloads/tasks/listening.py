"""Listening as sound comes in: from the samples of a chunk to its letter, and the time it takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads import collector
from workloads.model import Backbone
from workloads.tasks import audio
from workloads.tasks.audio import CHUNK, FrontEnd
from workloads.tasks.utterances import Speech
from workloads.train import TrainedModel

TIMED_CHUNKS = 1000
_UNTIMED_CHUNKS = 20


class Listener:
    """A model that hears sound as it comes in: samples of a chunk in, outputs (O,) out. The state
    has room for so many chunks."""

    def __init__(
        self, model: Backbone, front_end: FrontEnd, device: torch.device, room: int
    ) -> None:
        self.model, self.front_end, self.device = model, front_end, device
        self.state = model.empty_state(1, room)
        self.past = torch.zeros(audio.PAST)

    @torch.inference_mode()
    def hear(self, samples: Tensor) -> Tensor:
        features, self.past = self.front_end.chunk(samples, self.past)
        outputs, self.state = self.model.step(features[None].to(self.device), self.state)
        return outputs[0]


def chunk_seconds(trained: TrainedModel) -> NDArray[np.float64]:
    """What each of TIMED_CHUNKS chunks of test sound took from samples to letter; computed once."""
    if "seconds" not in trained.memo:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        gc.collect()
        try:
            with collector.paused():
                trained.memo["seconds"] = np.array(_timed(trained))
        finally:
            torch.set_num_threads(threads)
    seconds: NDArray[np.float64] = trained.memo["seconds"]
    return seconds


def _timed(trained: TrainedModel) -> list[float]:
    data: Speech = trained.data
    seq_len, front_end = trained.cell.seq_len, data.front_end()
    windows = [audio.as_floats(data.sound(one, seq_len)) for one in data.packed(seq_len)]

    def listen(window: Tensor, chunks: int) -> Iterator[float]:
        listener = Listener(trained.model, front_end, trained.device, seq_len)
        for samples in torch.split(window, CHUNK)[:chunks]:
            begun = time.perf_counter()
            int(listener.hear(samples).argmax())  # read, so an accelerator has done it
            yield time.perf_counter() - begun

    for _ in listen(windows[0], _UNTIMED_CHUNKS):
        pass
    seconds: list[float] = []
    while len(seconds) < TIMED_CHUNKS:
        for window in windows:
            seconds += listen(window, TIMED_CHUNKS - len(seconds))
    return seconds
