"""One job in one child process, with its deadline and memory cap enforced from outside.

The child is forked from a warm server (`forkserver.py`). What a cell had measured when it was
stopped is kept: a deadline gives `timeout`, the memory cap or the kernel's own gives
`out_of_memory`, and a crash (segmentation fault, `os._exit`) is a failed record with what the
child last wrote.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrator import forkserver
from orchestrator.credentials import secret_names
from orchestrator.forkserver import kill_group
from orchestrator.guard import Ended, explain_death, kernel_oom_kills, watch
from workloads import environment, registry
from workloads.cell import Cell, Limits
from workloads.events import Event, Started, assemble, decode, unmeasured
from workloads.measurement import Measurement
from workloads.record import RunRecord
from workloads.tasks.data import cache_folder
from workloads.tasks.headway import Hear

START_SECONDS = 120.0


class ServerDied(RuntimeError):
    """The fork server itself went away; the job may be tried again."""


class Isolation:
    """A fork server and the one child it may have at a time. Start-up (torch) is paid once; half of
    it is not paid at all `for_cells=False`, by a server that only prepares and probes."""

    def __init__(self, *, for_cells: bool = True) -> None:
        self._for_cells = for_cells
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and any child. Closing the connection is what ends them."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._connection = self._process = None

    def start(self) -> None:
        """Start the server if it is not running, without waiting until it is warm."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "orchestrator.forkserver", str(theirs.fileno())),
                    *([] if self._for_cells else [forkserver.FEW_JOBS]),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C is for the driver, which then ends us in order.
                start_new_session=True,
                env=child_environment(),
            )
        self._connection = ours
        self._warm = False

    def wait_until_warm(self) -> None:
        """Start the server if it is not running, and wait for it."""
        try:
            self._ready()
        except ServerDied:
            self.close()
            self._ready()

    def run_cell(
        self,
        cell: Cell,
        *,
        cores: Sequence[int] = (),
        reserved_bytes: int | None = None,
        seconds: float = math.inf,
    ) -> RunRecord:
        """Answer one cell. A metric that broke the memory cap does not take the others with it:
        they are tried in a child of their own, within the same deadline; nor does a search for a
        limit that took the whole time: they have as much again.

        `reserved_bytes` of its device's memory and `seconds` are what this attempt may use, where
        that is less than the cell's own limits; `is_cut_short` says whether they ended it.
        """
        self.wait_until_warm()  # which is not the cell's time
        started_at, clock = time.time(), time.monotonic()
        deadline = clock + cell.limits.cell_seconds
        events: list[Event] = []
        asking = cell
        of_device = _smaller(cell.limits.memory_bytes, reserved_bytes)
        # An accelerator's memory is bounded by the child itself (`workloads.device`); what is
        # watched from here is the memory of the process.
        watched = of_device if environment.is_cpu(cell.device) else cell.limits.memory_bytes
        while True:
            left = min(deadline, clock + seconds) - time.monotonic()
            told = replace(asking, limits=replace(cell.limits, memory_bytes=of_device))
            ended = self._run_with_retry(
                {"job": "cell", "cell": told.to_dict(), "cores": list(cores)},
                Limits(cell_seconds=left, memory_bytes=watched),
            )
            events += map(decode, ended.lines)
            rest = _metrics_after_limit(asking, events, ended)
            if not rest:
                break
            if ended.reason == "timeout":
                deadline = time.monotonic() + cell.limits.cell_seconds
            # One that was there already, and was being taken once more, is as it was.
            there = _measured(events)
            running = _running(events)
            stopped = [n for n in asking.metrics if n == running and n not in there]
            assert ended.reason is not None
            events += unmeasured(asking, stopped, ended.reason, ended.detail)
            asking = asking.asking(rest)
        return assemble(
            cell,
            events,
            environment=environment.describe(cell.device),
            started_at=started_at,
            seconds=time.monotonic() - clock,
            missing=ended.reason,
            detail=ended.detail,
            error=ended.error,
        )

    def call(
        self, job: dict[str, Any], limits: Limits | None = None, hear: Hear | None = None
    ) -> dict[str, Any]:
        """Run another job (see `jobs.py`) to its end and return its last line; `hear` is told of
        its headway.

        Raises:
            RuntimeError: it failed or reached a limit; the message says how.
        """
        ended = self._run_with_retry(
            {"cores": [], **job}, limits or Limits(cell_seconds=3600), hear
        )
        if ended.error is not None:
            raise RuntimeError(ended.error[0])
        if ended.reason is not None:
            raise RuntimeError(f"{job['job']}: {ended.reason}: {ended.detail}")
        answer: dict[str, Any] = json.loads(ended.lines[-1])
        return answer

    def _run_with_retry(
        self, job: dict[str, Any], limits: Limits, hear: Hear | None = None
    ) -> Ended:
        try:
            return self._run(job, limits, hear)
        except ServerDied:
            self.close()
            return self._run(job, limits, hear)

    def _ready(self) -> socket.socket:
        self.start()
        assert self._connection is not None
        if not self._warm:
            self._receive(START_SECONDS)
            self._warm = True
        return self._connection

    def _receive(self, timeout: float | None) -> dict[str, Any]:
        assert self._connection is not None
        self._connection.settimeout(timeout)
        try:
            message = self._connection.recv(1 << 16)
        except (TimeoutError, ConnectionError) as error:
            raise ServerDied(f"the fork server does not answer ({error})") from None
        if not message:
            raise ServerDied("the fork server ended")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _run(self, job: dict[str, Any], limits: Limits, hear: Hear | None) -> Ended:
        connection = self._ready()
        killed_before = kernel_oom_kills()
        read_end, write_end = os.pipe()
        with tempfile.TemporaryFile() as errors, os.fdopen(read_end, "rb") as events:
            try:
                message = json.dumps(job).encode()
                socket.send_fds(connection, [message], [write_end, errors.fileno()])
            except ConnectionError as error:
                raise ServerDied(str(error)) from None
            finally:
                os.close(write_end)
            pid = self._receive(START_SECONDS)["pid"]
            try:
                ended = watch(pid, events.fileno(), limits, hear)
                status = self._receive(START_SECONDS)["status"]
            except BaseException:
                # The server died, or we are interrupted: what the child started goes with it.
                kill_group(pid)
                raise
            if ended.reason is None and ended.error is None and status != 0:
                explain_death(ended, status, errors, kernel_oom_kills() > killed_before)
        return ended


def is_cut_short(
    record: RunRecord, *, reserved_bytes: int | None = None, seconds: float = math.inf
) -> bool:
    """True where an attempt ended at what it was given for now, below the cell's own limits: that
    says nothing of the cell."""
    limits, reasons = record.cell.limits, {m.reason for m in record.measurements}
    if "out_of_memory" in reasons and reserved_bytes is not None:
        return limits.memory_bytes is None or reserved_bytes < limits.memory_bytes
    return "timeout" in reasons and seconds < limits.cell_seconds


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)


def child_environment() -> dict[str, str]:
    """What a child may know: no secret, and one thread before torch is told otherwise. Kernels that
    Triton and torch's compiler build are kept in folders of the machine, for all children and
    sweeps."""
    secret = secret_names(os.environ, of_ray_too=True)
    kept = {name: value for name, value in os.environ.items() if name not in secret}
    kept.setdefault("TRITON_CACHE_DIR", str(cache_folder() / "triton"))
    kept.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def _running(events: list[Event]) -> str | None:
    """The metric that was being measured when the events ended."""
    return next((e.metric for e in reversed(events) if isinstance(e, Started)), None)


def _measured(events: list[Event]) -> set[str]:
    return {event.metric for event in events if isinstance(event, Measurement)}


def _metrics_after_limit(cell: Cell, events: list[Event], ended: Ended) -> tuple[str, ...]:
    """Metrics worth another child after the memory cap stopped one of them, or the deadline a
    search for what fits, of which nobody knows beforehand how long it takes."""
    done = _measured(events)
    stopped = _running(events)
    if cell.kind != "measure" or stopped is None or stopped not in cell.metrics:
        return ()
    searched = ended.reason == "timeout" and registry.metric(cell.task, stopped).capped
    if ended.reason != "out_of_memory" and not searched:
        return ()
    return tuple(name for name in cell.metrics if name not in done and name != stopped)
