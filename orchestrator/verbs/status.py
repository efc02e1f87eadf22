"""`status`: how far a sweep is by architecture, what failed and why, while it runs or after."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from orchestrator.answers import Answers, expected_environments, newest_environments
from orchestrator.journal import Journal
from orchestrator.planning import planned
from orchestrator.progress import describe
from orchestrator.provenance import Envelope
from orchestrator.results import Results
from orchestrator.spec import LoadedSpec, load_spec
from orchestrator.store import MlflowStore, resolve_uri
from orchestrator.terminal import Terminal
from orchestrator.verbs.analyze import gather, on_recorded_device
from workloads.cell import Cell

STATUSES = ("finished", "failed", "lost", "pending")


def run(arguments: argparse.Namespace) -> int:
    terminal = Terminal()
    subject = Subject.of(arguments)
    if arguments.watch:
        from orchestrator.verbs import watch

        return watch.run(subject, terminal)
    envelopes = gather(subject.journal, subject.store)
    answers = subject.answers(envelopes)
    terminal.say(f"{answers.plan.name}: {answers.plan.question}")
    terminal.print(table(answers))
    for line in [*reasons(answers), *remarks(answers)]:
        terminal.say(line)
    counts = answers.counts()
    return 1 if counts["failed"] or counts["lost"] else 0


@dataclass(frozen=True, slots=True)
class Subject:
    """A sweep to look at: its file, and where its records may be."""

    loaded: LoadedSpec
    results: Results
    journal: Journal
    store: MlflowStore

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Subject:
        loaded = load_spec(arguments.sweep)
        results = Results.of(loaded.spec.name, arguments.results)
        uri = resolve_uri(arguments.tracking_uri)
        store = MlflowStore(uri, loaded.spec.name, results.folder)
        return cls(loaded, results, results.journal(), store)

    def answers(self, envelopes: Sequence[Envelope]) -> Answers:
        """How the sweep stands: where this machine has a part in it, in this machine's environment,
        else in that of the newest record."""
        loaded = on_recorded_device(self.loaded, envelopes) if envelopes else self.loaded
        found = expected_environments([loaded.device_class], envelopes)
        known = {one.record.environment.fingerprint for one in envelopes}
        for device, newest in newest_environments(envelopes).items():
            if device in found and found[device].fingerprint not in known:
                found[device] = newest
        return Answers.of(planned(loaded, envelopes, found), envelopes, found)


def remarks(answers: Answers) -> list[str]:
    """What the counts do not show, in sentences."""
    here = expected_environments(answers.environments, ())
    recorded = answers.environments
    foreign = any(one.fingerprint != recorded[device].fingerprint for device, one in here.items())
    return [
        *(["these are records of another environment; a sweep here measures anew"] * foreign),
        *answers.remarks(),
    ]


def table(answers: Answers) -> Table:
    rows = Table(box=None, header_style="bold", pad_edge=False)
    rows.add_column("kind")
    rows.add_column("label")
    for status in STATUSES:
        rows.add_column(status, justify="right")
    for (kind, label), cells in answers.plan.groups().items():
        found = [answers.status(cell) for cell in cells]
        numbers = (str(found.count(status)) for status in STATUSES)
        rows.add_row(kind, Text(label), *numbers)
    counts = answers.counts()
    rows.add_row("all", "", *(str(counts[status]) for status in STATUSES), style="bold")
    return rows


def reasons(answers: Answers) -> Iterator[str]:
    """Every limit reached and every failure: cells that say the same in one line, the first one
    named."""
    said: dict[tuple[str, ...], list[Cell]] = {}
    for cell in answers.plan.cells:
        known = answers.known(cell)
        if known is None:
            continue
        if answers.status(cell) in ("failed", "lost"):
            what, why = answers.status(cell), known.newest.record.message
        elif known.reason is not None:
            what = known.reason.replace("_", " ")
            why = next((m.detail for m in known.measurements.values() if m.reason), None)
        else:
            continue
        said.setdefault((what, cell.kind, cell.label, why or ""), []).append(cell)
    for (what, _, _, why), cells in said.items():
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        yield f"{what}: {describe(cells[0])}{more}" + (f": {why}" if why else "")
