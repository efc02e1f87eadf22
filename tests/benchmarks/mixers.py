"""Every mixer beside the best form of it that a library runs on a CPU: one layer's training step,
and decoding, in one process, interleaved.

Training: forward and backward, gradients of inputs and parameters, of a layer 128 wide with 2 heads
on 4 sequences, float32, one thread. Decoding: a step at batch 1 and 16, the mean of 16 steps after
the context, in inference mode. A figure of a round is the fastest call in it; forms take turns,
back and forth. A ratio is the rival's time over ours (1.20x: ours is faster): of the fastest
rounds, in brackets of the median rounds. Before the timing outputs and gradients are compared.

Shares are of two ceilings, each measured in every round: of the best that it has reached so far.
gemm: the layer's declared FLOPs, three times forward, over its training step's time, of the rate of
torch's product of two 1024 x 1024 matrices. A library with its own matrix products (oneDNN in
nn.LSTM) can be above it. copy: the bytes of the layer's weights and of its declared decoding states
over a decoding step's time, of the rate (read and written) of a copy much larger than any cache. A
layer that stays in a cache, as one so narrow may, can be above it.

Where an architecture has several rivals, the headline is of the best in each case: the least ratio.

    python -m tests.benchmarks.mixers [--contexts 128 256 512 1024] [--rounds 5] [--only NAME ...]

The libraries are those of the `dev` extra, and two that ask for Triton, which their plain forms do
without. fla: `pip install --no-deps fla-core`, or into a folder of its own (`--target FOLDER`) with
FLA_FOLDER=FOLDER/fla. flashrnn: `pip install --no-deps flashrnn==1.0.8`, or a folder in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.benchmarks.rivals import (
    BATCH,
    HEADS,
    RIVALS,
    WIDTH,
    Decoder,
    Layer,
    Rival,
)
from workloads import plugins, registry
from workloads.plugins import Architecture

SKIPPED = ("none", "hybrid", "stacked_rnn")
"""No mixer, or the others' modules again."""
DECODED = (1, 16)
TRAINING_SECONDS, DECODING_SECONDS = 0.1, 0.02
"""What a round gives one form, at least one call."""
TURNS = 4
"""Parts of a round, in each of which every form has its turn: what else runs here meets all."""
TOLERANCE = 1e-3
GEMM, GEMM_SECONDS = 1024, 0.05
COPY_BYTES, COPY_SECONDS = 64 << 20, 0.1

Sample = Callable[[], float]
"""Runs a form once; the seconds of it."""


@dataclass(slots=True)
class Form:
    """Something timed, and its fastest call in each round."""

    sample: Sample
    seconds: float
    rounds: list[float] = field(default_factory=list)
    spent: float = 0.0

    def begin_round(self) -> None:
        self.rounds.append(math.inf)
        self.spent = 0.0

    def turn(self) -> None:
        """A part of the round's time, or one call; nothing once the time is spent."""
        end = self.spent + self.seconds / TURNS
        while self.spent < min(end, self.seconds):
            start = time.perf_counter()
            self.rounds[-1] = min(self.rounds[-1], self.sample())
            self.spent += time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the machine does at best: `work` (FLOPs or bytes) in a call of the form."""

    form: Form
    work: float

    def rate(self) -> float:
        """The best of all rounds so far, a second."""
        return self.work / min(self.form.rounds)


@dataclass(frozen=True, slots=True)
class Versus:
    """Ours and the rival's form of the same work; `different` where they disagree."""

    ours: Form
    rival: Form
    different: str = ""

    def ratio(self) -> float:
        return min(self.rival.rounds) / min(self.ours.rounds)

    def median_ratio(self) -> float:
        return statistics.median(self.rival.rounds) / statistics.median(self.ours.rounds)


@dataclass(frozen=True, slots=True)
class Result:
    architecture: str
    rival: str
    context: int
    work: str
    ratio: float
    median: float


def training_form(
    forward: Callable[..., Tensor], leaves: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[Form, list[Tensor]]:
    """The form, and the output and the leaves' gradients that it gives."""
    inputs = [x.detach().clone().requires_grad_() for x in leaves]
    wanted = [*inputs, *(p for p in parameters if p.requires_grad)]
    output = forward(*inputs)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad(output, wanted, weight, allow_unused=True)
    found = [torch.zeros(()) if x is None else x for x in gradients[: len(inputs)]]

    def sample() -> float:
        start = time.perf_counter()
        torch.autograd.grad(forward(*inputs), wanted, weight, allow_unused=True)
        return time.perf_counter() - start

    return Form(sample, TRAINING_SECONDS), [output.detach(), *found]


def decoding_form(
    decoder: Decoder, tokens: Sequence[tuple[Tensor, ...]]
) -> tuple[Form, list[Tensor]]:
    """The form, and the outputs of its steps."""

    @torch.inference_mode()
    def decode() -> tuple[float, list[Tensor]]:
        state, step, outputs = copy.deepcopy(decoder.state), decoder.step, []
        start = time.perf_counter()
        for token in tokens:
            output, state = step(*token, state)
            outputs.append(output)
        return (time.perf_counter() - start) / len(tokens), outputs

    return Form(lambda: decode()[0], DECODING_SECONDS), [torch.stack(decode()[1])]


def difference(ours: list[Tensor], rivals: list[Tensor]) -> str:
    """What differs by more than the tolerance, relative to its norm; empty where nothing does."""
    names = ["output", *(f"gradient {i}" for i in range(len(ours) - 1))]
    found = []
    for name, one, other in zip(names, ours, rivals, strict=True):
        if one.shape != other.shape:
            found.append(f"{name} of shape {tuple(other.shape)}, ours {tuple(one.shape)}")
            continue
        error = float((one - other).norm() / one.norm())
        if not error <= TOLERANCE:
            found.append(f"{name} by {error:.0e}")
    return ", ".join(found)


class Contest:
    """One architecture at one context: its layer's forms, and each rival's beside ours."""

    def __init__(
        self, layer: Layer, rivals: Sequence[Rival], context: int, ceilings: Sequence[Ceiling]
    ) -> None:
        self.notes: dict[str, str] = {}
        self.ceilings = [ceiling.form for ceiling in ceilings]
        self.found: dict[tuple[str, str], Versus] = {}
        x = layer.inputs(BATCH, context)
        parameters = list(layer.mixer.parameters())
        self.layer, own = {}, {}
        self.layer["training"], own["training"] = training_form(layer.mixer, (x,), parameters)
        for batch in DECODED:
            decoder = Decoder(layer.after(batch, context), layer.mixer.step)
            self.layer[f"decode {batch}"], own[f"decode {batch}"] = decoding_form(
                decoder, layer.tokens(batch)
            )
        for rival in rivals:
            try:
                self._training(layer, rival, context, own["training"])
                for batch in DECODED:
                    self._decoding(layer, rival, context, batch, own[f"decode {batch}"])
            except ImportError as error:
                self.notes[rival.name] = f"not installed ({error})"
            except Exception as error:  # whatever a library raises costs its own row alone
                self.notes[rival.name] = f"failed: {type(error).__name__}: {error}"

    def _training(self, layer: Layer, rival: Rival, context: int, own: list[Tensor]) -> None:
        if rival.training is None:
            return
        case = rival.training(layer, context)
        ours = self.layer["training"]
        if case.ours is not None:
            ours, own = training_form(case.ours, case.leaves, case.own_parameters)
        form, theirs = training_form(case.rival, case.leaves, case.parameters)
        self.found[rival.name, "training"] = Versus(ours, form, difference(own, theirs))

    def _decoding(
        self, layer: Layer, rival: Rival, context: int, batch: int, own: list[Tensor]
    ) -> None:
        if rival.decoding is None:
            return
        case = rival.decoding(layer, batch, context)
        ours = self.layer[f"decode {batch}"]
        if case.ours is not None:
            ours, own = decoding_form(case.ours, case.tokens)
        form, theirs = decoding_form(case.rival, case.tokens)
        self.found[rival.name, f"decode {batch}"] = Versus(ours, form, difference(own, theirs))

    def time(self, rounds: int) -> None:
        """Every form in turn, `rounds` times, back and forth."""
        pairs = itertools.chain.from_iterable((v.ours, v.rival) for v in self.found.values())
        forms = {id(form): form for form in (*self.ceilings, *self.layer.values(), *pairs)}
        order = list(forms.values())
        gc.collect()
        gc.disable()
        try:
            for _ in range(rounds):
                for form in order:
                    form.begin_round()
                for _ in range(TURNS):
                    for form in order:
                        form.turn()
                    order.reverse()
        finally:
            gc.enable()


def product_ceiling() -> Ceiling:
    a, b, out = torch.randn(3, GEMM, GEMM)
    return ceiling(lambda: torch.mm(a, b, out=out), GEMM_SECONDS, 2 * GEMM**3)


def copy_ceiling() -> Ceiling:
    source = torch.zeros(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return ceiling(lambda: target.copy_(source), COPY_SECONDS, 2 * COPY_BYTES)


def ceiling(function: Callable[[], object], seconds: float, work: float) -> Ceiling:
    """With a first round of its own, so that it has a rate from the start."""

    def sample() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return Ceiling(Form(sample, seconds, [min(sample() for _ in range(20))]), work)


def built(architecture: Architecture) -> Layer:
    names = {f.name for f in dataclasses.fields(architecture.options)}
    options = plugins.build_options(
        architecture.options, {"heads": HEADS} if "heads" in names else {}
    )
    torch.manual_seed(0)
    mixer = architecture.mixer(WIDTH, options)
    assert mixer is not None
    mixer.initialise(2**-0.5)
    return Layer(mixer, options)


WORKS = ("training", *(f"decode {batch}" for batch in DECODED))
HEADER = (
    f"{'architecture':<17}{'rival':<19}{'T':>5} | {'layer':>8} {'gemm':>6}"
    + "".join(f" {f'copy B{batch}':>8}" for batch in DECODED)
    + f" | {'training: ours':>15} {'rival':>8} {'ratio':>16}"
    + "".join(f" | {f'decode B{batch}: ours':>15} {'rival':>7} {'ratio':>16}" for batch in DECODED)
)


def shares(
    architecture: Architecture,
    layer: Layer,
    context: int,
    contest: Contest,
    product: Ceiling,
    copied: Ceiling,
) -> list[float]:
    """The layer's own, for each of WORKS: of the product in training, of the copy in decoding."""
    seconds = {work: min(form.rounds) for work, form in contest.layer.items()}
    forward = architecture.flops_per_token(WIDTH, layer.options, context)
    found = [3 * forward * BATCH * context / seconds["training"] / product.rate()]
    weights = sum(p.numel() * p.element_size() for p in layer.mixer.parameters())
    state = architecture.state_bytes(WIDTH, layer.options, context, 4)
    for batch in DECODED:
        found.append((weights + state * batch) / seconds[f"decode {batch}"] / copied.rate())
    return found


def row(name: str, rival: str, context: int, shares: Sequence[float], contest: Contest) -> str:
    milliseconds = min(contest.layer["training"].rounds) * 1e3
    training, *decoding = shares
    text = f"{name:<17}{rival:<19}{context:>5} | {milliseconds:>8.2f} {training:>6.0%}"
    text += "".join(f" {share:>8.0%}" for share in decoding)
    for work in WORKS:
        versus, digits = contest.found.get((rival, work)), 2 if work == "training" else 3
        wide = 8 if work == "training" else 7
        if versus is None:
            own = "" if work == "training" else f"{min(contest.layer[work].rounds) * 1e3:.3f}"
            text += f" | {own:>15} {'-':>{wide}} {'-':>16}"
            continue
        ours, other = (min(form.rounds) * 1e3 for form in (versus.ours, versus.rival))
        ratio = f"{versus.ratio():.2f}x ({versus.median_ratio():.2f}x)"
        text += f" | {ours:>15.{digits}f} {other:>{wide}.{digits}f} {ratio:>16}"
    return text


def compare(names: Sequence[str], contexts: Sequence[int], rounds: int) -> tuple[list[Result], int]:
    """Prints the table; every ratio, and how many rows failed or differ."""
    results, bad = [], 0
    product, copied = product_ceiling(), copy_ceiling()
    print(HEADER, "  (milliseconds)", flush=True)
    for name in names:
        architecture = registry.load("architectures", name)
        rivals = RIVALS.get(name, ())
        for rival in rivals:
            print(f"# {name}, {rival.name}: {rival.compared}")
        for context in contexts:
            layer = built(architecture)
            contest = Contest(layer, rivals, context, (product, copied))
            contest.time(rounds)
            reached = shares(architecture, layer, context, contest, product, copied)
            for label in [rival.name for rival in rivals] or ["none"]:
                print(row(name, label, context, reached, contest), flush=True)
                if note := contest.notes.get(label):
                    print(f"  ! {name}, {label}: {note}")
                    bad += note.startswith("failed")
            for (label, work), versus in contest.found.items():
                if versus.different:
                    print(f"  ! {name}, {label}, {work}: differs from ours: {versus.different}")
                    bad += 1
                results.append(
                    Result(name, label, context, work, versus.ratio(), versus.median_ratio())
                )
    print(
        f"measured ceilings, float32, one thread: gemm {product.rate() / 1e9:.1f} GFLOP/s, "
        f"copy {copied.rate() / 1e9:.1f} GB/s"
    )
    return results, bad


def best_rivals(results: Sequence[Result]) -> list[Result]:
    """Of each architecture, context and work the rival that is fastest beside ours."""
    best: dict[tuple[str, int, str], Result] = {}
    for result in results:
        key = result.architecture, result.context, result.work
        best[key] = min(best.get(key, result), result, key=lambda r: r.ratio)
    return list(best.values())


def summarise(results: Sequence[Result], names: Sequence[str]) -> None:
    print("geometric means of rival / ours (in brackets of the medians), the best rival's each:")
    for work in WORKS:
        some = [r for r in results if r.work == work]
        best = best_rivals(some)
        if best:
            mean = statistics.geometric_mean(r.ratio for r in best)
            median = statistics.geometric_mean(r.median for r in best)
            print(f"  {work:<10} {mean:.2f}x ({median:.2f}x) of {len(best)} cases")
            for name in sorted({(r.architecture, r.rival) for r in some}):
                own = [r.ratio for r in some if (r.architecture, r.rival) == name]
                print(f"    {name[0]:<17}{name[1]:<19} {statistics.geometric_mean(own):.2f}x")
    cases = best_rivals(results)
    alone = sorted(set(names) - {result.architecture for result in results})
    print(f"beside nothing (no rival is installed, or there is none): {', '.join(alone) or 'none'}")
    print(f"slower than the best rival: {sum(r.ratio < 1 for r in cases)} of {len(cases)} cases")
    for r in sorted((r for r in results if r.ratio < 1), key=lambda r: r.ratio):
        where = f"{r.architecture}, {r.rival}, T {r.context}, {r.work}"
        print(f"  {where}: {r.ratio:.2f}x ({r.median:.2f}x)")


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [name for name in registry.names("architectures") if name not in SKIPPED]
    arguments.add_argument("--contexts", type=int, nargs="+", default=[128, 256, 512, 1024])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", nargs="+", metavar="NAME", choices=known, default=known)
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    results, bad = compare(asked.only, asked.contexts, asked.rounds)
    summarise(results, asked.only)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
