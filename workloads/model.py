"""The language model that every mixer is put into: one residual shell, so that a sweep compares
mixers and not blocks.

Pre-norm blocks (Xiong et al. 2020): x + mixer(RMSNorm(x)), then x + MLP(RMSNorm(x)) with a GELU MLP
of two matrices without bias. A token embedding below, a final RMSNorm and an untied linear head
above. An architecture without a mixer leaves the first half of each block out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import plugins
from workloads.cell import Scalar
from workloads.mixer import INIT_STD, Mixer

NORM_EPS = 1e-6
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Everything that decides a model's layers. `options` are the architecture's, where they differ
    from its defaults; `mlp_width` is the MLP's hidden width."""

    architecture: str
    # Compared, but left out of the hash, so that a shape with a dict in it can key a cache.
    options: Mapping[str, Scalar] = field(default_factory=dict, hash=False)
    vocab_size: int
    d_model: int
    num_layers: int
    mlp_width: int


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of a cell's precision. Raises ValueError naming the known ones."""
    if precision not in _DTYPES:
        raise ValueError(plugins.unknown("precision", precision, _DTYPES))
    return _DTYPES[precision]


class MlpBlock(nn.Module):
    """x + MLP(RMSNorm(x)), position by position: without state, the same in all three forms."""

    def __init__(self, d_model: int, mlp_width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=NORM_EPS)
        self.up = nn.Linear(d_model, mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, d_model, bias=False)

    def initialise(self, residual_scale: float) -> None:
        nn.init.normal_(self.up.weight, std=INIT_STD)
        nn.init.normal_(self.down.weight, std=INIT_STD * residual_scale)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + hidden

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> Any:
        return None

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self(x), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self(x), state


class MixerBlock(nn.Module):
    """x + mixer(RMSNorm(x)), then the MLP block; the state is the mixer's own."""

    def __init__(self, mixer: Mixer, d_model: int, mlp_width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=NORM_EPS)
        self.mixer = mixer
        self.mlp = MlpBlock(d_model, mlp_width)

    def initialise(self, residual_scale: float) -> None:
        self.mixer.initialise(residual_scale)
        self.mlp.initialise(residual_scale)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mlp(x + self.mixer(self.norm(x)))
        return mixed

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> Any:
        return self.mixer.empty_state(batch_size, max_len, device, dtype)

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixed, state = self.mixer.prefill(self.norm(x), state)
        return self.mlp(x + mixed), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixed, state = self.mixer.step(self.norm(x), state)
        return self.mlp(x + mixed), state


class Backbone(nn.Module):
    """Tokens to logits over the vocabulary, in the three forms of the mixers it is made of.

    Raises:
        ValueError: options that the architecture refuses, or a d_model that its options do not
        divide.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(_block(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.d_model, eps=NORM_EPS)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)

    def initialise(self) -> None:
        """Draw every weight afresh from torch's default CPU generator, as GPT-2 does: N(0, 0.02),
        and what writes to the residual stream smaller by sqrt(2 num_layers)."""
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        nn.init.normal_(self.head.weight, std=INIT_STD)
        for block in self._blocks():
            block.initialise(1 / math.sqrt(2 * self.shape.num_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """The parallel form from an empty context: (B, T) int64 -> logits (B, T, V)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def empty_state(self, batch_size: int, max_len: int) -> list[Any]:
        """Each layer's state before the first token, with room for `max_len` tokens, on the model's
        device and in its dtype."""
        weight = self.head.weight
        return [
            block.empty_state(batch_size, max_len, weight.device, weight.dtype)
            for block in self._blocks()
        ]

    def prefill(self, tokens: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """The parallel form continuing from `state`: (B, T) -> the last position's logits (B, V),
        and the state after T more tokens. The state given may be written to."""
        x = self.embedding(tokens)
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            x, layer_state = block.prefill(x, before)
            after.append(layer_state)
        return self.head(self.norm(x[:, -1])), after

    def step(self, tokens: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """One token each: (B,) int64 -> logits (B, V), and the state after it. The state given may
        be written to."""
        x = self.embedding(tokens)
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            x, layer_state = block.step(x, before)
            after.append(layer_state)
        return self.head(self.norm(x)), after

    def _blocks(self) -> list[MlpBlock | MixerBlock]:
        return cast("list[MlpBlock | MixerBlock]", list(self.blocks))


def _block(shape: ModelShape) -> MlpBlock | MixerBlock:
    architecture = plugins.load("architectures", shape.architecture)
    options = plugins.build_options(architecture.options, shape.options)
    mixer = architecture.mixer(shape.d_model, options)
    if mixer is None:
        return MlpBlock(shape.d_model, shape.mlp_width)
    return MixerBlock(mixer, shape.d_model, shape.mlp_width)


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
    """Parameters without the token embedding and the head, the two that grow with the vocabulary:
    N in Kaplan et al. 2020, section 2.1. Norms are counted."""
    outside = model.embedding.weight.numel() + model.head.weight.numel()
    return total_parameters(model) - outside
