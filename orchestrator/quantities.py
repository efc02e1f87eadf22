"""How a number is written for people: with its unit, a fitting prefix, and no more digits than it
carries."""

from __future__ import annotations

import math
from typing import Any

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_PLAIN = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def quantity(value: float | None, unit: str, digits: int = 3, *, exact: bool = False) -> str:
    """`0.00213, "s"` -> `2.13 ms`; `3145728, "bytes"` -> `3 MiB`; `52310, "1/s"` -> `52.3 k/s`.

    Other units follow the number as they are, the unit one not at all. None, which is absence, is a
    dash. `exact` keeps trailing zeros, for columns of numbers.
    """
    if value is None:
        return "–"
    if unit == "s":
        return _prefixed(value, _SECONDS, digits, exact)
    if unit == "bytes":
        return _prefixed(value, _BYTES, digits, exact)
    if unit == "1/s":
        return _prefixed(value, _PLAIN, digits, exact) + "/s"
    unit = "" if unit == "1" else unit
    if abs(value) >= 1e5:
        return f"{_prefixed(value, _PLAIN, digits, exact)} {unit}".rstrip()
    return f"{figures(value, digits, exact=exact)} {unit}".rstrip()


def prefixed(unit: str) -> bool:
    """True for units that `quantity` writes with prefixes, so that every number carries them."""
    return unit in ("s", "bytes", "1/s")


def interval(low: float | None, high: float | None, unit: str, digits: int = 3) -> str:
    """`2.10 to 2.30 ms`, each end with its own unit where they differ; nothing where there is no
    interval."""
    if low is None or high is None:
        return ""
    first, last = (quantity(end, unit, digits, exact=True) for end in (low, high))
    number, _, name = first.partition(" ")
    return f"{number if name == last.partition(' ')[2] else first} to {last}"


def figures(value: float, digits: int = 3, *, exact: bool = False) -> str:
    """A number with `digits` significant figures, without an exponent where it has a plain form;
    trailing zeros only where `exact`."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 < magnitude < 9:
        return f"{value:.{digits - 1}e}"
    text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and not exact else text


def count(value: float | None) -> str:
    """A whole number with separated thousands: `16384` -> `16,384`; None is a dash."""
    return "–" if value is None else f"{value:,.0f}"


def size(parameters: float | None) -> str:
    """Parameters as people write them: `1_000_000` -> `1M`; 0, where no number was asked for, is
    `unmatched`."""
    if parameters is None:
        return "–"
    if parameters == 0:
        return "unmatched"
    return _prefixed(parameters, _PLAIN, 3).replace(" ", "").replace("G", "B")


def percent(fraction: float | None) -> str:
    """`0.0512` -> `5.1 %`; None is a dash."""
    return "–" if fraction is None else f"{figures(100 * fraction, 2)} %"


def probability(p: float | None) -> str:
    """A p value: three figures at most, and no pretence below a ten-thousandth."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else figures(p, 2)


def span(row: dict[str, Any]) -> str:
    """A crossing's interval in tokens: `310 to 371`, `at most 371`, `at least 310`, `open`, or
    `exact` where there is no noise."""
    low, high = row["low"], row["high"]
    if low is not None and low == high:
        return "exact"
    closed_below = low is not None and not row["low_open"]
    closed_above = high is not None and not row["high_open"]
    if closed_below and closed_above:
        return f"{count(low)} to {count(high)}"
    if closed_above:
        return f"at most {count(high)}"
    return f"at least {count(low)}" if closed_below else "open"


def _prefixed(
    value: float, prefixes: tuple[tuple[float, str], ...], digits: int, exact: bool = False
) -> str:
    known = (pair for pair in prefixes if abs(value) >= pair[0] * 0.9995)
    factor, name = (1.0, dict(prefixes)[1.0]) if value == 0 else next(known, prefixes[-1])
    return f"{figures(value / factor, digits, exact=exact)} {name}".rstrip()
