"""Key-value means (`key_value_means`): one layer of the authors' code, run in float64.

Each case has a config in the authors' names. Outputs are compared in all forms, and where the file
has them the prepared tokens, the state after each chunk, the routing and the gradients.

Without value lengths the authors' code divides every row by the number of chunks absorbed (a sum
over the wrong axis), ours by the tokens a row holds. The two agree while the state is the first
chunk, and a case of theirs is compared so far; one of another source is compared whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.workloads.decoding import decode
from tests.workloads.golden.driving import Arrays, Case, Pair
from workloads.architectures.kvm import Kvm, Options
from workloads.ops import kvm

LAWS = {"fixed": "fixed", "power_law": "power", "kvm_saturation": "saturating"}
EXTRAS = ("w/x_q", "w/x_k", "w/x_v", "w/v_gate0", "w/v_gate1.weight", "w/v_gate2.weight")
"""Weights of the backbone that only its own cases (`full_*`) switch on."""
FIRST_VALUES = ("v1", "v_first", "v0", "first_values", "first_v", "v_1")


def knows(note: dict[str, Any], name: str, arrays: Arrays) -> bool:
    return name.startswith("key_value_means") or "KVM" in str(note.get("source", ""))


def skipped(note: dict[str, Any], arrays: Arrays) -> dict[str, str]:
    """Cases that are not driven, or only in part, and why."""
    reasons = _undriven(note, arrays)
    for case, said in note["cases"].items():
        if case not in reasons and _agreed(note, said) < said["T"]:
            reasons[case] = (
                f"only the first {_agreed(note, said)} of {said['T']} outputs are compared: "
                "without value lengths the authors' code counts chunks where ours counts tokens"
            )
    return reasons


def unused(note: dict[str, Any], arrays: Arrays) -> dict[str, str]:
    """Inputs that no case of the file needs, and why."""
    reasons = dict.fromkeys(EXTRAS, "of the authors' backbone, for the cases that switch it on")
    configs = [said.get("config", {}) for said in note["cases"].values()]
    if not any(_gate(config, "keys") for config in configs):
        reasons["w/key_weighting.weight"] = "no case has a merge gate"
    if not any(config.get("kvm_use_head_temps", 1) for config in configs):
        temperatures = ("w/front_head_temp", "w/state_head_temp")
        reasons |= dict.fromkeys(temperatures, "no case has temperatures")
    if not any("/grad_" in name for name in arrays):
        reasons["grad/P"] = "weights of a loss, whose gradients the file does not have"
    models = {name.split("/")[0] for name in arrays if name.startswith("lm")}
    return reasons | dict.fromkeys(models, "of a language model, not of one layer")


def cases(note: dict[str, Any], arrays: Arrays) -> Iterator[Case]:
    undriven = _undriven(note, arrays)
    for case in note["cases"]:
        if case not in undriven:
            for name, run in _cases_of(case, note, arrays):
                yield Case(name, run)
    if {"rope_cos", "rope_sin"} <= set(arrays):
        rotary = {said["config"]["rope_partial_dim"] for case, said in note["cases"].items()
                  if case not in undriven}  # fmt: skip
        for channels in sorted(rotary):
            for at, name in enumerate(("rope_cos", "rope_sin")):
                yield Case(f"{name} of {channels}", partial(_table, arrays, name, at, channels))


def _undriven(note: dict[str, Any], arrays: Arrays) -> dict[str, str]:
    reasons = {}
    for case, said in note["cases"].items():
        config = said.get("config", {})
        if "chunk_len" not in config or case.startswith("lm"):
            reasons[case] = "not one layer"
        elif f"{case}/y" not in arrays:
            reasons[case] = "the file does not have its output"
        elif _gate(config, "keys") != _gate(config, "values"):
            reasons[case] = "a merge gate on keys alone or values alone is not here"
        elif config.get("rope_theta", kvm.ROPE_BASE) != kvm.ROPE_BASE:
            reasons[case] = "another base of the rotation"
        elif config.get("kvm_apply_merge_gate_to_initial_state", 0):
            reasons[case] = "a gated first chunk is not here; the authors' own decoding ignores it"
    return reasons


def _agreed(note: dict[str, Any], said: dict[str, Any]) -> int:
    """Outputs of a case, from the first, that its source and ours define alike."""
    config, length = said["config"], int(said["T"])
    source = str(said.get("source", note.get("source", "authors")))
    if config.get("kvm_use_vlens", 1) or not re.search("author|recursal", source, re.IGNORECASE):
        return length
    growth = _growth(config)
    return min(length, growth.span + growth.chunk)


def _table(arrays: Arrays, name: str, at: int, channels: int, dtype: torch.dtype) -> Pair:
    expected = arrays.tensor(name)
    length, width = expected.shape
    tables = kvm.rotary_tables(width, channels, length, expected.device, dtype)
    return tables[at][:length], expected


def _cases_of(
    case: str, note: dict[str, Any], arrays: Arrays
) -> Iterator[tuple[str, Callable[[torch.dtype], Pair]]]:
    said = note["cases"][case]
    length, config = said["T"], said["config"]
    chunk, agreed = config["chunk_len"], _agreed(note, said)

    def layer(dtype: torch.dtype) -> tuple[Kvm, Tensor]:
        own = f"{case}/x" if f"{case}/x" in arrays else "x"
        x = arrays.tensor(own, dtype)[:, :length]
        return _layer(case, note, arrays, dtype), x

    def expected(name: str, dtype: torch.dtype) -> Tensor:
        return arrays.tensor(f"{case}/{name}", dtype)

    def compared(y: Tensor) -> Pair:
        return y[:, :agreed].detach(), arrays.tensor(f"{case}/y")[:, :agreed]

    def parallel(dtype: torch.dtype) -> Pair:
        mixer, x = layer(dtype)
        return compared(mixer(x))

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
        (y * arrays.tensor("grad/P", dtype)[:, :length]).sum().backward()
        return _gradients(mixer, x)

    def reference(dtype: torch.dtype) -> Pair:
        return compared(referenced(dtype)[0])

    def split(first: int) -> Callable[[torch.dtype], Pair]:
        def run(dtype: torch.dtype) -> Pair:
            mixer, x = layer(dtype)
            with torch.no_grad():
                return compared(decode(mixer, x, (first,))[0])

        return run

    yield f"{case}: parallel", parallel
    yield f"{case}: reference", reference
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
        if name.startswith((f"{case}/state", f"{case}/update")):
            what = name.removeprefix(f"{case}/")
            if agreed < length and what.endswith("radius"):
                continue
            for form in ("states", "reference"):
                yield f"{case}: {what}, {form}", _of_state(layer, what, form, expected, referenced)
        if name.startswith(f"{case}/grad_") and agreed == length:
            what = name.removeprefix(f"{case}/grad_").removeprefix("w/")
            for form in ("parallel", "reference"):
                yield (
                    f"{case}: gradient of {what}, {form}",
                    partial(_gradient, differentiated, what, form, arrays, name),
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
    arrays: Arrays,
    name: str,
    dtype: torch.dtype,
) -> Pair:
    return differentiated(form, dtype)[what](), arrays.tensor(name)


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
    """The projections with the first layer's values mixed in, which a mixer alone cannot do. A call
    is given the tokens that follow those of the call before: the whole context, a chunk, or one
    token without its dimension."""

    def __init__(self, linear: nn.Linear, first: Tensor, arrays: Arrays) -> None:
        super().__init__()
        self.linear, self.first, self.seen = linear, first, 0
        self.v_gate0, self.v_gate1, self.v_gate2 = (
            nn.Parameter(arrays.tensor(f"w/{name}", first.dtype))
            for name in ("v_gate0", "v_gate1.weight", "v_gate2.weight")
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x if x.ndim == 3 else x[:, None]
        q, k, v = self.linear(tokens).chunk(3, -1)
        gate = self.v_gate0 + tokens @ self.v_gate1.mT @ self.v_gate2.mT
        first = self.first[:, self.seen : self.seen + tokens.shape[1]]
        self.seen += tokens.shape[1]
        mixed = torch.cat((q, k, kvm.value_residual(v, first, gate)), -1)
        return mixed if x.ndim == 3 else mixed[:, 0]


def _residual(case: str, note: dict[str, Any], arrays: Arrays) -> str | None:
    """The array of the first layer's values, where the case mixes them in. A first layer's own
    change nothing, so a case without them is one."""
    if not note["cases"][case]["config"].get("use_value_residual", 0):
        return None
    own = [name for name in arrays if name.startswith(f"{case}/")]
    others = {*note["cases"], "w", "grad"}
    shared = [n for n in arrays if n.split("/")[0] not in others and not n.startswith("lm")]
    for held in (own, shared):
        for name in held:
            meaning = str(note.get("arrays", {}).get(name, {}).get("meaning", "")).lower()
            told = re.search(r"first[- ]layer|layer[- ](0|zero)\b", meaning) and "value" in meaning
            if name.rpartition("/")[2] in FIRST_VALUES or told:
                return name
    return None


def _channels(values: Tensor, heads: int, length: int) -> Tensor:
    """The first layer's values as (B, T, d), from that or by heads, before or after time."""
    if values.ndim == 4:
        heads_first = values.shape[1] == heads and values.shape[2] >= length
        values = (values.transpose(1, 2) if heads_first else values).flatten(2)
    return values[:, :length]


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


def _layer(case: str, note: dict[str, Any], arrays: Arrays, dtype: torch.dtype) -> Kvm:
    said = note["cases"][case]
    config = said["config"]
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
        return arrays.tensor(f"w/{name}", dtype)

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
    first = _residual(case, note, arrays)
    if first is not None:
        values = _channels(arrays.tensor(first, dtype), config["num_attention_heads"], said["T"])
        mixer.qkv = _Residual(mixer.qkv, values, arrays)
    return mixer
