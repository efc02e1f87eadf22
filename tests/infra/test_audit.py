"""The audit names each vulnerability of a pin and what mends it, and is silent about the rest."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "infra/audit.py"
FOUND: list[dict[str, Any]] = [
    {"name": "sound", "version": "1.0", "vulns": []},
    {"name": "unknown", "skip_reason": "not on the index"},
    {
        "name": "weak",
        "version": "2.0",
        "vulns": [
            {"id": "PYSEC-1", "fix_versions": ["2.1", "3.0"]},
            {"id": "PYSEC-2", "fix_versions": []},
        ],
    },
]


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_vulnerability_is_a_line(audit: ModuleType) -> None:
    assert audit.faults(FOUND) == [
        "weak 2.0: PYSEC-1, mended in 2.1, 3.0",
        "weak 2.0: PYSEC-2, mended in no version yet",
    ]
    assert audit.faults(FOUND[:2]) == []


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (FOUND, 1, "2 of 3 pins looked up, 2 vulnerabilities"),
        (FOUND[:2], 0, "1 of 2 pins looked up, 0 vulnerabilities"),
        (None, 0, "the index was not reached"),
    ],
)
def test_vulnerabilities_fail_and_a_silent_index_does_not(
    audit: ModuleType,
    found: list[dict[str, Any]] | None,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "audited", lambda pins: found)
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    assert audit.main() == code
    assert said in capsys.readouterr().out
