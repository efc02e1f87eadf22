"""The follower's memory: which record stands in which run of one MLflow store, kept beside the
journal so that no run need be asked for.

One JSON line each: a *header* names the experiment and the parent run it belongs to; an *intent*,
on disk before runs are created, names the cells they are for; a *confirmation*, after their content
is stored, gives each its run and revision. After a crash only cells intended and not confirmed have
to be looked for in the store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.durable import write_durably

Group = tuple[str, str]
"""A cell's id and an environment's fingerprint: what one child run is for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A run, and the revision of the records it was last given."""

    run_id: str
    revision: str


class Ledger:
    """What is known of one store. `experiment` and `parent` are empty where nothing is. `allowed`
    is called before each write, and raises where this process may not write any more."""

    def __init__(
        self, folder: Path, uri: str, allowed: Callable[[], object] = lambda: None
    ) -> None:
        self._allowed = allowed
        name = hashlib.sha256(uri.encode()).hexdigest()[:16]
        self.path = folder / f"{name}.jsonl"
        self.experiment = ""
        self.parent = ""
        self.entries: dict[Group, Entry] = {}
        self.unsure: set[Group] = set()
        self._whole = True
        self._load()

    def start(self, experiment: str, parent: str, entries: Mapping[Group, Entry]) -> None:
        """Begin anew for this experiment and parent run, with the runs found in the store."""
        self.experiment, self.parent = experiment, parent
        self.entries, self.unsure = dict(entries), set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite()

    def intend(self, groups: Iterable[Group]) -> None:
        """Say, durably, that runs of these cells are about to be created."""
        new = [group for group in groups if group not in self.entries]
        if new:
            self.unsure.update(new)
            self._append({"intent": new})

    def confirm(self, entries: Mapping[Group, Entry]) -> None:
        """Say that these runs hold their records now."""
        if entries:
            self.entries.update(entries)
            self.unsure.difference_update(entries)
            self._append({"runs": _rows(entries)})

    def forget(self, groups: Iterable[Group]) -> None:
        """The runs of these cells may be gone: look for them in the store before the next write."""
        lost = [group for group in groups if group in self.entries]
        if lost:
            for group in lost:
                del self.entries[group]
            self.unsure.update(lost)
            self._append({"intent": lost})

    def _load(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        for number, line in enumerate(lines, start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                self._whole = False
                if number < len(lines):
                    self._distrust()
                    return
        self._whole = self._whole and bool(lines) and lines[-1].endswith(b"\n")

    def _distrust(self) -> None:
        """Damage other than a torn last line: the store is listed again."""
        self.experiment = self.parent = ""
        self.entries, self.unsure = {}, set()

    def _take(self, line: dict[str, Any]) -> None:
        if "experiment" in line:
            self.experiment, self.parent = str(line["experiment"]), str(line["parent"])
        for cell_id, environment in line.get("intent", ()):
            self.entries.pop((cell_id, environment), None)
            self.unsure.add((cell_id, environment))
        for cell_id, environment, run_id, revision in line.get("runs", ()):
            self.entries[cell_id, environment] = Entry(run_id, revision)
            self.unsure.discard((cell_id, environment))

    def _append(self, line: dict[str, Any]) -> None:
        """A line torn by a crash would swallow the next one: such a file is written anew first."""
        if not self._whole:
            self._rewrite()
            return
        self._allowed()
        self._whole = False  # until the line is on disk: a full one tears it, too
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._whole = True

    def _rewrite(self) -> None:
        lines: list[dict[str, Any]] = [
            {"experiment": self.experiment, "parent": self.parent},
            {"intent": sorted(self.unsure)},
            {"runs": _rows(self.entries)},
        ]
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        write_durably(self.path, content, self._allowed)
        self._whole = True


def _rows(entries: Mapping[Group, Entry]) -> list[tuple[str, str, str, str]]:
    return [(*group, entry.run_id, entry.revision) for group, entry in entries.items()]
