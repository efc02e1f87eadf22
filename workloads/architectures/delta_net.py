"""DeltaNet: linear attention that replaces what it stored under a key instead of adding to it.

Idea: a state matrix S per head maps keys to values. Before token t writes, it looks up what S holds
at its key and writes only the difference, scaled by a learned step beta: S += k (beta (v - S^T
k))^T. That is one step of online gradient descent on |S^T k - v|^2. Papers: Schlag et al. 2021,
"Linear Transformers Are Secretly Fast Weight Programmers"; parallel in time by Yang et al. 2024,
"Parallelizing Linear Transformers with the Delta Rule over Sequence Length", whose layer this is.
With `negative_eigenvalues` beta lies in (0, 2) and a step may reflect the state along its key,
which state tracking such as parity needs (Grazzi et al. 2024, "Unlocking State-Tracking in Linear
RNNs Through Negative Eigenvalues").

Cost: a token costs 8 d^2 FLOPs of projections and, with heads of width w, about 6 d w for its state
and, in training and prefill, 8 d C in its chunk of C = 32, at any context. Training keeps about 17
d + 3 C heads + 2 d w / C numbers a token, linear in the context: activations, three C x C matrices
a chunk and head, and the state before each chunk. Decoding skips the chunk, and holds and updates d
w numbers a sequence, in float32 or wider.

Kernels: on a CPU chunks with one batched triangular solve (`workloads/ops/delta_rule_chunks.py`);
on an NVIDIA GPU fla's chunk_delta_rule, in bfloat16 only and for heads of at most 256 channels. A
decoding step is plain torch everywhere.

Left out: the short convolutions on q, k and v; the shell has one on the mixer's input, as an option
for all mixers alike. Needed beyond the shell: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from workloads import delta_heads, delta_mixer
from workloads.delta_mixer import DeltaMixer
from workloads.ops import backends
from workloads.ops.delta_rule_chunks import CHUNK
from workloads.plugins import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: heads a layer, each d_model / heads wide. negative_eigenvalues: beta in (0, 2) instead
    of (0, 1)."""

    heads: int = 4
    negative_eigenvalues: bool = False

    def __post_init__(self) -> None:
        delta_heads.check(self)


ARCHITECTURE = Architecture(
    title="DeltaNet",
    version=1,
    options=Options,
    mixer=DeltaMixer,
    parameters=delta_mixer.parameters,
    state_bytes=delta_heads.memory_bytes,
    flops_per_token=delta_mixer.flops,
    saved_elements_per_token=delta_mixer.saved_elements,
    implementation=lambda options, device_type: backends.implementation(
        f"own chunked products (chunk {CHUNK})", "chunk_delta_rule", device_type
    ),
    kernel_class=backends.kernel_class,
    width_multiple=delta_heads.width_multiple,
    family="delta rule",
)
