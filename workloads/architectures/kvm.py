"""Key-value means: attention to a window of exact tokens and to a state of merged ones.

Idea: softmax attention whose list of keys and values is a state of compressed rows followed by the
last two or so chunks of tokens. As a chunk of tokens leaves the window, the most novel of them may
become new rows and each other is added to the row most like it; rows stay plain sums and are
normalised when read. Fixed rows make it a recurrent network, rows that grow with the root of the
context something between, and a row for every token attention. Paper: Goldstein and Cheah 2026,
"Key-Value Means", arXiv 2605.09877; the authors' later code where the two differ (appended tokens
are not gated). With M rows and a window of L tokens a token costs 8 d^2 + 4 d (M + L) + 2 d M FLOPs
in training as in decoding, and the state is M + L rows of keys and values; M is constant, grows as
sqrt(T), saturates, or grows as T. While a context is no longer than the window this is plain causal
attention, and nothing is merged before a chunk more than window + 1 chunks: `chunk` must be small
against the context.

Kernels: our own form in plain torch on both devices, `scaled_dot_product_attention` over all chunks
at once with a mask; only the routing goes chunk after chunk. The authors' reference is plain torch
too. The rows are sums, held in float32 at least so that decoding routes as training does; window
tokens are in the model's dtype. Rows and window are allocated once, for the context's length.

Left out: grouped key-value heads, which the paper's experiments do not have; and the rounding of
values to bfloat16 in the authors' code. The value residual of their backbone needs the first
layer's values, which a mixer does not see: it is refused. Beyond the shared shell it needs nothing;
the token shift of their backbone is the option `token_shift`, off as in the shell of all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workloads.mixer import Mixer
from workloads.ops import kvm
from workloads.plugins import Architecture, unknown

LAWS = ("fixed", "sqrt", "saturating", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: attention heads a layer. state: how many rows, `fixed` (state_min), `sqrt` (factor
    times the root of the context), `saturating` (towards `limit`) or `all` (a row for every token).
    chunk: tokens that leave the window at once, and the rows a state begins with. window: chunks
    that are attended to exactly. sink: first rows that no token is merged into; 0 switches it off.
    state_min: least rows, 0 for `chunk`. factor: 0 for the paper's proportion sqrt(chunk). limit: 0
    for the paper's 4 chunk. round: rows are a multiple of it where they grow. max_rows: an upper
    bound, 0 for none. rotary: channels of a head that positions turn, 0 for half of them.
    value_radius: a merged value is stretched to the length of its row's first; else it is the mean.
    merge_gate, temperatures: learnt weights of merged tokens, and of window against state.
    append_gate: the gate weighs tokens that become rows too. token_shift: queries, keys and values
    mixed with the token's before. value_residual: refused, as one layer does not see another.
    """

    heads: int = 4
    state: str = "fixed"
    chunk: int = 16
    window: int = 2
    sink: int = 1
    state_min: int = 0
    factor: float = 0.0
    limit: int = 0
    round: int = 1
    max_rows: int = 0
    rotary: int = 0
    value_radius: bool = True
    merge_gate: bool = True
    temperatures: bool = True
    append_gate: bool = False
    token_shift: bool = False
    value_residual: bool = False

    def __post_init__(self) -> None:
        if self.state not in LAWS:
            raise ValueError(unknown("state", self.state, LAWS))
        for name in ("heads", "chunk", "window", "round"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("sink", "state_min", "factor", "limit", "max_rows", "rotary"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, not {value}")
        if self.sink >= self.chunk:
            raise ValueError(
                f"sink must be less than chunk ({self.chunk}), or no row is left to merge into; "
                f"not {self.sink}"
            )
        if self.rotary % 2:
            raise ValueError(f"rotary counts channels that turn in pairs, not {self.rotary}")
        if self.append_gate and not self.merge_gate:
            raise ValueError("append_gate needs merge_gate: it is the same gate")
        if self.value_residual:
            raise ValueError(
                "value_residual mixes in the first layer's values, which a layer's mixer does not "
                "see; leave it off"
            )

    @property
    def growth(self) -> kvm.Growth:
        """The rows' law. `all` is the power law with factor and exponent 1."""
        power = {"sqrt": (self.factor or math.sqrt(self.chunk), 0.5), "all": (1.0, 1.0)}
        factor, exponent = power.get(self.state, (0.0, 0.0))
        return kvm.Growth(
            law="power" if self.state in power else self.state,
            chunk=self.chunk,
            window=self.window,
            minimum=self.state_min or self.chunk,
            factor=factor,
            exponent=exponent,
            limit=self.limit or 4 * self.chunk,
            round=1 if self.state == "all" else self.round,
            maximum=self.max_rows,
        )


class Kvm(Mixer):
    """Raises ValueError where d_model does not split into heads of even width, wider than
    `rotary`."""

    undecayed = ("shift",)

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__()
        multiple = _width_multiple(options)
        if d_model % multiple:
            raise ValueError(
                f"{options.heads} heads whose rotary half is even need a d_model that is a "
                f"multiple of {multiple}, not {d_model}"
            )
        self.options, self.heads, self.head_dim = options, options.heads, d_model // options.heads
        if options.rotary >= self.head_dim:
            raise ValueError(
                f"rotary must leave channels without position: less than the head width "
                f"{self.head_dim}, not {options.rotary}"
            )
        self.method = kvm.Method(
            growth=options.growth,
            sink=options.sink,
            rotary=options.rotary or self.head_dim // 2,
            value_radius=options.value_radius,
            append_gate=options.append_gate,
        )
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.norm_q = nn.LayerNorm(self.head_dim)
        self.norm_k = nn.LayerNorm(self.head_dim)
        self.norm_state = nn.LayerNorm(self.head_dim)
        self.gate = nn.Linear(d_model, self.heads, bias=False) if options.merge_gate else None
        ones = torch.ones(self.heads)
        self.window_temperature = nn.Parameter(ones) if options.temperatures else None
        self.state_temperature = nn.Parameter(ones.clone()) if options.temperatures else None
        self.shift = nn.Parameter(_shift(d_model)) if options.token_shift else None

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None)[0]

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> kvm.Cache:
        # So that no step has to grow the tables.
        kvm.rotary_tables(self.head_dim, self.method.rotary, max_len, device, dtype)
        return kvm.empty_cache(
            (batch_size, self.heads, self.head_dim),
            self.method.growth,
            max_len,
            device,
            dtype,
            gated=self.gate is not None,
            shifted=0 if self.shift is None else 3 * self.heads * self.head_dim,
        )

    def prefill(self, x: Tensor, state: kvm.Cache) -> tuple[Tensor, kvm.Cache]:
        mixed, after = self._mix(x, state)
        assert after is not None
        return mixed, after

    def step(self, x: Tensor, state: kvm.Cache) -> tuple[Tensor, kvm.Cache]:
        q, k, v, gate = self._tokens(x.unsqueeze(1), state)
        mixed, after = kvm.step(
            q[:, :, 0],
            k[:, :, 0],
            v[:, :, 0],
            None if gate is None else gate[:, :, 0],
            method=self.method,
            learned=self.learned,
            cache=state,
        )
        out: Tensor = self.out(mixed.flatten(1))
        return out, after

    @property
    def learned(self) -> kvm.Learned:
        """What the op takes of the parameters."""
        norm = self.norm_state
        return kvm.Learned(
            weight=norm.weight,
            bias=norm.bias,
            window_temperature=self.window_temperature,
            state_temperature=self.state_temperature,
        )

    def _mix(self, x: Tensor, state: kvm.Cache | None) -> tuple[Tensor, kvm.Cache | None]:
        q, k, v, gate = self._tokens(x, state)
        mixed, after = kvm.attend(
            q, k, v, gate, method=self.method, learned=self.learned, cache=state
        )
        return self.out(mixed.transpose(1, 2).flatten(2)), after

    def _tokens(
        self, x: Tensor, state: kvm.Cache | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(B, T, D) after `state` -> normalised and rotated q and k, and v, each (B, heads, T, head
        width), and the gate (B, heads, T). Notes the last projections in the state."""
        qkv = self.qkv(x)
        start = state.length if state else 0
        if self.shift is not None:
            previous = state.previous if state and start else None
            last = qkv[:, -1]
            qkv = kvm.token_shift(qkv, self.shift.flatten(), previous)
            if state and state.previous is not None:
                state.previous.copy_(last)
        q, k, v = qkv.view(*x.shape[:2], 3, self.heads, self.head_dim).unbind(2)
        cos, sin = (
            table[start : start + x.shape[1], None]
            for table in kvm.rotary_tables(
                self.head_dim, self.method.rotary, start + x.shape[1], x.device, v.dtype
            )
        )
        q = kvm.rotate(self.norm_q(q).to(v.dtype), cos, sin)
        k = kvm.rotate(self.norm_k(k).to(v.dtype), cos, sin)
        gate = None if self.gate is None else kvm.merge_gate(self.gate(x)).transpose(1, 2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), gate


def _shift(d_model: int) -> Tensor:
    """How much of the token before at the start, (3, d_model) for q, k and v: the authors' first
    layer's."""
    share = torch.arange(d_model) / d_model
    return torch.stack((1 - share**0.2, 1 - share**0.7, 1 - share**0.7))


def _width_multiple(options: Options) -> int:
    return options.heads * (2 if options.rotary else 4)


def _parameters(d_model: int, options: Options) -> int:
    gate = options.heads * d_model if options.merge_gate else 0
    temperatures = 2 * options.heads if options.temperatures else 0
    shift = 3 * d_model if options.token_shift else 0
    return 4 * d_model**2 + 6 * d_model // options.heads + gate + temperatures + shift


def _state_bytes(d_model: int, options: Options, seq_len: int, element_bytes: int) -> int:
    """Rows: two sums and a scale, in float32 at least. Window: two rows of the model's elements,
    and gates."""
    growth, exact = options.growth, max(4, element_bytes)
    rows, window = growth.rows(growth.covered(seq_len)), min(seq_len, growth.span)
    gates = options.heads * exact if options.merge_gate else 0
    shift = 3 * d_model * element_bytes if options.token_shift else 0
    state = rows * (2 * d_model + options.heads) * exact
    return state + window * (2 * d_model * element_bytes + gates) + shift


def _read(options: Options, seq_len: int) -> float:
    """Rows and window tokens that the tokens after the first window attend to, summed over those
    tokens, with what the batched form masks."""
    growth = options.growth
    covered = growth.covered(seq_len)
    if growth.rows(covered) < covered:
        return float(covered * (growth.rows(covered) + growth.span))
    block, total = kvm.PREFIXES * growth.chunk, 0.0
    for first in range(0, covered, block):
        last = min(first + block, covered)
        total += (last - first) * (last + (last - first) + growth.span - growth.chunk)
    return total


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """4 maps of d x d and the gate; plain causal attention to the first window; then each chunk's
    tokens against the most rows and a whole window, as the batched form pads; and the likeness of
    each absorbed token to the rows, old and new."""
    growth = options.growth
    total = seq_len * (
        8.0 * d_model**2 + (2 * d_model * options.heads if options.merge_gate else 0)
    )
    early = min(seq_len, growth.span)
    total += early * 2.0 * d_model * (early + 1)
    covered = growth.covered(seq_len)
    total += 4.0 * d_model * _read(options, seq_len)
    for before in range(growth.chunk, covered, growth.chunk):
        rows, after = growth.rows(before), growth.rows(before + growth.chunk)
        if after - rows < growth.chunk:
            total += growth.chunk * 2.0 * d_model * after
    return total / seq_len


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """Measured with saved-tensor hooks: projections, normalised and rotated queries and keys; then,
    per token that is summarised, its memory key and padded copies, the sums and normalised rows of
    a state for each chunk, and the rows and windows as attended to."""
    growth = options.growth
    covered = growth.covered(seq_len)
    rows = growth.rows(covered)
    merged = rows < covered
    held = 3.0 * d_model * rows * (covered / growth.chunk if merged else 1)
    blocks = growth.chunk if merged else kvm.PREFIXES * growth.chunk
    attended = 2.0 * d_model * _read(options, seq_len) / blocks
    summarised = covered * (6.3 * d_model + 10 * options.heads)
    each = (8.2 + 3 * options.token_shift - (not options.temperatures)) * d_model
    return each + 5.5 * options.heads + (held + attended + summarised) / seq_len


ARCHITECTURE = Architecture(
    title="key-value means",
    version=1,
    options=Options,
    mixer=Kvm,
    parameters=_parameters,
    state_bytes=_state_bytes,
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=lambda options, device_type: (
        f"own chunked form (torch SDPA, chunk {options.chunk})"
    ),
    width_multiple=_width_multiple,
    family="memory",
)
