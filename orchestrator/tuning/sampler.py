"""Settings to try: evenly over a space, or where Optuna's sampler asks. The only file that knows
Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.search import Setting

RATE = "learning_rate"
_GOLDEN = (math.sqrt(5) - 1) / 2

Range = tuple[float, float]
Space = Mapping[str, Range]


def spread(space: Space, count: int, shift: float = 0.0) -> list[Setting]:
    """Settings evenly over the logarithm of the learning rate, the ends of its range among them
    (with a `shift`, so many steps further, and around); of what else there is, a low-discrepancy
    sequence."""
    settings: list[Setting] = []
    for i in range(count):
        parts = {RATE: (i / max(1, count - 1) if not shift else (i + shift) / count)}
        others = sorted(set(space) - {RATE})
        parts |= {name: (_GOLDEN * (i + 1) * (d + 1)) % 1.0 for d, name in enumerate(others)}
        settings.append(
            {
                name: rounded(low * (high / low) ** parts[name])
                for name, (low, high) in space.items()
            }
        )
    return settings


def ask(
    space: Space, told: Iterable[tuple[Setting, float]], count: int, seed: int
) -> list[Setting]:
    """What Optuna's TPE sampler asks for next, as one batch; `told` are settings and their costs,
    in the order told."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {
        name: optuna.distributions.FloatDistribution(low, high, log=True)
        for name, (low, high) in space.items()
    }
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=1))
    for setting, cost in told:
        within = {name: min(max(setting[name], low), high) for name, (low, high) in space.items()}
        study.add_trial(
            optuna.trial.create_trial(params=within, distributions=distributions, value=cost)
        )
    asked = [study.ask(distributions).params for _ in range(count)]
    return [{name: rounded(value) for name, value in setting.items()} for setting in asked]


def rounded(value: float) -> float:
    """To three digits: what is then read in tables and files."""
    return float(f"{value:.3g}")
