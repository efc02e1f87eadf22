"""Hosts of their own on this machine: network namespaces that see each other over a bridge, each
with its own addresses and its own loopback. Needs root and Debian's iproute2."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator import runtime
from tests.ray_cluster import OBJECTS, QUICK, ROOT

PORT = 6379
NETWORK = "10.211.77"
"""Private (RFC 1918), and nobody's here."""


def lacking() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if shutil.which("ip") is None:
        return "needs iproute2"
    made = subprocess.run(["ip", "netns", "add", "sweep-try"], capture_output=True)
    subprocess.run(["ip", "netns", "del", "sweep-try"], capture_output=True)
    return f"no network namespaces: {made.stderr.decode().strip()}" if made.returncode else None


class Host:
    """One host on the bridge; `run` puts before a command what makes it run there."""

    def __init__(self, number: int, bridge: str) -> None:
        self.name, self.address = f"{bridge}-{number}", f"{NETWORK}.{number}"
        self.run = ("ip", "netns", "exec", self.name)
        # Names of links have 15 characters at most.
        self._bridge, self._link, self._inside = bridge, f"{bridge}o{number}", f"{bridge}i{number}"

    def begin(self) -> None:
        inside = self._inside
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", self.name)
        _ip("link", "set", self._link, "master", self._bridge)
        _ip("link", "set", self._link, "up")
        for words in (
            ("addr", "add", f"{self.address}/24", "dev", inside),
            ("link", "set", inside, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", self.name, *words)

    def cut_off(self) -> None:
        """As if somebody pulled the plug of its network: it runs on, and reaches nobody."""
        _ip("link", "set", self._link, "down")

    def plug_in(self) -> None:
        _ip("link", "set", self._link, "up")

    def pids(self) -> list[int]:
        told = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in told.stdout.split()]

    def end(self) -> None:
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)


@contextmanager
def ray_on_hosts(folder: Path, count: int) -> Iterator[tuple[list[Host], Mapping[str, str]]]:
    """A Ray cluster over so many hosts, one slot each but the first, which has the head and none;
    and what a driver, which is to run on the first, must have in its environment."""
    bridge = f"sw{os.getpid() % 100_000}"
    environment = {
        **runtime.SETTINGS,
        # Of one machine's own Ray: with it, no other host may join.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        **QUICK,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WORKLOADS_CACHE": str(folder / "cache"),
        "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"],
    }
    hosts: list[Host] = []
    _ip("link", "add", bridge, "type", "bridge")
    _ip("link", "set", bridge, "up")
    try:
        for number in range(1, count + 1):
            hosts.append(Host(number, bridge))
            hosts[-1].begin()
        head, *others = hosts
        _start(
            head,
            environment,
            *("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"),
        )
        for host in others:
            _start(host, environment, f"--address={head.address}:{PORT}", "--num-cpus=1")
        yield hosts, {"RAY_AUTH_TOKEN": environment["RAY_AUTH_TOKEN"]}
    finally:
        for host in hosts:
            host.end()
        _ip("link", "del", bridge)


def _start(host: Host, environment: Mapping[str, str], *options: str) -> None:
    """Bring up the host's node; returns when it has joined."""
    subprocess.run(
        [
            *(*host.run, sys.executable, "-m", "ray.scripts.scripts", "start"),
            *(f"--node-ip-address={host.address}", f"--object-store-memory={OBJECTS}"),
            *("--disable-usage-stats", *options),
        ],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
