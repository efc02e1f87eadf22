"""Ask the package index for known vulnerabilities of the pinned versions (pip-audit).

Exit code 1 where there are any. An index that cannot be reached, or that has no advisories, is said
and is no failure: then nothing was audited.

    python infra/audit.py [CONSTRAINTS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 300.0
PINS = Path(__file__).parent / "constraints.txt"


def main() -> int:
    pins = Path(sys.argv[1]) if len(sys.argv) > 1 else PINS
    found = audited(pins)
    if found is None:
        print("pip-audit: the index was not reached; nothing was audited")
        return 0
    lines = faults(found)
    looked_up = sum("skip_reason" not in one for one in found)
    print(f"pip-audit: {looked_up} of {len(found)} pins looked up, {len(lines)} vulnerabilities")
    print("".join(f"  {line}\n" for line in lines), end="")
    return 1 if lines else 0


def faults(found: list[dict[str, Any]]) -> list[str]:
    """A line for each known vulnerability, with the version that mends it."""
    return [
        f"{one['name']} {one['version']}: {fault['id']}, mended in "
        + (", ".join(fault["fix_versions"]) or "no version yet")
        for one in found
        for fault in one.get("vulns", ())
    ]


def audited(pins: Path) -> list[dict[str, Any]] | None:
    """What pip-audit says of each pin; None where it could not ask."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        asked = ["--requirement", str(pins), "--no-deps", "--disable-pip"]
        quiet = ["--progress-spinner", "off", "--format", "json", "--output", str(answer)]
        try:
            # Its exit code is 1 for vulnerabilities and for a silent index alike; the file tells.
            subprocess.run(
                [sys.executable, "-m", "pip_audit", *asked, *quiet],
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
            content: dict[str, Any] = json.loads(answer.read_text())
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None
    return list(content["dependencies"])


if __name__ == "__main__":
    sys.exit(main())
