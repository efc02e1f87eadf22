"""Greedy generation: a prompt is read in one pass, and each token after it in one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.model import Backbone


@torch.inference_mode()
def generate(
    model: Backbone, prompts: Sequence[NDArray[Any]], max_new_tokens: int, end: int, rows: int
) -> list[NDArray[np.int64]]:
    """Each prompt's continuation by the step form: the token with the highest score, again and
    again, until `end` (which is left out) or `max_new_tokens`. In the model's own precision.

    Prompts of one length are read together, at most `rows` of them, so that none needs filling up.
    """
    said: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(prompts)
    for batch in batches(prompts, rows):
        tokens = torch.from_numpy(np.stack([prompts[one] for one in batch]).astype(np.int64))
        found = _steps(model, tokens.to(model.head.weight.device), max_new_tokens, end)
        for one, line in zip(batch, found.cpu().numpy(), strict=True):
            said[one] = until(line, end)
    return said


def batches(prompts: Sequence[NDArray[Any]], rows: int) -> Iterable[list[int]]:
    """Places of prompts of one length, at most `rows` at a time."""
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    for places in by_length.values():
        yield from (places[start : start + rows] for start in range(0, len(places), rows))


def _steps(model: Backbone, prompts: Tensor, max_new_tokens: int, end: int) -> Tensor:
    """(B, up to max_new_tokens) tokens; what follows an `end` means nothing."""
    state = model.empty_state(len(prompts), prompts.shape[1] + max_new_tokens)
    scores, state = model.prefill(prompts, state)
    said = [scores.argmax(-1)]
    ended = said[0] == end
    while len(said) < max_new_tokens and not bool(ended.all()):
        scores, state = model.step(said[-1], state)
        said.append(scores.argmax(-1))
        ended |= said[-1] == end
    return torch.stack(said, 1)


@torch.inference_mode()
def generate_in_parallel_form(
    model: Backbone, prompt: NDArray[Any], max_new_tokens: int, end: int
) -> NDArray[np.int64]:
    """The same for one prompt by the parallel form, which reads everything again for each token:
    slow, and what the step form is held against."""
    tokens = torch.from_numpy(prompt.astype(np.int64)).to(model.head.weight.device)[None]
    for _ in range(max_new_tokens):
        said = model(tokens)[:, -1].argmax(-1)
        tokens = torch.cat([tokens, said[:, None]], 1)
        if int(said) == end:
            break
    return until(tokens[0, len(prompt) :].cpu().numpy(), end)


def until(tokens: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """What comes before the first `end`."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]] if len(ends) else tokens
