"""`status --watch`: a sweep that runs in another terminal or on another machine, as it goes.

It only reads: the journal where there is one, else the MLflow store, whose unchanged runs are not
read again. It ends when every cell is answered, given up, or failed for good; or with Ctrl-C.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from orchestrator.answers import Answers
from orchestrator.cost import cost_model
from orchestrator.pace import Pace, pace
from orchestrator.progress import duration
from orchestrator.terminal import Terminal
from orchestrator.verbs.analyze import gather
from orchestrator.verbs.status import Subject, reasons, remarks, table
from workloads.tasks.data import cache_folder

JOURNAL_SECONDS, STORE_SECONDS = 2.0, 15.0
"""Pause between two looks: files are cheap to read, a store's runs are not."""
REASONS = 12
"""Kinds of failure shown at once; `status` shows all."""


def run(subject: Subject, terminal: Terminal) -> int:
    """Look, show, pause; the exit code that `status` would give in the end."""
    said = ""
    with Live(console=terminal, auto_refresh=False, transient=False) as live:
        for answers, going in _looks(subject):
            line = sentence(answers, going)
            if terminal.is_terminal:
                live.update(_picture(answers, line), refresh=True)
            elif line != said:
                terminal.say(line)
            said = line
            counts = answers.counts()
            if not answers.pending():
                break
    return 1 if counts["failed"] or counts["lost"] else 0


def _looks(subject: Subject) -> Iterator[tuple[Answers, Pace]]:
    told: set[str] = set()
    while True:
        envelopes = gather(subject.journal, subject.store, told)
        answers = subject.answers(envelopes)
        device = answers.plan.cells[0].device
        model = cost_model(device, cache_folder(), envelopes, answers.environments[device])
        yield answers, pace(answers, envelopes, model)
        time.sleep(JOURNAL_SECONDS if subject.journal.read() else STORE_SECONDS)


def sentence(answers: Answers, going: Pace) -> str:
    """`120 of 380 cells, 2 failed, 1.9 devices busy over 10 min, 4 min to go`."""
    counts = answers.counts()
    words = [f"{counts['finished']} of {len(answers.plan.cells)} cells"]
    words += [f"{counts[status]} {status}" for status in ("failed", "lost") if counts[status]]
    if not answers.pending():
        return ", ".join([*words, "nothing left to run"])
    if going.busy is not None:
        words.append(f"{going.busy:.1f} devices busy over {duration(going.seconds)}")
    if going.seconds_to_go is not None:
        words.append(f"{duration(going.seconds_to_go)} to go")
    return ", ".join(words)


def _picture(answers: Answers, line: str) -> RenderableType:
    found = list(reasons(answers))
    shown = [*islice(found, REASONS), *remarks(answers)]
    if len(found) > REASONS:
        shown.append(f"and {len(found) - REASONS} more kinds; `status` shows all")
    return Group(
        Text(f"{answers.plan.name}: {answers.plan.question}"),
        table(answers),
        *map(Text, shown),
        Text(line, style="bold"),
    )
