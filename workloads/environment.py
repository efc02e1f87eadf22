"""What decides a number besides the cell: device, driver, threads and kernel packages, read without
opening a device.

`plan` and the child that measures use the same function; the child's word is final, for it ran
there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from workloads.cell import canonical_json

# Packages whose version can change a number. Others are provenance.
KERNEL_PACKAGES = ("torch", "triton", "fla-core", "mamba-ssm", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a cell ran. `device` is the cell's device class, `device_name` the hardware's own
    name."""

    device: str
    device_name: str
    driver: str | None
    threads: int
    packages: Mapping[str, str]
    python: str

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits; records of two fingerprints are never drawn in one curve. Python is
        provenance only."""
        content = {k: v for k, v in asdict(self).items() if k != "python"}
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Environment:
        """The environment that `to_dict` wrote; one and the same for all the records of it."""
        return _read(canonical_json(dict(data)))


@cache
def _read(text: str) -> Environment:
    return Environment(**json.loads(text))


def threads_of(device: str) -> int:
    """Threads a cell may use: N of `cpu:N`; 1 beside an accelerator, where the CPU only launches
    kernels."""
    kind, _, threads = device.partition(":")
    return int(threads) if kind == "cpu" and threads else 1


def is_cpu(device: str) -> bool:
    return device.partition(":")[0] == "cpu"


def device_slug(name: str) -> str:
    """The device class of a hardware name: `NVIDIA H100 80GB HBM3` -> `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@cache
def accelerators() -> tuple[str, ...]:
    """Names of this machine's NVIDIA GPUs from the driver's own files; opens no device."""
    found = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            found.append(match.group(1).strip())
    return tuple(found)


def default_device() -> str:
    """What `device: auto` means here: the first accelerator's class, else one thread of the CPU."""
    names = accelerators()
    return device_slug(names[0]) if names else "cpu:1"


def default_precision(device: str) -> str:
    """The arithmetic of a device class where nobody names one: an accelerator's units for matrices
    are made for bfloat16."""
    return "float32" if is_cpu(device) else "bfloat16"


def is_here(device: str) -> bool:
    """True where this machine has a device of this class."""
    return is_cpu(device) or device in map(device_slug, accelerators())


def describe(device: str) -> Environment:
    """The environment in which a cell of this device class runs on this machine."""
    if is_cpu(device):
        name, driver = _cpu_name(), None
    else:
        name = next((n for n in accelerators() if device_slug(n) == device), device)
        driver = _driver_version()
    return Environment(
        device=device,
        device_name=name,
        driver=driver,
        threads=threads_of(device),
        packages={name: version for name in KERNEL_PACKAGES if (version := version_of(name))},
        python=platform.python_version(),
    )


@cache
def _cpu_name() -> str:
    """The processor as the kernel names it, with family and model: clouds give several chips one
    name."""
    keys = {"model name": "", "cpu family": "", "model": "", "CPU part": ""}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            keys[key.strip()] = value.strip()
    name = keys["model name"] or platform.processor() or platform.machine()
    model = "/".join(filter(None, (keys["cpu family"], keys["model"], keys["CPU part"])))
    return f"{name} ({model})" if model else name


@cache
def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)", text)
    return match.group(1) if match else None


@cache
def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> tuple[int, ...]:
    """The CPU cores this process may use, in order."""
    return tuple(sorted(os.sched_getaffinity(0)))
