"""A mixer that goes wrong in training in the way that its option says, and is harmless otherwise:
in the dry build, in prefill and in decoding."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from workloads.mixer import Mixer
from workloads.plugins import Architecture

Fault = Literal[
    "segfault",
    "exit",
    "raise",
    "hang",
    "hoard",
    "shout",
    "suicide",
    "descend",
    "abandon",
    "strike",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """fault: how training ends. note: a file that some faults write to or look for."""

    fault: Fault = "raise"
    note: str = ""


class Faulty(Mixer):
    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            _FAULTS[self.options.fault](self.options.note)
        return x

    def empty_state(
        self, batch_size: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> Any:
        return None

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x, state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x, state


def _segfault(note: str) -> None:
    ctypes.string_at(0)


def _exit(note: str) -> None:
    print("leaving with three", file=sys.stderr, flush=True)
    os._exit(3)


def _raise(note: str) -> None:
    raise LookupError("no such thing")


def _hang(note: str) -> None:
    """For ever, or until the file of a note is there; one beside it says that we wait."""
    if note:
        Path(note).with_suffix(".waiting").touch()
    while not (note and Path(note).exists()):
        time.sleep(0.05)


def _hoard(note: str) -> None:
    held = []
    while True:
        held.append(torch.ones(4 << 20))
        time.sleep(0.002)


def _shout(note: str) -> None:
    for number in range(200_000):
        print(f"line {number} of a great many", file=sys.stderr)
    os._exit(1)


def _suicide(note: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _descend(note: str) -> None:
    """Start a process of its own, say which, and hang."""
    with subprocess.Popen(["sleep", "3600"]) as grandchild:
        Path(note).write_text(str(grandchild.pid))
        time.sleep(3600)


def _abandon(note: str) -> None:
    """Start a process that keeps every open file, and leave it behind."""
    pid = os.fork()
    if pid == 0:
        time.sleep(3600)
    Path(note).write_text(str(pid))
    os._exit(1)


def _strike(note: str) -> None:
    """Kill the worker, which is the parent of the server we were forked from; once only, where a
    note is asked for."""
    if note and Path(note).exists():
        return
    if note:
        Path(note).touch()
    server = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    os.kill(int(server[1]), signal.SIGKILL)
    time.sleep(3600)


_FAULTS: dict[Fault, Callable[[str], None]] = {
    "segfault": _segfault,
    "exit": _exit,
    "raise": _raise,
    "hang": _hang,
    "hoard": _hoard,
    "shout": _shout,
    "suicide": _suicide,
    "descend": _descend,
    "abandon": _abandon,
    "strike": _strike,
}

ARCHITECTURE = Architecture(
    title="faulty",
    version=1,
    options=Options,
    mixer=lambda d_model, options: Faulty(options),
    parameters=lambda d_model, options: 0,
    state_bytes=lambda d_model, options, seq_len, element_bytes: 0,
    flops_per_token=lambda d_model, options, seq_len: 0.0,
    saved_elements_per_token=lambda d_model, options, seq_len: 0.0,
    implementation=lambda options, device_type: "faulty",
)
