"""Database sessions that cannot outlive a lease.

A frozen holder's transaction keeps row locks that block its successor, so the server is told to end sessions that
idle inside a transaction for longer than the lease lasts. SQLite has no server: a frozen process there keeps its
lock until it goes on or dies.
"""

from typing import Any

import sqlalchemy as sa

from writebehind.engine.errors import ConfigurationError

__all__ = ["IDLE_SHARE", "application_name", "flusher_engine"]

APPLICATION_NAME_MAX = 63

CONNECT_SECONDS_MAX = 10
STATEMENT_SECONDS_MAX = 60

IDLE_SHARE = 0.8
"""Share of the lease TTL for which a session may idle inside a transaction."""


def application_name(holder: str) -> str:
    """Return the name under which PostgreSQL shows the sessions of a holder; the end of it is what differs."""
    return f"writebehind {holder}".encode("ascii", "replace").decode().replace("'", "?")[-APPLICATION_NAME_MAX:]


def flusher_engine(database: sa.Engine, lease_ttl_seconds: float, holder: str) -> sa.Engine:
    """Return an engine for flushing, made from the URL of the service's engine.

    Args:
        database: the service's engine.
        lease_ttl_seconds: locks must be free this long after a holder froze.
        holder: whose sessions these are.

    Raises:
        ConfigurationError: the database lives in this process's memory.
    """
    url = database.url
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigurationError("an in-memory SQLite database cannot be flushed to", "give it a file")
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": 2, "max_overflow": 2}
    dialect = url.get_backend_name()
    if dialect == "sqlite":
        options["connect_args"] = {"timeout": max(30.0, 4 * lease_ttl_seconds)}
        engine = sa.create_engine(url, **options)
        _sqlite(engine)
    else:
        options["connect_args"] = _timeouts(url)
        engine = sa.create_engine(url, pool_pre_ping=True, **options)
        if dialect == "postgresql":
            _on_connect(engine, _postgresql(lease_ttl_seconds, holder))
        elif dialect in {"mysql", "mariadb"}:
            _on_connect(engine, _mysql(lease_ttl_seconds))
    return engine


def _timeouts(url: sa.URL) -> dict[str, Any]:
    """Have a connection fail whose server vanished without a word: TCP alone takes a quarter of an hour."""
    if url.get_backend_name() == "postgresql" and url.get_driver_name() in {"psycopg", "psycopg2"}:
        return {
            "connect_timeout": CONNECT_SECONDS_MAX,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": STATEMENT_SECONDS_MAX * 1000,
        }
    if url.get_driver_name() == "pymysql":
        return {
            "connect_timeout": CONNECT_SECONDS_MAX,
            "read_timeout": 2 * STATEMENT_SECONDS_MAX,
            "write_timeout": 2 * STATEMENT_SECONDS_MAX,
        }
    return {}


def _postgresql(lease_ttl_seconds: float, holder: str) -> list[str]:
    idle = int(lease_ttl_seconds * 1000 * IDLE_SHARE)
    return [
        f"SET application_name = '{application_name(holder)}'",
        f"SET idle_in_transaction_session_timeout = {idle}",
        f"SET lock_timeout = {int(lease_ttl_seconds * 2000)}",
        f"SET statement_timeout = {STATEMENT_SECONDS_MAX * 1000}",
        # A commit that the server may forget again is none; a stronger setting stays.
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
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
