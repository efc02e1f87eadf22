"""The answer to a sweep's question in plain words, from its finished tables: what the report opens
with, what the end of a sweep prints."""

from orchestrator.conclusion.answer import answer

__all__ = ["answer"]
