"""One cell in the foreground, in this very process: progress on stderr, its record as the last line
of stdout."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
import traceback
from pathlib import Path

from workloads import environment
from workloads.cell import Cell
from workloads.events import Event, Facts, Progress, Started, assemble
from workloads.record import RunRecord
from workloads.tasks.headway import Headway, heard

EXIT_FAILED, EXIT_WRONG_REQUEST, EXIT_INTERRUPTED = 1, 2, 130


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="python -m workloads",
        description="Run one cell here and now, without Ray or MLflow, and print its record (JSON) "
        "as the last line. The cell's limits are not enforced, but for an accelerator's memory.",
        epilog="exit codes: 0 finished (a limit reached is a result), 1 failed, 2 the request was "
        "wrong, 130 interrupted",
    )
    arguments.add_argument(
        "cell",
        metavar="CELL.json",
        help="the cell, as one element of `cells` of `python -m orchestrator plan SWEEP.yaml "
        "--json`; - reads it from stdin",
    )
    arguments.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where prepared data live (default: $WORKLOADS_CACHE, else `workloads` in the user's "
        "cache folder)",
    )
    arguments.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        cell = _read(arguments.cell)
        # torch takes a second to import: --help and a file that is no cell need not wait for it.
        from workloads.run import verify

        verify(cell)
    except (ValueError, OSError) as error:
        print(f"{arguments.cell}: {error}", file=sys.stderr)
        return EXIT_WRONG_REQUEST
    try:
        record = _run(cell, arguments.cache, quiet=arguments.quiet)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if record.traceback is not None:
        print(record.traceback, end="", file=sys.stderr)
    print(record.to_json(), flush=True)
    return 0 if record.status == "finished" else EXIT_FAILED


def _read(path: str) -> Cell:
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("a cell is one JSON object")
    return Cell.from_dict(content)


def _run(cell: Cell, cache: Path | None, *, quiet: bool) -> RunRecord:
    from workloads.run import run

    events: list[Event] = []
    error: tuple[str, str | None] | None = None
    started_at, start = time.time(), time.monotonic()
    try:
        with contextlib.nullcontext() if quiet else heard(by=_tell):
            for event in run(cell, cache):
                events.append(event)
                if not quiet:
                    print(_words(event), file=sys.stderr, flush=True)
    except Exception as caught:
        error = (f"{type(caught).__name__}: {caught}", traceback.format_exc())
    return assemble(
        cell,
        events,
        environment=environment.describe(cell.device),
        started_at=started_at,
        seconds=time.monotonic() - start,
        error=error,
    )


def _tell(one: Headway) -> None:
    """The preparation of data, in one line of a terminal that is written over."""
    if sys.stderr.isatty():
        print(f"\r  {one.words}", end="\n" if one.done == one.total else "", file=sys.stderr)


def _words(event: Event) -> str:
    if isinstance(event, Started):
        return f"{event.metric} ..."
    if isinstance(event, Progress):
        return f"  {event.step} of {event.of}"
    if isinstance(event, Facts):
        return "".join(f"  {name}: {value}\n" for name, value in event.values.items()).rstrip()
    if not event.samples:
        return f"  {event.metric}: {event.reason} ({event.detail})"
    last = event.samples[-1] if event.is_curve else statistics.median(event.samples)
    return f"  {event.metric}: {last:.6g} {event.unit}, {len(event.samples)} samples"


if __name__ == "__main__":
    sys.exit(main())
