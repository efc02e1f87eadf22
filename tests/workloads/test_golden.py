"""Reference vectors: what others computed, ours within rounding of it.

    pytest tests/workloads/test_golden.py [--golden DIR] [-s]

Every NAME.npz below the folder that has a NAME.json beside it, naming the case and its switches, is
given to the adapters in `golden/`. Nothing is passed over in silence: a file that no adapter knows
fails, and so does an array that no case has read. What an adapter leaves out has a reason, printed
with `-s`; cases that are not compared, or not to their end, are named as a skipped test.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import GOLDEN
from tests.workloads import golden
from tests.workloads.golden import kvm as kvm_files
from tests.workloads.golden import memory_caching as caching_files
from tests.workloads.golden.driving import Arrays, Case, loss_weights_alone
from workloads.architectures.min_gru import gates
from workloads.ops import kvm
from workloads.ops.mlstm import Memory, mlstm_reference
from workloads.ops.scan import linear_scan_reference
from workloads.ops.selective_scan import selective_scan_reference

DTYPES = (torch.float64, torch.float32)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest difference, relative to the largest value expected; in float32 1.5e-6 is the most."""
CHUNKED_TOLERANCE = TOLERANCE | {torch.float32: 1e-4}
"""Of forms that take a chunk's sums by products; in float32 5e-6 is the most."""
STATISTICS = {"mqar_examples", "mqar_stats", "index"}
"""Of a task's data, not of a mixer."""


class Adapter(Protocol):
    """What a module in `golden/` exports. It may also export skipped(note, arrays), cases that are
    not driven or in part, and unused(note, arrays), inputs that no case needs: each by name (or by
    the part of it before a slash), with the reason."""

    def knows(self, note: dict[str, Any], name: str, arrays: Arrays) -> bool: ...

    def cases(self, note: dict[str, Any], arrays: Arrays) -> Iterator[Case]: ...


def adapters() -> list[Adapter]:
    found: list[Any] = [
        importlib.import_module(f"{golden.__name__}.{module.name}")
        for module in pkgutil.iter_modules(golden.__path__)
    ]
    return [module for module in found if hasattr(module, "cases")]


def files(folder: Path) -> list[Path]:
    """The notes of a folder's files. Raises UsageError where there are none, or one half is
    missing."""
    found: dict[str, set[Path]] = {
        suffix: {
            path.with_suffix("")
            for path in folder.rglob(f"*.{suffix}")
            if path.stem not in STATISTICS
        }
        for suffix in ("json", "npz")
    }
    if not found["npz"]:
        raise pytest.UsageError(f"--golden {folder}: no NAME.npz with NAME.json in it")
    if halves := found["json"] ^ found["npz"]:
        raise pytest.UsageError(f"--golden {folder}: {min(halves)} is not both .npz and .json")
    return sorted(path.with_suffix(".json") for path in found["npz"])


@dataclass(frozen=True)
class File:
    """One file as its adapters see it. skipped, unused: what they leave out, and why."""

    arrays: Arrays
    cases: list[Case]
    skipped: dict[str, str]
    unused: dict[str, str]

    def unread(self) -> list[str]:
        """Arrays that no case has read, without a reason."""
        excused = tuple({**self.skipped, **self.unused})
        inside = tuple(f"{name}/" for name in excused)
        return [
            name
            for name in self.arrays.unread
            if name not in excused and not name.startswith(inside)
        ]


def opened(note: Path) -> File:
    """Raises LookupError where no adapter knows the file."""
    told = json.loads(note.read_text())
    with np.load(note.with_suffix(".npz")) as held:
        arrays = Arrays({key: held[key] for key in held.files})
    knowing = [adapter for adapter in adapters() if adapter.knows(told, note.stem, arrays)]
    if not knowing:
        raise LookupError(f"{note}: no adapter in tests/workloads/golden knows this file")
    cases, skipped, unused = [], {}, loss_weights_alone(arrays)
    for adapter in knowing:
        cases += adapter.cases(told, arrays)
        for name, reasons in (("skipped", skipped), ("unused", unused)):
            reasons |= getattr(adapter, name, lambda *_: {})(told, arrays)
    return File(arrays, cases, skipped, unused)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} for {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().item() or 1.0
    return (found.detach().double() - expected.double()).abs().max().item() / scale


def compared(note: Path, dtype: torch.dtype) -> str:
    """What is said of a file that agrees.

    Raises:
        AssertionError: what differs, and what was not read.
    """
    file = opened(note)
    wrong = []
    worst: dict[bool, tuple[float, str]] = {}
    for case in file.cases:
        error = relative_error(*case.run(dtype))
        worst[case.chunked] = max(worst.get(case.chunked, (0.0, "")), (error, case.name))
        tolerance = (CHUNKED_TOLERANCE if case.chunked else TOLERANCE)[dtype]
        if not error <= max(tolerance, case.least):
            wrong.append(f"{case.name}: {error:.1e}")
    assert file.cases, f"{note}: has no case; {file.skipped}"
    assert not wrong, "\n".join(wrong)
    unread = file.unread()
    assert not unread, f"{note}: arrays that no case reads: {', '.join(unread)}"
    said = [
        f"{error:.1e} {'chunked' if chunked else 'else'} ({name})"
        for chunked, (error, name) in sorted(worst.items())
    ]
    heading = f"{note.stem}: {len(file.cases)} cases in {dtype}, worst {', '.join(said)}"
    left = [f"  not compared: {name}: {why}" for name, why in file.skipped.items()]
    return "\n".join([heading, *left])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "note" in metafunc.fixturenames:
        notes = files(metafunc.config.getoption("--golden"))
        metafunc.parametrize("note", notes, ids=[note.stem for note in notes])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ours_are_theirs(note: Path, dtype: torch.dtype) -> None:
    print(compared(note, dtype))


def test_every_case_is_compared(note: Path) -> None:
    """Skipped with the reasons where some are not, so that a run's summary has them."""
    left = [f"{name}: {why}" for name, why in opened(note).skipped.items()]
    if left:
        pytest.skip(f"{note.stem}: not compared: " + "; ".join(left))


# What follows writes small files by the loops of the formulas, and asks what is made of them.

BATCH, LENGTH, HEADS, WIDTH = 2, 11, 2, 4
Held = dict[str, Tensor]


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def _qkv() -> Held:
    return {name: _random(BATCH, LENGTH, HEADS, WIDTH, seed=i) for i, name in enumerate("qkv")}


def _written(folder: Path, name: str, arrays: Mapping[str, Any], /, **note: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, **note}))
    held = {key: np.asarray(array.detach()) for key, array in arrays.items()}
    np.savez(path.with_suffix(".npz"), **held)  # type: ignore[arg-type]
    return path


def _normalised(q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """Weighted means of v under elu + 1, token after token, and the last state."""
    q, k, outputs = F.elu(q) + 1, F.elu(k) + 1, []
    for q_t, k_t, v_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        S, z = S + k_t[..., None] * v_t[..., None, :], z + k_t
        outputs.append((q_t[..., None, :] @ S)[..., 0, :] / (q_t * z).sum(-1, keepdim=True))
    return torch.stack(outputs, 1), S, z


def _normalised_file(with_z0: bool) -> Held:
    arrays = _qkv() | {"w": _random(BATCH, LENGTH, HEADS, WIDTH, seed=3)}
    zeros = torch.zeros(BATCH, HEADS, WIDTH, WIDTH, dtype=torch.float64)
    start = {"S0": _random(*zeros.shape, seed=4)}
    if with_z0:
        start["z0"] = _random(BATCH, 1, HEADS, WIDTH, seed=5).abs()
    z0 = start["z0"][:, 0] if with_z0 else zeros[..., 0]
    leaves = [arrays[name].requires_grad_() for name in "qkv"]
    o, S, z = _normalised(*leaves, zeros, zeros[..., 0])
    gradients = torch.autograd.grad((arrays["w"] * o).sum(), leaves)
    arrays |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    after = _normalised(*leaves, start["S0"], z0)
    arrays |= start | dict(zip(("o_from_S0", "S_from_S0"), after[:2], strict=True))
    arrays["z_from_z0" if with_z0 else "z_from_S0"] = after[2]
    phi = {f"phi_{name}": F.elu(arrays[name]) + 1 for name in "qk"}
    return arrays | phi | {"o": o, "S": S, "z": z}


@pytest.mark.parametrize("with_z0", [True, False])
def test_normalised_attention_is_driven_from_a_state(tmp_path: Path, with_z0: bool) -> None:
    arrays = _normalised_file(with_z0)
    note = _written(tmp_path, "linear_attention_normalised", arrays)
    names = {case.name for case in opened(note).cases}
    for form in ("torch", "torch in two parts", "reference", "steps"):
        for array in ("o", "S", "z", "o_from_S0", "S_from_S0", "dq", "dk", "dv"):
            assert f"{form}: {array}" in names
        assert f"{form}: z_from_{'z0' if with_z0 else 'S0'}" in names
    for dtype in DTYPES:
        compared(note, dtype)
    for array in ("o_from_S0", "S_from_S0", "dk"):
        wrong = _written(tmp_path, "wrong", arrays | {array: arrays[array] * 1.01})
        with pytest.raises(AssertionError, match=f"steps: {array}"):
            compared(wrong, torch.float64)


def test_a_folder_of_nothing_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(pytest.UsageError, match=r"no NAME\.npz with NAME\.json"):
        files(tmp_path)
    note = _written(tmp_path, "linear_attention", _qkv())
    assert files(tmp_path) == [note]
    note.unlink()
    with pytest.raises(pytest.UsageError, match="linear_attention is not both"):
        files(tmp_path)


def test_an_array_that_no_case_reads_fails(tmp_path: Path) -> None:
    arrays = _normalised_file(True)
    for name in ("mystery", "o_from_nowhere", "dphi_q"):
        note = _written(tmp_path, name, arrays | {name: arrays["o"]})
        with pytest.raises(AssertionError, match=rf"no case reads: {name}\b"):
            compared(note, torch.float64)


def test_weights_without_gradients_are_excused(tmp_path: Path) -> None:
    arrays = {k: x for k, x in _normalised_file(True).items() if k not in ("dq", "dk", "dv")}
    compared(_written(tmp_path, "linear_attention", arrays), torch.float64)


def test_a_file_that_no_adapter_knows_fails(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no adapter"):
        compared(_written(tmp_path, "other", {"p": _random(2)}), torch.float64)


def _mlstm_file(suffix: str) -> Held:
    arrays = _qkv()
    arrays |= {name: _random(BATCH, LENGTH, HEADS, seed=7 + at) for at, name in enumerate("if")}
    start = Memory(
        _random(BATCH, HEADS, WIDTH, WIDTH, seed=9),
        _random(BATCH, HEADS, WIDTH, seed=10),
        _random(BATCH, HEADS, seed=11),
    )
    h, (C, _, m) = mlstm_reference(*arrays.values(), scale=WIDTH**-0.5, initial_state=start)
    found = {f"h_from_{suffix}": h, f"C_from_{suffix}": C, f"m_from_{suffix}": m[..., None]}
    return arrays | found | {suffix: start.matrix, "n0": start.normaliser, "m0": start.scale}


def _mamba_file(output: str, last: str, start: str) -> Held:
    names = ("u", "delta", "A", "Bm", "Cm", start)
    (tokens, rows), maps = ((BATCH, 6, LENGTH), (6, WIDTH)), (BATCH, WIDTH, LENGTH)
    shapes = (tokens, tokens, rows, maps, maps, (BATCH, *rows))
    held = {name: _random(*shape) for name, shape in zip(names, shapes, strict=True)}
    held["A"] = -held["A"].abs()
    u, dt, b, c = (held[name].mT for name in ("u", "delta", "Bm", "Cm"))
    y, state = selective_scan_reference(
        u, F.softplus(dt), held["A"], b, c, initial_state=held[start].mT
    )
    return held | {f"{output}_from_{start}": y.mT, f"{last}_from_{start}": state.mT}


def _min_lstm_file(output: str) -> Held:
    held = {name: _random(BATCH, LENGTH, WIDTH, seed=i) for i, name in enumerate("fih")}
    decay, added = gates("lstm", torch.cat(list(held.values()), -1))
    h0 = _random(BATCH, WIDTH, seed=4).abs()
    states, _ = linear_scan_reference(decay, added)
    after, _ = linear_scan_reference(decay, added, initial_state=h0)
    held = {f"{name}_pre": x for name, x in held.items()}
    return held | {"h0": h0, output: states, f"{output}_from_h0": after}


def _attention_file() -> Held:
    """Four query heads to two of keys, heads first; without positions, and with linear biases."""
    held = {
        name: _random(BATCH, heads, LENGTH, WIDTH, seed=heads + ord(name))
        for name, heads in (("q", 4), ("k", 2), ("v", 2))
    }
    k, v = (held[name].repeat_interleave(2, 1) for name in "kv")
    at = torch.arange(LENGTH)
    distance = (at - at[:, None]).double()
    logits = (held["q"] @ k.mT / WIDTH**0.5).masked_fill(distance > 0, -torch.inf)
    slopes = torch.tensor([2.0 ** (-2 * i) for i in range(1, 5)], dtype=torch.float64)
    biased = logits + slopes[:, None, None] * distance
    near = logits.masked_fill(distance <= -3, -torch.inf)
    outputs = {"o_nope": logits, "o_alibi": biased, "o_window3": near}
    return held | {name: x.softmax(-1) @ v for name, x in outputs.items()}


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("mlstm_exp_input_gate", _mlstm_file("S0")),
        ("mlstm_exp_input_gate", _mlstm_file("C0")),
        ("mamba1_selective_scan", _mamba_file("out", "S", "S0")),
        ("mamba1_selective_scan", _mamba_file("out", "last_state", "state0")),
        ("mamba1_selective_scan", _mamba_file("y", "h", "h0")),
        ("minlstm", _min_lstm_file("minlstm")),
        ("minlstm", _min_lstm_file("h")),
        ("attention", _attention_file()),
    ],
)
def test_names_that_may_vary_are_all_driven(tmp_path: Path, name: str, arrays: Held) -> None:
    note = _written(tmp_path, name, arrays)
    for dtype in DTYPES:
        compared(note, dtype)
    for array in arrays:
        if array.startswith("o_") or "_from_" in array:
            wrong = _written(tmp_path, "wrong", arrays | {array: arrays[array] * 1.01})
            with pytest.raises(AssertionError, match=array):
                compared(wrong, torch.float64)


KVM_CASE = "case_T40"


def _kvm_file(source: str, **config: Any) -> tuple[dict[str, Any], Held]:
    """The layer of the file in the repository under another config, without outputs."""
    told = json.loads((GOLDEN / "key_value_means.json").read_text())
    with np.load(GOLDEN / "key_value_means.npz") as held:
        given = {key: torch.from_numpy(held[key]) for key in held.files if key[:2] in ("w/", "x")}
    config = told["cases"]["core_fixed_T40"]["config"] | config
    return {"source": source, "cases": {KVM_CASE: {"T": 40, "config": config}}}, given


def _kvm_output(note: dict[str, Any], given: Held) -> Tensor:
    arrays = Arrays({key: x.numpy() for key, x in given.items()})
    mixer = kvm_files._layer(KVM_CASE, note, arrays, torch.float64)
    with torch.no_grad():
        tokens = mixer._tokens(given["x"][:, :40], None)
        mixed, _ = kvm.attend_reference(*tokens, method=mixer.method, learned=mixer.learned)
        return mixer.out(mixed.transpose(1, 2).flatten(2))


def test_without_value_lengths_the_authors_are_followed_to_their_quirk(tmp_path: Path) -> None:
    """Two chunks of window and the state's first: 24 of 40 outputs."""
    note, given = _kvm_file("KVM authors' eager code", kvm_use_vlens=0)
    y = _kvm_output(note, given)
    quirky, wrong = y.clone(), y.clone()
    quirky[:, 24:] += 1
    wrong[:, 23] += 1
    said = compared(
        _written(tmp_path, "key_value_means", given | {f"{KVM_CASE}/y": quirky}, **note),
        torch.float32,
    )
    assert f"{KVM_CASE}: only the first 24 of 40 outputs" in said
    other = {**note, "source": "KVM in numpy, rows are means"}
    for held, told in ((wrong, note), (quirky, other)):
        path = _written(tmp_path, "key_value_means", given | {f"{KVM_CASE}/y": held}, **told)
        with pytest.raises(AssertionError, match="parallel"):
            compared(path, torch.float64)
    path = _written(tmp_path, "key_value_means", given | {f"{KVM_CASE}/y": y}, **other)
    assert "not compared" not in compared(path, torch.float64)


@pytest.mark.parametrize("name", ["v1", f"{KVM_CASE}/first_values", "told"])
@pytest.mark.parametrize("layout", ["channels", "heads first", "heads last"])
def test_first_values_are_found_and_laid_out(tmp_path: Path, name: str, layout: str) -> None:
    switches = {"use_value_residual": 1, "use_tokenshift_att": 1}
    note, given = _kvm_file("KVM authors' eager code", **switches)
    first = _random(2, 40, 32, seed=6)
    y = _kvm_output(note, given | {"v1": first})
    assert (y - _kvm_output(note, given)).abs().max() > 0.01
    by_heads = first.unflatten(2, (2, 16))
    held = {"channels": first, "heads last": by_heads, "heads first": by_heads.transpose(1, 2)}
    note["arrays"] = {"told": {"meaning": "values of the first layer, before the shift"}}
    arrays = given | {name: held[layout], f"{KVM_CASE}/y": y}
    path = _written(tmp_path, "key_value_means", arrays, **note)
    names = {case.name for case in opened(path).cases}
    assert f"{KVM_CASE}: prefill 17, then steps" in names
    compared(path, torch.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ssc3_ckpt", {"rule": "sparse", "top_k": 3, "start": "checkpoint"}),
        ("ssc_ind", {"rule": "sparse", "top_k": 2, "start": "independent"}),
        ("rm_ind", {"rule": "residual"}),
        ("soup_ind_norm", {"rule": "soup", "norm": True}),
        ("post_average_ckpt", {"rule": "average"}),
        ("grm_sum_seg16", {"rule": "gated", "pool": "sum", "C": 16}),
        ("lstm_c_ckpt", {"read": "gate", "start": "checkpoint"}),
        ("lstm_outgate_ind", {"read": "gate", "start": "independent"}),
        ("lstm_base", {"read": "hidden", "C": 40}),
        ("lstm_ssc2_ckpt", {"read": "hidden", "rule": "sparse"}),
        ("gru_h_ckpt", {"read": "hidden", "rule": "gated"}),
    ],
)
def test_words_of_a_name_say_the_case(name: str, expected: dict[str, Any]) -> None:
    arrays = Arrays({"x": np.zeros((2, 40, 32))})
    found = caching_files._filled(name, {}, {}, arrays)
    assert found | expected == found


def test_every_form_weighs_by_the_files_gates(tmp_path: Path) -> None:
    """Gates see keys alone, so that those of a checkpointed case are the independent one's."""
    told = json.loads((GOLDEN / "memory_caching.json").read_text())
    with np.load(GOLDEN / "memory_caching.npz") as held:
        arrays = {
            key: torch.from_numpy(held[key])
            for key in held.files
            if key == "x" or key.startswith("w/")
        }
        gamma = torch.from_numpy(held["grm_ind/gamma"])
    told["cases"] = {"grm_ckpt": told["cases"]["grm_ckpt"]}
    note = _written(tmp_path, "memory_caching", arrays | {"grm_ckpt/gamma": gamma}, **told)
    forms = [case.name for case in opened(note).cases]
    assert forms == [f"grm_ckpt-gates-{f}" for f in ("parallel", "reference", "split", "step")]
    for dtype in DTYPES:
        compared(note, dtype)
    wrong = _written(tmp_path, "memory_caching", arrays | {"grm_ckpt/gamma": gamma.flip(0)}, **told)
    with pytest.raises(AssertionError, match="grm_ckpt-gates-step"):
        compared(wrong, torch.float64)
