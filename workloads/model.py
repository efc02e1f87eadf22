"""The model that every mixer is put into: one residual shell, so that a sweep compares mixers and
not blocks.

Pre-norm blocks (Xiong et al. 2020): x + mixer(RMSNorm(x)), then x + MLP(RMSNorm(x)) with a GELU MLP
of two matrices without bias. An embedding below, of tokens or, by a linear map, of vectors; a final
RMSNorm and an untied linear head above. An architecture without a mixer leaves the first half of
each block out; one that stacks its layers bare (`Architecture.residual`) has the mixers alone.

A sweep may ask for three changes, which hold for every architecture alike: a short convolution
before each mixer, u + conv(u) over 4 tokens with u = RMSNorm(x) (the Canon-A layer of Allen-Zhu
2025, "Physics of Language Models: Part 4.1"), no MLPs, and a head that shares the embedding's
matrix (Press and Wolf 2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import plugins, registry
from workloads.cell import Scalar
from workloads.ends import Ends
from workloads.mixer import INIT_STD, Mixer
from workloads.ops.convolution import causal_conv, causal_conv_step

NORM_EPS = 1e-6
SHORT_CONV_TOKENS = 4
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Everything that decides a model. `options` are the architecture's, where they differ
    from its defaults; `mlp_width` is the MLP's hidden width, 0 for none."""

    architecture: str
    # Compared, but left out of the hash, so that a shape with a dict in it can key a cache.
    options: Mapping[str, Scalar] = field(default_factory=dict, hash=False)
    ends: Ends
    d_model: int
    num_layers: int
    mlp_width: int
    short_conv: bool = False
    tied_head: bool = False


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of a cell's precision. Raises ValueError naming the known ones."""
    if precision not in _DTYPES:
        raise ValueError(plugins.unknown("precision", precision, _DTYPES))
    return _DTYPES[precision]


def _dropped(added: Tensor, by: Mlp | Block) -> Tensor:
    """What a layer adds, without the share that is dropped while it is trained (Srivastava et al.
    2014, "Dropout")."""
    return F.dropout(added, by.dropout) if by.training and by.dropout else added


class Mlp(nn.Module):
    """x + MLP(RMSNorm(x)), position by position: without state, the same in all three forms."""

    def __init__(self, d_model: int, mlp_width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=NORM_EPS)
        self.up = nn.Linear(d_model, mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, d_model, bias=False)
        self.dropout = 0.0

    def initialise(self, residual_scale: float) -> None:
        nn.init.normal_(self.up.weight, std=INIT_STD)
        nn.init.normal_(self.down.weight, std=INIT_STD * residual_scale)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + _dropped(hidden, self)


class ShortConv(nn.Module):
    """u + conv(u): a depthwise causal convolution over 4 tokens, added to its input. Its state is
    the last 3 inputs, (B, 3, D)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, SHORT_CONV_TOKENS))

    def initialise(self) -> None:
        """As torch starts a convolution: uniform, by the number of inputs of one output."""
        bound = SHORT_CONV_TOKENS**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, u: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mixed, history = causal_conv(u, self.weight, None, history)
        return u + mixed, history

    def step(self, u: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        mixed, history = causal_conv_step(u, self.weight, None, history)
        return u + mixed, history


class Block(nn.Module):
    """One layer: mixer and MLP, each around the residual stream, each where there is one. The state
    is the mixer's own, in a pair with the short convolution's where there is one."""

    def __init__(self, shape: ModelShape, mixer: Mixer | None, residual: bool) -> None:
        super().__init__()
        d_model = shape.d_model
        self.mixer = mixer
        self.norm = nn.RMSNorm(d_model, eps=NORM_EPS) if mixer is not None and residual else None
        self.conv = ShortConv(d_model) if mixer is not None and shape.short_conv else None
        self.mlp = Mlp(d_model, shape.mlp_width) if residual and shape.mlp_width else None
        self.dropout = 0.0

    def initialise(self, residual_scale: float) -> None:
        if self.conv is not None:
            self.conv.initialise()
        if self.mixer is not None:
            self.mixer.initialise(residual_scale if self.norm is not None else 1.0)
        if self.mlp is not None:
            self.mlp.initialise(residual_scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.mixer is None:
            return self._finish(x, None)
        u = x if self.norm is None else self.norm(x)
        if self.conv is not None:
            u, _ = self.conv(u)
        return self._finish(x, self.mixer(u))

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> Any:
        if self.mixer is None:
            return None
        state = self.mixer.empty_state(batch_size, max_len, device, dtype)
        if self.conv is None:
            return state
        size = (batch_size, SHORT_CONV_TOKENS - 1, self.conv.weight.shape[0])
        return state, torch.zeros(size, device=device, dtype=dtype)

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.mixer is None:
            return self._finish(x, None), state
        u = x if self.norm is None else self.norm(x)
        if self.conv is None:
            mixed, state = self.mixer.prefill(u, state)
            return self._finish(x, mixed), state
        u, history = self.conv(u, state[1])
        mixed, state = self.mixer.prefill(u, state[0])
        return self._finish(x, mixed), (state, history)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.mixer is None:
            return self._finish(x, None), state
        u = x if self.norm is None else self.norm(x)
        if self.conv is None:
            mixed, state = self.mixer.step(u, state)
            return self._finish(x, mixed), state
        u, history = self.conv.step(u, state[1])
        mixed, state = self.mixer.step(u, state[0])
        return self._finish(x, mixed), (state, history)

    def _finish(self, x: Tensor, mixed: Tensor | None) -> Tensor:
        if mixed is not None:
            mixed = _dropped(mixed, self)
            x = mixed if self.norm is None else x + mixed
        return x if self.mlp is None else self.mlp(x)


class Backbone(nn.Module):
    """What enters to what leaves, position by position, in the three forms of the mixers it is made
    of.

    Inputs are tokens, int64 (B, T), or vectors, (B, T, F), as the shape's `ends` say; outputs are
    (B, T, O), for next tokens their logits.

    Raises:
        ValueError: options that the architecture refuses, a d_model that its options do not divide,
        or a tied head where what leaves is no token.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = embedding(shape)
        residual = registry.load("architectures", shape.architecture).residual
        layers = registry.stack(shape.architecture, shape.options, shape.num_layers)
        self.blocks = nn.ModuleList(
            Block(shape, architecture.mixer(shape.d_model, options), residual)
            for architecture, options in layers
        )
        self.norm = nn.RMSNorm(shape.d_model, eps=NORM_EPS)
        self.head = nn.Linear(shape.d_model, shape.ends.outputs, bias=False)
        if shape.tied_head:
            if not shape.ends.says_tokens:
                raise ValueError("tied_head: what leaves this task's model is not what enters it")
            self.head.weight = self.embedding.weight

    def initialise(self) -> None:
        """Draw every weight afresh from torch's default CPU generator, as GPT-2 does: N(0, 0.02),
        and what writes to the residual stream smaller by sqrt(2 num_layers)."""
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        if not self.shape.tied_head:
            nn.init.normal_(self.head.weight, std=INIT_STD)
        for block in self._blocks():
            block.initialise(1 / math.sqrt(2 * self.shape.num_layers))

    def drop(self, share: float) -> None:
        """Drop this share of what each mixer and MLP adds, in training, from here on."""
        for block in self._blocks():
            for part in (block, block.mlp):
                if part is not None:
                    part.dropout = share

    def forward(self, inputs: Tensor, places: Tensor | None = None) -> Tensor:
        """The parallel form from an empty context: inputs of T positions -> outputs (B, T, O), or
        (N, O) at N places of the B * T alone."""
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x)
        if places is not None:
            x = x.flatten(0, 1).index_select(0, places)
        outputs: Tensor = self.head(self.norm(x))
        return outputs

    def empty_state(self, batch_size: int, max_len: int) -> list[Any]:
        """Each layer's state before the first token, with room for `max_len` tokens, on the model's
        device and in its dtype."""
        weight = self.head.weight
        return [
            block.empty_state(batch_size, max_len, weight.device, weight.dtype)
            for block in self._blocks()
        ]

    def prefill(self, inputs: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """The parallel form continuing from `state`: inputs of T positions -> the last position's
        outputs (B, O), and the state after all T. The state given may be written to."""
        x = self.embedding(inputs)
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            x, layer_state = block.prefill(x, before)
            after.append(layer_state)
        return self.head(self.norm(x[:, -1])), after

    def carried(self, inputs: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """The same with the outputs of all positions, (B, T, O), to learn from: gradients reach the
        state that is given, if it asks for them."""
        x = self.embedding(inputs)
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            x, layer_state = block.prefill(x, before)
            after.append(layer_state)
        return self.head(self.norm(x)), after

    def step(self, inputs: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """One position of each: (B,) or (B, F) -> outputs (B, O), and the state after it. The state
        given may be written to."""
        x = self.embedding(inputs)
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            x, layer_state = block.step(x, before)
            after.append(layer_state)
        return self.head(self.norm(x)), after

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))


def embedding(shape: ModelShape) -> nn.Embedding | nn.Linear:
    """What takes a position in: a row a token, or a linear map of a vector, which is the same for a
    vector that is 1 at one place."""
    if shape.ends.vocab_size:
        return nn.Embedding(shape.ends.vocab_size, shape.d_model)
    return nn.Linear(shape.ends.features, shape.d_model, bias=False)


def build(
    shape: ModelShape,
    *,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """A freshly initialised model. Its numbers depend on shape and seed alone: they are drawn in
    float32 on the CPU, then cast and moved. The caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Backbone(shape)
        model.initialise()
    return model.to(device=device, dtype=dtype)


def total_parameters(model: Backbone) -> int:
    """Every parameter of the model, embedding and head included."""
    return sum(parameter.numel() for parameter in model.parameters())


def non_embedding_parameters(model: Backbone) -> int:
    """Parameters without the embedding and the head, the two whose size is the task's:
    N in Kaplan et al. 2020, section 2.1. Norms are counted."""
    outside = model.embedding.weight.numel()
    if not model.shape.tied_head:
        outside += model.head.weight.numel()
    return total_parameters(model) - outside
