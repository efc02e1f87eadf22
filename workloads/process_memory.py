"""Memory of a process that no file backs, as the kernel counts it: what it allocated. Linux only.

Pages of program files come and go with what else the machine reads; they are no cost of a cell.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path

_FIELD = r"^{}:\s*(\d+) kB$"
_M_MMAP_THRESHOLD = -3  # malloc.h
MAPPED_BYTES = 32 * 1024
_RESET_HIGH_WATER_MARK = "5"  # proc_pid_clear_refs(5)


def is_readable() -> bool:
    """True where this system says how much memory a process has."""
    return Path("/proc/self/status").exists()


def anonymous_bytes(pid: int | None = None) -> int:
    """Bytes a process holds that no file backs (RssAnon); this one by default. 0 once it is
    gone."""
    return _fields(pid, "RssAnon")["RssAnon"]


def resident_bytes(pid: int) -> int:
    """All that a process holds in memory, program files included (VmRSS). 0 once it is gone."""
    return _fields(pid, "VmRSS")["VmRSS"]


def peak_bytes(*, of_files: bool = False) -> int:
    """The most this process ever held (VmHWM) since it was forked or the mark was set back; less
    the pages of files it holds now, unless asked for: code that was first touched meanwhile is then
    not counted."""
    found = _fields(None, "VmHWM", "RssFile")
    return found["VmHWM"] - (0 if of_files else found["RssFile"])


def set_back_peak() -> None:
    """The peak counts from here on, where the kernel allows it; else it covers what was before."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_HIGH_WATER_MARK)


def give_back_freed() -> None:
    """From here on what this process frees goes back to the system at once, and so does the free
    room of its heap: the memory it holds is what it uses.

    glibc keeps freed memory in a heap that fragments: the same steps held up to 1.8 times as
    much, and up to a tenth more or less from one process to the next. Here every block of
    MAPPED_BYTES or more gets pages of its own (mallopt(3)), to within 0.2 % at 100 MB; it costs
    time. Nothing where the C library has no such calls.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        library.malloc_trim(0)


def _fields(pid: int | None, *names: str) -> dict[str, int]:
    try:
        text = Path(f"/proc/{os.getpid() if pid is None else pid}/status").read_text()
    except OSError:
        return dict.fromkeys(names, 0)
    found = {name: re.search(_FIELD.format(name), text, re.MULTILINE) for name in names}
    return {name: int(match.group(1)) * 1024 if match else 0 for name, match in found.items()}
