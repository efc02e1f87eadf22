"""The store's writer in a process of its own: MLflow costs as much work as a short cell and would
share the driver's interpreter lock, and importing it would delay the first cell by seconds.

`Recorder` is the driver's end; the other end runs the `StoreWriter`, which follows the journal on
disk, so that nothing but words passes between the two. The process keeps off what is measured with
its driver (`runtime.keep_off`) and ends with it; one that dies is started again, since the journal
has all it needs.

Run as `python -m orchestrator.recorder FD`, where FD is one end of a socket pair. Messages are JSON
lines: first what to record, then `notify`, `close` and `finish` in; `warn`, `closed` and `finished`
out.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import LeaseLost, StoreError
from orchestrator.follower import StoreWriter, behind
from orchestrator.journal import Journal
from orchestrator.ledger import Group
from orchestrator.results import Results
from orchestrator.store import Medians, MlflowStore

MAX_STARTS = 3
"""How often the process is started before its records are left to the next command."""
GRACE_SECONDS = 5.0
"""How much longer than asked an answer may take: what was begun is ended."""
SEND_SECONDS = 10.0
"""How long a process that does not listen may hold up who speaks to it."""
FINISH_SECONDS = 300.0
"""How long the tables, plots and report may take to become artifacts."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is recorded where, under which lease; `name`, `question` and `spec_hash` are the
    sweep's. `told`: it was said already that the store does not answer."""

    uri: str
    name: str
    question: str
    spec_hash: str
    journal: str
    results: str
    lease: int
    told: bool = False

    def store(self) -> MlflowStore:
        return MlflowStore(self.uri, self.name, Path(self.results), self.allowed)

    def allowed(self) -> None:
        """Raises LeaseLost where another driver has taken the sweep over."""
        Results(Path(self.results)).fence(self.lease).check()


class Recorder:
    """The driver's end. `warn` is called from a thread."""

    def __init__(self, subject: Subject, warn: Callable[[str], None]) -> None:
        self._subject, self._warn = subject, warn
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._ending = self._given_up = False

    def start(self) -> None:
        """Begin to follow; returns at once."""
        with self._lock:
            if self._ending:
                return
            self._starts += 1
            ours, theirs = socket.socketpair()
            ours.settimeout(SEND_SECONDS)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "orchestrator.recorder", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    # Ctrl-C is for the driver, which then ends us in order.
                    start_new_session=True,
                )
            # Before anyone else can say anything.
            with contextlib.suppress(OSError):
                ours.sendall(_line(asdict(self._subject)))
            self._socket = ours
        threading.Thread(target=self._listen, args=(ours,), daemon=True, name="recorder").start()

    def notify(self) -> None:
        """The journal has something new."""
        self._send({"notify": True})

    def close(self, wait_seconds: float) -> int:
        """Record what is left, for at most this long, and leave nothing RUNNING; the number of
        cells whose newest records are still not in the store."""
        answer = self._ask({"close": wait_seconds}, "closed", wait_seconds + GRACE_SECONDS)
        if answer is not None:
            return int(answer["closed"])
        return len(behind(self._subject.store(), Path(self._subject.journal)))

    def finish(self, medians: Medians) -> None:
        """After `close`: give the parent run its medians and the files of the results folder.

        Raises:
            StoreError: the store cannot be reached, or refuses.
        """
        answer = self._ask({"finish": medians}, "finished", FINISH_SECONDS)
        if answer is None:
            raise StoreError(f"{self._subject.store().address}: its writer does not answer")
        if answer["finished"] is not None:
            raise StoreError(answer["finished"])

    def run_ids(self) -> dict[Group, str]:
        """The run of each recorded cell and environment."""
        return self._subject.store().run_ids()

    def stop(self) -> None:
        """End the process; what it has not recorded stays in the journal."""
        with self._lock:
            self._ending = True
            if self._socket is not None:
                # Not only closed: the thread that listens holds it, too.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _ask(self, message: dict[str, Any], key: str, seconds: float) -> dict[str, Any] | None:
        """Send, and wait for the answer that has the key; send again where the process died over
        it. None without an answer."""
        deadline = time.monotonic() + seconds
        self._send(message)
        while not self._given_up and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=left)
                if key in answer:
                    return answer
                if "died" in answer:
                    self._send(message)
        return None

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            # One that is dead is started again by the thread that listens, and reads everything.
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.sendall(_line(message))

    def _listen(self, connection: socket.socket) -> None:
        with connection:
            for message in _messages(connection):
                if "warn" in message:
                    self._warn(message["warn"])
                else:
                    self._answers.put(message)
        if self._ending:
            return
        if self._process is not None:
            self._process.wait()
        if self._starts < MAX_STARTS:
            self.start()
        else:
            self._given_up = True
            self._warn("the store's writer keeps dying; the next command records what is left")
        self._answers.put({"died": True})


def main() -> None:
    """The other end: follow the journal until told to stop, or until the driver is gone."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    messages = _messages(connection)
    first = next(messages, None)
    if first is None:
        return
    subject = Subject(**first)

    def say(message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(_line(message))

    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_serve, args=(subject, requests, say), daemon=True).start()
    for message in messages:
        requests.put(message)
    # The driver is gone, perhaps killed: nothing of it stays. The store bears a kill anywhere.
    os._exit(0)


def _serve(
    subject: Subject, requests: queue.Queue[dict[str, Any]], say: Callable[[dict[str, Any]], None]
) -> None:
    """Answer requests in turn; a fault of ours ends the process, which is then started again."""
    try:
        _answer(subject, requests, say)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _answer(
    subject: Subject, requests: queue.Queue[dict[str, Any]], say: Callable[[dict[str, Any]], None]
) -> None:
    store, results = subject.store(), Path(subject.results)
    writer = StoreWriter(
        store,
        Journal(Path(subject.journal)),
        subject,
        results,
        lambda text: say({"warn": text}),
        subject.allowed,
        subject.told,
    )
    writer.start()
    closed = False
    while True:
        message = requests.get()
        if "close" in message:
            left = writer.close(message["close"])
            closed = True
            say({"closed": left})
        elif "finish" in message:
            if not closed:  # started anew for this alone, it still follows the journal
                writer.close(FINISH_SECONDS / 2)
                closed = True
            say({"finished": _finish(store, subject, message["finish"], results)})
        else:
            writer.notify()


def _finish(store: MlflowStore, subject: Subject, medians: Medians, results: Path) -> str | None:
    try:
        store.finish(subject, medians, results)
    except (StoreError, LeaseLost) as error:
        return str(error)
    return None


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON lines until the other end is gone."""
    buffer = b""
    with contextlib.suppress(ConnectionError):
        while True:
            try:
                chunk = connection.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                return
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            yield from map(json.loads, lines)


if __name__ == "__main__":
    main()
