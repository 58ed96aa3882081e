"""Database sessions that cannot outlive a lease.

A frozen holder's transaction keeps row locks that block its successor, so the server is told to end sessions that
idle inside a transaction for longer than the lease lasts. SQLite has no server: a frozen process there keeps its
lock until it goes on or dies.
"""

from typing import Any

import sqlalchemy as sa

__all__ = ["APPLICATION_NAME", "IDLE_SHARE", "flusher_engine"]

APPLICATION_NAME = "writebehind flusher"
"""By which PostgreSQL shows the sessions of flushers."""

IDLE_SHARE = 0.8
"""Share of the lease TTL for which a session may idle inside a transaction."""


def flusher_engine(url: sa.URL, lease_ttl_seconds: float) -> sa.Engine:
    """Return an engine for flushing.

    Args:
        url: where the tables are.
        lease_ttl_seconds: locks must be free this long after a holder froze.
    """
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": 2, "max_overflow": 2}
    dialect = url.get_backend_name()
    if dialect == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": max(30.0, 4 * lease_ttl_seconds)}, **options)
        _sqlite(engine)
    else:
        engine = sa.create_engine(url, pool_pre_ping=True, **options)
        if dialect == "postgresql":
            _on_connect(engine, _postgresql(lease_ttl_seconds))
        elif dialect in {"mysql", "mariadb"}:
            _on_connect(engine, _mysql(lease_ttl_seconds))
    return engine


def _postgresql(lease_ttl_seconds: float) -> list[str]:
    idle = int(lease_ttl_seconds * 1000 * IDLE_SHARE)
    return [
        f"SET application_name = '{APPLICATION_NAME}'",
        f"SET idle_in_transaction_session_timeout = {idle}",
        f"SET lock_timeout = {int(lease_ttl_seconds * 2000)}",
        "SET statement_timeout = 60000",
    ]


def _mysql(lease_ttl_seconds: float) -> list[str]:
    return [
        f"SET SESSION innodb_lock_wait_timeout = {max(1, int(lease_ttl_seconds * 2))}",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",  # the variable's name differs before MariaDB 11.1
        # MariaDB's own; MySQL takes the comment for nothing and has no such setting.
        f"/*M! SET SESSION idle_transaction_timeout = {max(1, int(lease_ttl_seconds * IDLE_SHARE))} */",
    ]


def _on_connect(engine: sa.Engine, statements: list[str]) -> None:
    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        connection.commit()


def _sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        # The driver's own transactions are deferred: two of them that both read and then write cannot both go on.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def began(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
