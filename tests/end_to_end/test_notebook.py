"""The notebook runs from top to bottom on the tables of a simulated sweep, and is kept clean."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from orchestrator.analysis import tables
from orchestrator.plan import Primary
from tests.simulated_world import Law, SimulatedWorld, enveloped, measure_cells, plan_of

NOTEBOOK = Path(__file__).parents[2] / "sweeps" / "context_scaling.ipynb"
LAWS = {
    "lstm": Law(linear=2e-5),
    "transformer": Law(constant=2e-2, linear=1e-5, quadratic=5e-9, out_of_memory_from=1024),
}


def test_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq")
@pytest.mark.parametrize("named", [True, False], ids=["with a primary", "without"])
def test_runs_on_a_sweeps_tables(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = measure_cells(LAWS, [128, 256, 512, 1024])
    primary = Primary(challenger="transformer", metric="train_step_time") if named else None
    built = tables.build(
        plan_of(cells, primary=primary), enveloped(SimulatedWorld(laws=LAWS).execute(cells))
    )
    tables.write(built, tmp_path / "tables")
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("RESULTS_OTHER", str(tmp_path / "absent"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    assert any("image/png" in output.get("data", {}) for output in outputs["figure"])
    assert "points in both" in str(outputs["join"])
    assert not any(output.get("name") == "stderr" for each in outputs.values() for output in each)
