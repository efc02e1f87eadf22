"""The envelope: what it says survives JSON, and what is no envelope is refused with a reason."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from orchestrator import provenance
from orchestrator.provenance import Envelope, new_key
from tests.orchestrator.made_records import cell, curve, envelope, timed
from workloads.record import Status


@pytest.mark.parametrize("status", ["finished", "failed", "lost"])
def test_an_envelope_survives_json(status: Status) -> None:
    before = envelope(cell(), timed("train_step_time", 0.1, 0.2), status=status)
    assert Envelope.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_curves_reasons_and_a_missing_prediction_survive_json() -> None:
    asked = cell(128, "loss", "peak_memory")
    before = replace(
        envelope(
            asked, curve("loss", (10, 20), 3.5, 3.25), timed("peak_memory", reason="out_of_memory")
        ),
        prediction=None,
    )
    assert Envelope.from_dict(json.loads(json.dumps(before.to_dict()))) == before


@pytest.mark.parametrize("left_out", ["schema", "key", "source", "record", "prediction", "attempt"])
def test_an_incomplete_envelope_is_refused(left_out: str) -> None:
    data = envelope(cell()).to_dict()
    del data[left_out]
    with pytest.raises(ValueError, match=r"schema|not readable"):
        Envelope.from_dict(data)


def test_it_finished_when_the_attempt_ended() -> None:
    one = envelope(cell(), at=5.0)
    assert one.finished_at == one.record.started_at + 2.0


def test_keys_begin_with_the_cell_and_never_repeat() -> None:
    keys = {new_key(cell().id) for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith(cell().id[:16] + "-") for key in keys)


def test_the_node_is_opaque_and_stable() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}", provenance.node_name())
    assert provenance.node_name() == provenance.node_name()


def test_the_source_is_hashed_and_does_not_change_while_it_runs() -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", provenance.source().hash)
    provenance.source.cache_clear()
    first = provenance.source().hash
    provenance.source.cache_clear()
    assert provenance.source().hash == first
