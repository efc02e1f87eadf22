"""A child seen from outside: its lines are read until it ends, and it is killed where it passes a
limit. What it had said by then is kept."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.forkserver import kill_group
from workloads.cell import Limits
from workloads.measurement import Reason
from workloads.process_memory import anonymous_bytes
from workloads.tasks.headway import Headway, Hear

POLL_SECONDS = 0.02
STDERR_TAIL_BYTES = 4000


@dataclass(slots=True)
class Ended:
    """How a child ended. `reason` is set where a limit was reached, `error` where it failed."""

    lines: list[str] = field(default_factory=list)
    reason: Reason | None = None
    detail: str | None = None
    error: tuple[str, str] | None = None


def watch(pid: int, descriptor: int, limits: Limits, hear: Hear | None = None) -> Ended:
    """Read a child's lines until it closes its end; kill it where it passes a limit. `hear` is told
    of a preparation's headway, which is no part of the answer."""
    ended = Ended()
    clock = time.monotonic()
    base = anonymous_bytes(pid)
    peak = 0
    buffer = b""
    while True:
        readable, _, _ = select.select([descriptor], [], [], POLL_SECONDS)
        if readable:
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                return ended
            *complete, buffer = (buffer + chunk).split(b"\n")
            _take_lines(ended, complete, hear)
        if ended.reason is not None:
            continue  # killed; what it had written is still being read
        used = anonymous_bytes(pid) - base
        peak = max(peak, used)
        seconds = time.monotonic() - clock
        if seconds > limits.cell_seconds:
            ended.reason = "timeout"
            ended.detail = f"stopped after {seconds:.1f} s, at {peak:,} bytes of memory"
        elif limits.memory_bytes is not None and used > limits.memory_bytes:
            ended.reason = "out_of_memory"
            ended.detail = (
                f"stopped at {used:,} bytes, over the cap of {limits.memory_bytes:,} bytes, "
                f"after {seconds:.1f} s"
            )
        if ended.reason is not None:
            kill_group(pid)


def _take_lines(ended: Ended, lines: list[bytes], hear: Hear | None) -> None:
    for line in lines:
        text = line.decode()
        if text.startswith('{"error":'):
            message, trace = json.loads(text)["error"]
            ended.error = (message, trace)
        elif text.startswith('{"headway":'):
            if hear is not None:
                hear(Headway(*json.loads(text)["headway"]))
        elif text:
            ended.lines.append(text)


def explain_death(ended: Ended, status: int, errors: Any, kernel_oom: bool) -> None:
    """Say how a child died that said nothing of it itself."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - STDERR_TAIL_BYTES))
    tail = errors.read().decode(errors="replace").strip()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and kernel_oom:
            ended.reason, ended.detail = "out_of_memory", "killed by the kernel: no memory left"
            return
        message = f"the cell's process died of {signal.Signals(number).name}"
    else:
        message = f"the cell's process left with exit code {os.WEXITSTATUS(status)}"
    ended.error = (message, tail or "(it wrote nothing)")


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory on this machine so far."""
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    _, found, rest = text.partition("\noom_kill ")
    return int(rest.split(None, 1)[0]) if found else 0
