"""The verbs: parse, call, exit code. What a verb needs is imported when it runs, so help is
instant.

Exit codes: 0 every planned cell is answered; 1 some failed or were lost, or the sweep had to stop;
2 the request was wrong; 130 interrupted, to be continued by the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from orchestrator import full_disk
from orchestrator.errors import SweepStopped, UserError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line. What is measured stands in the sweep file; flags say where and how loudly,
    and none changes a number."""
    root = argparse.ArgumentParser(
        prog="python -m orchestrator",
        description="Measure at which context length which sequence architecture wins.",
        epilog="exit codes: 0 every planned cell answered, 1 some failed or lost, "
        "2 wrong request, 130 interrupted (the same command goes on)",
    )
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")

    plan = verbs.add_parser("plan", help="check a sweep file; print its cells and what they take")
    _sweep_file(plan)
    plan.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    _results(plan)

    sweep = verbs.add_parser("sweep", help="run what is not answered yet, then analyse")
    _sweep_file(sweep)
    where = sweep.add_mutually_exclusive_group()
    where.add_argument(
        "--address", metavar="A", help="a running Ray cluster (default: this machine)"
    )
    where.add_argument(
        "--inline", action="store_true", help="without Ray: one cell after another, each in a child"
    )
    _tracking(sweep)
    _results(sweep)

    status = verbs.add_parser("status", help="how far a sweep is, what failed and why")
    _sweep_file(status)
    status.add_argument("--watch", action="store_true", help="go on looking, until all is answered")
    _tracking(status)
    _results(status)

    analyze = verbs.add_parser("analyze", help="make tables, plots and report from the records")
    _sweep_file(analyze)
    _tracking(analyze)
    _results(analyze)

    verbs.add_parser("doctor", help="what this machine has, and how to get what is missing")

    ui = verbs.add_parser("ui", help="the MLflow UI on the store, at 127.0.0.1")
    _tracking(ui)
    return root


def _sweep_file(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("sweep", metavar="SWEEP.yaml", help="the sweep file")


def _tracking(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--tracking-uri",
        metavar="U",
        help="the MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )


def _results(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--results", metavar="DIR", help="where results lie (default: results)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    parsed = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        # The verb's module and what it imports (torch, ray, mlflow) take seconds.
        verb = importlib.import_module(f"orchestrator.verbs.{parsed.verb}")
        code: int = verb.run(parsed)
        sys.stdout.flush()
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except SweepStopped as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) left; that is not a failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Wherever else it was met, such as in a log on the same disk.
        if not full_disk.is_full(error):
            raise
        with contextlib.suppress(OSError):
            print(f"{error}; what was answered is kept", file=sys.stderr)
        return EXIT_FAILED
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM (a scheduler, a shutdown) ends a sweep as Ctrl-C does: in order."""
    raise KeyboardInterrupt
