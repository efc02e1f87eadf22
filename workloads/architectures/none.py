"""The shell alone: no mixer, so no position sees another; what remains is what every architecture
pays for.

Idea: subtracting this cost from a measured one leaves the mixer's own. Its loss is that of a
unigram-to-next-token model, a floor that any mixer must beat. It is no method of a paper, and
nothing is left out of one.

Cost: the mixer's time and memory, in training as in decoding, are zero: time a token is constant in
the context, the state is empty. It keeps the reference width of the asked size and an MLP of four
times that width, so it is smaller than the size says (`matched=False`). Runs torch's matrix
multiplications only.
"""

from __future__ import annotations

from dataclasses import dataclass

from workloads.plugins import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Nothing to set."""


ARCHITECTURE = Architecture(
    title="no mixer",
    version=1,
    options=Options,
    mixer=lambda d_model, options: None,
    parameters=lambda d_model, options: 0,
    state_bytes=lambda d_model, options, seq_len, element_bytes: 0,
    flops_per_token=lambda d_model, options, seq_len: 0.0,
    saved_elements_per_token=lambda d_model, options, seq_len: 0.0,
    implementation=lambda options, device_type: "no mixer",
    kernel_class=lambda options, device_type: "none",
    matched=False,
    family="shell",
)
