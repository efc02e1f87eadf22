"""Key-value means (`key_value_means`): one layer of the authors' code, run in float64.

Each case has a config in the authors' names. Outputs are compared in all forms, and where the file
has them the prepared tokens, the state after each chunk, the routing and the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.workloads.decoding import decode
from workloads.architectures.kvm import Kvm, Options
from workloads.ops import kvm

Arrays = Mapping[str, np.ndarray]
Pair = tuple[Tensor, Tensor]

LAWS = {"fixed": "fixed", "power_law": "power", "kvm_saturation": "saturating"}


def knows(note: dict[str, Any], name: str) -> bool:
    return name.startswith("key_value_means") or "KVM" in str(note.get("source", ""))


def skipped(note: dict[str, Any], arrays: Arrays) -> dict[str, str]:
    """Cases that are not driven, and why."""
    reasons = {}
    for case, said in note["cases"].items():
        config = said.get("config", {})
        growth = _growth(config) if "chunk_len" in config else None
        if growth is None or f"{case}/y" not in arrays or case.startswith("lm_"):
            reasons[case] = "not one layer"
        elif not config.get("kvm_use_vlens", 1) and growth.covered(said["T"]) > growth.chunk:
            reasons[case] = (
                "without value radius the authors' code divides every row by the number of chunks "
                "absorbed (a sum over the wrong axis), ours by the tokens a row holds"
            )
        elif _gate(config, "keys") != _gate(config, "values"):
            reasons[case] = "a merge gate on keys alone or values alone is not here"
        elif config.get("rope_theta", kvm.ROPE_BASE) != kvm.ROPE_BASE:
            reasons[case] = "another base of the rotation"
        elif config.get("kvm_apply_merge_gate_to_initial_state", 0):
            reasons[case] = "a gated first chunk is not here; the authors' own decoding ignores it"
    return reasons


def cases(
    note: dict[str, Any], arrays: Arrays
) -> Iterator[tuple[str, Callable[[torch.dtype], Pair]]]:
    passed_over = skipped(note, arrays)
    for case, said in note["cases"].items():
        if case not in passed_over:
            yield from _cases_of(case, said, arrays)


def _cases_of(
    case: str, said: dict[str, Any], arrays: Arrays
) -> Iterator[tuple[str, Callable[[torch.dtype], Pair]]]:
    length, config = said["T"], said["config"]
    chunk = config["chunk_len"]

    def layer(dtype: torch.dtype) -> tuple[Kvm, Tensor]:
        x = torch.from_numpy(arrays["x"][:, :length]).to(dtype)
        return _layer(case, config, arrays, dtype, length), x

    def expected(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(arrays[f"{case}/{name}"]).to(dtype)

    def parallel(dtype: torch.dtype) -> Pair:
        mixer, x = layer(dtype)
        return mixer(x).detach(), expected("y", dtype)

    @cache
    def referenced(dtype: torch.dtype) -> tuple[Tensor, list[Any]]:
        mixer, x = layer(dtype)
        with torch.no_grad():
            mixed, log = kvm.attend_reference(
                *mixer._tokens(x, None), method=mixer.method, learned=mixer.learned
            )
            return mixer.out(mixed.transpose(1, 2).flatten(2)), log

    @cache
    def differentiated(form: str, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
        mixer, x = layer(dtype)
        x.requires_grad_()
        if form == "parallel":
            y = mixer(x)
        else:
            mixed, _ = kvm.attend_reference(
                *mixer._tokens(x, None), method=mixer.method, learned=mixer.learned
            )
            y = mixer.out(mixed.transpose(1, 2).flatten(2))
        (y * torch.from_numpy(arrays["grad/P"][:, :length]).to(dtype)).sum().backward()
        return _gradients(mixer, x)

    def reference(dtype: torch.dtype) -> Pair:
        return referenced(dtype)[0], expected("y", dtype)

    def split(first: int) -> Callable[[torch.dtype], Pair]:
        def run(dtype: torch.dtype) -> Pair:
            mixer, x = layer(dtype)
            with torch.no_grad():
                return decode(mixer, x, (first,))[0], expected("y", dtype)

        return run

    yield f"{case}: parallel", parallel
    yield f"{case}: reference", reference
    if _residual(case, config, arrays) is None:
        for first in sorted({1, chunk, 2 * chunk + 1, length - 1} & set(range(1, length))):
            yield f"{case}: prefill {first}, then steps", split(first)

    def token(name: str) -> Callable[[torch.dtype], Pair]:
        def run(dtype: torch.dtype) -> Pair:
            mixer, x = layer(dtype)
            found = dict(zip(("q", "k", "v", "gate"), mixer._tokens(x, None), strict=True))[name]
            assert found is not None
            want = expected(name, dtype)
            return found.detach().reshape(want.shape), want

        return run

    for name in ("q", "k", "v", "gate"):
        if f"{case}/{name}" in arrays:
            yield f"{case}: {name}", token(name)
    for name in arrays:
        if name.startswith(f"{case}/") and name.split("/")[1].startswith(("state", "update")):
            what = name.split("/")[1]
            for form in ("states", "reference"):
                yield f"{case}: {what}, {form}", _of_state(layer, what, form, expected, referenced)
        if name.startswith(f"{case}/grad_"):
            what = name.removeprefix(f"{case}/grad_").removeprefix("w/")
            for form in ("parallel", "reference"):
                yield (
                    f"{case}: gradient of {what}, {form}",
                    _gradient(differentiated, what, form, arrays[name]),
                )


def _of_state(
    layer: Callable[[torch.dtype], tuple[Kvm, Tensor]],
    what: str,
    form: str,
    expected: Callable[[str, torch.dtype], Tensor],
    referenced: Callable[[torch.dtype], tuple[Tensor, list[Any]]],
) -> Callable[[torch.dtype], Pair]:
    """`stateN_k` and the like, after update N, which follows the first chunk's becoming rows."""

    def run(dtype: torch.dtype) -> Pair:
        mixer, x = layer(dtype)
        _, k, v, gate = mixer._tokens(x, None)
        growth = mixer.method.growth
        at = int("".join(filter(str.isdigit, what.split("_")[0]))) + 1
        kind = what.split("_", 1)[1]
        covered = (at + 1) * growth.chunk
        want = expected(what, dtype)
        given = {"method": mixer.method, "learned": mixer.learned}
        with torch.no_grad():
            if form == "reference":
                after = referenced(dtype)[1][at]
                found = {
                    "k": after.keys,
                    "v": after.values,
                    "radius": after.scales,
                    "append_idx": torch.tensor(after.appended),
                    "merge_target": torch.tensor(after.merged),
                }[kind]
                return found.reshape(want.shape).to(dtype), want
            gates = None if gate is None else gate[:, :, :covered]
            states = kvm.remember(k[:, :, :covered], v[:, :, :covered], gates, **given)
            last = min(at, states.keys.shape[2] - 1)
            rows = slice(0, states.rows[at])
            makes, target = states.makes[:, :, at], states.target[:, :, at]
            found = {
                "k": lambda: states.keys[:, :, last, rows],
                "v": lambda: states.values[:, :, last, rows],
                "radius": lambda: states.scales[:, :, last, rows],
                "append_idx": lambda: makes.nonzero()[:, -1],
                "merge_target": lambda: target[~makes],
            }[kind]()
            return found.reshape(want.shape).to(dtype), want

    return run


def _gradient(
    differentiated: Callable[[str, torch.dtype], dict[str, Callable[[], Any]]],
    what: str,
    form: str,
    wanted: np.ndarray,
) -> Callable[[torch.dtype], Pair]:
    def run(dtype: torch.dtype) -> Pair:
        return differentiated(form, dtype)[what](), torch.from_numpy(wanted).to(dtype)

    return run


def _gradients(mixer: Kvm, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The gradients by the file's names."""
    linear = mixer.qkv.linear if isinstance(mixer.qkv, _Residual) else mixer.qkv
    named: dict[str, Callable[[], Any]] = {
        "x": lambda: x.grad,
        "c_proj.weight": lambda: mixer.out.weight.grad,
        "key_weighting.weight": lambda: mixer.gate and mixer.gate.weight.grad,
        "front_head_temp": lambda: getattr(mixer.window_temperature, "grad", None),
        "state_head_temp": lambda: getattr(mixer.state_temperature, "grad", None),
    }
    for i, part in enumerate("qkv"):
        named[f"c_{part}.weight"] = lambda i=i: linear.weight.grad.chunk(3)[i]
        named[f"x_{part}"] = lambda i=i: mixer.shift.grad[i]
    for ours, theirs in (("norm_q", "ln_q"), ("norm_k", "ln_k"), ("norm_state", "ln_s_k")):
        norm = getattr(mixer, ours)
        named[f"{theirs}.weight"] = lambda norm=norm: norm.weight.grad
        named[f"{theirs}.bias"] = lambda norm=norm: norm.bias.grad
    for name in ("v_gate0", "v_gate1.weight", "v_gate2.weight"):
        named[name] = lambda name=name: getattr(mixer.qkv, name.split(".")[0]).grad
    return named


class _Residual(nn.Module):
    """The projections with the first layer's values mixed in, which a mixer alone cannot do."""

    def __init__(self, linear: nn.Linear, first: Tensor, arrays: Arrays) -> None:
        super().__init__()
        self.linear, self.first = linear, first
        self.v_gate0, self.v_gate1, self.v_gate2 = (
            nn.Parameter(torch.from_numpy(arrays[f"w/{name}"]).to(first.dtype))
            for name in ("v_gate0", "v_gate1.weight", "v_gate2.weight")
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.linear(x).chunk(3, -1)
        gate = self.v_gate0 + x @ self.v_gate1.mT @ self.v_gate2.mT
        return torch.cat((q, k, kvm.value_residual(v, self.first, gate)), -1)


def _residual(case: str, config: dict[str, Any], arrays: Arrays) -> np.ndarray | None:
    """The first layer's values, where the case mixes them in. A first layer's own change nothing,
    so a case without them is one."""
    if not config.get("use_value_residual", 0):
        return None
    names = ("v1", "v_first")
    found = [arrays[key] for n in names for key in (f"{case}/{n}", n) if key in arrays]
    return found[0] if found else None


def _gate(config: dict[str, Any], what: str) -> bool:
    return bool(config.get(f"kvm_use_merge_gate_{what}", 1))


def _growth(config: dict[str, Any]) -> kvm.Growth:
    return kvm.Growth(
        law=LAWS.get(config["state_budget_mode"], "saturating"),
        chunk=config["chunk_len"],
        window=config["n_bswa_chunks"],
        minimum=config["state_min_len"],
        factor=config.get("state_growth_factor", 1.0),
        exponent=config.get("state_growth_exponent", 1.0),
        limit=config.get("state_saturation_n") or 0,
        round=config.get("state_round_down", 1),
        maximum=config["chunk_len"] * config["n_max_d_chunks"],
    )


def _layer(
    case: str, config: dict[str, Any], arrays: Arrays, dtype: torch.dtype, length: int
) -> Kvm:
    gated = _gate(config, "keys")
    options = Options(
        heads=config["num_attention_heads"],
        chunk=config["chunk_len"],
        window=config["n_bswa_chunks"],
        sink=config["sink_len"],
        rotary=config["rope_partial_dim"],
        value_radius=bool(config.get("kvm_use_vlens", 1)),
        merge_gate=gated,
        append_gate=gated and bool(config.get("kvm_apply_merge_gate_to_appends", 0)),
        temperatures=bool(config.get("kvm_use_head_temps", 1)),
        token_shift=bool(config.get("use_tokenshift_att", 0)),
    )
    mixer = Kvm(config["hidden_size"], options).to(dtype)
    mixer.method = replace(mixer.method, growth=_growth(config))

    def weight(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"w/{name}"]).to(dtype)

    names = {
        "qkv.weight": ["c_q.weight", "c_k.weight", "c_v.weight"],
        "out.weight": ["c_proj.weight"],
        "gate.weight": ["key_weighting.weight"],
        "window_temperature": ["front_head_temp"],
        "state_temperature": ["state_head_temp"],
        "shift": ["x_q", "x_k", "x_v"],
    }
    for ours, theirs in (("norm_q", "ln_q"), ("norm_k", "ln_k"), ("norm_state", "ln_s_k")):
        for part in ("weight", "bias"):
            names[f"{ours}.{part}"] = [f"{theirs}.{part}"]
    weights = {
        name: torch.cat([weight(part).view(-1, *held.shape[1:]) for part in names[name]])
        for name, held in mixer.state_dict().items()
    }
    mixer.load_state_dict(weights)
    first = _residual(case, config, arrays)
    if first is not None:
        values = torch.from_numpy(first).to(dtype)
        if values.ndim == 4:  # by heads
            values = values.transpose(1, 2).flatten(2)
        mixer.qkv = _Residual(mixer.qkv, values[:, :length], arrays)
    return mixer
