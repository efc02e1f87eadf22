"""Everything that can happen to a sweep, at random: what is left equals a run in peace. A hundred
faults in all, exhaustively; two of them otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.chaos import Chaos
from tests.full_file_system import SmallDisk, small_disk
from tests.mlflow_on_postgres import Store, mlflow_on_postgres

pytestmark = [
    pytest.mark.slow,
    # MLflow's own use of SQLAlchemy, not ours.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", 64 << 20) as one:
        yield one


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    folder = tmp_path / "store"
    folder.mkdir()
    with mlflow_on_postgres(folder) as one:
        for name, value in one.variables().items():
            monkeypatch.setenv(name, value)
        yield one


@pytest.mark.parametrize(
    ("faults", "nodes", "seeds", "seed"),
    [
        (2, 2, 2, 0),
        *(pytest.param(25, 3, 12, seed, marks=pytest.mark.exhaustive) for seed in (1, 2, 3, 4)),
    ],
)
def test_chaos_leaves_what_peace_leaves(
    tmp_path: Path,
    store: Store,
    disk: SmallDisk,
    faults: int,
    nodes: int,
    seeds: int,
    seed: int,
) -> None:
    chaos = Chaos(tmp_path, store, disk, nodes=nodes, seed=seed)
    try:
        chaos.run(faults, seeds)
    finally:
        print("\n".join(chaos.incidents))
    assert chaos.wrong == []
    assert len(chaos.incidents) == faults
