"""The last resort of who joins a cluster: where its head goes away meanwhile, Ray's client waits
without end, in calls that nothing interrupts. Once cells run, `watch.py` looks after it in order.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time

POLL_SECONDS = 2.0
PATIENCE = 40.0
"""How long a head may be silent before this process ends: longer than `watch.py` gives it."""


def head_in(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster's head, where its address says them (`auto` does not)."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d+)", address)
    return None if found is None else (found[1], int(found[2]))


def answers(head: tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(head, timeout=POLL_SECONDS).close()
    except OSError:
        return False
    return True


class Sentinel:
    """Ends this process, with a sentence and exit code 1, where the head, if it is known, is silent
    before `stop`. Nothing is lost by it: no cell runs yet."""

    def __init__(self, head: tuple[str, int] | None) -> None:
        self._over = threading.Event()
        if head is not None:
            watched = threading.Thread(target=self._look, args=head, daemon=True, name="sentinel")
            watched.start()

    def stop(self) -> None:
        self._over.set()

    def _look(self, host: str, port: int) -> None:
        heard_at = time.monotonic()
        while not self._over.wait(POLL_SECONDS):
            if answers((host, port)):
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > PATIENCE and not self._over.is_set():
                print(
                    f"the Ray cluster's head at {host}:{port} went away while it was being joined; "
                    "what was answered is kept, and the same command goes on",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
