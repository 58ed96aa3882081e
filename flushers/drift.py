"""Telling a refused value from a table that has changed: a migration must not fill the dead letters."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.columns import Kind
from writebehind.engine.errors import ConfigurationError
from writebehind.flushers.failures import is_about_types, not_null_column

__all__ = ["drift_of"]

_FAMILIES: Final = {
    Kind.INTEGER: "number",
    Kind.FLOAT: "number",
    Kind.NUMERIC: "number",
    Kind.BOOLEAN: "number",
    Kind.TEXT: "text",
    Kind.JSON: "text",
    Kind.UUID: "text",
    Kind.ENUM: "text",
    Kind.DATE: "moment",
    Kind.TIME: "moment",
    Kind.DATETIME: "moment",
    Kind.DATETIME_UTC: "moment",
    Kind.INTERVAL: "moment",
    Kind.BYTES: "bytes",
}

_CLASSES: Final = (
    (sa.Integer | sa.Numeric | sa.Float | sa.Boolean, "number"),
    (sa.Date | sa.Time | sa.DateTime | sa.Interval, "moment"),
    (sa.String | sa.JSON, "text"),
    (sa.types._Binary, "bytes"),  # noqa: SLF001 - what BLOB, BYTEA and VARBINARY have in common
)
"""What reflection makes of columns. Other types, a UUID or one of the user's, are taken to fit."""


def drift_of(connection: sa.Connection, declared: DeclaredTable, error: Exception) -> ConfigurationError | None:
    """Tell whether SQL refuses a row because its table is another one than was declared.

    That is so where a column is of another family of types now, a text of digits only, say, or where one that was not
    declared has to be given.

    Args:
        connection: with a transaction that can be used.
        declared: the row's table.
        error: why SQL refuses it.

    Returns:
        What has changed, or None where the value is to blame.
    """
    name, columns = declared.entity.name, {column.name: column for column in declared.entity.columns}
    required = not_null_column(error)
    if required is not None and required not in columns:
        return _changed(f"column {required} of table {name} is required by SQL, and not declared")
    for column in _reflected(connection, declared) if is_about_types(error) else ():
        wanted = _FAMILIES[columns[column["name"]].kind] if column["name"] in columns else None
        found = next((family for classes, family in _CLASSES if isinstance(column["type"], classes)), None)
        if wanted and found and wanted != found:
            return _changed(f"column {column['name']} of table {name} is declared as {wanted}, and is {found} in SQL")
    return None


def _reflected(connection: sa.Connection, declared: DeclaredTable) -> Sequence[Any]:
    return sa.inspect(connection).get_columns(declared.table.name, schema=declared.table.schema)


def _changed(message: str) -> ConfigurationError:
    return ConfigurationError(message, "migrate the table or the declaration; flushing goes on by itself then")
