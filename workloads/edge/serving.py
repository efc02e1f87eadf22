"""What serving a cell's step at the edge takes: graphs of it, made once a cell, and a process of
its own that serves them, stopped where it grows beyond the cell's cap."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

import workloads
from workloads import conditions, process_memory
from workloads.edge import graphs
from workloads.mixer import state_tensors
from workloads.plugins import Unsupported
from workloads.subject import Subject

POLL_SECONDS = 0.002
_INPUTS = "inputs.npz"
_WHY = "why"


@dataclass(frozen=True, slots=True)
class Served:
    """Seconds of single steps, and bytes at the process's peak, program files included."""

    seconds: tuple[float, ...]
    peak_bytes: int


_made: WeakKeyDictionary[Subject, dict[str, bytes]] = WeakKeyDictionary()


def files(subject: Subject) -> dict[str, bytes]:
    """The two graphs of one step after the cell's context at its batch, and its inputs, by name.

    Raises:
        MemoryError: exporting did not fit into this machine's memory.
        Unsupported: no float32 on a CPU, a package is missing, or the model does not export.
    """
    if subject not in _made:
        _made[subject] = _files(subject)
    return _made[subject]


def _files(subject: Subject) -> dict[str, bytes]:
    if subject.device.type != "cpu" or subject.dtype != torch.float32:
        raise Unsupported("is measured of float32 on a CPU: what is quantised is that")
    graphs.check_packages()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def make() -> tuple[float, ...]:
            try:
                _make(subject, folder)
            except Unsupported as error:
                (folder / _WHY).write_text(str(error))
            return ()

        graphs.exported(make)
        if (folder / _WHY).exists():
            raise Unsupported((folder / _WHY).read_text())
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _make(subject: Subject, folder: Path) -> None:
    with torch.no_grad():
        made = subject.made
        state = subject.model.empty_state(subject.batch_size, subject.cell.seq_len + 1)
        _, state = subject.model.prefill(made[:, :-1], state)
    inputs = [made[:, -1].contiguous(), *(tensor.clone() for tensor in state_tensors(state))]
    np.savez(folder / _INPUTS, *(tensor.numpy() for tensor in inputs))
    graphs.write_graphs(graphs.Step(subject.model, state), inputs, folder)


def served(subject: Subject, graph: str) -> Served:
    """Serve one of the graphs in a process of its own.

    Raises:
        MemoryError: it passed the cell's cap and was stopped.
        Unsupported: see `files`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for wanted in (graph, _INPUTS):
            (folder / wanted).write_bytes(files(subject)[wanted])
        return _served(folder, graph, subject.cell.limits.memory_bytes)


def _served(folder: Path, graph: str, cap: int | None) -> Served:
    command = [sys.executable, "-m", "workloads.edge.serve", str(folder / graph)]
    root = Path(workloads.__file__).parents[1]
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*command, str(folder / _INPUTS)], stdout=out, stderr=errors, cwd=root
        ) as process,
    ):
        passed = False
        while process.poll() is None:
            if cap is not None and process_memory.resident_bytes(process.pid) > cap:
                passed = True
                process.kill()
            time.sleep(POLL_SECONDS)
        out.seek(0)
        errors.seek(0)
        if process.returncode and not passed:
            raise RuntimeError(errors.read()[-4000:])
        said: dict[str, Any] = {} if passed else json.load(out)
    if cap is not None and (passed or said["peak_bytes"] > cap):
        raise MemoryError(f"serving does not fit into {cap:,} bytes")
    for condition, value in said["conditions"].items():
        conditions.note(condition, value, sum(said["seconds"]))
    return Served(tuple(said["seconds"]), said["peak_bytes"])
