"""An accelerator's clock, temperature and what holds it back, as NVML says of the very device (by
its UUID, for its numbers are not those of CUDA); nothing where NVML or its Python package is not
there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """sm_clock: of its multiprocessors, 1/s. temperature: degrees Celsius. slowed: by heat or a
    failing supply. capped: at its limit of power, as hard work makes it."""

    sm_clock: float
    temperature: float
    slowed: bool
    capped: bool


Gauge = Callable[[], Reading]


def gauge(device: torch.device) -> Gauge | None:
    """What reads a device, in some ten microseconds; None where nothing can."""
    if device.type != "cuda":
        return None
    return _gauge(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


@cache
def _gauge(uuid: str) -> Gauge | None:
    nvml = _library()
    if nvml is None:
        return None
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        _read(nvml, handle)
    except nvml.NVMLError:
        # No driver, or a slice of a device (MIG), which has no clocks of its own.
        return None
    return lambda: _read(nvml, handle)


def _library() -> Any:
    """pynvml, of the package nvidia-ml-py (extra `gpu`), or None."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _read(nvml: Any, handle: Any) -> Reading:
    reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    slowed = (
        nvml.nvmlClocksEventReasonHwSlowdown
        | nvml.nvmlClocksEventReasonHwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
        | nvml.nvmlClocksEventReasonSwThermalSlowdown
    )
    return Reading(
        sm_clock=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
        temperature=float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        slowed=bool(reasons & slowed),
        capped=bool(reasons & nvml.nvmlClocksEventReasonSwPowerCap),
    )
