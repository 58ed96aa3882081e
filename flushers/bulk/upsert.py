"""The path for SQLite, and for PostgreSQL through drivers without binary COPY: ``ON CONFLICT (key) DO UPDATE``.

The conflict is named by the primary key's columns: a collision on any other unique index raises.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import UpdateBase

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.flushers.bulk.generic import GenericPath
from writebehind.flushers.bulk.grouping import Row
from writebehind.flushers.bulk.statements import Target

__all__ = ["UpsertPath"]

# Two classes with the same two methods.
_INSERT: Final[Mapping[str, Callable[..., Any]]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class UpsertPath(GenericPath):
    """Implements ``BulkPath`` with one upsert per row, in one call of the driver."""

    def _put(
        self, connection: sa.Connection, declared: DeclaredTable, columns: tuple[str, ...], rows: list[Row]
    ) -> None:
        target = self._target(declared)
        target.statement("put", columns, columns, lambda: _upsert(target, columns, self._dialect.name)).run(
            connection, rows
        )


def _upsert(target: Target, columns: tuple[str, ...], dialect_name: str) -> UpdateBase:
    insert: Any = _INSERT[dialect_name](target.table).values({name: target.parameter(name) for name in columns})
    sets = {name: insert.excluded[name] for name in columns if name not in target.key}
    upsert: UpdateBase = (
        insert.on_conflict_do_update(index_elements=target.key, set_=sets)
        if sets
        else insert.on_conflict_do_nothing(index_elements=target.key)
    )
    return upsert
