"""MLflow as in production: its server with basic auth, started as its image starts it, on a real
PostgreSQL; both can be killed and brought back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tests.mlflow_server import ImageServer
from tests.postgres_server import PostgresServer

USER = "sweeps"


@dataclass(frozen=True, slots=True)
class Store:
    """A server on its database, with an account that was only made."""

    folder: Path
    postgres: PostgresServer
    server: ImageServer
    admin: str
    password: str

    def variables(self, user: str = USER, password: str | None = None) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.server.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.password if password is None else password,
        }

    def rows(self, table: str, database: str = "mlflow") -> str:
        """All that stands in a table, past MLflow."""
        query = sql.SQL("SELECT coalesce(string_agg(t::text, chr(10)), '') FROM {} t")
        return self._ask(query.format(sql.Identifier(table)), database)[0]

    def tables(self, database: str = "mlflow") -> list[str]:
        query = sql.SQL("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
        return self._ask(query, database)

    def _ask(self, query: sql.SQL | sql.Composed, database: str) -> list[str]:
        uri = self.postgres.uri(self.postgres.password, database)
        with psycopg.connect(uri) as connection:
            return [str(row[0]) for row in connection.execute(query).fetchall()]


@contextmanager
def mlflow_on_postgres(folder: Path) -> Iterator[Store]:
    """Both up, with the account; gone at the end."""
    admin, password = secrets.token_hex(16), secrets.token_hex(16)
    made = {
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }
    postgres = PostgresServer(folder / "postgres.log")
    server = ImageServer(folder, made, **postgres.variables)
    try:
        postgres.start()
        server.start()
        account = {"username": USER, "password": password}
        assert server.status("/api/2.0/mlflow/users/create", "admin", admin, send=account) == 200
        yield Store(folder, postgres, server, admin, password)
    finally:
        server.kill()
        postgres.remove()
