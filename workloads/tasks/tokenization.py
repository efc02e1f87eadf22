"""Text to tokens: the bytes themselves, or a byte-level BPE trained on the train split alone.

Token 0 ends a document in both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEPARATOR = 0
# A byte-level BPE holds the 256 bytes and the separator before its first merge.
SMALLEST_BPE = 257


@dataclass(frozen=True, slots=True)
class Tokenizer(ABC):
    """What a token stream is made with. `token_bytes[id]`: bytes of text a token stands for; the
    separator counts as one."""

    name: str
    token_bytes: NDArray[np.int32]

    @abstractmethod
    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[Any]]:
        """Token ids of each document, without the separator."""


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes, vocabulary 256. Byte 0, which no text needs, ends a document."""

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[Any]]:
        for document in documents:
            text = document.replace("\0", "").encode("utf-8", errors="replace")
            yield np.frombuffer(text, dtype=np.uint8)


def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer("bytes", np.ones(256, dtype=np.int32))


@dataclass(frozen=True, slots=True)
class BpeTokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; over bytes as in GPT-2)."""

    model: Any

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[Any]]:
        for document in documents:
            ids = self.model.encode(document, add_special_tokens=False).ids
            yield np.array(ids, dtype=np.uint32)


def train_bpe(documents: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """A BPE of at most `vocab_size` tokens, learnt from these documents. Deterministic."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    separator = "<|document|>"
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[separator],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(documents, trainer)
    # The byte-level alphabet writes every byte as one character, so characters count bytes.
    token_bytes = np.zeros(vocab_size, dtype=np.int32)
    for token, index in model.get_vocab().items():
        token_bytes[index] = 1 if token == separator else len(token)
    name = f"byte-level BPE {model.get_vocab_size()} (tokenizers {tokenizers.__version__})"
    return BpeTokenizer(name, token_bytes, model)
