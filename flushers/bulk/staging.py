"""Temporary tables that carry rows into PostgreSQL by binary COPY.

One exists per database connection and shape of rows. It empties itself at the end of a
transaction; used twice inside one, it is truncated in between. PostgreSQL truncates *all* such
tables of a connection at the end of each transaction that touched one (0.2 ms each), therefore
only so many are kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final
from weakref import ref

import psycopg
import sqlalchemy as sa

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.flushers.bulk.grouping import Row
from writebehind.flushers.bulk.statements import bound_rows
from writebehind.flushers.bulk.transport import transport

__all__ = ["POSITION", "STAGING_TABLES_MAX", "Staging", "driver_errors", "run"]

STAGING_TABLES_MAX: Final = 8
"""Kept per database connection; the one unused for longest is dropped."""

POSITION: Final = "writebehind_position"

_INFO: Final = "writebehind.staging"


class Staging:
    """The temporary table for rows of one shape.

    Args:
        declared: the table that the rows are for.
        columns: what the rows name, in table order.
        dialect: of PostgreSQL, with psycopg.
        numbered: whether the rows carry their positions, from 0, in ``POSITION``.

    Attributes:
        name: qualified.
        columns: quoted names by plain ones.
        expressions: by plain name, the column as its target takes it.
        keys: by plain name, the column as its target can be compared with it through an index.
    """

    __slots__ = ("_converters", "_copy", "_create", "_numbered", "_types", "columns", "expressions", "keys", "name")

    def __init__(
        self, declared: DeclaredTable, columns: tuple[str, ...], dialect: sa.Dialect, *, numbered: bool = False
    ) -> None:
        ways = {
            column.name: transport(
                column, declared.table.c[column.name].type, declared.to_bind.get(column.name), dialect
            )
            for column in declared.entity.columns
            if column.name in columns
        }
        self._types = [ways[name].type_name for name in columns]
        self._converters = {name: way.converter for name, way in ways.items() if way.converter is not None}
        self._numbered = numbered
        shape = repr((declared.entity.name, columns, self._types, numbered)).encode()
        self.name = f"pg_temp.writebehind_{blake2b(shape, digest_size=16).hexdigest()}"
        # The preparer doubles percent signs for statements with parameters; these have none.
        quote = dialect.identifier_preparer.quote
        self.columns = {name: quote(name).replace("%%", "%") for name in columns}
        self.expressions = {name: _cast(f"s.{self.columns[name]}", ways[name].value_cast) for name in columns}
        self.keys = {name: _cast(f"s.{self.columns[name]}", ways[name].key_cast) for name in columns}
        names = list(self.columns.values())
        if numbered:
            names.append(POSITION)
            self._types.append("int4")
        fields = ", ".join(f"{name} {kind}" for name, kind in zip(names, self._types, strict=True))
        self._create = f"CREATE TEMPORARY TABLE IF NOT EXISTS {self.name} ({fields}) ON COMMIT DELETE ROWS"
        self._copy = f"COPY {self.name} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)"

    def fill(self, connection: sa.Connection, cursor: psycopg.Cursor[Any], rows: Sequence[Row]) -> None:
        """Put exactly these rows into the table, which it makes where it is missing.

        Durability, Crash: the table and its rows end with the connection.
        Repeat: the rows of the call before are gone.
        """
        values = bound_rows(rows, tuple(self.columns), self._converters)
        if self._numbered:
            values = [(*row, position) for position, row in enumerate(values)]
        run(connection, cursor, self._preparation(connection))
        with driver_errors(connection, cursor, self._copy), cursor.copy(self._copy) as copy:
            copy.set_types(self._types)
            write_row = copy.write_row
            for row in values:
                write_row(row)

    def _preparation(self, connection: sa.Connection) -> str:
        transaction = connection.get_transaction()
        driver_connection = connection.connection.driver_connection
        if transaction is None or driver_connection is None or driver_connection.autocommit:
            raise RuntimeError("bulk writes need an open transaction")
        last_used: dict[str, Any] = connection.info.setdefault(_INFO, {})
        previous = last_used.pop(self.name, None)
        last_used[self.name] = ref(transaction)
        statements = [self._create]
        if previous is not None and previous() is transaction:
            statements.append(f"TRUNCATE {self.name}")
        while len(last_used) > STAGING_TABLES_MAX:
            oldest = next(iter(last_used))
            del last_used[oldest]
            statements.append(f"DROP TABLE IF EXISTS {oldest}")
        return "; ".join(statements)


def run(connection: sa.Connection, cursor: psycopg.Cursor[Any], statement: str) -> int:
    """Run a statement on the driver's cursor; return its row count."""
    with driver_errors(connection, cursor, statement):
        cursor.execute(statement.encode(), prepare=None if ";" not in statement else False)
    return cursor.rowcount


@contextmanager
def driver_errors(connection: sa.Connection, cursor: psycopg.Cursor[Any], statement: str) -> Iterator[None]:
    """Raise the driver's errors as SQLAlchemy does, which never sees what goes through the driver's cursor."""
    try:
        yield
    except psycopg.Error as error:
        dialect: Any = connection.dialect
        lost = dialect.is_disconnect(error, cursor.connection, cursor)
        if lost:
            connection.invalidate(error)
        raise sa.exc.DBAPIError.instance(
            statement,
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=lost,
            dialect=dialect,
        ) from error


def _cast(expression: str, type_name: str | None) -> str:
    return expression if type_name is None else f"CAST({expression} AS {type_name})"
