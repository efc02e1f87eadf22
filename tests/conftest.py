"""Options of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        metavar="DIR",
        help="folder of reference vectors, NAME.npz with NAME.json, for test_golden.py",
    )
