"""A world whose laws are known: an executor that answers cells from formulas with planted noise.

It stands where `run_inline` stands and knows the true crossings, so that the analysis can be held
to them. No torch, thousands of cells a second, and the same seed gives the same records whatever
the order of execution, but for the drift, which belongs to that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from orchestrator.plan import Comparison, Plan, Primary
from orchestrator.provenance import Envelope, Source
from workloads import registry
from workloads.cell import Cell
from workloads.environment import Environment
from workloads.measurement import Measurement, Reason
from workloads.record import RunRecord

ENVIRONMENT = Environment(
    device="cpu:1",
    device_name="a simulated processor",
    driver=None,
    threads=1,
    packages={"torch": "2.13.0"},
    python="3.11.0",
)
DETERMINISTIC = ("peak_memory", "state_bytes")
MEASURED = ("train_step_time", "prefill_time", *DETERMINISTIC)
FACTS: Mapping[str, Mapping[str, Any]] = {
    "train_step_time": {"unit": "s", "title": "Training step"},
    "prefill_time": {"unit": "s", "title": "Prefill"},
    "peak_memory": {"unit": "bytes", "title": "Peak memory", "deterministic": True},
    "state_bytes": {"unit": "bytes", "title": "Decoding state", "deterministic": True},
    "validation_loss": {"unit": "nats/token", "title": "Validation loss"},
    "accuracy": {"unit": "1", "title": "Accuracy", "better": "greater", "scale": "difference"},
}


def present_version(metric: str, task: str = "language_modelling") -> int:
    """Of a metric, so that what is made here answers a plan; 1 of one that nobody has."""
    try:
        return registry.metric(task, metric).version
    except registry.UnknownPlugin:
        return 1


@dataclass(frozen=True, kw_only=True)
class Law:
    """How one label behaves at context T and batch size B.

    A step takes `constant` + B (`linear` T + `quadratic` T²) seconds, where T is rounded up to a
    multiple of `stair` tokens; training reaches a loss of `loss` + `loss_per_octave` log2 T; from
    `out_of_memory_from` tokens on nothing runs.
    """

    constant: float = 1e-3
    linear: float = 0.0
    quadratic: float = 0.0
    stair: int = 1
    loss: float = 2.0
    loss_per_octave: float = 0.0
    out_of_memory_from: int | None = None
    architecture: str = "lstm"

    def value(self, metric: str, seq_len: float, batch_size: int) -> float:
        """The true value of `metric`, without noise, in its unit."""
        length = -(-seq_len // self.stair) * self.stair if self.stair > 1 else seq_len
        growth = self.linear * length + self.quadratic * length**2
        match metric:
            case "train_step_time":
                return self.constant + batch_size * growth
            case "prefill_time":
                return (self.constant + batch_size * growth) / 3
            case "peak_memory":
                return float(round(1e6 + 1e9 * batch_size * growth))
            case "state_bytes":
                return float(round(1e3 + 1e6 * self.quadratic * length))
            case "validation_loss":
                return self.loss + self.loss_per_octave * float(np.log2(length))
            case "accuracy":
                return 1 / (1 + self.value("validation_loss", seq_len, batch_size))
        raise KeyError(metric)


@dataclass(kw_only=True)
class SimulatedWorld:
    """Laws by label, and the noise on top of them, as standard deviations of logarithms.

    process_noise: of a whole process, the same in all its samples. sample_noise: of each sample.
    round_noise: of a whole round, the same for every label in it. drift: by how much the log of all
    times rises from the first to the last executed cell.
    """

    laws: Mapping[str, Law]
    process_noise: float = 0.03
    sample_noise: float = 0.01
    round_noise: float = 0.0
    drift: float = 0.0
    samples: int = 10
    seed: int = 0
    environment: Environment = ENVIRONMENT
    executed: list[str] = field(default_factory=list)

    def execute(self, cells: Sequence[Cell], **options: object) -> Iterator[tuple[Cell, RunRecord]]:
        """Answers the cells in order, as `run_inline` does; `options` of other executors are not
        used."""
        for index, cell in enumerate(cells):
            self.executed.append(cell.id)
            yield cell, self.answer(cell, self.drift * index / max(1, len(cells) - 1), index)

    def answer(self, cell: Cell, drift: float = 0.0, index: int = 0) -> RunRecord:
        """One finished record. `drift` is the machine's log slowness at this moment."""
        law = self.laws[cell.label]
        random = np.random.default_rng([self.seed, int(cell.id[:15], 16)])
        cut = law.out_of_memory_from
        fails: Reason | None = None
        if cut is not None and cell.seq_len >= cut:
            fails = "out_of_memory"
        shared = np.random.default_rng([self.seed, cell.replicate]).normal(0, self.round_noise)
        return RunRecord(
            cell=cell,
            status="finished",
            environment=self.environment,
            measurements=tuple(
                self._measure(cell, law, metric, random, drift + shared, fails)
                for metric in cell.metrics
            ),
            facts={"parameters": cell.size, "d_model": 64, "implementation": "a formula"},
            started_at=1_700_000_000.0 + index,
            seconds=0.5,
        )

    def _measure(
        self,
        cell: Cell,
        law: Law,
        metric: str,
        random: np.random.Generator,
        slowness: float,
        reason: Reason | None,
    ) -> Measurement:
        facts = FACTS[metric] | {"version": present_version(metric, cell.task)}
        if reason is not None:
            return Measurement(metric=metric, reason=reason, **facts)
        truth = law.value(metric, cell.seq_len, cell.batch_size or 1)
        if facts.get("deterministic"):
            return Measurement(metric=metric, samples=(truth,), **facts)
        process = random.normal(0, self.process_noise)
        count = self.samples if cell.kind == "measure" else 1
        noise = random.normal(0, self.sample_noise, count) if cell.kind == "measure" else 0.0
        logs = process + (slowness if cell.kind == "measure" else 0.0) + noise
        values = np.atleast_1d(truth * np.exp(logs))
        return Measurement(metric=metric, samples=tuple(values.tolist()), **facts)

    def log_ratio(
        self, metric: str, baseline: str, challenger: str, seq_len: float, batch_size: int = 8
    ) -> float:
        """The true log ratio challenger / baseline."""
        ours = self.laws[challenger].value(metric, seq_len, batch_size)
        return float(np.log(ours / self.laws[baseline].value(metric, seq_len, batch_size)))

    def crossings(
        self,
        metric: str,
        baseline: str,
        challenger: str,
        low: float,
        high: float,
        batch_size: int = 8,
    ) -> list[float]:
        """Every true crossing between `low` and `high` tokens, ascending, by bisection of the laws
        themselves."""

        def ratio(place: float) -> float:
            return self.log_ratio(metric, baseline, challenger, 2**place, batch_size)

        grid = np.linspace(np.log2(low), np.log2(high), 2001)
        signs = np.sign([ratio(place) for place in grid])
        changes = np.flatnonzero(signs[:-1] * signs[1:] < 0)
        return [float(2 ** brentq(ratio, grid[i], grid[i + 1])) for i in changes]


def line_crossings(means: NDArray[np.float64], contexts: Sequence[float]) -> list[float]:
    """Where straight lines in log2 context through `means` at `contexts` are zero, in tokens."""
    x = np.log2(contexts)
    changes = np.flatnonzero(means[:-1] * means[1:] < 0)
    share = means[changes] / (means[changes] - means[changes + 1])
    return [float(place) for place in 2 ** (x[changes] + share * (x[changes + 1] - x[changes]))]


def measure_cell(**fields: Any) -> Cell:
    """A measure cell of a plain sweep; `fields` replace what differs."""
    return _cell({"kind": "measure", "batch_size": 8, "round": 0, "metrics": MEASURED}, fields)


def train_cell(**fields: Any) -> Cell:
    """A train cell of a plain sweep; `fields` replace what differs."""
    own = {
        "kind": "train",
        "seed": 0,
        "tokens": 2_000_000,
        "tokens_per_update": 4096,
        "learning_rate": 1e-3,
        "metrics": ("validation_loss",),
    }
    return _cell(own, fields)


def _cell(own: Mapping[str, Any], fields: Mapping[str, Any]) -> Cell:
    label = fields.get("label", "lstm")
    values: dict[str, Any] = {
        "architecture": label,
        "architecture_version": 1,
        "label": label,
        "task": "language_modelling",
        "task_version": 1,
        "size": 1_000_000,
        "num_layers": 2,
        "precision": "float32",
        "device": "cpu:1",
        "seq_len": 256,
    }
    return Cell(**{**values, **own, **fields})


def measure_cells(
    labels: Iterable[str],
    contexts: Iterable[int],
    *,
    batch_sizes: Iterable[int] = (8,),
    sizes: Iterable[int] = (1_000_000,),
    rounds: int = 5,
    metrics: Sequence[str] = MEASURED,
    seed: int = 0,
) -> list[Cell]:
    """Complete rounds, each in an order of its own; deterministic metrics in round 0 only."""
    points = [
        (label, context, batch, size)
        for label in labels
        for context in contexts
        for batch in batch_sizes
        for size in sizes
    ]
    noisy = tuple(metric for metric in metrics if metric not in DETERMINISTIC)
    cells = []
    for number in range(rounds):
        order = np.random.default_rng([seed, number]).permutation(len(points))
        for label, context, batch, size in (points[i] for i in order):
            asked = tuple(metrics) if number == 0 else noisy
            cells.append(
                measure_cell(
                    label=label,
                    seq_len=context,
                    batch_size=batch,
                    size=size,
                    round=number,
                    metrics=asked,
                )
            )
    return cells


def train_cells(
    labels: Iterable[str],
    contexts: Iterable[int],
    *,
    seeds: int = 5,
    metrics: Sequence[str] = ("validation_loss",),
) -> list[Cell]:
    """Train cells over seeds."""
    points = [(label, context) for label in labels for context in contexts]
    return [
        train_cell(label=label, seq_len=context, seed=seed, metrics=tuple(metrics))
        for seed in range(seeds)
        for label, context in points
    ]


def plan_of(
    cells: Sequence[Cell],
    *,
    baseline: str = "lstm",
    zone: tuple[int, int] = (256, 512),
    primary: Primary | None = None,
) -> Plan:
    """A plan of these cells, as if a sweep file had asked for them."""
    return Plan(
        name="simulated",
        question="Does the analysis find what was planted?",
        spec_hash="0" * 12,
        spec_yaml="name: simulated\n",
        token_unit="bytes",
        labels=tuple(dict.fromkeys(cell.label for cell in cells)),
        cells=tuple(cells),
        comparison=Comparison(baseline=baseline, zone=zone, primary=primary),
    )


def enveloped(answers: Iterable[tuple[Cell, RunRecord]], attempt: int = 1) -> list[Envelope]:
    """The records in envelopes, as the orchestrator would hand them to the journal."""
    return [
        Envelope(
            record=record,
            key=f"{cell.id[:16]}-{attempt:012d}-{index:06d}",
            sweep="simulated",
            spec_hash="0" * 12,
            attempt=attempt,
            node="00000000",
            source=Source(commit=None, dirty=None, hash="0" * 12),
            prediction=None,
        )
        for index, (cell, record) in enumerate(answers)
    ]
