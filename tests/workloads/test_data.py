"""Prepared data: built once a machine, there whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.tasks.data import Arrays, DamagedData, folder_name, load, prepared


def built(folder: Path) -> Arrays:
    """Leaves a trace of each build beside the folder."""
    with (folder.parent / "builds").open("a") as file:
        file.write("one\n")
    time.sleep(0.2)
    return Arrays(
        arrays={"grid": np.arange(12.0).reshape(3, 4), "ids": np.arange(5)},
        facts={"source": "made"},
    )


def prepare(folder: Path) -> str:
    return str(prepared(folder, lambda: built(folder)).facts["data_sha256"])


def never(folder: Path) -> None:
    def wait() -> Arrays:
        (folder.parent / "begun").touch()
        time.sleep(60)
        raise AssertionError

    prepared(folder, wait)


def test_eight_that_want_it_at_once_build_it_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        hashes = pool.map(prepare, [tmp_path / "data"] * 8)
    assert len(set(hashes)) == 1
    assert (tmp_path / "builds").read_text() == "one\n"
    arrays = load(tmp_path / "data").arrays
    assert arrays["grid"].shape == (3, 4) and isinstance(arrays["grid"], np.memmap)


def test_a_killed_build_leaves_nothing_and_holds_up_nobody(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=never, args=(tmp_path / "data",))
    process.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "data").exists()
    assert prepare(tmp_path / "data")


def test_another_shape_is_damage(tmp_path: Path) -> None:
    prepare(tmp_path / "data")
    np.save(tmp_path / "data/grid.npy", np.zeros((4, 3)))
    with pytest.raises(DamagedData, match="grid has"):
        load(tmp_path / "data")


@given(st.text(), st.dictionaries(st.text(), st.integers() | st.text()))
def test_a_folders_name_is_decided_by_all_that_decides_what_is_in_it(
    said: str, deciding: dict[str, Any]
) -> None:
    name = folder_name(said, deciding)
    assert re.fullmatch(r"[\w-]{13,73}", name), "a name on every file system"
    assert name == folder_name(said, dict(reversed(deciding.items())))
    assert name != folder_name(f"{said}.", deciding)
    assert name != folder_name(said, {**deciding, "one more": 1})
