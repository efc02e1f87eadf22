"""minGRU-pytorch's layers: minGRU and minLSTM, scanned in log space, without biases."""

from __future__ import annotations

from typing import Any

import torch

from tests.workloads.oracles.oracle import FLOAT64, WIDTH, Twin, layer_oracle, library


def min_gru(mixer: Any, options: Any, width: int = WIDTH) -> Twin:
    layer = library("minGRU_pytorch.minGRU").minGRU(width, options.expand, proj_out=True)
    update, candidate = mixer.gates.weight.chunk(2)
    parameters = {
        "to_hidden_and_gate.weight": torch.cat((candidate, update)),
        "to_out.weight": mixer.out.weight,
    }
    return Twin(layer, parameters, unused=("gates.bias",))


def min_lstm(mixer: Any, options: Any) -> Twin:
    layer = library("minGRU_pytorch.minLSTM").minLSTM(WIDTH, options.expand, proj_out=True)
    forget, write, candidate = mixer.gates.weight.chunk(3)
    parameters = {
        "to_hidden_and_f_i_gate.weight": torch.cat((candidate, forget, write)),
        "to_out.weight": mixer.out.weight,
    }
    return Twin(layer, parameters, unused=("gates.bias",))


ORACLES = (
    layer_oracle("min_gru", "minGRU", FLOAT64, min_gru),
    layer_oracle("min_gru", "minGRU, expand 2", FLOAT64, min_gru, expand=2),
    layer_oracle("min_gru", "minLSTM", FLOAT64, min_lstm, cell="lstm"),
)
