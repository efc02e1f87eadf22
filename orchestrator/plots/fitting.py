"""A label cut to the room that there is for it."""

from __future__ import annotations

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from orchestrator.plots import style


def short(label: str, width: int = 22) -> str:
    """A label, cut with an ellipsis where it is longer than a margin holds."""
    return label if len(label) <= width else label[: width - 1] + "…"


def fitted(label: str, inches: float, size: float, weight: str = "normal") -> str:
    """A label, cut in its middle where it is wider than `inches`: of many labels some differ in
    their last word alone."""
    font = FontProperties(family=style.RC["font.family"], weight=weight)
    text = label
    for kept in range(len(label) - 1, 2, -1):
        if TextPath((0, 0), text, size=size, prop=font).get_extents().width <= 72 * inches:
            break
        tail = kept // 2
        text = f"{label[: kept - tail]}…{label[-tail:]}"
    return text
