"""Telling a refused value from a table that has changed: a migration must not fill the dead letters."""

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.columns import Kind
from writebehind.engine.errors import ConfigurationError
from writebehind.flushers.failures import column_to_blame

__all__ = ["drift_of"]

_FAMILIES: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.INTEGER: ("number",),
    Kind.FLOAT: ("number",),
    Kind.NUMERIC: ("number",),
    Kind.BOOLEAN: ("number",),
    Kind.TEXT: ("text",),
    Kind.JSON: ("text",),
    Kind.UUID: ("text", "UUID"),
    Kind.ENUM: ("text",),
    Kind.DATE: ("moment",),
    Kind.TIME: ("moment",),
    Kind.DATETIME: ("moment",),
    Kind.DATETIME_UTC: ("moment",),
    Kind.INTERVAL: ("moment",),
    Kind.BYTES: ("bytes", "UUID"),
}
"""Of which family a column may be in SQL; the first is what it is called."""

_CLASSES: Final = (
    (sa.Integer | sa.Numeric | sa.Float | sa.Boolean, "number"),
    (sa.Date | sa.Time | sa.DateTime | sa.Interval, "moment"),
    (sa.String | sa.JSON, "text"),
    (sa.Uuid, "UUID"),
    (sa.types._Binary, "bytes"),  # noqa: SLF001 - what BLOB, BYTEA and VARBINARY have in common
)
"""What reflection makes of columns. Other types, an INET6 or one of the user's, are taken to fit: a text may."""


def drift_of(connection: sa.Connection, declared: DeclaredTable, error: Exception) -> ConfigurationError | None:
    """Tell whether SQL refuses a row because its table is another one than was declared.

    That is so where a column is of another family of types now, a number or a UUID for a text, say, or where one that
    was not declared has to be given.

    Args:
        connection: with a transaction that can be used.
        declared: the row's table.
        error: why SQL refuses it.

    Returns:
        What has changed, or None where the value is to blame.
    """
    refused = column_to_blame(error)
    if refused is None or refused.table not in {None, declared.table.name}:
        return None  # a trigger's own table, say
    name, wanted = declared.entity.name, {column.name: column.kind for column in declared.entity.columns}
    if refused.null:
        if refused.column in wanted:
            return None
        return _changed(f"column {refused.column} of table {name} is required by SQL, and not declared")
    if refused.column not in wanted:
        return None
    families, found = _FAMILIES[wanted[refused.column]], _family(connection, declared, refused.column)
    if found is None or found in families:
        return None
    return _changed(f"column {refused.column} of table {name} is declared as {families[0]}, and is {found} in SQL")


def _family(connection: sa.Connection, declared: DeclaredTable, name: str) -> str | None:
    """Return the family of a column's type in SQL; None for one that fits any."""
    columns = sa.inspect(connection).get_columns(declared.table.name, schema=declared.table.schema)
    made = next((column["type"] for column in columns if column["name"] == name), None)
    return next((family for classes, family in _CLASSES if isinstance(made, classes)), None)


def _changed(message: str) -> ConfigurationError:
    return ConfigurationError(message, "migrate the table or the declaration; flushing goes on by itself then")
