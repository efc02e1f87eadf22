"""A sweep whose task has no data here ends before anything runs."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.cli import main
from workloads import registry
from workloads.tasks import sources

SWEEP = """
name: own
question: Does it say what is missing?
architectures: [lstm, gru]
task: {language_modelling: {path: PATH}}
model: {parameters: 20_000, num_layers: 1}
device: cpu
train:
  seq_len: [16]
  tokens: 160
  tokens_per_update: 16
  seeds: 1
  learning_rate: 1.0e-3
  metrics: [validation_loss]
compare: {baseline: lstm, zone: [8, 16]}
"""


@pytest.mark.parametrize("verb", ["plan", "sweep"])
def test_a_path_without_files_is_one_sentence(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(SWEEP.replace("PATH", "nothing_here"))
    assert main([verb, "sweep.yaml"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert "language_modelling: " in said.err and "there is no file here" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_data_of_ones_own_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("some words\n" * 500)
    Path("sweep.yaml").write_text(SWEEP.replace("PATH", "mine"))
    assert main(["plan", "sweep.yaml", "--json"]) == 0
    # Cells run elsewhere than the command.
    assert f'"path": "{tmp_path}/mine"' in capsys.readouterr().out


def test_a_length_that_the_data_have_no_window_of_is_said_before_the_first_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKLOADS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("some words\n" * 500)
    own = "language_modelling: {path: mine, validation_tokens: 512}"
    text = SWEEP.replace("language_modelling: {path: PATH}", own)
    Path("sweep.yaml").write_text(text.replace("seq_len: [16]", "seq_len: [16, 9000]"))
    assert main(["sweep", "sweep.yaml", "--inline"]) == 2
    said = capsys.readouterr()
    assert "seq_len: 9000 is longer than the text" in said.err and "Traceback" not in said.err
    assert not list(tmp_path.glob("results/*/journal/*"))


def test_every_task_says_what_installs_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sources.metadata, "distribution", none)
    for name in registry.names("tasks"):
        task = registry.load("tasks", name)
        why = task.missing(task.options())
        assert why is None or "install" in why or "infra/" in why
