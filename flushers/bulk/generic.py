"""The path for any dialect: UPDATE by key, then INSERT of what was not there.

It needs no upsert, so no unique index but the primary key can make it overwrite another row. The
other paths replace single steps of it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.coalescing import TableChanges, Update
from writebehind.engine.core.wire_types import misfit
from writebehind.engine.errors import PoisonEntryError
from writebehind.flushers.bulk.grouping import Assignment, Row, rows_by_columns, updates_by_assignment
from writebehind.flushers.bulk.statements import Target, bound_rows

__all__ = ["GenericPath"]

_Item = TypeVar("_Item")

KEYS_PER_QUERY: Final = 200
"""Far below SQLite's 999 parameters of old, also for keys of several columns."""


class GenericPath:
    """Implements ``BulkPath`` with what every SQL database has.

    Args:
        dialect: that of the connections it will be given.
    """

    def __init__(self, dialect: sa.Dialect) -> None:
        self._dialect = dialect
        self._targets: WeakKeyDictionary[sa.Table, Target] = WeakKeyDictionary()

    def apply(self, connection: sa.Connection, declared: DeclaredTable, changes: TableChanges) -> int:
        """Write all but the deletes; see ``BulkPath.apply``.

        Durability, Repeat, Crash: see ``BulkPath``.
        """
        self._insert_all(connection, declared, changes.appended)
        self._insert_all(connection, declared, changes.inserts.values())
        for columns, rows in rows_by_columns(declared, changes.puts.values()).items():
            self._check(declared, columns, rows)
            self._put(connection, declared, columns, self._sorted(declared, rows, itemgetter))
        absent = 0
        for assignment, updates in updates_by_assignment(declared, changes.updates.values()).items():
            # Increments were added up by type.
            self._check(declared, assignment.sets, [update.sets for update in updates])
            self._check(declared, self._target(declared).key, [update.key for update in updates])
            missing = self._update(connection, declared, assignment, self._sorted(declared, updates, _update_key))
            created = [update.missing for update in missing if update.missing is not None]
            self._insert_all(connection, declared, created)
            absent += len(missing) - len(created)
        return absent

    def delete(self, connection: sa.Connection, declared: DeclaredTable, changes: TableChanges) -> None:
        """Delete rows; see ``BulkPath.delete``.

        Durability, Repeat, Crash: see ``BulkPath``.
        """
        if changes.deletes:
            keys = list(changes.deletes.values())
            self._check(declared, self._target(declared).key, keys)
            self._delete(connection, declared, keys)

    def _check(self, declared: DeclaredTable, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Refuse values whose types are not those of their columns, before anything is done with them.

        Raises:
            PoisonEntryError: there are such.
        """
        for name in columns:
            column = declared.plan.columns[name]
            found = misfit(column, rows)
            if found is not None:
                raise PoisonEntryError(
                    f"column {name} of table {declared.entity.name} is declared as {column.kind.value}, "
                    f"and an entry holds {found.value} for it",
                    "no writer with this declaration makes such: replay it with a correction, or discard it",
                )

    def _sorted(
        self, declared: DeclaredTable, items: list[_Item], key_of: Callable[..., Callable[[_Item], Any]]
    ) -> list[_Item]:
        """Return the items in key order: against deadlocks of two writers, and for neighbouring pages."""
        if declared.entity.name in declared.foreign_keys:
            return items  # parents may stand before their children in the order of entries only
        return sorted(items, key=key_of(*(column.name for column in declared.entity.key)))

    def _insert_all(self, connection: sa.Connection, declared: DeclaredTable, rows: Iterable[Row]) -> None:
        for columns, group in rows_by_columns(declared, rows).items():
            self._check(declared, columns, group)
            self._insert(connection, declared, columns, group)

    def _insert(
        self, connection: sa.Connection, declared: DeclaredTable, columns: tuple[str, ...], rows: list[Row]
    ) -> None:
        self._target(declared).insert(columns).run(connection, rows)

    def _put(
        self, connection: sa.Connection, declared: DeclaredTable, columns: tuple[str, ...], rows: list[Row]
    ) -> None:
        target = self._target(declared)
        sets = tuple(name for name in columns if name not in target.key)
        found = target.update(Assignment(sets, ())).run(connection, rows) if sets else 0
        missing = self._missing(connection, declared, rows, found if sets else None)
        if missing:
            self._insert(connection, declared, columns, [rows[position] for position in missing])

    def _update(
        self, connection: sa.Connection, declared: DeclaredTable, assignment: Assignment, updates: list[Update]
    ) -> list[Update]:
        """Update the rows that exist; return the updates that found none."""
        rows = [{**update.key, **update.sets, **update.increments} for update in updates]
        found = None
        if assignment.sets or assignment.increments:
            found = self._target(declared).update(assignment).run(connection, rows)
        return [updates[position] for position in self._missing(connection, declared, rows, found)]

    def _delete(self, connection: sa.Connection, declared: DeclaredTable, keys: list[Row]) -> None:
        self._target(declared).delete().run(connection, keys)

    def _target(self, declared: DeclaredTable) -> Target:
        target = self._targets.get(declared.table)
        if target is None:
            target = self._targets[declared.table] = Target(declared, self._dialect)
        return target

    def _missing(
        self, connection: sa.Connection, declared: DeclaredTable, rows: Sequence[Row], found: int | None
    ) -> list[int]:
        """Return the positions of the rows whose keys the table does not have.

        Args:
            connection: with the caller's transaction.
            declared: the table.
            rows: rows that hold the key columns.
            found: how many of them an UPDATE has just matched, or None if there was none.

        Raises:
            PoisonEntryError: UPDATE and SELECT disagree.
        """
        expected = None
        if found is not None and self._dialect.supports_sane_multi_rowcount:
            expected = len(rows) - found
        if expected == 0:
            return []
        target = self._target(declared)
        keys = self._keys(declared, rows)
        existing = self._existing(connection, target, keys)
        missing = [position for position, key in enumerate(keys) if key not in existing]
        if expected is None or len(missing) != expected:
            # A key may come back in another form than it was bound in; the database is asked about each.
            missing = [position for position in missing if not self._exists(connection, target, keys[position])]
        if expected is not None and len(missing) != expected:
            raise PoisonEntryError(
                f"{len(rows)} keys of {declared.entity.name}: {found} rows were updated, {len(missing)} are missing",
                "keys are equal in the database that differ in the log (a collation), or another "
                "program writes to the table; smaller batches resolve both",
            )
        return missing

    def _existing(self, connection: sa.Connection, target: Target, keys: Sequence[tuple[Any, ...]]) -> set[Any]:
        columns = [target.table.c[name] for name in target.key]
        existing: set[Any] = set()
        for condition in self._among(target, keys):
            existing.update(map(tuple, connection.execute(sa.select(*columns).where(condition))))
        return existing

    def _keys(self, declared: DeclaredTable, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
        """Return the rows' keys as SQLAlchemy takes them."""
        key = self._target(declared).key
        converters = {name: convert for name in key if (convert := declared.to_bind.get(name)) is not None}
        return bound_rows(rows, key, converters)

    def _among(self, target: Target, keys: Sequence[tuple[Any, ...]]) -> Iterator[sa.ColumnElement[bool]]:
        """Yield conditions that together select the rows of these keys."""
        columns = [target.table.c[name] for name in target.key]
        for start in range(0, len(keys), KEYS_PER_QUERY):
            chunk = keys[start : start + KEYS_PER_QUERY]
            if len(columns) == 1:
                yield columns[0].in_([key[0] for key in chunk])
            else:
                yield sa.or_(
                    *(sa.and_(*(column == part for column, part in zip(columns, key, strict=True))) for key in chunk)
                )

    def _exists(self, connection: sa.Connection, target: Target, key: tuple[Any, ...]) -> bool:
        parameters = {target.parameter(name).key: part for name, part in zip(target.key, key, strict=True)}
        query: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(target.table).where(target.where_key())
        return connection.execute(query, parameters).first() is not None


def _update_key(*names: str) -> Callable[[Update], Any]:
    key_of = itemgetter(*names)
    return lambda update: key_of(update.key)
