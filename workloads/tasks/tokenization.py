"""Text to tokens and back: the bytes themselves, or a byte-level BPE trained on the train split
alone.

Token 0 ends a document in both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.tasks.headway import counted

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
    model.train_from_iterator(counted(documents, "reading for the tokenizer"), trainer)
    # The byte-level alphabet writes every byte as one character, so characters count bytes.
    token_bytes = np.zeros(vocab_size, dtype=np.int32)
    for token, index in model.get_vocab().items():
        token_bytes[index] = 1 if token == separator else len(token)
    name = f"byte-level BPE {model.get_vocab_size()} (tokenizers {tokenizers.__version__})"
    return BpeTokenizer(name, token_bytes, model)


def learnt(name: str, documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer that a task's option `tokenizer` names: `bytes`, or a BPE of `documents`."""
    return byte_tokenizer() if name == "bytes" else train_bpe(documents, vocab_size)


def size_of(name: str, vocab_size: int) -> int:
    """How many tokens that tokenizer has."""
    return 256 if name == "bytes" else vocab_size


def unit_of(name: str) -> str:
    """What a length in its tokens counts."""
    return "bytes" if name == "bytes" else "BPE tokens"


def check(tokenizer: str, vocab_size: int, default: int) -> None:
    """Refuse, with a ValueError, a task's option `tokenizer` that is none, or a `vocab_size` that
    it cannot have."""
    if tokenizer not in ("bytes", "bpe"):
        raise ValueError(f"tokenizer must be 'bytes' or 'bpe', not {tokenizer!r}")
    if tokenizer == "bytes" and vocab_size != default:
        raise ValueError("vocab_size belongs to `tokenizer: bpe`; bytes are always 256")
    if not SMALLEST_BPE <= vocab_size <= 2**20:
        raise ValueError(
            f"vocab_size must lie between {SMALLEST_BPE} and {2**20}, not {vocab_size}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The bytes of each token, one after another, and where each token's begin (one more than
    tokens)."""

    content: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def text(self, tokens: NDArray[Any]) -> str:
        """What tokens say. Those that are no text say nothing; bytes that are no UTF-8 become
        U+FFFD."""
        known = tokens[tokens < len(self.starts) - 1]
        pieces = (self.content[self.starts[one] : self.starts[one + 1]] for one in known)
        return b"".join(piece.tobytes() for piece in pieces).decode("utf-8", errors="replace")


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The bytes behind a tokenizer's tokens; none behind token 0, which ends a document."""
    pieces = [b""] + [bytes([one]) for one in range(1, 256)]
    if isinstance(tokenizer, BpeTokenizer):
        byte_of = {letter: byte for byte, letter in enumerate(_letters_of_bytes())}
        names = [
            str(tokenizer.model.id_to_token(i)) for i in range(tokenizer.model.get_vocab_size())
        ]
        pieces = [b""] + [bytes(byte_of[letter] for letter in name) for name in names[1:]]
    return Vocabulary(
        content=np.frombuffer(b"".join(pieces), dtype=np.uint8),
        starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
    )


def _letters_of_bytes() -> list[str]:
    """How a byte-level BPE writes each byte: as itself where that is a visible Latin-1 character,
    else as the next character from U+0100 (as in GPT-2)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]
