"""Scratch namespaces and tables: making room for them, and removing every trace of them."""

import logging

import redis as redis_client
import sqlalchemy as sa

from writebehind.drills.tables import metadata
from writebehind.engine.adapters.control_tables import control
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable

__all__ = ["forget_keys", "forget_rows", "make_room"]

logger = logging.getLogger(__name__)

SCAN_KEYS = 2_000


def make_room(database: sa.Engine, *, replace: bool) -> None:
    """Drop what an earlier drill left behind.

    Args:
        database: where the drill's tables will be.
        replace: drop them even where they have rows.

    Raises:
        ConfigurationError: tables of these names have rows.
        DatabaseUnavailable: the database cannot be used.
    """
    try:
        present = set(sa.inspect(database).get_table_names())
        tables = [table for table in metadata.sorted_tables if table.name in present]
        with database.connect() as connection:
            full = [table.name for table in tables if _has_rows(connection, table)]
        if full and not replace:
            raise ConfigurationError(
                f"the database has rows in {', '.join(full)}",
                "another drill may be running; if not, --i-know-what-i-do drops them",
            )
        metadata.drop_all(database, tables=tables)
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(
            f"the database cannot be prepared: {type(error).__name__}", "check the URL, the server and the permissions"
        ) from error


def forget_rows(database: sa.Engine, namespace: str, *, had_control: bool) -> None:
    """Drop the drill's tables and the namespace's rows.

    Args:
        database: where they are.
        namespace: whose rows to remove from the engine's own tables.
        had_control: whether the engine's own tables were there before; otherwise they go too.
    """
    try:
        metadata.drop_all(database)
        if not had_control:
            control.drop_all(database)
            return
        with database.begin() as connection:
            for table in control.sorted_tables:
                connection.execute(sa.delete(table).where(table.c.namespace == namespace))
    except sa.exc.SQLAlchemyError as error:
        logger.warning("the tables of namespace %s could not be removed: %s", namespace, type(error).__name__)


def forget_keys(url: str, namespace: str) -> None:
    """Remove the namespace's keys."""
    try:
        with redis_client.Redis.from_url(url) as client:
            for pattern in (f"wb:{{{namespace}}}:*", f"wb:{{{namespace}:*"):
                names: list[bytes] = []
                for name in client.scan_iter(pattern, count=SCAN_KEYS):
                    names.append(name)
                    if len(names) == SCAN_KEYS:
                        client.unlink(*names)
                        names.clear()
                if names:
                    client.unlink(*names)
    except redis_client.RedisError as error:
        logger.warning("the keys of namespace %s could not be removed: %s", namespace, type(error).__name__)


def _has_rows(connection: sa.Connection, table: sa.Table) -> bool:
    return connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None
