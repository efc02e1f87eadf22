"""The plan of a sweep file as its records let it be: what tuning has found so far is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.answers import expected_environments
from orchestrator.expand import expand
from orchestrator.plan import Plan
from orchestrator.provenance import Envelope
from orchestrator.spec import LoadedSpec
from orchestrator.tuning import Tried
from workloads.environment import Environment


def planned(
    loaded: LoadedSpec,
    envelopes: Iterable[Envelope],
    environments: Mapping[str, Environment] | None = None,
) -> Plan:
    """The plan after these records. `environments`, by device class, are those of the machines that
    run the cells; without them `expected_environments` says. Raises SpecError."""
    envelopes, device = list(envelopes), loaded.device_class
    ran = frozenset(envelope.record.cell.id for envelope in envelopes)
    if loaded.spec.tune is None:
        return expand(loaded, ran=ran)
    where = (environments or expected_environments([device], envelopes)).get(device)
    tried = None if where is None else Tried.of(envelopes, where.fingerprint)
    return expand(loaded, tried, ran=ran)
