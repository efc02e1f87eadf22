"""Memory caching: a recurrent layer that keeps its state at the end of every segment and lets each
token read these cached memories beside the current one.

Idea: the write rule of the recurrence is left alone. The read becomes a weighted sum over the
memories of all finished segments and the online one, weighted by a softmax of a connector u_t = W x
against each segment's pooled keys (gated), by 1 (residual), over the best few (sparse), or mixed
into one memory (soup). So the memory grows with the context, by one state a segment. Paper: Behrouz
et al. 2026, "Memory Caching: RNNs with Growing Memory" (arXiv 2602.24281); no official code; what
it leaves open is an option here.

Cost: with segments of C tokens, training on T tokens costs O(T C d) inside segments and O(T^2 / C)
reads. It keeps per token (linear base, gated) about 17 d numbers, C or 64 if that is less, heads T
/ C weights and a share d w / (2 C) of a segment's state, w a head's width: linear in the context
but for the weights. LSTM and GRU keep 3 d more than without a cache, and 3 T / C. Decoding a token
costs the base's step and O(T / C) reads; the state is T / C memories, smaller than a key-value
cache only where C is more than half a head's width. Logarithmic segmentation has O(log T) memories.
Rule `average` has no parameters: it is the paper's use of caching after training.

Kernels: none exists for the cached read; it is products in torch, on every device, with a backward
of its own that keeps no scaled queries. LSTM and GRU run in torch's modules (cuDNN on an NVIDIA
GPU).

Left out: of the paper's base memories SWLA, which writes two tokens at a time, and DLA and Titans,
whose memories are MLPs written by gradient steps; there is no official code to hold them against.
Here are the linear one (with a decay per head and token, or normalised with elu + 1 features, as
options) and, as an adaptation, Mamba-2, whose block is that of `mamba2` with the connector beside
it, the LSTM and the GRU. Per-head RMSNorm before `out` (option) is ours: un-normalised reads grow
with the context. Needed beyond the shell: nothing; there is no position information.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workloads import plugins, recurrent, registry
from workloads.mixer import Mixer
from workloads.ops.memory_caching import costs
from workloads.ops.memory_caching.mixers import CachedLinear, CachedMamba2
from workloads.ops.memory_caching.recurrence import CachedRecurrence
from workloads.ops.memory_caching.weights import RULES, Caching
from workloads.plugins import Architecture

_WORDS: dict[str, tuple[str, ...]] = {
    "base": ("linear", "mamba2", "lstm", "gru"),
    "rule": RULES,
    "start": ("independent", "checkpoint"),
    "pool": ("mean", "sum"),
    "segmentation": ("constant", "logarithmic"),
    "read": ("hidden", "gate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is cached and how it is read.

    base: the recurrence: linear, mamba2, lstm or gru. rule: residual, gated, soup, sparse, or
    average. segment: tokens a segment. start: of a segment's memory: independent, or checkpoint,
    from the last one's end; by default independent for linear without decay, else checkpoint. pool:
    mean or sum of a segment's keys. top_k: cached memories that sparse reads. heads: of linear and
    mamba2. decay, normalised: of linear. segmentation: constant or logarithmic, the latter for
    independent linear memories without decay. read: of an LSTM's memories: hidden vectors, or cells
    under the current output gate. gate_scale: factor of the gate's logits; by default 1, as in the
    paper, and 1 / sqrt(d_model) for lstm and gru. output_norm: RMSNorm of each head, of linear.
    """

    base: str = "linear"
    rule: str = "gated"
    segment: int = 64
    start: str | None = None
    pool: str = "mean"
    top_k: int = 2
    heads: int = 4
    decay: bool = False
    normalised: bool = False
    segmentation: str = "constant"
    read: str = "hidden"
    gate_scale: float | None = None
    output_norm: bool = True

    def __post_init__(self) -> None:
        for option, known in _WORDS.items():
            value = getattr(self, option)
            if value not in known and not (option == "start" and value is None):
                raise ValueError(plugins.unknown(option, value, known))
        for option in ("segment", "top_k", "heads"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} must be at least 1, not {getattr(self, option)}")
        if self.gate_scale is not None and not self.gate_scale > 0:
            raise ValueError(f"gate_scale must be above 0, not {self.gate_scale}")
        if (self.decay or self.normalised) and self.base != "linear":
            raise ValueError(f"decay and normalised are options of base linear, not {self.base}")
        if self.read == "gate" and self.base != "lstm":
            raise ValueError(f"read gate needs the output gate of base lstm, not {self.base}")
        if self.segmentation == "logarithmic" and (
            self.base != "linear" or self.decay or self.starts != "independent"
        ):
            raise ValueError(
                "logarithmic segmentation merges memories by adding them, which needs base linear "
                "with start independent and without decay"
            )

    @property
    def starts(self) -> str:
        """`start` with its default filled in."""
        fades = self.base != "linear" or self.decay
        return self.start or ("checkpoint" if fades else "independent")


def _caching(d_model: int, options: Options) -> Caching:
    vector = options.base in ("lstm", "gru")
    scale = options.gate_scale or (d_model**-0.5 if vector else 1.0)
    words: dict[str, Any] = {"rule": options.rule, "start": options.starts, "pool": options.pool}
    return Caching(
        segment=options.segment,
        top_k=options.top_k,
        gate_scale=scale,
        normalised=options.normalised,
        logarithmic=options.segmentation == "logarithmic",
        **words,
    )


def _mixer(d_model: int, options: Options) -> Mixer:
    caching = _caching(d_model, options)
    if options.base == "linear":
        return CachedLinear(d_model, options.heads, caching, options.decay, options.output_norm)
    if options.base == "mamba2":
        return CachedMamba2(d_model, options.heads, caching)
    return CachedRecurrence(
        d_model,
        "lstm" if options.base == "lstm" else "gru",
        caching,
        "gate" if options.read == "gate" else "hidden",
    )


def _costs(d_model: int, options: Options) -> costs.Costs:
    caching = _caching(d_model, options)
    if options.base == "linear":
        return costs.linear(d_model, options.heads, caching, options.decay, options.output_norm)
    if options.base == "mamba2":
        return costs.mamba2(d_model, options.heads, caching)
    return costs.recurrence(d_model, options.base, caching, options.read)


def _recurrence(options: Options) -> Architecture | None:
    """Whose code goes over the tokens within a segment; None where that is this file's own."""
    own = options.base in ("linear", "mamba2")
    return None if own else registry.load("architectures", options.base)


def _implementation(options: Options, device_type: str) -> str:
    own, recurrence = "own segment products (torch)", _recurrence(options)
    if recurrence is None:
        return own
    return f"{own}, {recurrence.implementation(recurrence.options(), device_type)}"


def _kernel_class(options: Options, device_type: str) -> str:
    """As slow as its slowest part."""
    recurrence = _recurrence(options)
    loops = recurrence and recurrence.kernel_class(recurrence.options(), device_type)
    return "sequential" if loops == "sequential" else "chunked"


def _calls_per_token(options: Options, device_type: str) -> float:
    recurrence = _recurrence(options)
    return recurrence.calls_per_token(recurrence.options(), device_type) if recurrence else 0.0


def _arithmetic(options: Options, precision: str, device_type: str) -> str:
    if _recurrence(options) is None:
        return precision
    return recurrent.arithmetic(options, precision, device_type)


def _width_multiple(options: Options) -> int:
    return options.heads if options.base in ("linear", "mamba2") else 1


ARCHITECTURE = Architecture(
    title="memory caching",
    version=4,
    options=Options,
    mixer=_mixer,
    parameters=lambda d_model, options: _costs(d_model, options).parameters,
    state_bytes=lambda d_model, options, seq_len, element_bytes: _costs(
        d_model, options
    ).state_bytes(seq_len, element_bytes),
    flops_per_token=lambda d_model, options, seq_len: _costs(d_model, options).flops_per_token(
        seq_len
    ),
    saved_elements_per_token=lambda d_model, options, seq_len: _costs(
        d_model, options
    ).saved_elements_per_token(seq_len),
    implementation=_implementation,
    kernel_class=_kernel_class,
    calls_per_token=_calls_per_token,
    arithmetic=_arithmetic,
    width_multiple=_width_multiple,
    heads=_width_multiple,
    family="memory",
)
