"""What running out of memory looks like: allocators say it in many words."""

from __future__ import annotations

import torch

_WORDS = (
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "bad_alloc",
)


def out_of_memory(error: BaseException) -> str | None:
    """What an allocator said when it had no more, in one line; None where the error is another."""
    text = str(error).strip()
    words = isinstance(error, RuntimeError) and any(word in text for word in _WORDS)
    if not (words or isinstance(error, torch.OutOfMemoryError | MemoryError)):
        return None
    return text.splitlines()[0] if text else type(error).__name__
