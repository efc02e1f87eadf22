"""Decoding of many sequences at once, as a server does it: each has read a context of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from workloads.mixer import repeated
from workloads.subject import Subject

ROOM = 32
"""Tokens that a batch may be decoded for."""


def of_a_batch(subject: Subject) -> Callable[[], object]:
    """Makes ready `subject.batch_size` sequences after `seq_len` tokens of context; what it returns
    decodes one token of each, up to ROOM times.

    One sequence is read through prefill and its state repeated: what is read in what pieces is the
    server's choice, and the memory of a prefill no part of decoding.
    """
    with torch.inference_mode():
        one = Subject(replace(subject.cell, batch_size=1), subject.built, subject.device)
        _, state = one.prefilled(room=ROOM)
        state = repeated(state, subject.batch_size)
        token = one.made[:, -1].repeat_interleave(subject.batch_size, dim=0)

    @torch.inference_mode()
    def step() -> None:
        nonlocal state
        _, state = one.model.step(token, state)

    return step
