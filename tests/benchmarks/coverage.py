"""What the statistics promise and what they hold: thousands of simulated sweeps of known truth.

Each draw is a sweep of two labels over eight contexts and five rounds: a law, log-normal noise of
each process, and a drift that hits both labels of a round alike. The figures are shares of draws.
*Coverage* is the share of found crossings whose interval holds the true one; draws that found none,
or more than one, are counted apart, and would count as misses in `covered_of_all`. *Width* is in
octaves of context, against an oracle with the same lines that knows the noise.

    python -m tests.benchmarks.coverage
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis import statistics
from orchestrator.analysis.judgement import Judgement, Line, Range, judge
from orchestrator.analysis.statistics import Noise
from tests.simulated_world import Law, SimulatedWorld, line_crossings

Floats = NDArray[np.float64]
CONTEXTS = np.array([64.0, 128, 256, 384, 512, 1024, 2048, 4096])
ROUNDS = 5
DRAWS = 2000
MARGIN = float(np.log1p(0.05))


def contrasts(
    law: Floats, sigma: Floats | float, draws: int, seed: int, *, shared: float = 0.0
) -> Floats:
    """Log ratios (draws, rounds, contexts) of two labels whose true log ratio is `law`.

    `sigma` is the noise of one process; the ratio's is sqrt 2 times it. `shared` is a noise of the
    ratio that all contexts of a round have in common. Drift hits both labels of a round alike.
    """
    random = np.random.default_rng(seed)
    shape = (draws, ROUNDS, len(law))
    drift = np.cumsum(random.normal(0, 0.1, shape), axis=1)
    baseline = drift + random.normal(0, 1, shape) * sigma
    challenger = law + drift + random.normal(0, 1, shape) * sigma
    return challenger - baseline + random.normal(0, 1, (draws, ROUNDS, 1)) * shared


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Figures of one law, all shares of draws but the widths' ratios to the oracle's."""

    found: float
    several: float
    covered: float
    covered_of_all: float
    open_ended: float
    median_width: float
    mean_width: float
    oracle_covered: float


def crossing_coverage(
    law: Floats,
    truth: float,
    sigma: Floats | float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    shared: float = 0.0,
) -> Coverage:
    """How often the interval of the crossing holds `truth`, and how wide it is."""
    noise = np.broadcast_to(sigma, law.shape) * np.sqrt(2)
    errors = np.sqrt((noise**2 + shared**2) / ROUNDS)
    known = Noise(errors, np.full(len(law), 1e9), pooled=True, shared=shared**2 / ROUNDS)
    judged = [
        (values, judge(values, CONTEXTS, MARGIN))
        for values in contrasts(law, sigma, draws, seed, shared=shared)
    ]
    single = [(values, found.places[0]) for values, found in judged if len(found.places) == 1]
    oracle = [_oracle(values, known, place.seq_len) for values, place in single]
    covered = [place.interval.low <= truth <= place.interval.high for _, place in single]
    widths = np.array([_octaves(place.interval) for _, place in single])
    best = np.array([_octaves(interval) for interval in oracle])
    return Coverage(
        found=len(single) / draws,
        several=sum(len(found.places) > 1 for _, found in judged) / draws,
        covered=float(np.mean(covered)),
        covered_of_all=sum(covered) / draws,
        open_ended=float(np.mean([p.interval.low_open or p.interval.high_open for _, p in single])),
        median_width=float(np.median(widths) / np.median(best)),
        mean_width=float(widths.mean() / best.mean()),
        oracle_covered=float(np.mean([i.low <= truth <= i.high for i in oracle])),
    )


def _oracle(values: Floats, known: Noise, about: float) -> Range:
    """The pointwise interval about the same crossing for one who knows the noise: z = 1.96."""
    line = Line(statistics.means(values), known, np.log2(CONTEXTS))
    return line.fieller(np.log2(about), np.log2(about))


def _octaves(interval: Range) -> float:
    return float(np.log2(interval.high / interval.low))


def outcomes(
    law: Floats,
    sigma: Floats | float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    shared: float = 0.0,
) -> dict[str, float]:
    """The share of draws of each outcome; `any_difference`: where the band excludes zero
    anywhere."""
    shares: dict[str, float] = dict.fromkeys(
        ("crosses", "above", "below", "equivalent", "uncertain", "any_difference"), 0.0
    )
    for values in contrasts(law, sigma, draws, seed, shared=shared):
        found = judge(values, CONTEXTS, MARGIN)
        shares[found.outcome] += 1 / draws
        shares["any_difference"] += (found.p_value < 0.05) / draws
    return shares


def false_verdicts(shares: dict[str, float]) -> float:
    """Of two labels with one law: the share of draws in which somebody is said to be better
    somewhere."""
    return shares["crosses"] + shares["above"] + shares["below"]


@dataclass(frozen=True, kw_only=True)
class Power:
    """Shares of draws in which the smallest effect that such sweeps state, on average, is seen: at
    one given context, as a crossing that the law makes in one step between two contexts, and as one
    on a line that reaches the effect at both ends only. `stated` is that effect over the one which
    exact knowledge of the noise would state."""

    one_context: float
    step: float
    line: float
    stated: float


def power(sigma: float, *, draws: int = DRAWS, seed: int = 0) -> Power:
    """How often a difference of the stated smallest effect is found."""
    nothing = np.zeros(len(CONTEXTS))
    effect = float(np.mean([j.smallest_effect for j in _judgements(nothing, sigma, draws, seed)]))
    freedom = float((ROUNDS - 1) * len(CONTEXTS))
    critical = statistics.maximum_modulus(len(CONTEXTS), freedom)
    error = sigma * np.sqrt(2 / ROUNDS)
    exact = statistics.detectable(np.array([error]), np.array([freedom]), np.array([critical]))[0]
    step = np.where(np.arange(len(CONTEXTS)) < len(CONTEXTS) // 2, -effect, effect)
    place = np.log2(CONTEXTS)
    line = effect * (2 * (place - place[0]) / (place[-1] - place[0]) - 1)
    steps = _judgements(step, sigma, draws, seed + 1)
    lines = _judgements(line, sigma, draws, seed + 1)
    return Power(
        one_context=float(np.mean([found.high[0] < 0 for found in steps])),
        step=float(np.mean([found.outcome == "crosses" for found in steps])),
        line=float(np.mean([found.outcome == "crosses" for found in lines])),
        stated=effect / float(exact),
    )


def _judgements(law: Floats, sigma: float, draws: int, seed: int) -> list[Judgement]:
    return [judge(values, CONTEXTS, MARGIN) for values in contrasts(law, sigma, draws, seed)]


def straight_law(slope: float, truth: float) -> Floats:
    """A log ratio that rises by `slope` an octave through zero at `truth`."""
    return np.asarray(slope * (np.log2(CONTEXTS) - np.log2(truth)))


KINKED = np.array([-0.4, -0.38, -0.2, -0.03, 0.05, 0.06, 0.3, 0.9])
"""Straight between contexts, with a bend at each."""

SMOOTH = SimulatedWorld(
    laws={
        "lstm": Law(constant=1e-3, linear=1e-5),
        "transformer": Law(constant=1e-3, linear=2e-6, quadratic=1.5e-8),
    }
)


def smooth_law() -> tuple[Floats, float]:
    """Two power laws' log ratio at the contexts, and where algebra says it is zero."""
    metric, baseline, challenger = "train_step_time", "lstm", "transformer"
    ratios = [SMOOTH.log_ratio(metric, baseline, challenger, context) for context in CONTEXTS]
    (truth,) = SMOOTH.crossings(metric, baseline, challenger, CONTEXTS[0], CONTEXTS[-1])
    return np.array(ratios), truth


UNLIKE = np.array([3, 2, 1.5, 1, 1, 1, 1, 1])
"""Noise that is larger where steps are short, as factors."""


def main() -> None:
    """Prints every figure; about ten seconds."""
    kink = line_crossings(KINKED, CONTEXTS.tolist())[0]
    smooth, truth = smooth_law()
    cases: dict[str, tuple[Floats, float, Floats | float, float]] = {
        "straight 0.1/octave, 450, noise 5 %": (straight_law(0.1, 450), 450.0, 0.05, 0.0),
        "straight 0.1/octave, 512, noise 5 %": (straight_law(0.1, 512), 512.0, 0.05, 0.0),
        "straight 0.3/octave, 700, noise 3 %": (straight_law(0.3, 700), 700.0, 0.03, 0.0),
        f"kinked, {kink:.0f}, noise 3 %": (KINKED, kink, 0.03, 0.0),
        f"two power laws, {truth:.0f}, noise 3 %": (smooth, truth, 0.03, 0.0),
        "straight 0.3, 450, unlike noise": (straight_law(0.3, 450), 450.0, 0.05 * UNLIKE, 0.0),
        "straight 0.3, 450, rounds correlate": (straight_law(0.3, 450), 450.0, 0.05, 0.07),
    }
    print("crossing: found several covered (of all) open | width / oracle: median mean | oracle")
    for name, (law, place, sigma, shared) in cases.items():
        c = crossing_coverage(law, place, sigma, shared=shared)
        print(
            f"{name:40} {c.found:.3f} {c.several:.3f} {c.covered:.3f} ({c.covered_of_all:.3f})"
            f" {c.open_ended:.3f} | {c.median_width:.2f} {c.mean_width:.2f}"
            f" | {c.oracle_covered:.3f}"
        )
    print("two labels, one law: false verdicts, band excludes zero anywhere")
    nothing = np.zeros(len(CONTEXTS))
    for name, sigma, shared in (
        ("equal noise", np.ones(8) * 0.05, 0.0),
        ("unlike noise", 0.05 * UNLIKE, 0.0),
        ("rounds correlate", np.ones(8) * 0.05, 0.07),
        ("noise 0.5 %", np.ones(8) * 0.005, 0.0),
    ):
        shares = outcomes(nothing, sigma, shared=shared)
        print(
            f"{name:40} {false_verdicts(shares):.4f} {shares['any_difference']:.4f}"
            f" (equivalent {shares['equivalent']:.3f})"
        )
    found = power(0.05)
    print(
        f"smallest effect: at one context {found.one_context:.3f}, crossing in a step"
        f" {found.step:.3f}, on a line {found.line:.3f}; stated / true {found.stated:.3f}"
    )


if __name__ == "__main__":
    main()
