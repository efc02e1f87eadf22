"""Clauses on how both were trained and tuned."""

from __future__ import annotations

from orchestrator import quantities
from orchestrator.analysis.certificate.compared import Compared, Outcome


def data_order(of: Compared) -> Outcome | None:
    if of.block.kind != "train":
        return None
    ours, theirs = (
        {
            (seen.cell.seq_len, seen.cell.seed): seen.merged.facts.get("data_order")
            for seen in side.cells
            if seen.merged
        }
        for side in of.sides
    )
    shared = [(ours[at], theirs[at]) for at in ours.keys() & theirs.keys()]
    known = [pair for pair in shared if None not in pair]
    if not known:
        return None, "not on record"
    same = sum(a == b for a, b in known)
    return same == len(known), f"the same in {same} of {len(known)} pairs of cells"


def tokens(of: Compared) -> Outcome | None:
    if of.block.kind != "train":
        return None
    ours, theirs = (
        {(s.cell.seq_len, s.cell.tokens, s.cell.tokens_per_update) for s in side.cells}
        for side in of.sides
    )
    contexts = {one[0] for one in ours} & {one[0] for one in theirs}
    ours, theirs = ({one for one in side if one[0] in contexts} for side in (ours, theirs))
    spent = "/".join(quantities.count(n) for n in sorted({one[1] or 0 for one in ours | theirs}))
    return ours == theirs, f"{spent} tokens each" if ours == theirs else f"{spent} tokens"


def budget(of: Compared) -> Outcome | None:
    if of.block.kind != "train":
        return None
    ours, theirs = (side.searches for side in of.sides)
    if not ours or not theirs:
        said = " and ".join(
            "/".join(
                f"{rate:g}" for rate in sorted({s.cell.learning_rate or 0 for s in side.cells})
            )
            for side in of.sides
        )
        return False, f"learning rates {said}, as the sweep file gives them: nobody was tuned"
    spent = [
        sorted((s.seq_len, s.is_check, t.cell.tokens or 0) for s in side for t in s.trials)
        for side in (ours, theirs)
    ]
    said = " and ".join(
        f"{len(side)} trials of {quantities.count(sum(one[-1] for one in side))} tokens in all"
        for side in spent
    )
    if spent[0] == spent[1]:
        return True, f"{said.partition(' and ')[0]} each"
    return False, said


def inside(of: Compared) -> Outcome | None:
    searched = [(side.label, search) for side in of.sides for search in side.searches]
    ends = [(label, search) for label, search in searched if not search.is_check]
    if of.block.kind != "train" or not ends:
        return None
    if any(search.chosen is None for _, search in searched):
        return None, "not found yet, or nothing could be trained"
    beyond = [
        f"{label} at {quantities.count(search.seq_len)}: {search.chosen['learning_rate']:g} lies"
        f" at the {search.at_edge} end of {search.low:g} to {search.high:g}"
        for label, search in ends
        if search.at_edge is not None and search.chosen is not None
    ]
    beyond += [
        f"{label}: the {search.better_beside} is best at {quantities.count(search.seq_len)}"
        for label, search in searched
        if search.better_beside is not None
    ]
    if beyond:
        return False, "; ".join(beyond)
    rates = sorted(search.chosen["learning_rate"] for _, search in ends if search.chosen)
    low, high = min(s.low for _, s in ends), max(s.high for _, s in ends)
    return True, f"{rates[0]:g} to {rates[-1]:g}, of {low:g} to {high:g}"
