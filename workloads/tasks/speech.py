"""Streaming speech to text: say the letters of what is heard, chunk by chunk, hearing no future.

    heard     ....|pl|ea|se| h|ol|d.|....|....|tr|y |ag|ai|n.|....   40 ms of log-mel a position
    said      -  -  p  l  ee -  s  e  -     seq_len positions, each a letter, a space or the blank
    target    please hold try again         the letters in order; where they fall is not told (CTC)

Every position takes one 40 ms chunk of 8 kHz sound (`audio.py`) and scores 26 letters, apostrophe,
space and, as output 0, the blank (Graves et al. 2006, "Connectionist temporal classification").
Utterances are packed into windows of exactly seq_len chunks with 80 to 240 ms of silence after
each, and silence to the end; the target is the transcripts of all that is in the window. What is
longer than the window is left out of it. Training windows have a few bands and stretches hidden and
their loudness changed a little (`augment`; Park et al. 2019, "SpecAugment"), for 19 minutes of
speech are learnt by heart otherwise; what is scored has nothing hidden.

Data by default: prompts of a telephone exchange by one speaker, Allison Smith (Debian package
asterisk-core-sounds-en-wav 1.6.1-1, transcripts in asterisk-core-sounds-en; CC BY-SA 3.0),
fetched by `infra/speech.sh`. 15 in 100 utterances test and 10 validate, by a hash of the name, so
spoken digits and letters are on all sides, and so are some sentences, in other recordings (`facts`
say how many); of recordings that are equal byte by byte one is kept. Held out: five sentences of
another speaker, "Sense and Sensibility" from LibriVox (public domain; Debian package
pocketsphinx-testdata, BSD-2).
`source: huggingface` takes rows with sound and text, `path` WAV files with a .txt beside each;
there the utterances of one speaker are held out if rows name more than two (`speaker_id`), else
none. `source: synthetic` is tones that spell letters, for trying things, and is no speech.

Scored on the greedy path (the best output of each position, repeats merged, blanks dropped), by
Levenshtein distance over what was said: test utterances, each once, in windows of seq_len that are
the same for every architecture and seed; each held-out utterance alone, in a window of seq_len or,
where it is longer, of its own. Errors count every word that is not there, so saying nothing has an
error rate of exactly 1 (`baseline_*` in the facts), and more than 1 is possible. As metrics,
`baseline_word_error_rate` and `baseline_character_error_rate` are those of the better of two that
need no model: who says nothing, and who says training's most frequent word once an utterance.

Settings are to be chosen by `validation_loss`: nats a label of the validation utterances, packed as
the test's, without those that say more than their chunks can hold. Its baseline hears nothing: it
is told where each letter falls, and knows how often each comes in training.

Latency is that of the step form on test sound, batch 1, one thread, float32: from the samples of a
chunk to its letter, features included (they cost the same everywhere; `decode_time` is without).
What a listener waits for is that and the 40 ms of the chunk. Of a thousand chunks each second is
kept as a sample, so tables show the median; `chunk_latency_p99` is the 99th percentile of the same.

With `reference: true` the report has rows of models that were not trained here
(`packaged_models.py`): pocketsphinx 5.1.1 (hidden Markov models and a language model of trigrams,
BSD-2) on the held-out clips, with its CPU seconds for a chunk, and what a chunk takes the LSTM of
silero-vad 6.2.3 (MIT), which detects voices. They are taken once a machine, with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workloads.cell import Scalar
from workloads.ends import Ends
from workloads.objectives import CTC
from workloads.plugins import Evaluation, Metric, Task, Unsupported
from workloads.tasks import packaged_models, recordings, sources
from workloads.tasks.audio import CHUNK_SECONDS, FEATURES
from workloads.tasks.data import Arrays, folder_name, prepared
from workloads.tasks.lengths import by_length
from workloads.tasks.listening import chunk_seconds
from workloads.tasks.recordings import Recordings
from workloads.tasks.transcripts import ALPHABET, collapsed, error_rate
from workloads.tasks.utterances import TEST_GAP, Speech, Window, encoded
from workloads.train import MICRO_BATCH_TOKENS, TrainedModel, outputs_of

VERSION = 1
_OF_HUB = ("dataset", "config", "split", "audio_column", "text_column")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """source: `packaged` recordings, rows of a data set of the `huggingface` hub, or `synthetic`
    tones.

    dataset, config, split: as `datasets.load_dataset` takes them; the split is divided by utterance
    into what trains, validates and tests. audio_column, text_column: its columns.
    augment: hide parts of what is trained on, other parts at each update.
    path: a folder of your own WAV files, each with its words in a .txt of the same name.
    reference: also run packaged models over the held-out clips, for ten seconds once a machine.
    """

    source: Literal["packaged", "huggingface", "synthetic"] = "packaged"
    dataset: str = "hf-internal-testing/librispeech_asr_dummy"
    config: str = "clean"
    split: str = "validation"
    audio_column: str = "audio"
    text_column: str = "text"
    augment: bool = True
    path: str = ""
    reference: bool = False

    def __post_init__(self) -> None:
        if self.source not in ("packaged", "huggingface", "synthetic"):
            raise ValueError(
                f"source must be 'packaged', 'huggingface' or 'synthetic', not {self.source!r}"
            )
        for f in fields(self):
            if (
                self.source != "huggingface"
                and f.name in _OF_HUB
                and getattr(self, f.name) != f.default
            ):
                raise ValueError(f"{f.name} belongs to `source: huggingface`")
        if self.path and self.source != "packaged":
            raise ValueError("path: your own recordings take the place of a source; leave it out")
        if self.reference and (self.path or self.source != "packaged"):
            raise ValueError("reference: packaged models are run on the packaged clips alone")


def missing(options: Options) -> str | None:
    """Why there is nothing to hear, with the mend."""
    if options.source != "packaged":
        return None
    if options.path:
        found = next(Path(options.path).expanduser().rglob("*.wav"), None)
        return None if found else f"{options.path}: there is no .wav file here or below"
    if why := recordings.absent():
        return why
    if options.reference and (why := packaged_models.missing()):
        return f"reference: {why}"
    return None


def prepare(options: Options, folder: Path) -> Speech:
    """Features, labels and test sound in a sub-folder of `folder`.

    Raises:
        ValueError: the recordings are not here, or cannot be read.
    """
    key, build = _key(options), lambda: encoded(_recordings(options))
    found = prepared(folder / "speech" / key, build)
    facts = dict(found.facts)
    if options.reference:
        if why := packaged_models.missing():
            raise ValueError(f"reference: {why}")
        name = folder_name(packaged_models.names(), {"version": packaged_models.VERSION})
        facts |= prepared(folder / "speech" / name, _reference).facts
        facts["data_sha256"] = found.facts["data_sha256"]
    return Speech(**found.arrays, facts=facts, augment=options.augment)


def _key(options: Options) -> str:
    source = "own" if options.path else options.source
    deciding: dict[str, Scalar] = {"version": VERSION, "source": source}
    if options.source == "huggingface":
        deciding |= {name: getattr(options, name) for name in _OF_HUB}
    if options.path:
        deciding["content"] = sources.own_hash(options.path)
    return folder_name(source, deciding)


def _recordings(options: Options) -> Recordings:
    if options.path:
        return recordings.own(options.path)
    if options.source == "huggingface":
        return recordings.hub(
            options.dataset,
            options.config,
            options.split,
            options.audio_column,
            options.text_column,
        )
    return recordings.synthetic() if options.source == "synthetic" else recordings.packaged()


def _reference() -> Arrays:
    """What packaged models make of the held-out clips."""
    return Arrays(arrays={}, facts=packaged_models.facts(recordings.clips()))


# Scores


@torch.inference_mode()
def _outputs(
    trained: TrainedModel, windows: Sequence[Window], seq_len: int
) -> Iterator[tuple[Sequence[Window], Tensor]]:
    """Windows, a few at a time, and what the parallel form makes of them (windows, seq_len, O)."""
    data: Speech = trained.data
    rows = max(1, MICRO_BATCH_TOKENS // seq_len)
    for start in range(0, len(windows), rows):
        part = windows[start : start + rows]
        inputs = torch.from_numpy(data.inputs(part, seq_len)).to(trained.device)
        yield part, outputs_of(trained.model, inputs, trained.cell.precision)


def _transcribed(trained: TrainedModel, windows: Sequence[Window], seq_len: int) -> list[str]:
    """What is said to each window, greedily."""
    return [
        collapsed(path)
        for _, outputs in _outputs(trained, windows, seq_len)
        for path in outputs.argmax(-1).cpu().numpy()
    ]


def _validation_loss(trained: TrainedModel) -> Evaluation:
    data: Speech = trained.data
    seq_len = trained.cell.seq_len
    try:
        windows = data.packed(seq_len, split="validation")
    except ValueError as error:
        raise Unsupported(str(error)) from None
    total = labels = 0.0
    for part, outputs in _outputs(trained, windows, seq_len):
        targets = torch.from_numpy(data.targets(part)).to(trained.device)
        total += float(CTC.total(outputs, targets))
        labels += int(CTC.scored(targets))
    return Evaluation(samples=(total / labels,))


def _pairs(trained: TrainedModel, seq_len: int, longest: int) -> list[tuple[str, str]]:
    """What was said and what was meant in each test window of utterances up to a length; computed
    once."""
    key = f"pairs {seq_len} {longest}"
    if key not in trained.memo:
        windows = trained.data.packed(seq_len, longest)
        said = _transcribed(trained, windows, seq_len)
        meant = [trained.data.said(window) for window in windows]
        trained.memo[key] = list(zip(said, meant, strict=True))
    pairs: list[tuple[str, str]] = trained.memo[key]
    return pairs


def _test_error_rate(trained: TrainedModel, *, words: bool) -> Evaluation:
    seq_len = trained.cell.seq_len
    return Evaluation(samples=(error_rate(_pairs(trained, seq_len, seq_len), words=words),))


def _error_rate_by_length(trained: TrainedModel) -> Evaluation:
    """Of utterances that fit into the shortest of the lengths, so that each length says the
    same."""
    shortest = min((trained.cell.seq_len, *trained.cell.eval_seq_len))
    try:
        trained.data.packed(shortest)
    except ValueError as error:
        raise Unsupported(str(error)) from None
    return by_length(
        trained, lambda length: error_rate(_pairs(trained, length, shortest), words=False)
    )


def _without_a_model(trained: TrainedModel, *, words: bool) -> Evaluation:
    """The better of who says nothing and who says one word once an utterance."""
    data: Speech = trained.data
    word = str(data.facts["most_frequent_word"])
    windows = data.packed(trained.cell.seq_len)
    pairs = [(" ".join([word] * len(window)), data.said(window)) for window in windows]
    silent = [("", meant) for _, meant in pairs]
    best = min(error_rate(said, words=words) for said in (pairs, silent))
    return Evaluation(samples=(best,))


def _held_out_error_rate(trained: TrainedModel, *, words: bool) -> Evaluation:
    data: Speech = trained.data
    utterances = data.of("held_out").tolist()
    if not utterances:
        raise Unsupported("these data have no speaker held out")
    if "held out" not in trained.memo:
        pairs: list[tuple[str, str]] = []
        for one in utterances:
            room = max(trained.cell.seq_len, len(data.chunks(one)) + TEST_GAP)
            pairs.append((_transcribed(trained, [((one, 0),)], room)[0], data.text(one)))
        trained.memo["held out"] = pairs
    return Evaluation(samples=(error_rate(trained.memo["held out"], words=words),))


# Streaming


def _latency(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=tuple(chunk_seconds(trained).tolist()))


def _latency_p99(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(float(np.quantile(chunk_seconds(trained), 0.99)),))


def _real_time_factor(trained: TrainedModel) -> Evaluation:
    return Evaluation(samples=(float(chunk_seconds(trained).mean()) / CHUNK_SECONDS,))


def _rate(title: str, evaluate: Callable[[TrainedModel], Evaluation]) -> Metric:
    return Metric(title=title, version=1, unit="1", scale="difference", evaluate=evaluate)


TASK = Task(
    title="streaming speech to text",
    version=VERSION,
    options=Options,
    token_unit=lambda options: "40 ms chunks",
    ends=lambda options: Ends(features=FEATURES, outputs=len(ALPHABET)),
    prepare=prepare,
    objective=lambda options: CTC,
    missing=missing,
    metrics={
        "validation_loss": Metric(
            title="loss of utterances to validate",
            version=1,
            unit=CTC.unit,
            evaluate=_validation_loss,
        ),
        "word_error_rate": _rate("word error rate", partial(_test_error_rate, words=True)),
        "character_error_rate": _rate(
            "character error rate", partial(_test_error_rate, words=False)
        ),
        "character_error_rate_by_length": _rate(
            "character error rate by length of the window", _error_rate_by_length
        ),
        "held_out_word_error_rate": _rate(
            "word error rate on another speaker", partial(_held_out_error_rate, words=True)
        ),
        "held_out_character_error_rate": _rate(
            "character error rate on another speaker", partial(_held_out_error_rate, words=False)
        ),
        "baseline_word_error_rate": _rate(
            "word error rate without a model", partial(_without_a_model, words=True)
        ),
        "baseline_character_error_rate": _rate(
            "character error rate without a model", partial(_without_a_model, words=False)
        ),
        "chunk_latency": Metric(
            title="seconds from a chunk of sound to its letter",
            version=1,
            unit="s",
            evaluate=_latency,
        ),
        "chunk_latency_p99": Metric(
            title="99th percentile of the seconds from a chunk of sound to its letter",
            version=1,
            unit="s",
            evaluate=_latency_p99,
        ),
        "real_time_factor": Metric(
            title="seconds of computing for a second of sound",
            version=1,
            unit="1",
            evaluate=_real_time_factor,
        ),
    },
)
