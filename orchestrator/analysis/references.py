"""References: models that come with a package and were not trained here, on the cells' examples.

A task says of one in the facts of its records: `reference_NAME` is what it is, in words, and
`reference_NAME_METRIC` what it reaches in a metric of the task.
"""

from __future__ import annotations

import statistics

from orchestrator.analysis.observations import Observed

PREFIX = "reference_"


def rows(observed: Observed) -> list[dict[str, object]]:
    """The rows of the `references` table: by reference, metric, task and context."""
    titles: dict[str, str] = {}
    found: dict[tuple[str, str, str, int], list[float]] = {}
    for seen in observed.compared:
        facts = seen.merged.facts if seen.merged else {}
        named = {
            key.removeprefix(PREFIX): value
            for key, value in facts.items()
            if key.startswith(PREFIX) and isinstance(value, str)
        }
        titles |= named
        for name in named:
            for metric in observed.metrics:
                value = facts.get(f"{PREFIX}{name}_{metric}")
                if isinstance(value, int | float):
                    point = name, metric, seen.cell.task, seen.cell.seq_len
                    found.setdefault(point, []).append(float(value))
    return [
        {
            "reference": point[0],
            "title": titles[point[0]],
            "task": point[2],
            "seq_len": point[3],
            "metric": point[1],
            "unit": observed.metrics[point[1]].unit,
            # The same of all cells that were judged on the same examples.
            "value": statistics.median(found[point]),
            "environment": observed.environment,
        }
        for point in sorted(found)
    ]
