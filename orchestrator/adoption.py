"""Taking over a sweep from wherever it was: where only MLflow is left, its records come into the
journal under their own keys, so that nothing answered is run again."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.answers import cells
from orchestrator.errors import StoreError
from orchestrator.journal import Journal
from orchestrator.lease import Lease
from orchestrator.store import MlflowStore


def take_over(
    journal: Journal, store: MlflowStore, lease: Lease, say: Callable[[str], None]
) -> bool:
    """Make the journal what this driver goes on from, and the lease newer than all that is in it;
    False where the store was asked and did not answer."""
    answered = adopt(journal, store, say)
    lease.exceed(max((envelope.epoch for envelope in journal.read()), default=0))
    return answered


def adopt(journal: Journal, store: MlflowStore, say: Callable[[str], None]) -> bool:
    """Bring into the journal what only the store has. Asks the store where the journal is empty,
    or was never recorded there; one that does not answer is said, and the sweep goes on without:
    then False."""
    known = journal.read()
    if known and store.met:
        return True
    try:
        envelopes = store.records()
    except StoreError as error:
        say(
            f"{error}. The sweep goes on; its records are kept and recorded later. If there are "
            "older ones in the store, they are not seen, and their cells run again"
        )
        return False
    for run_id, why in store.damaged.items():
        say(f"left out: MLflow run {run_id}: {why}")
    adopted = journal.adopt(envelopes)
    if adopted:
        answered = {envelope.record.cell.id for envelope in envelopes}
        records = "1 record" if adopted == 1 else f"{adopted} records"
        say(f"{records} of {cells(len(answered))} taken over from {store.address}")
    return True
