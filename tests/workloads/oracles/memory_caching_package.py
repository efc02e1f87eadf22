"""memory-caching's layer over linear memories: another reading of the paper, token after token.

It pools sums of keys and has no norm; its logarithmic segments are static, ours a binary counter.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.workloads.oracles.oracle import FLOAT64, WIDTH, Oracle, Twin, layer_oracle, library

RULES = {"residual": "residual", "gated": "grm", "soup": "soup", "sparse": "ssc"}
STARTS = {"independent": "restart", "checkpoint": "checkpoint"}
SEGMENT = 16


def memory_caching(mixer: Any, options: Any, width: int = WIDTH) -> Twin:
    package = library("memory_caching")
    configuration = package.MCConfig(
        d_model=width,
        num_heads=options.heads,
        aggregation=RULES[options.rule],
        segment_size=options.segment,
        state_init_mode=STARTS[options.starts],
        ssc_top_k=options.top_k,
    )
    backend = library("memory_caching.backends.linear").LinearMemoryBackend()
    layer = package.MemoryCachingLayer(config=configuration, backend=backend)
    q, k, v, *connector = mixer.qkvu.weight.split(width)
    parameters = {
        "q_proj.weight": q * mixer.scale,
        "k_proj.weight": k,
        "v_proj.weight": v,
        # residual reads ask no connector
        "u_proj.weight": connector[0] if connector else q.new_zeros(q.shape),
        "o_proj.weight": mixer.out.weight,
    }
    return Twin(layer, parameters)


def _oracle(rule: str, start: str) -> Oracle:
    return layer_oracle(
        "memory_caching",
        f"MemoryCachingLayer, {rule}, {start}",
        FLOAT64,
        memory_caching,
        rule=rule,
        start=start,
        segment=SEGMENT,
        pool="sum",
        heads=2,
        output_norm=False,
    )


AVAILABLE = sys.version_info < (3, 13)
"""The package refuses a newer Python."""

ORACLES = tuple(_oracle(rule, start) for rule in RULES for start in STARTS) if AVAILABLE else ()
