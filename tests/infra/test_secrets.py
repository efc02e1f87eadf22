"""`secrets.sh` makes secrets that are random, complete, the user's alone and unseen by git."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.infra import manifests
from tests.infra.manifests import INFRA, ROOT, SECRETS_SCRIPT


def make(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SECRETS_SCRIPT), str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment or None,
    )


def read(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_they_are_random_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first.env", tmp_path / "second.env"
    for path in (first, second):
        assert make(path).returncode == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made = [*read(first).values(), *read(second).values()]
    assert list(read(first)) == manifests.secret_names()
    assert all(re.fullmatch(r"[0-9a-f]{64}", secret) for secret in made)
    assert len(set(made)) == len(made)


def test_they_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secrets.env"
    path.write_text("mine")
    done = make(path)
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert path.read_text() == "mine"


def test_without_openssl_there_is_no_file(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "rm", "mv"):
        (tools / tool).symlink_to(f"/bin/{tool}" if tool != "dirname" else "/usr/bin/dirname")
    assert make(tmp_path / "secrets.env", PATH=str(tools)).returncode != 0
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize("folder", [INFRA, manifests.KUBERNETES])
def test_git_does_not_see_them(folder: Path) -> None:
    path = folder / "secrets.env"
    done = subprocess.run(["git", "-C", str(ROOT), "check-ignore", str(path)], check=False)
    assert done.returncode == 0
