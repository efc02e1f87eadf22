"""`doctor`: what this machine has, a line each, `ok` or `missing` with the mend."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from orchestrator import runtime
from orchestrator.cost import read_probe
from orchestrator.errors import StoreError
from orchestrator.store import MlflowStore, resolve_uri
from orchestrator.terminal import Terminal
from workloads import environment, registry
from workloads.tasks.data import cache_folder

PACKAGES = (
    *("torch", "ray", "mlflow", "optuna", "pandas", "pyarrow", "datasets", "tokenizers"),
    *("onnx", "onnxruntime", "onnxscript"),
)

State = Literal["ok", "missing"]
Finding = tuple[State, str, str]
"""Whether it is there, what it is, and what was found or how to get it."""


def run(arguments: argparse.Namespace) -> int:
    terminal = Terminal()
    for state, what, text in _findings():
        terminal.say(f"{state:<8} {what:<32} {text}", "" if state == "ok" else "yellow")
    return 0


def _findings() -> Iterator[Finding]:
    yield from _packages()
    yield from _devices()
    yield from _architectures()
    yield from _data()
    yield _store()
    yield from _left_behind()


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield "ok", name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield "missing", name, f"pip install {name}, or `make venv`"


def _devices() -> Iterator[Finding]:
    cores = len(environment.cores())
    yield "ok", "device cpu:1", f"{environment.describe('cpu:1').device_name}, {cores} cores"
    for name in environment.accelerators():
        device = environment.device_slug(name)
        driver = environment.describe(device).driver
        yield "ok", f"device {device}", f"{name}, driver {driver}"
    if not environment.accelerators():
        yield "missing", "accelerator", "none found; cells run on the CPU"
    elif "+cpu" in metadata.version("torch"):
        yield "missing", "torch for CUDA", "this torch is a CPU build; install a CUDA build"
    if environment.accelerators():
        version = environment.version_of("nvidia-ml-py")
        yield (
            ("ok", "clocks of accelerators", f"nvidia-ml-py {version}")
            if version
            else ("missing", "clocks of accelerators", "pip install nvidia-ml-py (extra `gpu`)")
        )
    device = environment.default_device()
    fingerprint = environment.describe(device).fingerprint
    if rates := read_probe(cache_folder(), fingerprint):
        speed = (
            f"{rates.flops_per_second / 1e9:,.0f} GFLOP/s in float32,"
            f" {rates.bfloat16_flops_per_second / 1e9:,.0f} in bfloat16"
        )
        yield "ok", f"probe of {device}", f"{speed}, {rates.bytes_per_second / 1e9:,.0f} GB/s"
    else:
        yield "missing", f"probe of {device}", "made by the first `sweep`; only predictions use it"


def _architectures() -> Iterator[Finding]:
    """Which code would run each architecture on this machine's default device."""
    kind = "cpu" if environment.is_cpu(environment.default_device()) else "cuda"
    for name in registry.names("architectures"):
        try:
            plugin = registry.load("architectures", name)
            yield "ok", f"architecture {name}", plugin.implementation(plugin.options(), kind)
        except Exception as error:
            # A plug-in that cannot be loaded is the finding.
            yield "missing", f"architecture {name}", f"{type(error).__name__}: {error}"


def _data() -> Iterator[Finding]:
    """Which tasks have data here as they are by default, and what was prepared of any."""
    for name in registry.names("tasks"):
        try:
            task = registry.load("tasks", name)
            why = task.missing(task.options())
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        yield (
            ("ok", f"data of {name}", "here")
            if why is None
            else ("missing", f"data of {name}", why)
        )
    folder = cache_folder()
    prepared = sorted(folder.glob("**/data.json")) if folder.exists() else []
    for path in prepared:
        yield "ok", "prepared data", str(path.parent.relative_to(folder))
    if not prepared:
        yield "missing", "prepared data", "made by the first sweep that trains"


def _store() -> Finding:
    try:
        uri = resolve_uri(None)
        store = MlflowStore(uri, "doctor", Path.cwd())
        # An API path: a health page may answer where the API refuses.
        store.records()
    except StoreError as error:
        return "missing", "MLflow store", str(error)
    return "ok", "MLflow store", store.address


def _left_behind() -> Iterator[Finding]:
    """Ray's processes and folders of drivers that were killed."""
    stale = runtime.stale_folders()
    for folder in stale:
        pids = ", ".join(map(str, runtime.processes_of(folder))) or "none"
        text = f"{folder} of a killed driver, processes: {pids}; the next sweep clears it"
        yield "missing", "clean runtime", text
    if not stale:
        yield "ok", "clean runtime", "nothing left behind by killed drivers"
