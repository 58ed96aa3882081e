"""The path for MySQL and MariaDB: ``INSERT ... ON DUPLICATE KEY UPDATE``, where that is safe.

ON DUPLICATE KEY UPDATE fires on any unique index and would overwrite another row. So it serves only
tables that have no unique index but the declared primary key, in the database, whatever the model says.
It is asked once per table: a unique index that is added later needs a restart of the flushers first.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.sql.dml import UpdateBase

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.columns import Kind
from writebehind.flushers.bulk.generic import GenericPath
from writebehind.flushers.bulk.grouping import Row
from writebehind.flushers.bulk.statements import Target

__all__ = ["MySQLPath"]

_UNIQUE_INDEXES: Final = sa.text(
    "SELECT index_name AS unique_index, column_name AS key_column FROM information_schema.statistics"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name AND non_unique = 0"
)
_ZERO_IS_ZERO: Final = sa.text(
    "SET SESSION sql_mode = CONCAT_WS(',', NULLIF(@@SESSION.sql_mode, ''), 'NO_AUTO_VALUE_ON_ZERO')"
)


class MySQLPath(GenericPath):
    """Implements ``BulkPath`` with upserts of many rows in one statement.

    Args:
        dialect: that of the connections it will be given.
    """

    def __init__(self, dialect: sa.Dialect) -> None:
        super().__init__(dialect)
        self._one_unique_key: dict[str, bool] = {}

    def _insert(
        self, connection: sa.Connection, declared: DeclaredTable, columns: tuple[str, ...], rows: list[Row]
    ) -> None:
        _let_zero_be_zero(connection, declared, rows)
        super()._insert(connection, declared, columns, rows)

    def _put(
        self, connection: sa.Connection, declared: DeclaredTable, columns: tuple[str, ...], rows: list[Row]
    ) -> None:
        if not self._has_one_unique_key(connection, declared):
            super()._put(connection, declared, columns, rows)
            return
        _let_zero_be_zero(connection, declared, rows)
        target = self._target(declared)
        target.statement("put", columns, columns, lambda: _upsert(target, columns)).run(connection, rows)

    def _delete(self, connection: sa.Connection, declared: DeclaredTable, keys: list[Row]) -> None:
        # Drivers send an executemany of DELETE row by row.
        target = self._target(declared)
        for condition in self._among(target, self._keys(declared, keys)):
            connection.execute(sa.delete(target.table).where(condition))

    def _has_one_unique_key(self, connection: sa.Connection, declared: DeclaredTable) -> bool:
        """Tell whether the declared key is the table's only unique index; asked once per table."""
        name = declared.entity.name
        if name not in self._one_unique_key:
            table = declared.table
            found = connection.execute(_UNIQUE_INDEXES, {"schema": table.schema, "name": table.name}).all()
            primary = {str(row.key_column).lower() for row in found if row.unique_index == "PRIMARY"}
            key = {column.name.lower() for column in declared.entity.key}
            self._one_unique_key[name] = primary == key and all(row.unique_index == "PRIMARY" for row in found)
        return self._one_unique_key[name]


def _let_zero_be_zero(connection: sa.Connection, declared: DeclaredTable, rows: list[Row]) -> None:
    """Make this and later transactions of the session store the key 0, which else asks for the next number."""
    numbered = [column.name for column in declared.entity.key if column.kind is Kind.INTEGER]
    if any(row.get(name) == 0 for row in rows for name in numbered):
        connection.execute(_ZERO_IS_ZERO)


def _upsert(target: Target, columns: tuple[str, ...]) -> UpdateBase:
    insert = mysql.insert(target.table).values({name: target.parameter(name) for name in columns})
    # A row of key columns only has nothing to update, but must not fail where it exists.
    sets = [name for name in columns if name not in target.key] or list(target.key[:1])
    # SQLAlchemy doubles percent signs in names of ``inserted`` twice.
    return insert.on_duplicate_key_update(
        {name: sa.func.values(target.table.c[name]) if "%" in name else insert.inserted[name] for name in sets}
    )
