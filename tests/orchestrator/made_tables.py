"""Finished tables made by hand from simple laws, for tests of what only reads tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from orchestrator.analysis.schema import SCHEMAS
from orchestrator.analysis.tables import SweepFacts, Tables

Law = Callable[[int], float]
ENVIRONMENT = "0123456789ab"
CONTEXTS = (128, 256, 300, 384, 448, 512, 1024, 2048)
LAWS: dict[str, Law] = {
    "lstm": lambda n: 2.1e-5 * n,
    "gru": lambda n: 1.7e-5 * n,
    "transformer": lambda n: 2.0e-3 + 8e-6 * n + 6e-9 * n * n,
    "kvm(state=sqrt)": lambda n: 3e-3 + 1.1e-5 * n,
}

MANY_CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
FAMILIES: dict[str, str] = {
    "lstm": "recurrent network",
    "gru": "recurrent network",
    "stacked_rnn": "recurrent network",
    "min_gru": "recurrent network",
    "mlstm": "recurrent network",
    "transformer": "attention",
    "sliding_window": "attention",
    "linear_attention": "linear attention",
    "gla": "linear attention",
    "delta_net": "delta rule",
    "gated_delta_net": "delta rule",
    "rwkv7": "delta rule",
    "mamba": "state space",
    "kvm": "memory",
    "hybrid": "hybrid",
    "none": "shell",
}


def _law(constant: float, linear: float, quadratic: float = 0.0) -> Law:
    return lambda n: constant + linear * n + quadratic * n * n


MANY_LAWS: dict[str, Law] = {
    "lstm": _law(0, 2.1e-5),
    "gru": _law(0, 1.9e-5),
    "lstm_norm_each_layer": _law(1e-3, 2.3e-5),
    "stacked_rnn": _law(0, 2.15e-5),
    "min_gru": _law(1.2e-3, 0.9e-5),
    "mlstm": _law(2.5e-3, 1.2e-5),
    "transformer": _law(2e-3, 8e-6, 6e-9),
    "transformer_rope_4_heads": _law(2.1e-3, 8.4e-6, 6e-9),
    "sliding_window": _law(2.2e-3, 1.0e-5),
    "linear_attention": _law(1.8e-3, 0.7e-5),
    "gla_fixed": _law(2.4e-3, 1.05e-5),
    "gla_scalar": _law(2.5e-3, 1.1e-5),
    "gla_channel": _law(2.9e-3, 1.35e-5),
    "delta_net": _law(3.4e-3, 1.5e-5),
    "gated_delta_net": _law(3.8e-3, 1.6e-5),
    "rwkv7": _law(4.4e-3, 2.2e-5),
    "mamba": _law(3e-3, 1.7e-5),
    "mamba2": _law(2.4e-3, 1.02e-5),
    "kvm(state=sqrt)": _law(3e-3, 1.1e-5, 1e-9),
    "hybrid": _law(2.2e-3, 1.4e-5, 2e-9),
}
"""Twenty labels of seven families; every architecture here is told by how its label begins."""


def family(label: str) -> str | None:
    """The family of the architecture with the longest name that begins the label."""
    known = [name for name in FAMILIES if label.startswith(name)]
    return FAMILIES[max(known, key=len)] if known else None


@dataclass
class Metric:
    """What a made metric is called and how it is compared."""

    name: str = "train_step_time"
    title: str = "training step time"
    unit: str = "s"
    better: str = "smaller"
    scale: str = "ratio"
    kind: str = "measure"
    laws: dict[str, Law] = field(default_factory=lambda: dict(LAWS))
    noise: float = 0.03
    reasons: dict[tuple[str, int], str] = field(default_factory=dict)


def tables(
    metrics: Sequence[Metric] = (Metric(),),
    *,
    contexts: Sequence[int] = CONTEXTS,
    batches: Sequence[int] = (8,),
    replicates: int = 5,
    status: str = "finished",
    primary: tuple[str, str, int | None] | None = ("transformer", "train_step_time", 8),
    **facts: Any,
) -> Tables:
    """Tables of a sweep in which each metric follows its laws exactly, with made intervals."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
    for metric in metrics:
        for batch in batches if metric.kind == "measure" else (None,):
            _block(rows, metric, contexts, batch, replicates, status)
    made = {name: pa.Table.from_pylist(rows[name], _schema(name, metrics)) for name in rows}
    baseline = next(iter(metrics[0].laws))
    sweep = SweepFacts(
        **{
            "name": "made",
            "question": "From which context length does attention pay for itself?",
            "spec_hash": "f" * 64,
            "spec_yaml": "name: made\n",
            "token_unit": "bytes",
            "labels": tuple(dict.fromkeys(row["label"] for row in rows["cells"])),
            "baseline": baseline,
            "zone": (256, 512),
            "primary": primary,
            "environment": ENVIRONMENT,
            "environments": {
                ENVIRONMENT: {
                    "device": "cpu:1",
                    "device_name": "Example CPU @ 2.0 GHz",
                    "driver": None,
                    "threads": 1,
                    "packages": {"torch": "2.13.0"},
                    "python": "3.11.9",
                }
            },
            **facts,
        }
    )
    return Tables(sweep=sweep, **made)


def _schema(name: str, metrics: Sequence[Metric]) -> pa.Schema:
    schema = SCHEMAS[name]
    if name == "cells":
        for metric in metrics:
            unit = {"unit": metric.unit}
            schema = schema.append(pa.field(metric.name, pa.float64(), metadata=unit))
    return schema


def _block(
    rows: dict[str, list[dict[str, Any]]],
    metric: Metric,
    contexts: Sequence[int],
    batch: int | None,
    replicates: int,
    status: str,
) -> None:
    where = {
        "metric": metric.name,
        "task": "language_modelling",
        "size": 1_000_000,
        "batch": None if batch is None else str(batch),
        "device": "cpu:1",
        "environment": ENVIRONMENT,
    }
    told = {"unit": metric.unit, "title": metric.title, "better": metric.better}
    told |= {"scale": metric.scale, "kind": metric.kind}
    baseline, *challengers = metric.laws
    for label, law in metric.laws.items():
        for context in contexts:
            reason = metric.reasons.get((label, context))
            silent = status != "finished" or (reason or "undertrained") != "undertrained"
            value = None if silent else law(context) * (batch or 1) ** 0.5
            spread = metric.noise * (value or 0.0)
            rows["summary"].append(
                {
                    **where,
                    **told,
                    "label": label,
                    "architecture": label.partition("(")[0],
                    "seq_len": context,
                    "median": value,
                    "low": None if value is None else value - spread,
                    "high": None if value is None else value + spread,
                    "replicates": 0 if value is None else replicates,
                    "reason": reason,
                    "deterministic": False,
                    "implementation": f"torch {label}",
                }
            )
            if value is not None:
                rows["winners"].append(_winner(where, metric, label, context, value))
            if value is not None and metric.name == "validation_loss":
                rows["profiles"] += _profile(where, label, context, value)
                rows["tuning"] += _tuning(where, label, context, value)
            for replicate in range(replicates):
                cell = _cell(where, metric, label, context, batch, replicate, status, reason, value)
                rows["cells"].append(cell)
                if metric.kind == "train" and value is not None:
                    rows["samples"] += _training(cell["cell_id"], value)
        if status == "finished":
            rows["scaling"].append(_scaling(where, label))
    if status == "finished":
        for challenger in challengers:
            _pair(rows, where, metric, baseline, challenger, contexts, replicates)


def _cell(
    where: dict[str, Any],
    metric: Metric,
    label: str,
    context: int,
    batch: int | None,
    replicate: int,
    status: str,
    reason: str | None,
    value: float | None,
) -> dict[str, Any]:
    done = status == "finished"
    return {
        "sweep": "made",
        "cell_id": f"{metric.name}/{label}/{context}/{batch}/{replicate}",
        "kind": metric.kind,
        "status": status,
        "reason": reason,
        "architecture": label.partition("(")[0],
        "label": label,
        "options": json.dumps({}),
        "task": where["task"],
        "size": where["size"],
        "seq_len": context,
        "batch_size": batch,
        "batch": where["batch"],
        "round": replicate if metric.kind == "measure" else None,
        "seed": replicate if metric.kind == "train" else None,
        "device": "cpu:1",
        "environment": ENVIRONMENT if done else None,
        "precision": "float32",
        "implementation": f"torch {label}" if done else None,
        "parameters": 1_003_520 if done else None,
        "d_model": 192,
        "num_layers": 2,
        "mlp_width": 512,
        "learning_rate": 1e-3 if metric.kind == "train" else None,
        "tokens": 2_000_000 if metric.kind == "train" else None,
        "tokens_per_update": 4096 if metric.kind == "train" else None,
        "updates": 489 if metric.kind == "train" and done else None,
        "attempts": 1 if done else 0,
        "seconds": 3.0 * (1 + context / 512) if done else None,
        "predicted_seconds": 2.5 * (1 + context / 400),
        "predicted_peak_bytes": 1 << 20,
        "device_name": "Example CPU @ 2.0 GHz" if done else None,
        "commit": "0" * 40 if done else None,
        "source_hash": "abc123abc123" if done else None,
        "family": family(label),
        "method": label.replace("(attention=materialised)", ""),
        metric.name: value,
    }


def _winner(
    where: dict[str, Any], metric: Metric, label: str, context: int, value: float
) -> dict[str, Any]:
    sign = 1 if metric.better == "smaller" else -1
    others = [
        sign * law(context)
        for name, law in metric.laws.items()
        if metric.reasons.get((name, context)) in (None, "undertrained")
    ]
    mine, best = sign * metric.laws[label](context), min(others)
    return {
        **where,
        "seq_len": context,
        "label": label,
        "best": mine == best,
        "in_best_set": abs(mine - best) <= 0.05 * abs(best),
        "median": value,
    }


def _tuning(where: dict[str, Any], label: str, context: int, value: float) -> list[dict[str, Any]]:
    """Six trials of a label at a context, in two rungs, about an optimum at 3e-3."""
    shared = {name: where[name] for name in ("task", "size", "device", "environment", "metric")}
    rates = [1e-3, 3e-3, 1e-2, 3e-2, 3e-3, 6e-3]
    return [
        {
            **shared,
            "label": label,
            "architecture": label.partition("(")[0],
            "seq_len": context,
            "study": f"{label}/{context}",
            "stage": "range" if trial < 5 else "halving",
            "trial": trial,
            "cell_id": f"tune/{label}/{context}/{trial}",
            "tokens": 1_000_000 if trial < 5 else 2_000_000,
            "learning_rate": rate,
            "unit": "nats per token",
            "better": "smaller",
            "value": value + 0.2 * math.log10(rate / 3e-3) ** 2,
            "low": 1e-3,
            "high": 3e-2,
            "widened": False,
            "chosen": 3e-3,
            "fitted": True,
        }
        for trial, rate in enumerate(rates, start=1)
    ]


def _profile(where: dict[str, Any], label: str, context: int, value: float) -> list[dict[str, Any]]:
    """The loss of a label by tokens of context, which falls to `value`."""
    shared = {name: where[name] for name in ("task", "size", "device", "environment")}
    return [
        {
            **shared,
            "label": label,
            "architecture": label.partition("(")[0],
            "seq_len": context,
            "metric": "loss_by_position",
            "unit": "nats per token",
            "coordinate": "position",
            "at": float(2**power),
            "median": value + 2.0**-power,
            "low": value + 2.0**-power - 0.02,
            "high": value + 2.0**-power + 0.02,
            "replicates": 5,
            "title": "validation loss by tokens of context",
            "better": "smaller",
            "scale": "ratio",
        }
        for power in range(context.bit_length())
    ]


def _training(cell_id: str, value: float) -> list[dict[str, Any]]:
    return [
        {
            "cell_id": cell_id,
            "metric": "training_loss",
            "unit": "nats per token",
            "index": index,
            "step": 50 * (index + 1),
            "value": value + 3 * math.exp(-index / 3) + 0.02 * (len(cell_id) % 3),
        }
        for index in range(10)
    ]


def _scaling(where: dict[str, Any], label: str) -> dict[str, Any]:
    parts = {
        f"{part}{end}": scale * factor
        for part, scale in (("constant", 2e-3), ("linear", 1e-5), ("quadratic", 0.0))
        for end, factor in (("", 1.0), ("_low", 0.9), ("_high", 1.1))
    }
    return {
        **where,
        "label": label,
        "local_exponent": 1.02,
        "low": 0.98,
        "high": 1.06,
        "replicates": 5,
        **parts,
    }


def _pair(
    rows: dict[str, list[dict[str, Any]]],
    where: dict[str, Any],
    metric: Metric,
    baseline: str,
    challenger: str,
    contexts: Sequence[int],
    replicates: int,
) -> None:
    pair = {**where, "baseline": baseline, "challenger": challenger, "replicates": replicates}
    estimates: dict[int, float] = {}
    for context in contexts:
        reason = metric.reasons.get((challenger, context)) or metric.reasons.get(
            (baseline, context)
        )
        if reason is None:
            ours, theirs = metric.laws[challenger](context), metric.laws[baseline](context)
            ratio = metric.scale == "ratio"
            estimates[context] = math.log(ours / theirs) if ratio else ours - theirs
        estimate = estimates.get(context)
        near, far = metric.noise * 1.4, metric.noise * 2.2
        rows["contrasts"].append(
            {
                **pair,
                "seq_len": context,
                "scale": metric.scale,
                "better": metric.better,
                "estimate": estimate,
                "low": None if estimate is None else estimate - far,
                "high": None if estimate is None else estimate + far,
                "pointwise_low": None if estimate is None else estimate - near,
                "pointwise_high": None if estimate is None else estimate + near,
                "reason": reason,
            }
        )
    rows["crossovers"].append(_verdict(pair, metric, estimates))


def _verdict(pair: dict[str, Any], metric: Metric, estimates: dict[int, float]) -> dict[str, Any]:
    sign = 1 if metric.better == "smaller" else -1
    ahead = {context: sign * estimate < 0 for context, estimate in estimates.items()}
    judged = {
        "in_zone": False,
        "note": None,
        "p_value": 2e-5,
        "p_adjusted": 6e-5,
        "smallest_effect": 0.041,
        "primary": (pair["challenger"], metric.name) == ("transformer", "train_step_time")
        and pair["batch"] == "8",
    }
    if pair["replicates"] < 5:
        return {**pair, **judged, "verdict": "uncertain", "p_value": None, "p_adjusted": None}
    change = [
        (one, other)
        for one, other in zip(estimates, list(estimates)[1:], strict=False)
        if ahead[one] != ahead[other]
    ]
    if not change:
        verdict = "challenger_always" if all(ahead.values()) else "baseline_always"
        return {**pair, **judged, "verdict": verdict}
    one, other = change[0]
    at = math.sqrt(one * other)
    return {
        **pair,
        **judged,
        "verdict": "crosses",
        "crossing": 0,
        "direction": pair["challenger" if ahead[other] else "baseline"],
        "seq_len": at,
        "low": at / 1.1,
        "high": at * 1.1,
        "low_open": False,
        "high_open": False,
        "indifferent_low": at / 1.05,
        "indifferent_high": at * 1.05,
        "in_zone": 256 <= at <= 512,
    }
