"""The tables of a sweep as declared Arrow schemas: what a column is called, holds, and in which
unit.

The columns named in the README are fixed; more may follow. Absence is null, never NaN or zero.
"""

from __future__ import annotations

import pyarrow as pa

TABLES_SCHEMA = 1
"""Stands in every file's metadata under `schema`; bumped when the meaning of a column changes."""


def _field(name: str, kind: pa.DataType, unit: str = "", *, required: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=not required, metadata={"unit": unit} if unit else None)


def _text(name: str, required: bool = False) -> pa.Field:
    return _field(name, pa.string(), required=required)


def _count(name: str, unit: str = "", required: bool = False) -> pa.Field:
    return _field(name, pa.int64(), unit, required=required)


def _number(name: str, unit: str = "") -> pa.Field:
    return _field(name, pa.float64(), unit)


def _flag(name: str) -> pa.Field:
    return pa.field(name, pa.bool_())


# What all rows of one figure share, in the tables that judge.
_BLOCK = (
    _text("metric", True),
    _text("task", True),
    _count("size", "parameters"),
    _text("batch"),
    _text("execution"),
    _text("device"),
)

# One row a planned cell; one float64 column per metric (its median, unit in the field's metadata)
# follows these.
CELLS = pa.schema(
    [
        _text("sweep", True),
        _text("cell_id", True),
        _text("run_id"),
        _text("kind", True),
        _text("status", True),
        _text("reason"),
        _text("architecture", True),
        _text("label", True),
        _text("options", True),
        _text("task", True),
        _count("size", "parameters"),
        _count("seq_len", "tokens", True),
        _count("batch_size", "sequences"),
        _count("round"),
        _count("seed"),
        _text("device"),
        _text("environment"),
        _text("precision"),
        _text("implementation"),
        _count("parameters", "parameters"),
        _count("total_parameters", "parameters"),
        _count("d_model"),
        _count("num_layers"),
        _number("learning_rate"),
        # beyond the fixed columns
        _text("batch"),
        _text("execution"),
        _count("mlp_width"),
        _count("tokens", "tokens"),
        _count("tokens_per_update", "tokens"),
        _count("updates"),
        _count("attempts"),
        _number("seconds", "s"),
        _number("predicted_seconds", "s"),
        _count("predicted_peak_bytes", "bytes"),
        _text("message"),
        _text("device_name"),
        _text("commit"),
        _flag("dirty"),
        _text("source_hash"),
        # the kin of the architecture; null where its plug-in was not at hand
        _text("family"),
        # architecture and options, without those that only choose the code; null as above
        _text("method"),
        _text("position_encoding"),
        # of the products, and of the bytes moved, in a second that the device reaches at best
        _number("flops_share", "1"),
        _number("bandwidth_share", "1"),
        # of the metric where it is worst: how wide the 95 % interval of the median of its calls is,
        # relative to it; seconds that its threads waited for a core, that an accelerator was busy,
        # and that it was slowed by heat or supply, to those timed; the accelerator's clock
        _number("median_interval", "1"),
        _number("waited_share", "1"),
        _number("busy_share", "1"),
        _number("slowed_share", "1"),
        _number("sm_clock", "1/s"),
        # the share of the cell's time that its cores were withheld from this machine
        _number("stolen_share", "1"),
        # of a compiled cell: how often torch met what it cannot trace, which then ran eagerly
        _count("graph_breaks"),
    ]
)

SAMPLES = pa.schema(
    [
        _text("cell_id", True),
        _text("metric", True),
        _text("unit", True),
        _count("index", required=True),
        _count("step", "updates"),
        _number("value"),
    ]
)

CURVES = pa.schema(
    [
        _text("cell_id", True),
        _text("metric", True),
        _text("coordinate", True),
        _number("at"),
        _number("value"),
    ]
)

# `low..high` is the 95 % interval of the median of the replicates; `reason` says why there is no
# median.
SUMMARY = pa.schema(
    [
        _text("label", True),
        _text("architecture", True),
        _text("task", True),
        _count("size", "parameters"),
        _count("seq_len", "tokens", True),
        _text("batch"),
        _text("execution"),
        _text("device"),
        _text("metric", True),
        _text("unit", True),
        _number("median"),
        _number("low"),
        _number("high"),
        _count("replicates"),
        _text("reason"),
        _text("kind"),
        _text("title"),
        _text("better"),
        _text("scale"),
        _flag("deterministic"),
        _text("environment"),
        _text("implementation"),
        # what needs no model reaches here, where the task says so
        _number("trivial"),
    ]
)

# A metric that is a curve over a coordinate, at each of its points.
PROFILES = pa.schema(
    [
        _text("label", True),
        _text("architecture", True),
        _text("task", True),
        _count("size", "parameters"),
        _count("seq_len", "tokens", True),
        _text("device"),
        _text("metric", True),
        _text("unit", True),
        _text("coordinate", True),
        _number("at"),
        _number("median"),
        _number("low"),
        _number("high"),
        _count("replicates"),
        _text("reason"),
        _text("title"),
        _text("better"),
        _text("scale"),
        _text("environment"),
    ]
)

# What a task's records say of models that come with a package and were not trained here.
REFERENCES = pa.schema(
    [
        _text("reference", True),
        _text("title", True),
        _text("task", True),
        _count("seq_len", "tokens", True),
        _text("metric", True),
        _text("unit", True),
        _number("value"),
        _text("environment"),
    ]
)

# One trial of tuning a row, with what its search chose: a rate between the trials where it is
# `fitted`; `at_edge` where the best lies at this end of the range, `widened` or not.
TUNING = pa.schema(
    [
        _text("label", True),
        _text("architecture", True),
        _text("task", True),
        _count("size", "parameters"),
        _count("seq_len", "tokens", True),
        _text("device"),
        _text("environment"),
        _text("study", True),
        _text("stage", True),
        _count("trial", required=True),
        _text("cell_id", True),
        _count("tokens", "tokens"),
        _number("learning_rate"),
        _number("weight_decay"),
        _number("clip_norm"),
        _number("dropout"),
        _number("forget_bias"),
        _text("metric", True),
        _text("unit"),
        _text("better", True),
        _number("value"),
        _text("reason"),
        _number("low"),
        _number("high"),
        _flag("widened"),
        _number("chosen"),
        # what the search chose of all that it searched for, as JSON by name
        _text("chosen_setting"),
        _flag("fitted"),
        _text("at_edge"),
    ]
)

# What a fair comparison has, clause by clause; `holds` is null where the records do not tell.
CERTIFICATE = pa.schema(
    [
        *_BLOCK,
        _text("environment"),
        _text("baseline", True),
        _text("challenger", True),
        _text("clause", True),
        _flag("holds"),
        _text("figure", True),
    ]
)

# A figure of the article beside what was measured, each as a ratio to the Transformer's; no rows
# where a sweep has fewer than three of its five figures.
ARTICLE = pa.schema(
    [
        *_BLOCK,
        _text("environment"),
        _text("figure", True),
        _text("label", True),
        _text("architecture", True),
        _text("reference", True),
        _text("unit", True),
        _count("seq_len", "tokens", True),
        _number("article"),
        _number("article_ratio"),
        _number("value"),
        _number("ratio"),
        _number("low"),
        _number("high"),
        _text("reason"),
    ]
)

# One crossing a row, or one verdict where there is none. Contexts are in tokens.
CROSSOVERS = pa.schema(
    [
        *_BLOCK,
        _text("baseline", True),
        _text("challenger", True),
        _text("verdict", True),
        _count("crossing"),
        _text("direction"),
        _number("seq_len", "tokens"),
        _number("low", "tokens"),
        _number("high", "tokens"),
        _flag("low_open"),
        _flag("high_open"),
        _number("indifferent_low", "tokens"),
        _number("indifferent_high", "tokens"),
        _flag("in_zone"),
        _count("replicates"),
        # p_value: of any difference over the contexts (max-t); p_adjusted: by Holm over the
        # report's comparisons; smallest_effect: the relative difference found with probability 0.8
        # at this noise and number of replicates.
        _text("environment"),
        _number("p_value"),
        _number("p_adjusted"),
        _number("smallest_effect"),
        _flag("primary"),
        _text("note"),
    ]
)

# The contrast of each pair at each context, with its simultaneous band (`low..high`) and pointwise
# interval. `estimate` is the mean log ratio challenger / baseline (scale `ratio`), or the
# difference (scale `difference`).
CONTRASTS = pa.schema(
    [
        *_BLOCK,
        _text("environment"),
        _text("baseline", True),
        _text("challenger", True),
        _count("seq_len", "tokens", True),
        _text("scale", True),
        _text("better", True),
        _number("estimate"),
        _number("low"),
        _number("high"),
        _number("pointwise_low"),
        _number("pointwise_high"),
        _count("replicates"),
        _text("reason"),
        # values within `margin` of zero count as equal, on the scale of the estimate
        _number("margin"),
    ]
)

# Who cannot be told from the best at each context and batch.
WINNERS = pa.schema(
    [
        *_BLOCK,
        _text("environment"),
        _count("seq_len", "tokens", True),
        _text("label", True),
        _flag("best"),
        _flag("in_best_set"),
        _number("median"),
    ]
)

SCALING = pa.schema(
    [
        _text("label", True),
        _text("metric", True),
        _text("task"),
        _count("size", "parameters"),
        _text("batch"),
        _text("execution"),
        _text("device"),
        _text("environment"),
        _number("local_exponent"),
        _number("low"),
        _number("high"),
        _number("constant"),
        _number("constant_low"),
        _number("constant_high"),
        _number("linear"),
        _number("linear_low"),
        _number("linear_high"),
        _number("quadratic"),
        _number("quadratic_low"),
        _number("quadratic_high"),
        _count("replicates"),
    ]
)

SCHEMAS: dict[str, pa.Schema] = {
    "cells": CELLS,
    "samples": SAMPLES,
    "curves": CURVES,
    "summary": SUMMARY,
    "profiles": PROFILES,
    "references": REFERENCES,
    "tuning": TUNING,
    "certificate": CERTIFICATE,
    "article": ARTICLE,
    "crossovers": CROSSOVERS,
    "contrasts": CONTRASTS,
    "winners": WINNERS,
    "scaling": SCALING,
}
