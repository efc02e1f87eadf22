"""The mLSTM: xLSTM's parallel half, a matrix memory written and forgotten by gates.

Idea: every head keeps a matrix that adds v k^T at each token. A forget gate decays it and an input
gate, exponential, says how much a token counts, so that one token can outweigh all before it. A
normaliser adds up the same weights and the query's share of it divides the reading. Paper: Beck et
al. 2024, "xLSTM: Extended Long Short-Term Memory". `gate: sigmoid` is mLSTMsig (Beck et al. 2025,
"Tiled Flash Linear Attention"): a sigmoid input gate, and no normaliser, as the norm after each
head does its work; that is linear attention with a decay.

Cost: a token costs 10 d^2 FLOPs of projections, 4 d^2 / heads of state and, in training and
prefill, 4 d for each token of its chunk of C = 32 (64 for heads wider than 64), at any context;
training is parallel within chunks and sequential between them. Training keeps about 13 d + 3 C
heads + 2 d^2 / (C heads) numbers a token (16 d in place of 13 d with the sigmoid gate), linear in
the context: each chunk's C x C matrices and the state before it. Decoding skips the chunk, and
holds and updates d^2 / heads numbers a sequence (with the exponential gate, d + heads more), in
float32.

Kernels: own chunked products (`workloads/ops/mlstm.py`, `gated_linear.py`) on a CPU. On a GPU,
fla's simple_gla for the sigmoid gate; none for the exponential one: fla has no such op, and the
authors' mlstm_kernels are under a licence that is not open source (NXAI Community License).

The layer is that of xLSTM 7B (Beck et al. 2025), whose block is the shared shell's: gates from the
mixer's input, capped softly at 15, a LayerNorm per head, a sigmoid output gate. Keys are as wide as
values (the 7B model halves them). Forget biases start from 3 to 6 over the heads, input biases at
N(0, 0.1), both as in the first paper's code: the 7B model's -10 is for the stability of long runs,
and opens too late for short ones.

Left out: the first paper's block, which widens by 2 around the cell and has a convolution and a
skip within: the shell's MLP and its short convolution stand for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import plugins
from workloads.mixer import Mixer, MixerState
from workloads.ops import backends, gated_linear, mlstm
from workloads.plugins import Architecture, Unsupported

GATES = ("exponential", "sigmoid")
GATE_CAP = 15.0
FORGET_BIAS = (3.0, 6.0)
INPUT_BIAS_STD = 0.1
NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: memories a layer, each of d_model / heads keys and values. gate: the input gate,
    `exponential` (with a normaliser) or `sigmoid` (without)."""

    heads: int = 4
    gate: str = "exponential"

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, not {self.heads}")
        if self.gate not in GATES:
            raise ValueError(plugins.unknown("gate", self.gate, GATES))


@dataclass(slots=True)
class MlstmState(MixerState):
    """matrix: (B, heads, width, width), key by value. With the exponential gate also normaliser:
    (B, heads, width), and scale: (B, heads), else None. float32 or wider."""

    matrix: Tensor
    normaliser: Tensor | None
    scale: Tensor | None


class Mlstm(Mixer):
    """Raises ValueError where d_model does not split into `heads` heads."""

    def __init__(self, d_model: int, heads: int, gate: str) -> None:
        super().__init__()
        if d_model % heads:
            raise ValueError(f"d_model must be a multiple of {heads} heads, not {d_model}")
        self.heads, self.width, self.gate = heads, d_model // heads, gate
        self.qkvo = nn.Linear(d_model, 4 * d_model, bias=False)
        self.gates = nn.Linear(d_model, 2 * heads)
        self.norm = nn.Parameter(torch.ones(d_model))
        self.out = nn.Linear(d_model, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        """As every mixer, but the gates' biases: input N(0, 0.1), forget from 3 to 6."""
        super().initialise(residual_scale)
        with torch.no_grad():
            self.norm.fill_(1.0)
            self.gates.bias[: self.heads].normal_(std=INPUT_BIAS_STD)
            self.gates.bias[self.heads :] = torch.linspace(*FORGET_BIAS, self.heads)

    def forward(self, x: Tensor) -> Tensor:
        return self._parallel(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> MlstmState:
        memory = mlstm.empty_memory(batch_size, self.heads, self.width, self.width, device, dtype)
        return MlstmState(*memory) if self.gate == "exponential" else _without_normaliser(memory[0])

    def prefill(self, x: Tensor, state: MlstmState) -> tuple[Tensor, MlstmState]:
        return self._parallel(x, state)

    def step(self, x: Tensor, state: MlstmState) -> tuple[Tensor, MlstmState]:
        q, k, v, o, i, f = self._project(x)
        scale = self.width**-0.5
        if self.gate == "exponential":
            mixed, memory = mlstm.mlstm_step(q, k, v, i, f, scale=scale, state=_memory(state))
            return self._merge(mixed, o), MlstmState(*memory)
        mixed, matrix = gated_linear.gated_linear_attention_step(
            q, _written(k, i), v, F.logsigmoid(f), scale=scale, state=state.matrix
        )
        return self._merge(mixed, o), _without_normaliser(matrix)

    def _parallel(self, x: Tensor, state: MlstmState | None) -> tuple[Tensor, MlstmState]:
        q, k, v, o, i, f = self._project(x)
        scale = self.width**-0.5
        if self.gate == "exponential":
            start = None if state is None else _memory(state)
            mixed, memory = mlstm.mlstm(q, k, v, i, f, scale=scale, initial_state=start)
            return self._merge(mixed, o), MlstmState(*memory)
        mixed, matrix = gated_linear.gated_linear_attention(
            q,
            _written(k, i),
            v,
            F.logsigmoid(f),
            scale=scale,
            initial_state=None if state is None else state.matrix,
            backend="fla" if x.is_cuda else "torch",
        )
        return self._merge(mixed, o), _without_normaliser(matrix)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., D) -> q, k, v (..., heads, width), the output gate (..., D), and the capped input
        and forget gates (..., heads) in float32 or wider, all before their non-linearities."""
        q, k, v, o = self.qkvo(x).chunk(4, -1)
        q, k, v = (part.unflatten(-1, (self.heads, self.width)) for part in (q, k, v))
        gates = self.gates(x)
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        i, f = (GATE_CAP * torch.tanh(gates / GATE_CAP)).chunk(2, -1)
        return q, k, v, o, i, f

    def _merge(self, mixed: Tensor, o: Tensor) -> Tensor:
        """(..., heads, width) -> (..., D): the norm per head, the output gate, the output map."""
        normed = F.layer_norm(mixed, (self.width,), eps=NORM_EPS).flatten(-2).to(o.dtype)
        out: Tensor = self.out(normed * self.norm * torch.sigmoid(o))
        return out


def _memory(state: MlstmState) -> mlstm.Memory:
    assert state.normaliser is not None and state.scale is not None
    return mlstm.Memory(state.matrix, state.normaliser, state.scale)


def _without_normaliser(matrix: Tensor) -> MlstmState:
    return MlstmState(matrix, None, None)


def _written(k: Tensor, i: Tensor) -> Tensor:
    """Keys by the sigmoid input gate, in k's dtype."""
    return (k * torch.sigmoid(i)[..., None]).to(k.dtype)


def _state_bytes(d_model: int, options: Options, seq_len: int, element_bytes: int) -> int:
    elements = d_model**2 // options.heads
    if options.gate == "exponential":
        elements += d_model + options.heads
    return elements * max(4, element_bytes)


def _flops(d_model: int, options: Options, seq_len: int) -> float:
    heads, width = options.heads, d_model // options.heads
    if options.gate == "sigmoid":
        cell = gated_linear.products_per_token(seq_len, heads, width, width, False)
    else:
        cell = mlstm.products_per_token(seq_len, heads, width, width)
    return 10.0 * d_model**2 + 4.0 * d_model * heads + cell


def _saved(d_model: int, options: Options, seq_len: int) -> float:
    """The layer's own, as measured, and the cell's."""
    heads, width = options.heads, d_model // options.heads
    if options.gate == "sigmoid":
        return 11.0 * d_model + gated_linear.saved_per_token(seq_len, heads, width, width, 3)
    return 9.0 * d_model + mlstm.saved_per_token(seq_len, heads, width, width)


def _implementation(options: Options, device_type: str) -> str:
    if options.gate == "exponential" and device_type != "cpu":
        raise Unsupported(
            "mLSTM with the exponential gate has no fast kernel here: fla has no such op, and the "
            "authors' mlstm_kernels are not under an open-source licence; `gate: sigmoid` runs on "
            "fla's simple_gla"
        )
    return backends.implementation(
        f"own chunked products (chunk {gated_linear.chunk_length(1 << 20, 1, 1)})",
        gated_linear.kernel_path(3).partition(":")[2],
        device_type,
    )


ARCHITECTURE = Architecture(
    title="mLSTM",
    version=1,
    options=Options,
    mixer=lambda d_model, options: Mlstm(d_model, options.heads, options.gate),
    # 5 maps of d x d, the norm, and two gates a head with their biases
    parameters=lambda d_model, options: (
        5 * d_model**2 + d_model + 2 * options.heads * (d_model + 1)
    ),
    state_bytes=_state_bytes,
    flops_per_token=_flops,
    saved_elements_per_token=_saved,
    implementation=_implementation,
    kernel_class=backends.kernel_class,
    width_multiple=lambda options: 8 * options.heads,
    family="linear attention",
)
