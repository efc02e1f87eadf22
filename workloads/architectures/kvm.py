"""Key-value means: attention to a window of exact tokens and to a state of merged ones.

Idea: softmax attention whose list of keys and values is a state of compressed rows followed by the
last two or so chunks of tokens. As a chunk of tokens leaves the window, the most novel of them may
become new rows and each other is added to the row most like it; rows stay plain sums and are
normalised when read. Fixed rows make it a recurrent network, rows that grow with the root of the
context something between, and a row for every token attention. Paper: Goldstein and Cheah 2026,
"Key-Value Means", arXiv 2605.09877; the authors' later code where the two differ (appended tokens
are not gated).

Cost: with M rows, chunks of C and a window of L tokens a token costs 8 d^2 + 4 d (M + L) + 2 d M
FLOPs, in training as in decoding; M is constant, grows as sqrt(T), saturates, or grows as T. So a
whole context costs O(T) with fixed rows, O(T^1.5) with their root and O(T^2) with all. Training
keeps about 15 d + d (5 M + 2 L) / C numbers a token, with the M of the context's end, because every
chunk's state is kept: O(T M / C) for a context, linear in it where M is bounded (`all`, which
merges nothing, keeps its rows once). Decoding holds M + L rows of keys and values and reads them at
each step; the routing, 2 d M a token, comes once in a chunk. While a context is no longer than the
window this is plain causal attention, and nothing is merged before a chunk more than window + 1
chunks: `chunk` must be small against the context.

Kernels: our own form in plain torch on both devices, `scaled_dot_product_attention` over all chunks
at once with a mask; only the routing goes chunk after chunk. The authors' reference is plain torch
too. The rows are sums, held in float32 at least so that decoding routes as training does; window
tokens are in the model's dtype. Rows and window are allocated once, for the context's length. A
decoding step attends to the sums where they are, by products of its own and two factors a row; the
state is worked on once in a chunk.

Left out: grouped key-value heads, which the paper's experiments do not have; and the rounding of
values to bfloat16 in the authors' code. The value residual of their backbone needs the first
layer's values, which a mixer does not see (its arithmetic is in `ops/kvm`). Beyond the shared shell
it needs nothing; the token shift of their backbone is the option `token_shift`, off as in the shell
of all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workloads.mixer import Mixer
from workloads.ops import kvm
from workloads.ops.kvm import costs
from workloads.plugins import Architecture, unknown

Prepared = tuple[Tensor, Tensor, Tensor, Tensor | None]
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
    mixed with the token's before.
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
        mixed, after = kvm.step(
            *self._token(x, state), method=self.method, learned=self.learned, cache=state
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

    def _tokens(self, x: Tensor, state: kvm.Cache | None) -> Prepared:
        """(B, T, D) after `state` -> normalised and rotated q and k, and v, each (B, heads, T, head
        width), and the gate (B, heads, T). Notes the last projections in the state."""
        start = state.length if state else 0
        qkv = self._shifted(self.qkv(x), state)
        cos, sin = (
            table[start : start + x.shape[1], None]
            for table in self._turns(start + x.shape[1], qkv)
        )
        q, k, v, gate = self._prepared(x, qkv, cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return q, k, v, None if gate is None else gate.transpose(1, 2)

    def _token(self, x: Tensor, state: kvm.Cache) -> Prepared:
        """As `_tokens` for one token, (B, D) -> (B, heads, head width) and (B, heads)."""
        qkv = self.qkv(x)
        if self.shift is not None:
            qkv = self._shifted(qkv.unsqueeze(1), state).squeeze(1)
        cos, sin = (table[state.length] for table in self._turns(state.length + 1, qkv))
        return self._prepared(x, qkv, cos, sin)

    def _shifted(self, qkv: Tensor, state: kvm.Cache | None) -> Tensor:
        if self.shift is None:
            return qkv
        previous, last = state.previous if state and state.length else None, qkv[:, -1]
        qkv = kvm.token_shift(qkv, self.shift.flatten(), previous)
        if state and state.previous is not None:
            state.previous.copy_(last)
        return qkv

    def _turns(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        rotary = self.method.rotary
        return kvm.rotary_tables(self.head_dim, rotary, length, like.device, like.dtype)

    def _prepared(self, x: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor) -> Prepared:
        """(..., 3 D) -> q, k, v (..., heads, head width), and the gate (..., heads) of x."""
        q, k, v = qkv.view(*qkv.shape[:-1], 3, self.heads, self.head_dim).unbind(-3)
        q = kvm.rotate(self.norm_q(q).to(v.dtype), cos, sin)
        k = kvm.rotate(self.norm_k(k).to(v.dtype), cos, sin)
        return q, k, v, None if self.gate is None else kvm.merge_gate(self.gate(x))


def _shift(d_model: int) -> Tensor:
    """How much of the token before at the start, (3, d_model) for q, k and v: the authors' first
    layer's."""
    share = torch.arange(d_model) / d_model
    return torch.stack((1 - share**0.2, 1 - share**0.7, 1 - share**0.7))


def _width_multiple(options: Options) -> int:
    return options.heads * (2 if options.rotary else 4)


ARCHITECTURE = Architecture(
    title="key-value means",
    version=3,
    options=Options,
    mixer=Kvm,
    parameters=costs.parameters,
    state_bytes=costs.state_bytes,
    flops_per_token=costs.flops_per_token,
    saved_elements_per_token=costs.saved_elements_per_token,
    implementation=lambda options, device_type: (
        f"own chunked form (torch SDPA, chunk {options.chunk})"
    ),
    kernel_class=lambda options, device_type: "chunked",
    width_multiple=_width_multiple,
    heads=lambda options: options.heads,
    position=lambda options: "rope on part of each head",
    family="memory",
)
