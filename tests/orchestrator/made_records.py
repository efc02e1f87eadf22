"""Records made from the nouns, for tests of what stores, merges and reads them."""

from __future__ import annotations

from orchestrator.plan import Comparison, Plan
from orchestrator.provenance import Envelope, Prediction, Source, new_key
from tests.simulated_world import present_version
from workloads.cell import Cell, Limits
from workloads.environment import Environment
from workloads.measurement import Measurement, Reason
from workloads.record import RunRecord, Status

NOON = 1_750_000_000.0
HERE = Environment(
    device="cpu:1",
    device_name="a processor",
    driver=None,
    threads=1,
    packages={"torch": "2.13.0"},
    python="3.11.7",
)


def cell(seq_len: int = 128, *metrics: str, limits: Limits | None = None) -> Cell:
    """A measure cell that asks for these metrics, else for `train_step_time`."""
    return Cell(
        kind="measure",
        architecture="kvm",
        architecture_version=1,
        options={"state": "sqrt"},
        label="kvm (state=sqrt)",
        task="language_modelling",
        task_version=1,
        size=1_000_000,
        num_layers=2,
        precision="float32",
        device="cpu:1",
        seq_len=seq_len,
        batch_size=8,
        round=0,
        metrics=metrics or ("train_step_time",),
        limits=limits or Limits(),
    )


def timed(
    metric: str, *samples: float, version: int | None = None, reason: Reason | None = None
) -> Measurement:
    """A time as the metric of that name takes it now, or as another version did."""
    version = version or present_version(metric)
    return Measurement(
        metric=metric, version=version, unit="s", title=metric, samples=samples, reason=reason
    )


def curve(metric: str, steps: tuple[int, ...], *samples: float) -> Measurement:
    return Measurement(
        metric=metric, version=1, unit="nats", title=metric, samples=samples, steps=steps
    )


def envelope(
    of: Cell,
    *measurements: Measurement,
    status: Status = "finished",
    at: float = 0.0,
    environment: Environment = HERE,
    source: str = "a1",
    epoch: int = 0,
    sequence: int = 0,
) -> Envelope:
    """One attempt that ended `at` seconds after noon; finished without measurements: each metric
    asked has three samples."""
    if status == "finished" and not measurements:
        measurements = tuple(timed(name, 0.25, 0.5, 0.75) for name in of.metrics)
    record = RunRecord(
        cell=of,
        status=status,
        environment=environment,
        measurements=measurements,
        facts={"parameters": 1_003_776, "implementation": "torch"},
        started_at=NOON + at - 2.0,
        seconds=2.0,
        message=None if status == "finished" else "it broke",
        traceback="Traceback: it broke" if status == "failed" else None,
    )
    return Envelope(
        record=record,
        key=new_key(of.id),
        sweep="sweep",
        spec_hash="5bec",
        attempt=1,
        epoch=epoch,
        sequence=sequence,
        node="0123abcd",
        source=Source(commit="c0ffee", dirty=False, hash=source),
        prediction=Prediction(seconds=1.5, peak_bytes=4096),
    )


def plan(*cells: Cell, name: str = "sweep") -> Plan:
    return Plan(
        name=name,
        question="Which is faster?",
        spec_hash="5bec",
        spec_yaml="name: sweep\n",
        token_unit="bytes",
        labels=tuple(dict.fromkeys(cell.label for cell in cells)),
        cells=cells,
        comparison=Comparison(baseline="lstm", zone=(256, 512)),
    )
