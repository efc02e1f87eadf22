"""Clauses on what is compared and on what it ran: sizes, work, code, arithmetic, device."""

from __future__ import annotations

from orchestrator import quantities
from orchestrator.analysis.certificate.compared import Compared, Outcome

PARAMETERS = 0.02
"""How far apart the non-embedding parameters may lie, relative: what the solver of widths promises.
"""
_SET = ("num_threads", "float32_products", "bfloat16_sums", "denormals", "device_uuid")
"""Facts of how the device computed, and of which one it was."""


def parameters(of: Compared) -> Outcome | None:
    ours, theirs = (sorted(side.facts("parameters")) for side in of.sides)
    if not ours or not theirs:
        return None, "not on record"
    apart = max(abs(a - b) / b for a in ours for b in theirs)
    said = " and ".join("/".join(map(quantities.count, side)) for side in (ours, theirs))
    return apart <= PARAMETERS, f"{said}: {quantities.percent(apart)} apart"


def flops(of: Compared) -> Outcome | None:
    ours, theirs = (
        {
            seen.cell.seq_len: float(value)
            for seen in side.cells
            if isinstance(value := seen.said("flops_per_token", ""), int | float)
        }
        for side in of.sides
    )
    ratios = [ours[n] / theirs[n] for n in sorted(ours.keys() & theirs.keys()) if theirs[n]]
    if not ratios:
        return None, "not on record"
    low, high = (quantities.figures(end(ratios)) for end in (min, max))
    return True, f"{low if low == high else f'{low} to {high}'} times the baseline’s"


def kernel_class(of: Compared) -> Outcome | None:
    # By what code it was computed changes neither a size nor what is learnt.
    if of.block.facts.deterministic or of.block.kind == "train":
        return None
    metric = of.block.metric
    ours, theirs = (side.facts("kernel_class", metric) for side in of.sides)
    code = " and ".join("/".join(sorted(side.facts("implementation", metric))) for side in of.sides)
    if not ours or not theirs:
        return None, f"not on record: {code}"
    said = " and ".join("/".join(sorted(side)) for side in (ours, theirs))
    return ours == theirs, f"{said if ours != theirs else min(ours)}: {code}"


def precision(of: Compared) -> Outcome | None:
    ours, theirs = (
        {seen.said("arithmetic", of.clocked) or seen.cell.precision for seen in side.cells}
        for side in of.sides
    )
    said = " and ".join("/".join(sorted(side)) for side in (ours, theirs))
    return ours == theirs, said if ours != theirs else "/".join(sorted(ours))


def device(of: Compared) -> Outcome | None:
    # Another kind of device is another environment, whose cells are not compared; how it was set,
    # and which one of its kind it was, each cell says.
    ours, theirs = (
        {
            ", ".join(
                [str(seen.merged.environment.device_name)]
                + [f"{name} {value}" for name in _SET if (value := seen.said(name, "")) is not None]
            )
            for seen in side.cells
            if seen.merged
        }
        for side in of.sides
    )
    return ours == theirs, " and ".join(sorted(ours | theirs))
