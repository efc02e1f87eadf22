"""Softmax attention to the last W tokens: a transformer whose cost and cache stop growing.

Idea: token i attends to the tokens j with 0 <= i - j < W, itself included. What lies further back
reaches it only through the layers below, W - 1 tokens a layer. So cost and cache are bounded, and
so is what can be recalled: layers times W - 1 tokens back. Papers: Beltagy et al. 2020,
"Longformer"; Jiang et al. 2023, "Mistral 7B". Positions by rotation of q and k (`rope`) or none
(`nope`), heads and key-value heads as in the transformer's mixer.

Cost: a token costs 8 d^2 FLOPs of projections and, in training and prefill, 8 W d: it is given the
keys of its own block of W tokens and of the W before, of which the window masks half. Training
keeps about 8 d numbers a token, so that time and memory for a whole context are linear in it. A
decoding step costs 4 d for each of at most W tokens beside the projections, and holds 2 d numbers
for each of them, times kv_heads / heads.

Kernels: `scaled_dot_product_attention` on blocks, all whole ones in one batch with one mask of W x
2 W; flash attention on a CPU, memory-efficient attention on an NVIDIA GPU, as flash takes no mask
there. Keys and values of each block are copied beside those of the next one. Blocks of W/2 would do
less masked work (about a tenth less time on a CPU, W = 128) for half as many copied keys again. The
cache is a ring: token t lies in slot t mod W, keys rotated by their absolute positions, and a step
reads the slots in any order, as a softmax does not ask for one.

Left out: Longformer's global tokens, which are chosen for a task, and its dilation, which breaks
the blocks that make the kernel fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workloads import attention
from workloads.attention import HeadsMixer, KeyValueCache
from workloads.mixer import put_token
from workloads.ops.attention import attend_token
from workloads.ops.windowed_attention import attend_in_window, block_size, keys_per_query
from workloads.plugins import Architecture

POSITIONS = ("rope", "nope")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """heads: attention heads a layer; each is d_model / heads wide, which must be even for `rope`.
    kv_heads: key-value heads, a divisor of heads; 0 means as many. window: tokens that a token
    sees, itself included. position: `rope` or `nope`."""

    heads: int = 4
    kv_heads: int = 0
    window: int = 128
    position: str = "rope"

    def __post_init__(self) -> None:
        attention.check(self, POSITIONS)
        if self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")


class WindowAttention(HeadsMixer):
    """The cache is a ring: token t lies in slot t mod slots. Raises ValueError where d_model does
    not split into `heads` heads of even width."""

    def __init__(self, d_model: int, options: Options) -> None:
        super().__init__(d_model, options)
        self.window = options.window

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x, 0)
        mixed = attend_in_window(q, k, v, k[:, :0], v[:, :0], window=self.window)
        return self.merge(mixed)

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValueCache:
        return self.empty_cache(batch_size, min(self.window, max_len), max_len, device, dtype)

    def prefill(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        slots, start, length = state.keys.shape[2], state.length, x.shape[1]
        self._check_room(state, length)
        q, k, v = self.project(x, start)
        past = _slots(max(0, start - self.window + 1), start, slots, x.device)
        past_k, past_v = (t[:, :, past].transpose(1, 2) for t in (state.keys, state.values))
        mixed = attend_in_window(q, k, v, past_k, past_v, window=self.window)
        kept = min(length, slots)
        new = _slots(start + length - kept, start + length, slots, x.device)
        state.keys[:, :, new] = k[:, length - kept :].transpose(1, 2)
        state.values[:, :, new] = v[:, length - kept :].transpose(1, 2)
        return self.merge(mixed), KeyValueCache(state.keys, state.values, start + length)

    def step(self, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        slots, now = state.keys.shape[2], state.length
        self._check_room(state, 1)
        q, k, v = self.project_token(x, now)
        put_token(state.keys, now % slots, k)
        put_token(state.values, now % slots, v)
        filled = min(now + 1, slots)
        mixed = attend_token(q, state.keys[:, :, :filled], state.values[:, :, :filled])
        return self.merge(mixed), KeyValueCache(state.keys, state.values, now + 1)

    def _check_room(self, state: KeyValueCache, tokens: int) -> None:
        """A ring shorter than the window was made for fewer tokens, and must not go round."""
        slots = state.keys.shape[2]
        if slots < self.window and state.length + tokens > slots:
            raise IndexError(f"{state.length + tokens} tokens in a state made for {slots}")


def _slots(first: int, end: int, slots: int, device: torch.device) -> Tensor:
    """Where the tokens `first` to `end` - 1 lie."""
    return torch.arange(first, end, device=device) % slots


def _state_bytes(d_model: int, options: Options, seq_len: int, element_bytes: int) -> int:
    return attention.state_bytes(d_model, options, min(options.window, seq_len), element_bytes)


def _flops_per_token(d_model: int, options: Options, seq_len: int) -> float:
    return attention.flops(d_model, options, keys_per_query(seq_len, options.window))


def _saved_elements_per_token(d_model: int, options: Options, seq_len: int) -> float:
    """Of one block, what attention keeps; of more, the mixer's input and output, the kernel's q and
    output, and each block's keys and values with those before it."""
    size = block_size(options.window)
    if seq_len <= size:
        return attention.saved_elements(d_model, options)
    copies = 1 + (1 - size / seq_len) * options.window / size
    return d_model * (4.1 + 2 * attention.kv_share(options) * copies)


def _implementation(options: Options, device_type: str) -> str:
    return f"blocked scaled_dot_product_attention ({attention.sdpa_kernel(device_type)})"


ARCHITECTURE = Architecture(
    title="sliding window attention",
    version=2,
    options=Options,
    mixer=WindowAttention,
    parameters=attention.parameters,
    state_bytes=_state_bytes,
    flops_per_token=_flops_per_token,
    saved_elements_per_token=_saved_elements_per_token,
    implementation=_implementation,
    kernel_class=lambda options, device_type: "fused",
    width_multiple=attention.width_multiple,
    heads=lambda options: options.heads,
    position=lambda options: str(options.position),
    family="attention",
)
