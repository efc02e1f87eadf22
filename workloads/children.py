"""A function called in a fork of this process: what it builds is gone with it, and it is killed
where it grows beyond a cap."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
import traceback
from collections.abc import Callable

from workloads import process_memory
from workloads.oom import out_of_memory
from workloads.plugins import Unsupported

POLL_SECONDS = 0.002
_FITS, _FAILED, _TOO_LARGE = 0, 1, 2
_PR_SET_PDEATHSIG = 1


def done_in_a_child(
    function: Callable[[], tuple[float, ...]], cap: int | None = None, *, tidy: bool = False
) -> tuple[float, ...] | None:
    """What `function` returns, called in a fork of this process; None where it passed the cap, in
    bytes over the child's own start, or where memory did not suffice.

    A `tidy` child gives back at once what it frees (`process_memory.give_back_freed`).

    Raises:
        RuntimeError: it failed; with its traceback.
        Unsupported: this system cannot watch a process's memory.
    """
    if not process_memory.is_readable():
        raise Unsupported("reads /proc/self/status, which only Linux has")
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _child(function, cap, tidy, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as end:
        code = _watched(pid, cap)
        said = end.read().decode()
    if code == _FAILED:
        raise RuntimeError(said or "its process crashed without a word")
    return tuple(json.loads(said)) if code == _FITS else None


def _child(
    function: Callable[[], tuple[float, ...]], cap: int | None, tidy: bool, write_end: int
) -> None:
    """Says what the function returned, or how it failed, and ends this process."""
    code, said = _FAILED, ""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if tidy:
            process_memory.give_back_freed()
            process_memory.set_back_peak()
        start = process_memory.anonymous_bytes()
        said = json.dumps(function())
        # A peak between two looks from outside is seen here.
        used = process_memory.peak_bytes() - start
        code = _FITS if cap is None or used <= cap else _TOO_LARGE
    except BaseException as error:
        code = _FAILED if out_of_memory(error) is None else _TOO_LARGE
        said = traceback.format_exc()[-4000:]
    finally:
        os.write(write_end, said.encode())
        os._exit(code)


def _watched(pid: int, cap: int | None) -> int:
    """How the child ended: one of the codes above; killed where it passed the cap."""
    start = process_memory.anonymous_bytes(pid)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if not os.WIFSIGNALED(status):
                return os.WEXITSTATUS(status)
            # The kernel's own killer, too, says that it was too large; a crash does not.
            return _TOO_LARGE if os.WTERMSIG(status) == signal.SIGKILL else _FAILED
        if cap is not None and process_memory.anonymous_bytes(pid) - start > cap:
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
