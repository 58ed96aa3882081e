"""Why a database cannot be reached, in words that may be shown."""

from typing import Any, Final

import sqlalchemy as sa

__all__ = ["sql_reason"]

REASON_MAX: Final = 300

_MYSQL_CONNECTING: Final = frozenset(
    {1040, 1042, 1043, 1044, 1045, 1049, 1129, 1130, 1158, 1159, 1160, 1161, 1226, 1698, 3159, *range(2000, 2100)}
)
"""Error numbers of MySQL and MariaDB that tell of connections, users and databases, never of rows."""

_SQLSTATES_CONNECTING: Final = frozenset({"08", "28", "3D", "53", "57"})
"""Classes of SQLSTATE that tell of connections, users, databases and a server's means, never of rows."""


def sql_reason(error: BaseException) -> str:
    """Return one line: the driver's class of error, and its words where they are about the connection.

    Other words may quote values of rows, and are left out.
    """
    cause: Any = getattr(error, "orig", None) or error
    if type(cause).__module__.startswith("sqlalchemy.dialects.") and cause.__cause__ is not None:
        # SQLAlchemy's stand-in for the error of a driver that has no classes of PEP 249: asyncpg.
        cause = cause.__cause__
    words = " ".join(_words(cause).split())
    line = f"{type(cause).__name__}: {words}" if words else type(cause).__name__
    return line if len(line) <= REASON_MAX else f"{line[: REASON_MAX - 1]}…"


def _words(cause: Any) -> str:
    if isinstance(cause, sa.exc.SQLAlchemyError):
        # Its own words quote statements; the pool's timeout is the one to be told.
        return str(cause) if isinstance(cause, sa.exc.TimeoutError) else ""
    if type(cause).__module__.startswith("asyncpg."):
        # What str() gives has the detail, too, which may quote a row.
        shown = str(getattr(cause, "sqlstate", None) or "")[:2] in _SQLSTATES_CONNECTING
        return str(cause.args[0]) if shown and cause.args else ""
    if not any(base.__name__ in {"OperationalError", "InterfaceError"} for base in type(cause).__mro__):
        return ""
    number = cause.args[0] if cause.args else None
    if isinstance(number, int):
        return str(cause.args[-1]) if number in _MYSQL_CONNECTING else ""
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return str(primary or cause)
