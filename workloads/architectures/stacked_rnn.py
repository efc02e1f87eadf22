"""Plain stacked recurrent layers, without the residual shell: the classic recurrent language model.

Idea: each layer's hidden vectors are the next layer's inputs, with nothing around them: no norm, no
residual stream, no MLP. What depth there is, is the recurrence's own. Since nothing else takes
parameters, d_model is wider here than in the shell at the same size. Papers: Graves 2013,
"Generating Sequences With Recurrent Neural Networks"; Zaremba et al. 2014, "Recurrent Neural
Network Regularization".

Cost, a layer: a token costs 16 d^2 FLOPs (`lstm`; 12 d^2 for `gru`) at any context, in training as
in decoding, one token after another in both. Training keeps about 17 d numbers a token (2 d for
`gru`), linear in the context. Decoding holds 2 d numbers a sequence (d for `gru`).

Kernels: those of `lstm` and `gru`: `torch.nn.LSTM` or `torch.nn.GRU` for sequences, cells for a
decoding step.

Left out: Graves' connections from the input to every layer and from every layer to the output,
which would be a residual shell of another kind; Zaremba's dropout between layers, unless the sweep
trains with `dropout`; and all layers in one cuDNN call, so that the layers' kernels are those of
the other recurrent networks here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workloads import plugins, recurrent, registry
from workloads.cell import Scalar
from workloads.plugins import Architecture

CELLS = ("lstm", "gru")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """cell: `lstm` or `gru`."""

    cell: str = "lstm"

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(plugins.unknown("cell", self.cell, CELLS))


def _cell(options: Options) -> tuple[Architecture, Any]:
    architecture = registry.load("architectures", options.cell)
    return architecture, architecture.options()


def _layers(options: Options, num_layers: int) -> Sequence[tuple[str, Mapping[str, Scalar]]]:
    return [(options.cell, {})] * num_layers


def _implementation(options: Options, device_type: str) -> str:
    architecture, cell_options = _cell(options)
    return architecture.implementation(cell_options, device_type)


ARCHITECTURE = Architecture(
    title="stacked RNN",
    version=2,
    options=Options,
    mixer=lambda d_model, options: _cell(options)[0].mixer(d_model, _cell(options)[1]),
    parameters=lambda d_model, options: _cell(options)[0].parameters(d_model, _cell(options)[1]),
    state_bytes=lambda d_model, options, seq_len, element_bytes: _cell(options)[0].state_bytes(
        d_model, _cell(options)[1], seq_len, element_bytes
    ),
    flops_per_token=lambda d_model, options, seq_len: _cell(options)[0].flops_per_token(
        d_model, _cell(options)[1], seq_len
    ),
    saved_elements_per_token=lambda d_model, options, seq_len: _cell(options)[
        0
    ].saved_elements_per_token(d_model, _cell(options)[1], seq_len),
    implementation=_implementation,
    arithmetic=recurrent.arithmetic,
    kernel_class=lambda options, device_type: _cell(options)[0].kernel_class(
        _cell(options)[1], device_type
    ),
    calls_per_token=lambda options, device_type: _cell(options)[0].calls_per_token(
        _cell(options)[1], device_type
    ),
    layers=_layers,
    residual=False,
    family="recurrent network",
)
