"""Non-embedding parameters of the model that was built: mixers, MLPs and norms, without the token
embedding and the head, which grow with the vocabulary (Kaplan et al. 2020, section 2.1)."""

from __future__ import annotations

from workloads.plugins import Metric
from workloads.subject import Subject


def measure(subject: Subject) -> tuple[float, ...]:
    return (float(subject.built.parameters),)


METRIC = Metric(
    title="parameters without embedding",
    version=1,
    unit="parameters",
    deterministic=True,
    measure=measure,
)
