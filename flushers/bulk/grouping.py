"""Rows and updates grouped by the columns they name: one SQL statement serves one group.

Rows of one batch may differ in their columns, because writers of several releases may write at
the same time. What a row does not name is not written.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.coalescing import Update
from writebehind.engine.errors import ConfigurationError

__all__ = ["Assignment", "Row", "rows_by_columns", "updates_by_assignment"]

Row = dict[str, Any]
"""Wire values by column name."""


class Assignment(NamedTuple):
    """The columns that a group of updates sets and those it adds to, each in table order."""

    sets: tuple[str, ...]
    increments: tuple[str, ...]


def rows_by_columns(declared: DeclaredTable, rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows by their columns in table order, each group in the order of the rows.

    Raises:
        ConfigurationError: a row names a column that is not declared.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        columns = tuple(row)
        group = groups.get(columns)
        if group is None:
            groups[columns] = [row]
        else:
            group.append(row)
    ordered: dict[tuple[str, ...], list[Row]] = {}
    for columns, group in groups.items():
        ordered.setdefault(_in_table_order(declared, columns), []).extend(group)
    return ordered


def updates_by_assignment(declared: DeclaredTable, updates: Iterable[Update]) -> dict[Assignment, list[Update]]:
    """Return the updates by the columns that they set and add to, each group in the order of the updates.

    Raises:
        ConfigurationError: an update names a column that is not declared.
    """
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Update]] = {}
    for update in updates:
        columns = tuple(update.sets), tuple(update.increments)
        group = groups.get(columns)
        if group is None:
            groups[columns] = [update]
        else:
            group.append(update)
    ordered: dict[Assignment, list[Update]] = {}
    for (sets, increments), group in groups.items():
        assignment = Assignment(_in_table_order(declared, sets), _in_table_order(declared, increments))
        ordered.setdefault(assignment, []).extend(group)
    return ordered


def _in_table_order(declared: DeclaredTable, columns: tuple[str, ...]) -> tuple[str, ...]:
    positions: Mapping[str, int] = {column.name: position for position, column in enumerate(declared.entity.columns)}
    unknown = [name for name in columns if name not in positions]
    if unknown:
        raise ConfigurationError(
            f"the log writes to {', '.join(sorted(unknown))} of table {declared.entity.name}, "
            "which this flusher's declaration does not have",
            "run flushers at least as new as the writers, or restore the column in the model",
        )
    return tuple(sorted(columns, key=positions.__getitem__))
