"""A warm process that forks one child per job: torch is loaded, no device touched, no thread
started.

A child costs a fork (milliseconds) instead of an interpreter with torch (seconds), starts from the
same memory every time, has its own death, and leaves nothing behind. `isolation.py` is the other
end: it sends a job, reads what the child says, and enforces the limits from outside.

Run as `python -m orchestrator.forkserver FD [--few-jobs]`, where FD is one end of a SOCK_SEQPACKET
pair. A request is one JSON message with two file descriptors (where events go, where stderr goes);
the answers are `{"pid": N}` and, when the child is gone, `{"status": WAIT_STATUS}`. When the other
end closes, the child is killed and the server leaves: nothing outlives the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from orchestrator import jobs

PR_SET_PDEATHSIG = 1
MESSAGE_BYTES = 1 << 20
MADV_COLLAPSE = 25
HUGE_PAGE = 2 << 20
FEW_JOBS = "--few-jobs"
"""Asks for a server that is soon ready, for a job or two that are no cells."""

# What torch imports late, at the first optimiser step, meta tensor or trace: a second each time.
_HEAVY = ("torch._dynamo", "torch.optim", "torch.autograd.profiler", "workloads.run")


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    with _leaving_with_client(connection):
        if FEW_JOBS in sys.argv[2:]:
            importlib.import_module("torch")
        else:
            warm_up()
    # A client that died while we said something to it ends us as one that left.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(json.dumps({"ready": True}).encode())
        while True:
            message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
            if not message:
                return
            _serve(connection, json.loads(message), *descriptors)


@contextlib.contextmanager
def _leaving_with_client(connection: socket.socket) -> Iterator[None]:
    """For the seconds in which nobody listens to the client: the kernel then ends us (SIGIO) where
    the client does, which says nothing before we are ready."""
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([connection], [], [], 0)[0]:
        sys.exit()  # it left before
    yield
    fcntl.fcntl(connection, fcntl.F_SETFL, flags)


def warm_up() -> None:
    """Import what every child needs, so that forking shares it. Importing starts no threads."""
    from workloads import registry
    from workloads.train import rehearse

    for module in _HEAVY:
        importlib.import_module(module)
    for family in ("architectures", "tasks", "metrics"):
        for name in registry.names(family):
            try:
                registry.load(family, name)
            except Exception:
                # A plug-in that cannot be imported breaks its own cells only, with its own words.
                continue
    rehearse()
    gc.collect()
    gc.freeze()
    _gather_pages()


def _gather_pages() -> None:
    """Put our memory into huge pages where the kernel can: a fork copies a table of pages, and this
    makes it several times shorter. Nothing else changes, and a kernel that cannot says so."""
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, *_, name = [*line.split(maxsplit=5), ""][:6]
        if access == "rw-p" and name in ("", "[heap]"):
            start, end = (int(address, 16) for address in span.split("-"))
            start, end = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
            if start < end:
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_COLLAPSE)


def _serve(connection: socket.socket, job: dict[str, Any], events: int, errors: int) -> None:
    """Fork a child for one job, say its pid, wait for its end or for our client's."""
    jobs.foresee(job)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _child(job, events, errors)
    os.close(events)
    os.close(errors)
    pidfd = os.pidfd_open(pid)
    try:
        connection.send(json.dumps({"pid": pid}).encode())
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(connection, select.POLLHUP | select.POLLRDHUP)
        poller.poll()
    finally:
        # Our client is gone, or the child is, and may have left processes of its own behind.
        kill_group(pid)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
    connection.send(json.dumps({"status": status}).encode())


def kill_group(pid: int) -> None:
    """Kill a child with what it started: it leads a group once it has come that far, which keeps
    its number until the child is waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _child(job: dict[str, Any], events: int, errors: int) -> None:
    """Run the job and leave without Python's teardown: nothing here is worth tearing down."""
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Where the machine runs out of memory, the kernel shall take the cell, not the driver.
        Path("/proc/self/oom_score_adj").write_text("1000")
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        faulthandler.enable()
        if job["cores"]:
            os.sched_setaffinity(0, job["cores"])
        with os.fdopen(events, "w", buffering=1) as out:
            code = _run(job, out)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(job: dict[str, Any], out: TextIO) -> int:
    """The job's events, one JSON line each; a failure is the last line."""
    try:
        jobs.run(job, lambda line: out.write(line + "\n"))
    except Exception as error:
        message = f"{type(error).__name__}: {error}".strip()
        text = traceback.format_exc()
        out.write(json.dumps({"error": [message, text]}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    main()
