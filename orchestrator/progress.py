"""What a person sees while a sweep runs: data in preparation, cells done, time to go, and failures
as they happen."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from workloads.cell import KINDS, Cell
from workloads.record import RunRecord
from workloads.tasks.headway import Headway, Hear

LONG_STAGE_SECONDS = 5.0
"""What takes longer is told in a log, too."""


class LiveProgress:
    """A progress line per kind of cell. On a terminal it is redrawn in place; elsewhere (a log) a
    plain line stands for each tenth of the work."""

    def __init__(
        self, console: Console, cells: Sequence[Cell], seconds: Mapping[str, float]
    ) -> None:
        self._console = console
        self._seconds = dict(seconds)
        self._counts = Counter(cell.kind for cell in cells)
        # Predicted seconds of what is left and of what is done, and what the latter really took.
        self._left = dict.fromkeys(self._counts, 0.0)
        for cell in cells:
            self._left[cell.kind] += self._seconds.get(cell.id, 0.0)
        self._predicted = dict.fromkeys(self._counts, 0.0)
        self._spent = dict.fromkeys(self._counts, 0.0)
        self._total = len(cells)
        self._done = 0
        self._announced = 0
        self._said: set[tuple[object, ...]] = set()
        self.width: Mapping[str, int] = dict.fromkeys(KINDS, 1)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total} cells"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[to_go]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveProgress:
        for kind, count in self._counts.items():
            self._tasks[kind] = self._bar.add_task(f"{kind:<8}", total=count, to_go="")
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def say(self, text: str, style: str = "") -> None:
        """A line above the progress lines."""
        self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def answered(self, cell: Cell, record: RunRecord) -> None:
        """One more record."""
        predicted = self._seconds.get(cell.id, 0.0)
        self._done += 1
        self._left[cell.kind] -= predicted
        self._predicted[cell.kind] += predicted
        self._spent[cell.kind] += record.seconds
        if record.status != "finished":
            self.say(f"{record.status}: {describe(cell)}: {record.message}", "red")
        elif record.reason is not None:
            detail = next((m.detail for m in record.measurements if m.reason), None)
            text = f"{record.reason.replace('_', ' ')}: {describe(cell)}"
            # Every replicate reaches the same limit: the first one says it.
            limit = (record.reason, cell.label, cell.size, cell.seq_len, cell.batch)
            if limit not in self._said:
                self.say(f"{text}: {detail}" if detail else text, "yellow")
            self._said.add(limit)
        to_go = duration(self.seconds_to_go()) + " to go"
        self._bar.update(self._tasks[cell.kind], advance=1, to_go=to_go)
        self._announce(to_go)

    def seconds_to_go(self) -> float:
        """Predicted seconds of what is left, corrected by how the predictions did so far."""
        total = 0.0
        for kind, left in self._left.items():
            predicted = self._predicted[kind]
            factor = self._spent[kind] / predicted if predicted else 1.0
            total += max(0.0, left) * factor / max(1, self.width.get(kind, 1))
        return total

    def _announce(self, to_go: str) -> None:
        tenth = 10 * self._done // max(1, self._total)
        if not self._console.is_terminal and tenth > self._announced:
            self._announced = tenth
            self.say(f"{self._done} of {self._total} cells, {to_go}")


@contextlib.contextmanager
def headway_shown(console: Console) -> Iterator[Hear]:
    """A bar for each stage of a preparation, gone when that is over; elsewhere than on a terminal a
    line for each that was long."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    stages: dict[str, tuple[TaskID, float]] = {}

    def hear(one: Headway) -> None:
        if one.doing not in stages:
            stages[one.doing] = bar.add_task(one.doing), time.monotonic()
        task, begun = stages[one.doing]
        bar.update(task, description=one.words, total=one.total, completed=one.done)
        seconds = time.monotonic() - begun
        if one.done == one.total and bar.disable and seconds > LONG_STAGE_SECONDS:
            console.print(f"{one.words}, {duration(seconds)}", highlight=False, markup=False)

    with bar:
        yield hear


def describe(cell: Cell) -> str:
    """A cell in words: `train transformer, context 256, seed 3`."""
    batch = f", batch {cell.batch_size}" if cell.batch_size else ""
    which = f"seed {cell.seed}"
    if cell.kind == "measure":
        mode = "" if cell.execution == "eager" else f"{cell.execution}, "
        which = f"{mode}round {cell.round}"
    elif cell.kind == "tune":
        which = f"trial {cell.trial} at learning rate {cell.learning_rate}"
    return f"{cell.kind} {cell.label}, context {cell.seq_len}{batch}, {which}"


def duration(seconds: float) -> str:
    """`40 s`, `7 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
