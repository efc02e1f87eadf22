"""The MLflow store of a sweep: one parent run, with one child run per answered cell in each
environment, exactly one however often the sweep was killed.

The only package that imports mlflow, and only once a store is asked for something. Nothing here
keeps an active run or a queue: every call names its run, and returns when the store has it. Every
step may be repeated, since params never change, metrics keep their original times and the tag of
`record.json` is written after the file.
"""

from orchestrator.store.mlflow_store import MlflowStore
from orchestrator.store.run_store import Described, Medians, RunStore
from orchestrator.store.uri import DEFAULT_STORE, resolve_uri, without_password

__all__ = [
    "DEFAULT_STORE",
    "Described",
    "Medians",
    "MlflowStore",
    "RunStore",
    "resolve_uri",
    "without_password",
]
