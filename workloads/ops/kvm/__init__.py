"""Key-value means: softmax attention to a window of exact tokens and a state of merged ones.

The layout is (B, heads, T, head width), as attention's.
"""

from workloads.ops.kvm.cache import Cache, empty_cache, note_factors
from workloads.ops.kvm.chunked import attend
from workloads.ops.kvm.decoding import step
from workloads.ops.kvm.growth import Growth
from workloads.ops.kvm.memory import Memory, remember
from workloads.ops.kvm.reading import PREFIXES
from workloads.ops.kvm.reference import attend_reference
from workloads.ops.kvm.state import Learned, Method, memory_keys, read
from workloads.ops.kvm.tokens import (
    ROPE_BASE,
    merge_gate,
    rotary_tables,
    rotate,
    token_shift,
    value_residual,
)

__all__ = [
    "PREFIXES",
    "ROPE_BASE",
    "Cache",
    "Growth",
    "Learned",
    "Memory",
    "Method",
    "attend",
    "attend_reference",
    "empty_cache",
    "memory_keys",
    "merge_gate",
    "note_factors",
    "read",
    "remember",
    "rotary_tables",
    "rotate",
    "step",
    "token_shift",
    "value_residual",
]
