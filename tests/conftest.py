"""Options of the whole suite, and one thread for its small products."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

import pytest

# Before torch is imported: threads that wait for each other over a few numbers take ten times as
# long, and far longer on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before Ray is imported, which reads them once: clusters of the tests are in token mode, as Ray's
# are by default, with a token that is nobody's.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# Started in the background by a shell (`make test &`) they ignore interrupts, and so does all that
# they start: tests that interrupt something would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        metavar="DIR",
        help="folder of reference vectors, NAME.npz with NAME.json, for test_golden.py",
    )
