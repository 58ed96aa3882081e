"""Queries that the server ends when they take too long: a lock that is held for long holds no reader for as long.

PostgreSQL ends a statement, the wait for its locks included, where the connection is not set to AUTOCOMMIT; a shorter
limit of the session's own stays. MySQL and MariaDB do, too. SQLite has no such limit: there the driver's ``timeout``
(5 s unless set) bounds the wait for a lock, and nothing bounds a query. Nor does anything here bound the wait for a
server that is frozen, or whose machine has vanished: TCP does, by the parameters of the database's URL. Who has a
deadline has its questions asked by others; see ``looks``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

__all__ = ["Limited"]

MILLISECONDS_MAX = 2**31 - 1
"""What PostgreSQL takes."""


class Limited:
    """Connections of an engine's pool with a time limit for their queries; others of that pool have none.

    Args:
        engine: the engine.
        seconds_max: the limit.
    """

    def __init__(self, engine: sa.Engine, seconds_max: float) -> None:
        self._engine = engine
        self._milliseconds = min(max(1, int(1000 * seconds_max)), MILLISECONDS_MAX)
        known = sa.cast(sa.func.current_setting("statement_timeout"), sa.Interval)
        shorter = known.between(timedelta(milliseconds=1), timedelta(milliseconds=self._milliseconds))
        limit = sa.func.set_config("statement_timeout", str(self._milliseconds), sa.true())
        self._limiting = sa.select(limit).where(sa.not_(shorter))
        if engine.dialect.name in {"mysql", "mariadb"}:
            self._engine = engine.execution_options()
            sa.event.listen(self._engine, "before_cursor_execute", self._limit, retval=True)

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """Lend a connection, for one transaction."""
        with self._engine.connect() as connection:
            self._begin(connection)
            yield connection

    def begin_again(self, connection: sa.Connection) -> None:
        """Roll back what a lent connection has begun, and begin another transaction, under the same limit."""
        connection.rollback()
        self._begin(connection)

    def _begin(self, connection: sa.Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(self._limiting)

    def _limit(
        self, connection: sa.Connection, _cursor: Any, statement: str, parameters: Any, *_more: Any
    ) -> tuple[str, Any]:
        dialect: Any = connection.dialect
        if dialect.is_mariadb:
            return f"SET STATEMENT max_statement_time={self._milliseconds / 1000:f} FOR {statement}", parameters
        verb, _, rest = statement.partition(" ")
        return f"{verb} /*+ MAX_EXECUTION_TIME({self._milliseconds}) */ {rest}", parameters
