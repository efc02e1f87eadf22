"""A real PostgreSQL for tests, of the machine's own packages: on loopback, behind a password that
is made for it, and such that it can be killed and brought back."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

from tests.mlflow_server import free_port, until

PACKAGE = "postgresql"
"""What Debian calls the package."""
SUPERUSER = DATABASE = "mlflow"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
}


class PostgresServer:
    """PostgreSQL with one empty database on a free port of 127.0.0.1, and no other socket. It
    refuses to run as root, and no other user can enter pytest's folders: its data have a folder of
    their own, which `remove` removes."""

    def __init__(self, log: Path) -> None:
        self._binaries, self._log = _binaries(), log
        self._owner = _unprivileged()
        self._folder = Path(tempfile.mkdtemp(prefix="sweep-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.password = free_port(), secrets.token_hex(32)
        self._initialise()

    @property
    def variables(self) -> dict[str, str]:
        """Libpq's own variables for the database."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGDATABASE": DATABASE,
            "PGPASSWORD": self.password,
        }

    def uri(self, password: str, database: str = DATABASE) -> str:
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        settings = {**_SETTINGS, "port": str(self.port)}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *words],
                cwd=self._folder,
                user=self._owner,
                stdout=log,
                stderr=log,
            )
        until(self._answers)

    def create(self, database: str) -> None:
        """One more database, empty."""
        with psycopg.connect(self.uri(self.password, "postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))

    def kill(self) -> None:
        """All of its processes at once, as when the machine goes."""
        if self._process is None:
            return
        parent = psutil.Process(self._process.pid)
        parent.suspend()  # or it would start new ones meanwhile
        family = [*parent.children(recursive=True), parent]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        until(lambda: not any(_lives(process) for process in family))
        self._process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def _initialise(self) -> None:
        secret = self._folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        for path in (self._folder, secret):
            os.chown(path, self._owner, -1)
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", f"--username={SUPERUSER}"]
        options += ["--data-checksums", "--no-sync", "--encoding=UTF8", "--no-locale"]
        with self._log.open("ab") as log:
            subprocess.run(
                [self._binaries / "initdb", *options, "-D", self._folder / "data"],
                cwd=self._folder,
                user=self._owner,
                stdout=log,
                stderr=log,
                check=True,
            )
        secret.unlink()

    def _answers(self) -> bool:
        """Whether it lets us in; its first time, the database is made."""
        with contextlib.suppress(psycopg.OperationalError):
            uri = self.uri(self.password, "postgres")
            with psycopg.connect(uri, connect_timeout=2) as connection:
                query = "SELECT 1 FROM pg_database WHERE datname = %s"
                found = connection.execute(query, (DATABASE,)).fetchone()
            if found is None:
                self.create(DATABASE)
            return True
        return False


def _lives(process: psutil.Process) -> bool:
    """Not if it is only waiting to be taken note of, which may take its new parent seconds."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _binaries() -> Path:
    """Where `postgres` and `initdb` are: on the path, or where Debian puts them."""
    found = shutil.which("postgres")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    candidates = [Path(found).resolve()] if found else installed[-1:]
    for path in candidates:
        if path.with_name("initdb").exists():
            return path.parent
    pytest.skip(f"PostgreSQL is not installed; Debian's package is `{PACKAGE}`")


def _unprivileged() -> int:
    """The user to run as: this one, or where it is root the one that the package made."""
    if os.geteuid() != 0:
        return os.geteuid()
    try:
        return pwd.getpwnam("postgres").pw_uid
    except KeyError:
        return pwd.getpwnam("nobody").pw_uid
