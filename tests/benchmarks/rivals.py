"""Beside each architecture the best form of it that a library runs on a CPU, set to the same work.

A rival is a module beside our layer, with our weights, or a function beside our op, with the same
inputs. Libraries are imported when a rival is built; ImportError says that one is not installed.
How a library's layer takes our weights is the oracles' knowledge (`tests/workloads/oracles/`). fla
cannot be imported without Triton: its plain files are loaded by path, from the folder of package
fla in FLA_FOLDER, else from where Python finds it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.workloads.oracles.flashrnn_package import (
    flashrnn_gates,
    flashrnn_recurrent,
    flashrnn_slstm,
)
from tests.workloads.oracles.mambapy_scans import mamba_block
from tests.workloads.oracles.memory_caching_package import memory_caching
from tests.workloads.oracles.min_gru_pytorch import min_gru
from tests.workloads.oracles.oracle import Twin, library
from tests.workloads.oracles.transformers_attention import attention
from tests.workloads.oracles.transformers_library import function
from tests.workloads.oracles.transformers_xlstm import longest_chunk
from workloads.architectures.linear_attention import (
    normalised_linear_attention,
    normalised_linear_attention_step,
)
from workloads.architectures.memory_caching import ARCHITECTURE as MEMORY_CACHING
from workloads.mixer import Mixer
from workloads.ops import delta_rule, gated_linear, mlstm, rwkv7, scan, selective_scan, slstm
from workloads.ops.windowed_attention import attend_in_window

WIDTH, HEADS, BATCH = 128, 2, 4
HEAD = WIDTH // HEADS
STEPS = 16
"""Tokens decoded after the context: what happens once in a chunk falls on all of them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Our layer, and what it is fed: the same numbers at every call."""

    mixer: Mixer
    options: Any

    def inputs(self, batch: int, length: int) -> Tensor:
        return torch.randn(batch, length, WIDTH, generator=_generator())

    def after(self, batch: int, context: int) -> Any:
        """The decoding state after `inputs(batch, context)`, with room for the steps."""
        room = context + STEPS
        with torch.inference_mode():
            state = self.mixer.empty_state(batch, room, torch.device("cpu"), torch.float32)
            return self.mixer.prefill(self.inputs(batch, context), state)[1]

    def tokens(self, batch: int) -> list[tuple[Tensor, ...]]:
        """The (batch, width) inputs of the steps."""
        return _steps(torch.randn(batch, STEPS, WIDTH, generator=_generator(1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Two functions of the same leaves, which with the parameters, the rival's and those of `ours`
    where it is a module, want gradients; `ours` None for the layer."""

    leaves: tuple[Tensor, ...]
    rival: Callable[..., Tensor]
    parameters: tuple[Tensor, ...] = ()
    ours: Callable[..., Tensor] | None = None

    @property
    def own_parameters(self) -> tuple[Tensor, ...]:
        return tuple(self.ours.parameters()) if isinstance(self.ours, nn.Module) else ()


@dataclass(frozen=True, slots=True)
class Decoder:
    """step(*token, state) -> output, state. `state` is the one after the context; it is copied
    before use."""

    state: Any
    step: Callable[..., tuple[Tensor, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Two decoders of the same tokens; `ours` None for the layer."""

    tokens: Sequence[tuple[Tensor, ...]]
    rival: Decoder
    ours: Decoder | None = None


@dataclass(frozen=True, slots=True)
class Rival:
    """training(layer, context) and decoding(layer, batch, context) build what is timed."""

    name: str
    compared: str
    training: Callable[[Layer, int], Training] | None
    decoding: Callable[[Layer, int, int], Decoding] | None = None


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = _generator()
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _steps(*sequences: Tensor) -> list[tuple[Tensor, ...]]:
    """(B, T, ...) each -> for every token its (B, ...)."""
    return list(zip(*(x.unbind(1) for x in sequences), strict=True))


def _heads_second(*tensors: Tensor) -> list[Tensor]:
    """(B, T, H, ...) -> (B, H, T, ...)."""
    return [x.transpose(1, 2) for x in tensors]


def _one_token(*tensors: Tensor) -> list[Tensor]:
    """(B, H, ...) -> (B, H, 1, ...)."""
    return [x.unsqueeze(2) for x in tensors]


def _twin_training(twin: Callable[..., Twin], layer: Layer, length: int) -> Training:
    module = twin(layer.mixer, layer.options, WIDTH).copied()
    return Training(
        leaves=(layer.inputs(BATCH, length),),
        rival=lambda x: cast(Tensor, module(x)),
        parameters=tuple(module.parameters()),
    )


@cache
def _fla(file: str) -> Any:
    """The file of package fla at that path, without the packages above it."""
    folder = os.environ.get("FLA_FOLDER")
    if not folder:
        spec = importlib.util.find_spec("fla")
        folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    path = Path(folder or "") / file
    if not folder or not path.is_file():
        raise ImportError(f"fla has no {file} here")
    found = importlib.util.spec_from_file_location(file.replace("/", "_")[:-3], path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


# torch.nn.LSTM and GRU


def _rnn(kind: str, layer: Layer) -> nn.RNNBase:
    rnn: nn.RNNBase = getattr(nn, kind)(WIDTH, WIDTH, batch_first=True)
    rnn.load_state_dict(cast(Any, layer.mixer).rnn.state_dict())
    return rnn


def _rnn_training(kind: str, layer: Layer, length: int) -> Training:
    rnn = _rnn(kind, layer)
    return Training(
        leaves=(layer.inputs(BATCH, length),),
        rival=lambda x: cast(Tensor, rnn(x)[0]),
        parameters=tuple(rnn.parameters()),
    )


def _rnn_decoding(kind: str, layer: Layer, batch: int, context: int) -> Decoding:
    rnn, start = _rnn(kind, layer), layer.after(batch, context)
    hidden = start.hidden[None]
    state = (hidden, start.cell[None]) if kind == "LSTM" else hidden

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        output, state = rnn(x[:, None], state)
        return output[:, 0], state

    return Decoding(tokens=layer.tokens(batch), rival=Decoder(state, step))


def _cell_decoding(kind: str, layer: Layer, batch: int, context: int) -> Decoding:
    cell: nn.RNNCellBase = getattr(nn, f"{kind}Cell")(WIDTH, WIDTH)
    weights = cast(Any, layer.mixer).rnn.state_dict()
    cell.load_state_dict({name.removesuffix("_l0"): x for name, x in weights.items()})
    start = layer.after(batch, context)
    state = (start.hidden, start.cell) if kind == "LSTM" else start.hidden

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = cell(x, state)
        return state[0] if kind == "LSTM" else state, state

    return Decoding(tokens=layer.tokens(batch), rival=Decoder(state, step))


# transformers' attention modules


def _attention(name: str, layer: Layer) -> tuple[nn.Module, Any]:
    """The module with our weights, and its rotary embedding."""
    module, rotary, parameters = attention(name, layer.mixer, WIDTH)
    return Twin(module, parameters).copied(), rotary


def _llama_training(layer: Layer, length: int) -> Training:
    module, rotary = _attention("Llama", layer)
    x = layer.inputs(BATCH, length)
    positions = rotary(x, torch.arange(length)[None])
    return Training(
        leaves=(x,),
        rival=lambda x: cast(Tensor, module(x, positions)[0]),
        parameters=tuple(module.parameters()),
    )


def _attention_decoding(name: str, layer: Layer, batch: int, context: int) -> Decoding:
    module, rotary = _attention(name, layer)
    cache = library("transformers").DynamicCache(config=module.config)
    x, tokens = layer.inputs(batch, context), layer.tokens(batch)
    with torch.inference_mode():
        module(
            x, rotary(x, torch.arange(context)[None]), attention_mask=None, past_key_values=cache
        )
        positions = [
            rotary(x, torch.tensor([[at]])) for at in range(context, context + len(tokens))
        ]

    def step(x: Tensor, state: tuple[Any, int]) -> tuple[Tensor, tuple[Any, int]]:
        cache, now = state
        output = module(x[:, None], positions[now], attention_mask=None, past_key_values=cache)[0]
        return output[:, 0], (cache, now + 1)

    return Decoding(tokens=tokens, rival=Decoder((cache, 0), step))


def _band_training(layer: Layer, length: int) -> Training:
    window = layer.options.window
    q, k, v = _drawn(*[(BATCH, length, HEADS, HEAD)] * 3)
    at = torch.arange(length)
    distance = at[:, None] - at
    mask = (distance >= 0) & (distance < window)

    def rival(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _heads_second(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_in_window(q, k, v, k[:, :0], v[:, :0], window=window)

    return Training(leaves=(q, k, v), rival=rival, ours=ours)


# minGRU


def _min_gru_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    module = min_gru(layer.mixer, layer.options, WIDTH).copied()
    start = layer.after(batch, context)

    def step(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, state = module(x[:, None], state, return_next_prev_hidden=True)
        return output[:, 0], state

    return Decoding(tokens=layer.tokens(batch), rival=Decoder(start.hidden[:, None], step))


def _pscan_training(layer: Layer, length: int) -> Training:
    pscan = library("mambapy.pscan").pscan
    decay, added = _drawn(*[(BATCH, length, WIDTH)] * 2)
    return Training(
        leaves=(decay.sigmoid(), added),
        rival=lambda a, b: cast(Tensor, pscan(a.unsqueeze(2), b.unsqueeze(2)).squeeze(2)),
        ours=lambda a, b: scan.linear_scan(a, b)[0],
    )


# Mamba


def _mamba_block(layer: Layer) -> nn.Module:
    return mamba_block(layer.mixer, layer.options, WIDTH).copied()


def _mamba_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    module, start = cast(Any, _mamba_block(layer)), layer.after(batch, context)
    state = tuple(x.transpose(1, 2).contiguous() for x in (start.hidden, start.history))
    return Decoding(tokens=layer.tokens(batch), rival=Decoder(state, module.step))


def _selective_scan_training(layer: Layer, length: int) -> Training:
    module = cast(Any, _mamba_block(layer))
    inner, states = 2 * WIDTH, 16
    u, dt, b, c = _drawn(*[(BATCH, length, inner)] * 2, *[(BATCH, length, states)] * 2)
    rates = -torch.arange(1.0, states + 1).repeat(inner, 1)
    skip = torch.ones(inner)

    def ours(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
        return torch.addcmul(selective_scan.selective_scan(u, dt, a, b, c)[0], u, skip)

    return Training(
        leaves=(u, F.softplus(dt - 4), rates, b, c, skip), rival=module.selective_scan, ours=ours
    )


def _ssd_inputs(batch: int, length: int) -> tuple[Tensor, ...]:
    """Channels (B, T, 4, 64), step sizes (B, T, 4), rates (4,), B and C (B, T, 1, 64)."""
    u, dt, b, c = _drawn((batch, length, 4, 64), (batch, length, 4), *[(batch, length, 1, 64)] * 2)
    return u, F.softplus(dt - 4), -torch.arange(1.0, 5.0), b, c


def _ssd_training(layer: Layer, length: int) -> Training:
    chunk_scan = function("mamba2", "mamba2_chunk_scan")

    def rival(u: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return cast(Tensor, chunk_scan(u, dt, rates, b, c, chunk_size=64))

    def ours(u: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor) -> Tensor:
        v = u * dt[..., None]
        return gated_linear.gated_linear_attention(c, b, v, dt * rates, scale=1.0)[0]

    return Training(leaves=_ssd_inputs(BATCH, length), rival=rival, ours=ours)


def _ssd_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    update = function("mamba2", "mamba2_selective_state_update")
    u, dt, rates, b, c = _ssd_inputs(batch, STEPS)
    wide = rates[:, None, None].expand(-1, 64, 64)
    state = torch.randn(batch, 4, 64, 64, generator=_generator(1))

    def rival(u: Tensor, dt: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return update(state, u, dt[..., None].expand(-1, -1, 64), wide, b, c), state

    def ours(u: Tensor, dt: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        v = u * dt[..., None]
        return gated_linear.gated_linear_attention_step(c, b, v, dt * rates, scale=1.0, state=state)

    return Decoding(
        tokens=_steps(u, dt, b, c),
        rival=Decoder(state.transpose(2, 3).contiguous(), rival),
        ours=Decoder(state, ours),
    )


# xLSTM


def _mlstm_inputs(batch: int, length: int) -> list[Tensor]:
    heads = (batch, length, HEADS)
    q, k, v, i, f = _drawn(*[(*heads, HEAD)] * 3, *[heads] * 2)
    return [q, k, v, i, f + 4]


def _mlstm_training(layer: Layer, length: int) -> Training:
    chunkwise = function("xlstm", "mlstm_chunkwise_native_autograd")
    chunk = longest_chunk(length, 64)

    def rival(*inputs: Tensor) -> Tensor:
        q, k, v, i, f = _heads_second(*inputs)
        output = chunkwise(q, k, v, i.contiguous(), f.contiguous(), chunk_size=chunk)
        return cast(Tensor, output.transpose(1, 2))

    def ours(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        return mlstm.mlstm(q, k, v, i, f, scale=HEAD**-0.5)[0]

    return Training(leaves=tuple(_mlstm_inputs(BATCH, length)), rival=rival, ours=ours)


def _mlstm_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    native = function("xlstm", "mlstm_recurrent_step_native")
    matrix, normaliser = _drawn((batch, HEADS, HEAD, HEAD), (batch, HEADS, HEAD))
    start = mlstm.Memory(matrix, normaliser, torch.zeros(batch, HEADS))

    def rival(*given: Any) -> tuple[Tensor, Any]:
        q, k, v, i, f, state = given
        output, state = native(q, k, v, i[..., None], f[..., None], *state)
        return output, state

    def ours(*given: Any) -> tuple[Tensor, Any]:
        *inputs, state = given
        return mlstm.mlstm_step(*inputs, scale=HEAD**-0.5, state=state)

    return Decoding(
        tokens=_steps(*_mlstm_inputs(batch, STEPS)),
        rival=Decoder((matrix, normaliser, start.scale[..., None]), rival),
        ours=Decoder(start, ours),
    )


def _slstm_step(
    x: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One token as xLSTM's plain form computes it. x (B, H, 4, D), recurrent (H, D, 4 D)."""
    h, c, n, m = state
    z, i, f, o = (x + torch.einsum("bhd,hde->bhe", h, recurrent).view_as(x)).unbind(2)
    kept = m + F.logsigmoid(f)
    m = torch.maximum(kept, i)
    keep, write = torch.exp(kept - m), torch.exp(i - m)
    c = keep * c + write * torch.tanh(z)
    n = keep * n + write
    h = torch.sigmoid(o) * c / n
    return h, (h, c, n, m)


def _slstm_sequence(x: Tensor, recurrent: Tensor) -> Tensor:
    return slstm.slstm(x, recurrent, forget="sigmoid")[0]


def _slstm_leaves(length: int) -> tuple[Tensor, Tensor]:
    x, recurrent = _drawn((BATCH, length, HEADS, 4, HEAD), (HEADS, HEAD, 4 * HEAD))
    return x, recurrent * HEAD**-0.5


def _slstm_training(layer: Layer, length: int) -> Training:
    def rival(x: Tensor, recurrent: Tensor) -> Tensor:
        state: tuple[Tensor, ...] = (torch.zeros(BATCH, HEADS, HEAD),) * 4
        outputs = []
        for x_t in x.unbind(1):
            h, state = _slstm_step(x_t, recurrent, state)
            outputs.append(h)
        return torch.stack(outputs, 1)

    return Training(leaves=_slstm_leaves(length), rival=rival, ours=_slstm_sequence)


def _slstm_tokens(batch: int) -> tuple[Tensor, Tensor, slstm.Cell]:
    """Inputs of the steps, (B, STEPS, H, 4, D), the recurrent matrix, and a state before them."""
    x, recurrent, h, c = _drawn(
        (batch, STEPS, HEADS, 4, HEAD),
        (HEADS, HEAD, 4 * HEAD),
        *[(batch, HEADS, HEAD)] * 2,
    )
    return (
        x,
        recurrent * HEAD**-0.5,
        slstm.Cell(h, c, torch.ones_like(c), torch.zeros_like(c)),
    )


def _slstm_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    x, recurrent, start = _slstm_tokens(batch)
    return Decoding(
        tokens=_steps(x),
        rival=Decoder(tuple(start), lambda x, state: _slstm_step(x, recurrent, state)),
        ours=Decoder(
            start,
            lambda x, state: slstm.slstm_step(x, recurrent, forget="sigmoid", state=state),
        ),
    )


def _flashrnn_training(backend: str, layer: Layer, length: int) -> Training:
    cell, bias = flashrnn_slstm(backend), torch.zeros(4, HEADS, HEAD)

    def rival(x: Tensor, recurrent: Tensor) -> Tensor:
        gates = flashrnn_gates(x), flashrnn_recurrent(recurrent)
        return cast(Tensor, cell(*gates, bias, None)[0][0])

    return Training(leaves=_slstm_leaves(length), rival=rival, ours=_slstm_sequence)


def _flashrnn_decoding(backend: str, layer: Layer, batch: int, context: int) -> Decoding:
    """Each token in our layout and in the package's."""
    cell, bias = flashrnn_slstm(backend), torch.zeros(4, HEADS, HEAD)
    x, recurrent, start = _slstm_tokens(batch)
    theirs = flashrnn_recurrent(recurrent)

    def rival(_: Tensor, gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states, last = cell(gates[:, None], theirs, bias, state)
        return states[0, :, 0], last

    def ours(x: Tensor, _: Tensor, state: slstm.Cell) -> tuple[Tensor, slstm.Cell]:
        return slstm.slstm_step(x, recurrent, forget="sigmoid", state=state)

    return Decoding(
        tokens=_steps(x, flashrnn_gates(x)),
        rival=Decoder(torch.stack(start).unsqueeze(2), rival),
        ours=Decoder(start, ours),
    )


# the delta rule


def _delta_inputs(batch: int, length: int) -> list[Tensor]:
    """q, unit k, v, beta, log decay."""
    heads = (batch, length, HEADS)
    q, k, v, beta, g = _drawn(*[(*heads, HEAD)] * 3, *[heads] * 2)
    return [q, F.normalize(k, dim=-1), v, beta.sigmoid(), F.logsigmoid(g + 3)]


def _matrix_state(batch: int, rows: int = HEAD, columns: int = HEAD) -> Tensor:
    return torch.randn(batch, HEADS, rows, columns, generator=_generator(1))


def _gated_delta_training(layer: Layer, length: int) -> Training:
    chunked = function("qwen3_next", "torch_chunk_gated_delta_rule")

    def rival(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
        return cast(Tensor, chunked(q, k, v, g=g, beta=beta)[0])

    def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
        return delta_rule.delta_rule(q, k, v, g, beta, scale=HEAD**-0.5)[0]

    return Training(leaves=tuple(_delta_inputs(BATCH, length)), rival=rival, ours=ours)


def _gated_delta_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    recurrent = function("qwen3_next", "torch_recurrent_gated_delta_rule")

    def rival(*given: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, state = given
        q, k, v, beta, g = (x[:, None] for x in inputs)
        output, state = recurrent(
            q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True
        )
        return output[:, 0], state

    def ours(*given: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, beta, g, state = given
        return delta_rule.delta_rule_step(q, k, v, g, beta, scale=HEAD**-0.5, state=state)

    return Decoding(
        tokens=_steps(*_delta_inputs(batch, STEPS)),
        rival=Decoder(_matrix_state(batch), rival),
        ours=Decoder(_matrix_state(batch), ours),
    )


def _delta_training(layer: Layer, length: int) -> Training:
    chunkwise = _fla("ops/delta_rule/naive.py").delta_rule_chunkwise
    chunk = longest_chunk(length, 32)

    def rival(*inputs: Tensor) -> Tensor:
        output = chunkwise(*_heads_second(*inputs), chunk_size=chunk)[0]
        return cast(Tensor, output.transpose(1, 2))

    def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        return delta_rule.delta_rule(q, k, v, None, beta, scale=HEAD**-0.5)[0]

    return Training(leaves=tuple(_delta_inputs(BATCH, length)[:4]), rival=rival, ours=ours)


def _delta_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    recurrence = _fla("ops/delta_rule/naive.py").delta_rule_recurrence

    def rival(*given: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, state = given
        output, state = recurrence(*_one_token(*inputs), initial_state=state)
        return output[:, :, 0], state

    def ours(*given: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, beta, state = given
        return delta_rule.delta_rule_step(q, k, v, None, beta, scale=HEAD**-0.5, state=state)

    return Decoding(
        tokens=_steps(*_delta_inputs(batch, STEPS)[:4]),
        rival=Decoder(_matrix_state(batch), rival),
        ours=Decoder(_matrix_state(batch), ours),
    )


# linear attention


def _linear_inputs(batch: int, length: int) -> list[Tensor]:
    q, k, v = _drawn(*[(batch, length, HEADS, HEAD)] * 3)
    return [F.elu(q) + 1, F.elu(k) + 1, v]


def _linear_training(layer: Layer, length: int) -> Training:
    naive = _fla("ops/linear_attn/naive.py").naive_chunk_linear_attn
    if length % 64:
        raise ValueError("fla's form takes lengths that are multiples of 64")
    return Training(
        leaves=tuple(_linear_inputs(BATCH, length)),
        rival=lambda q, k, v: cast(Tensor, naive(q, k, v, scale=1.0, normalize=True)),
        ours=lambda q, k, v: normalised_linear_attention(q, k, v)[0],
    )


def _linear_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    naive = _fla("ops/linear_attn/naive.py").naive_recurrent_linear_attn
    start = _matrix_state(batch, HEAD, HEAD + 1).abs()

    def rival(*given: Any) -> tuple[Tensor, Any]:
        *inputs, state = given
        q, k, v = (x[:, None] for x in inputs)
        output, state = naive(q, k, v, 1.0, state, output_final_state=True, normalize=True)
        return output[:, 0], state

    def ours(*given: Any) -> tuple[Tensor, Any]:
        return normalised_linear_attention_step(*given)

    sums = start[..., -1][:, None]
    return Decoding(
        tokens=_steps(*_linear_inputs(batch, STEPS)),
        rival=Decoder((start[..., :-1].contiguous(), sums.contiguous()), rival),
        ours=Decoder(start, ours),
    )


def _gla_inputs(batch: int, length: int) -> list[Tensor]:
    """q, k, v, log decay, keys half as wide as values."""
    heads = (batch, length, HEADS)
    q, k, g, v = _drawn(*[(*heads, HEAD // 2)] * 3, (*heads, HEAD))
    return [q, k, v, F.logsigmoid(g) / 16]


_GLA_SCALE = (HEAD // 2) ** -0.5


def _gla_training(layer: Layer, length: int) -> Training:
    naive = _fla("ops/gla/naive.py").naive_recurrent_gla

    def ours(*inputs: Tensor) -> Tensor:
        return gated_linear.gated_linear_attention(*inputs, scale=_GLA_SCALE)[0]

    return Training(
        leaves=tuple(_gla_inputs(BATCH, length)),
        rival=lambda *inputs: cast(Tensor, naive(*inputs)[0]),
        ours=ours,
    )


def _gla_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    naive = _fla("ops/gla/naive.py").naive_recurrent_gla

    def rival(*given: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, state = given
        output, state = naive(*(x[:, None] for x in inputs), state, output_final_state=True)
        return output[:, 0], state

    def ours(*given: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, state = given
        return gated_linear.gated_linear_attention_step(*inputs, scale=_GLA_SCALE, state=state)

    start = _matrix_state(batch, HEAD // 2)
    return Decoding(
        tokens=_steps(*_gla_inputs(batch, STEPS)),
        rival=Decoder(start, rival),
        ours=Decoder(start, ours),
    )


# RWKV-7


def _wkv_inputs(batch: int, length: int) -> list[Tensor]:
    """r, w, k, v, a, b as the op wants them."""
    r, w, k, v, removed, rate = _drawn(*[(batch, length, HEADS, HEAD)] * 6)
    removed = F.normalize(removed, dim=-1)
    return [r, rwkv7.STRONGEST_DECAY * w.sigmoid(), k, v, -removed, removed * rate.sigmoid()]


def _wkv_training(layer: Layer, length: int) -> Training:
    chunkwise = _fla("ops/generalized_delta_rule/dplr/naive.py").dplr_chunkwise
    chunk = longest_chunk(length, 32)

    def rival(*inputs: Tensor) -> Tensor:
        r, w, k, v, a, b = _heads_second(*inputs)
        return cast(Tensor, chunkwise(r, k, v, a, b, w, chunk_size=chunk)[0].transpose(1, 2))

    return Training(
        leaves=tuple(_wkv_inputs(BATCH, length)),
        rival=rival,
        ours=lambda *inputs: rwkv7.wkv7(*inputs, scale=HEAD**-0.5)[0],
    )


def _wkv_decoding(layer: Layer, batch: int, context: int) -> Decoding:
    recurrence = _fla("ops/generalized_delta_rule/dplr/naive.py").dplr_recurrence

    def rival(*given: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, state = given
        r, w, k, v, a, b = _one_token(*inputs)
        output, state = recurrence(r, k, v, a, b, w, state)
        return output[:, :, 0], state

    def ours(*given: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, state = given
        return rwkv7.wkv7_step(*inputs, scale=HEAD**-0.5, state=state)

    return Decoding(
        tokens=_steps(*_wkv_inputs(batch, STEPS)),
        rival=Decoder(_matrix_state(batch), rival),
        ours=Decoder(_matrix_state(batch), ours),
    )


# memory caching


def _memory_caching_training(layer: Layer, length: int) -> Training:
    """The package pools by sums and has no norm, so ours does the same here."""
    options = dataclasses.replace(layer.options, pool="sum", output_norm=False)
    ours = MEMORY_CACHING.mixer(WIDTH, options)
    assert ours is not None
    ours.load_state_dict({name: layer.mixer.state_dict()[name] for name in ours.state_dict()})
    rival = memory_caching(ours, options, WIDTH).copied()
    return Training(
        leaves=(layer.inputs(BATCH, length),),
        rival=lambda x: cast(Tensor, rival(x)),
        parameters=tuple(rival.parameters()),
        ours=ours,
    )


RIVALS: dict[str, tuple[Rival, ...]] = {
    "lstm": (
        Rival(
            "nn.LSTM",
            "module against module, same weights; decode: the module at T = 1, which repacks them",
            partial(_rnn_training, "LSTM"),
            partial(_rnn_decoding, "LSTM"),
        ),
        Rival(
            "nn.LSTMCell",
            "decoding alone: module against module, same weights",
            None,
            partial(_cell_decoding, "LSTM"),
        ),
    ),
    "gru": (
        Rival(
            "nn.GRU",
            "module against module, same weights; decode: the module at T = 1, which repacks them",
            partial(_rnn_training, "GRU"),
            partial(_rnn_decoding, "GRU"),
        ),
        Rival(
            "nn.GRUCell",
            "decoding alone: module against module, same weights",
            None,
            partial(_cell_decoding, "GRU"),
        ),
    ),
    "transformer": (
        Rival(
            "LlamaAttention",
            "module against module (transformers, sdpa), same weights, angles made beforehand; "
            "decode: its DynamicCache",
            _llama_training,
            partial(_attention_decoding, "Llama"),
        ),
    ),
    "sliding_window": (
        Rival(
            "SDPA, band mask",
            "op against op, mask made beforehand; decode: module against transformers' "
            "MistralAttention with its sliding DynamicCache",
            _band_training,
            partial(_attention_decoding, "Mistral"),
        ),
    ),
    "min_gru": (
        Rival(
            "minGRU-pytorch",
            "module against module, same weights (its log-space scan, no bias)",
            partial(_twin_training, min_gru),
            _min_gru_decoding,
        ),
        Rival("mambapy pscan", "op against op: the scan alone", _pscan_training),
    ),
    "mamba": (
        Rival(
            "mambapy block",
            "module against module (MambaBlock, pscan), same weights; decode: its step",
            partial(_twin_training, mamba_block),
            _mamba_decoding,
        ),
        Rival(
            "mambapy scan",
            "op against op: MambaBlock.selective_scan with pscan",
            _selective_scan_training,
        ),
    ),
    "mamba2": (
        Rival(
            "mamba2_chunk_scan",
            "op against op (transformers, chunk 64), step sizes to outputs; decode: "
            "mamba2_selective_state_update",
            _ssd_training,
            _ssd_decoding,
        ),
    ),
    "mlstm": (
        Rival(
            "mlstm_chunkwise",
            "op against op (transformers' xLSTM, native autograd, chunk 64); decode: "
            "mlstm_recurrent_step_native",
            _mlstm_training,
            _mlstm_decoding,
        ),
    ),
    "slstm": (
        Rival(
            "loop",
            "op against op: torch ops and autograd in a loop over tokens, as xLSTM's plain form",
            _slstm_training,
            _slstm_decoding,
        ),
        Rival(
            "flashrnn by hand",
            "op against op (backend vanilla_fwbw: plain torch, backward by hand); decode: the same "
            "at T = 1",
            partial(_flashrnn_training, "vanilla_fwbw"),
            partial(_flashrnn_decoding, "vanilla_fwbw"),
        ),
        Rival(
            "flashrnn autograd",
            "op against op (backend vanilla); decode: the same at T = 1",
            partial(_flashrnn_training, "vanilla"),
            partial(_flashrnn_decoding, "vanilla"),
        ),
    ),
    "gated_delta_net": (
        Rival(
            "torch_chunk_gdr",
            "op against op (transformers' Qwen3-Next, chunk 64); decode: "
            "torch_recurrent_gated_delta_rule",
            _gated_delta_training,
            _gated_delta_decoding,
        ),
    ),
    "delta_net": (
        Rival(
            "fla chunkwise",
            "op against op (delta_rule_chunkwise, chunk 32); decode: delta_rule_recurrence",
            _delta_training,
            _delta_decoding,
        ),
    ),
    "gla": (
        Rival(
            "fla loop",
            "op against op (naive_recurrent_gla, the only plain form); decode: the same at T = 1",
            _gla_training,
            _gla_decoding,
        ),
    ),
    "linear_attention": (
        Rival(
            "fla chunk",
            "op against op, normalised (naive_chunk_linear_attn); decode: "
            "naive_recurrent_linear_attn at T = 1",
            _linear_training,
            _linear_decoding,
        ),
    ),
    "memory_caching": (
        Rival(
            "memory-caching",
            "module against module, same weights, sums of keys and no norm in both: its only form, "
            "a loop over tokens; it cannot decode",
            _memory_caching_training,
        ),
    ),
    "rwkv7": (
        Rival(
            "fla DPLR chunkwise",
            "op against op (dplr_chunkwise, chunk 32); decode: dplr_recurrence at T = 1",
            _wkv_training,
            _wkv_decoding,
        ),
    ),
}
"""By architecture. One without an entry has no library form that runs on a CPU."""
