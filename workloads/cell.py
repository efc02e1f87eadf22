"""A cell: one point of a sweep's plan, with everything that decides its numbers and an id made of
that content.

Three kinds exist. A *measure* cell times one architecture at one context and batch size in one
independent round; a *train* cell trains one architecture at one training length with one seed and
evaluates it; a *tune* cell does the same for one trial of a search for the settings of train cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, cast, get_args

CELL_SCHEMA = 1
Kind = Literal["measure", "tune", "train"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Execution = Literal["eager", "compiled", "graph"]
EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
"""How what is timed is launched: see `execution.py`."""
Scalar = str | int | float | bool | None | tuple[str, ...]
"""The value of an option: plain, or several words."""

# Fields that came later, as they ask for nothing: then they are no part of the id, so that old ids
# hold.
_LATER: Mapping[str, object] = {
    "shell": {},
    "execution": "eager",
    "eval_seq_len": [],
    "carry_state": False,
    "optimiser": {},
    "study": None,
    "trial": None,
}
# Not part of the id: asking for one more metric, or raising a limit, must not repeat old work.
_OUTSIDE_ID = frozenset({"metrics", "limits"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one cell may use: wall time in seconds, and bytes of memory over the process's own
    start."""

    cell_seconds: float = 600.0
    memory_bytes: int | None = None

    def within(self, other: Limits) -> bool:
        """True where every limit here is no larger than in `other`."""
        seconds = self.cell_seconds <= other.cell_seconds
        memory = other.memory_bytes is None or (
            self.memory_bytes is not None and self.memory_bytes <= other.memory_bytes
        )
        return seconds and memory

    def to_dict(self) -> dict[str, float | int | None]:
        return {"cell_seconds": self.cell_seconds, "memory_bytes": self.memory_bytes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """What a sweep may set of the recipe that trains: AdamW's `weight_decay`, the norm that the
    gradient of an update is clipped to, and the share of what each layer adds that is dropped."""

    weight_decay: float = 0.1
    clip_norm: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and under 1, not {self.dropout}")


RECIPE = tuple(one.name for one in fields(Optimiser))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the plan. Lengths are in the task's tokens; `size` is the non-embedding
    parameters asked for.

    `options` and `task_options` hold only what differs from the plug-in's defaults, so that a new
    option with a default leaves old ids alone (a changed default is a new plug-in version); so does
    `shell`, the sweep's switches for the model around the mixers (`short_conv`, `mlp`, `tied_head`,
    `d_model`). `size` is 0 where none was asked for.
    `device` is a device class: `cpu:THREADS`, or the accelerator's name as a slug. `batch_tokens`
    is set beside `batch_size` where the sweep asked for constant tokens per step. `execution` is
    how what is timed is launched (`execution.py`). `eval_seq_len` are the lengths at which what was
    trained is evaluated, beside its own. With `carry_state` each update goes on in the text, and
    with the state, where the last one ended (truncated backpropagation through time). `optimiser`
    holds what differs from `Optimiser`. A tune cell is trial 1, 2, ... of its `study`, the search
    it belongs to. A `learning_rate` of None is still to be found by tuning: such a cell cannot run
    yet. Fields of another kind are None.
    """

    kind: Kind
    architecture: str
    architecture_version: int
    options: Mapping[str, Scalar] = field(default_factory=dict)
    label: str
    task: str
    task_version: int
    task_options: Mapping[str, Scalar] = field(default_factory=dict)
    size: int
    num_layers: int
    precision: str
    device: str
    seq_len: int
    shell: Mapping[str, Scalar] = field(default_factory=dict)
    # measure
    batch_size: int | None = None
    batch_tokens: int | None = None
    round: int | None = None
    execution: Execution = "eager"
    # tune, train
    seed: int | None = None
    tokens: int | None = None
    tokens_per_update: int | None = None
    learning_rate: float | None = None
    eval_seq_len: tuple[int, ...] = ()
    carry_state: bool = False
    optimiser: Mapping[str, Scalar] = field(default_factory=dict)
    # tune
    study: str | None = None
    trial: int | None = None
    # outside the id
    metrics: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def id(self) -> str:
        """SHA-256 (hex) over the canonical JSON of every field that decides a number; key order
        does not matter."""
        content = {name: value for name, value in self.to_dict().items() if name not in _OUTSIDE_ID}
        for name, nothing in _LATER.items():
            if content[name] == nothing:
                del content[name]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    @property
    def replicate(self) -> int:
        """The round of a measure cell or the seed of another: what its random numbers are drawn
        from."""
        value = self.round if self.kind == "measure" else self.seed
        assert value is not None
        return value

    @property
    def recipe(self) -> Optimiser:
        """What it trains with, defaults filled in. Raises TypeError where `optimiser` holds what
        there is not."""
        return Optimiser(**cast("dict[str, float]", dict(self.optimiser)))

    @property
    def is_open(self) -> bool:
        """True where tuning has yet to say how the cell trains."""
        return self.kind != "measure" and self.learning_rate is None

    @property
    def batch(self) -> str | None:
        """The batch as text for tables: `8`, or `4096 tokens` where tokens per step are constant;
        None where the cell trains."""
        if self.batch_tokens is not None:
            return f"{self.batch_tokens} tokens"
        return None if self.batch_size is None else str(self.batch_size)

    def asking(self, metrics: tuple[str, ...]) -> Cell:
        """The same cell, asked for these metrics only."""
        return replace(self, metrics=metrics)

    def to_dict(self) -> dict[str, Any]:
        # Field by field: `asdict` copies all the way down, at many times the cost.
        content = {name: getattr(self, name) for name in _FIELDS}
        content |= {group: dict(content[group]) for group in _OPTIONS}
        content |= {"metrics": list(self.metrics), "limits": self.limits.to_dict()}
        content["eval_seq_len"] = list(self.eval_seq_len)
        return {"schema": CELL_SCHEMA, **content}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        """The cell that `to_dict` wrote. An `id` beside the fields is checked.

        Raises:
            ValueError: unknown or missing fields, another schema number, or an id that is not the
            content's.
        """
        values = dict(data)
        claimed = values.pop("id", None)
        schema = values.pop("schema", CELL_SCHEMA)
        if schema != CELL_SCHEMA:
            raise ValueError(f"cell has schema {schema}, this version reads {CELL_SCHEMA}")
        if unknown := sorted(set(values).difference(_FIELDS)):
            raise ValueError(f"cell has unknown fields: {', '.join(unknown)}")
        try:
            for several in ("metrics", "eval_seq_len"):
                values[several] = tuple(values.get(several, ()))
            for group in _OPTIONS:
                values[group] = _with_tuples(values.get(group, {}))
            values["limits"] = Limits(**values.get("limits", {}))
            cell = cls(**values)
        except TypeError as error:
            raise ValueError(f"cell is not complete: {error}") from None
        if claimed is not None and claimed != cell.id:
            raise ValueError(
                f"cell says its id is {claimed[:12]}, its content gives {cell.id[:12]}"
            )
        return cell


_FIELDS = tuple(one.name for one in fields(Cell))
_OPTIONS = "options", "task_options", "shell", "optimiser"


def _with_tuples(options: Mapping[str, Any]) -> dict[str, Scalar]:
    """JSON has lists only; options are values that never change."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal content, equal text. NaN and infinity are
    refused."""
    return _canonical(value)


# `json.dumps` would make one for each call.
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
