"""What an error of a flush means, and so what is done about it.

::

    TRANSIENT       the whole batch again, with backoff, for as long as it takes
    TIMEOUT         likewise, in halves
    UNKNOWN         the commit may have happened: read the offset, under its lock
    FOREIGN_KEY     the parent may still come: isolate, then try again later
    POISON          isolate by halving; what fails alone goes to the dead letters
    CONFIGURATION   halt the partition; never fill the dead letters

An unknown code means CONFIGURATION: a halt loses nothing, a wrong dead letter may.
"""

import re
from enum import Enum
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from writebehind.engine.core.printable import printable
from writebehind.engine.errors import PoisonEntryError, TransientError, ValidationError, WriteBehindError

__all__ = ["PASSING", "ColumnRefusal", "Failure", "classify", "column_to_blame", "describe"]


class Failure(Enum):
    """What an error calls for."""

    TRANSIENT = "transient"
    TIMEOUT = "timeout"
    UNKNOWN = "outcome unknown"
    FOREIGN_KEY = "foreign key"
    POISON = "poison"
    CONFIGURATION = "configuration"


PASSING: Final = frozenset({Failure.TRANSIENT, Failure.UNKNOWN})
"""What is tried again as it is."""

_SQLSTATES: Final = {
    "23503": Failure.FOREIGN_KEY,
    "57014": Failure.TIMEOUT,  # query_canceled: statement_timeout
    "25P04": Failure.TIMEOUT,  # transaction_timeout
    "40001": Failure.TRANSIENT,  # serialization_failure
    "40P01": Failure.TRANSIENT,  # deadlock_detected
    "40002": Failure.POISON,  # transaction_integrity_constraint_violation
    "40003": Failure.UNKNOWN,  # statement_completion_unknown
    "08007": Failure.UNKNOWN,  # transaction_resolution_unknown
    "55P03": Failure.TRANSIENT,  # lock_not_available
    "25006": Failure.TRANSIENT,  # read_only_sql_transaction: a standby, until the failover is through
    "25P03": Failure.TRANSIENT,  # idle_in_transaction_session_timeout
    "57P01": Failure.TRANSIENT,  # admin_shutdown
    "57P02": Failure.TRANSIENT,  # crash_shutdown
    "57P03": Failure.TRANSIENT,  # cannot_connect_now
    "57P05": Failure.TRANSIENT,  # idle_session_timeout
    "P0001": Failure.POISON,  # raise_exception: a trigger of the user's
    "21000": Failure.POISON,  # cardinality_violation: two rows of the batch are one for the database
}
"""Source: appendix A of the PostgreSQL manual."""

_SQLSTATE_CLASSES: Final = {
    "08": Failure.TRANSIENT,  # connection_exception
    "53": Failure.TRANSIENT,  # insufficient_resources
    "22": Failure.POISON,  # data_exception
    "23": Failure.POISON,  # integrity_constraint_violation
}

_MYSQL: Final = {
    Failure.TRANSIENT: (
        # Deadlock, lock wait, changed since read (MariaDB), read-only server or transaction.
        *(1205, 1213, 1020, 1290, 1792, 1836),
        # Connections: too many, killed, shutting down, lost or not to be had.
        *(1040, 1053, 1077, 1079, 1080, 1129, 1158, 1159, 1160, 1161, 1184, 1203, 1226, 1927),
        *(0, 2002, 2003, 2005, 2006, 2013, 2014, 2055, 4031),
        # Disk or memory full.
        *(1021, 1037, 1038, 1041, 1114),
    ),
    # Query interrupted, MAX_EXECUTION_TIME, max_statement_time (MariaDB).
    Failure.TIMEOUT: (1317, 3024, 1969),
    Failure.FOREIGN_KEY: (1216, 1217, 1451, 1452),
    Failure.POISON: (
        # NULL, duplicate key, CHECK (MySQL, MariaDB), packet too large.
        *(1048, 1022, 1062, 1169, 1586, 3819, 4025, 1153),
        # SIGNAL: a trigger of the user's.
        1644,
        # Out of range, cut, of another form, of another character set.
        *(1264, 1265, 1292, 1300, 1366, 1367, 1406, 1411, 1441, 1690, 3140, 3141),
    ),
}
"""Source: the error references of MySQL and MariaDB."""

_MYSQL_CODES: Final = {code: failure for failure, codes in _MYSQL.items() for code in codes}

_SQLITE_CODES: Final = {
    787: Failure.FOREIGN_KEY,  # SQLITE_CONSTRAINT_FOREIGNKEY
    5: Failure.TRANSIENT,  # SQLITE_BUSY
    6: Failure.TRANSIENT,  # SQLITE_LOCKED
    7: Failure.TRANSIENT,  # SQLITE_NOMEM
    9: Failure.TIMEOUT,  # SQLITE_INTERRUPT
    10: Failure.TRANSIENT,  # SQLITE_IOERR
    13: Failure.TRANSIENT,  # SQLITE_FULL
    14: Failure.TRANSIENT,  # SQLITE_CANTOPEN
    15: Failure.TRANSIENT,  # SQLITE_PROTOCOL: the locks of another process
    18: Failure.POISON,  # SQLITE_TOOBIG
    19: Failure.POISON,  # SQLITE_CONSTRAINT
    20: Failure.POISON,  # SQLITE_MISMATCH
}
"""Source: sqlite.org/rescode.html. The low byte is the primary code."""

_MISTYPED: Final = frozenset({1292, 1366, 1367, 1411})
"""Incorrect value, of MySQL and MariaDB. PostgreSQL tells another type by a code that is not one of a value."""

_MYSQL_COLUMN: Final = re.compile(r".* for column (?:(?:`[^`]*`\.)?`([^`]*)`\.)?[`']([^`']+)[`'] at row .*", re.DOTALL)
_SQLITE_NULL: Final = re.compile(r"NOT NULL constraint failed: (.+)\.([^.]+)")
_SQLITE_STRICT: Final = re.compile(r"cannot store \w+ value in \w+ column (.+)\.([^.]+)")

_PROCEDURAL: Final = re.compile(r"pl_|plpy_|plperl|pltcl|plv8")
"""Source files of PostgreSQL's procedural languages: pl_exec.c, plpy_elog.c and so on."""

_USERS_MYSQL: Final = 20_000
"""Codes from here on are those of a SIGNAL, with any text: the server's own end below."""

_UNDONE: Final = frozenset({"40000", "40001", "40002", "40P01", 1205, 1213, 1020})
"""A COMMIT that raises one of these did certainly not happen."""

_VALUELESS: Final = frozenset({"22001", "22003", "22012", "22021"})
"""Data exceptions whose message has no value of a row."""

_MYSQL_VALUES: Final = frozenset((*_MYSQL[Failure.POISON], 1644))  # and what a trigger says by SIGNAL
_MYSQL_NAMED: Final = frozenset({1048, 1062, 1169, 1264, 1265, 1366, 1406, 1586, 3819, 4025})
_MYSQL_NAME: Final = re.compile(
    r".*\b((?:for key|column|constraint) (?:[`'][^`']*[`']\.?)+)", re.IGNORECASE | re.DOTALL
)
_MYSQL_DRIVERS: Final = frozenset({"pymysql", "mysqldb", "cymysql", "mysql", "mariadb", "aiomysql", "asyncmy"})
_MESSAGE_MAX: Final = 300


class _Family(Enum):
    """Whose codes an error has."""

    SQLSTATE = "SQLSTATE"
    MYSQL = "MySQL"
    SQLITE = "SQLite"
    NONE = "none"


def classify(error: BaseException, *, committing: bool) -> Failure:
    """Tell what an error calls for.

    Args:
        error: what the flush raised.
        committing: whether COMMIT had been sent. The same connection error means then that
            nobody knows whether the commit happened.
    """
    cause = _cause(error)
    family, code = _code(cause)
    failure = _by_code(family, code)
    if failure is Failure.CONFIGURATION and _raised(getattr(cause, "diag", None)):
        failure = Failure.POISON  # a trigger of the user's, with a code of the user's
    if failure is None:
        lost = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
        failure = Failure.TRANSIENT if lost else _by_class(cause, family)
    if committing and failure in {Failure.TRANSIENT, Failure.TIMEOUT}:
        # SQLite has no server: a COMMIT that raises did not happen.
        return failure if family is _Family.SQLITE or code in _UNDONE else Failure.UNKNOWN
    return failure


def describe(error: BaseException) -> str:
    """Return one line for logs and dead letters, without values of rows: class, code, and the names concerned."""
    cause = _cause(error)
    family, code = _code(cause)
    name = type(cause).__name__ if code is None else f"{type(cause).__name__} {code}"
    message = " ".join(_message(cause, family, code).split())
    line = printable(f"{name}: {message}" if message else name)
    return line if len(line) <= _MESSAGE_MAX else f"{line[: _MESSAGE_MAX - 1]}…"


class ColumnRefusal(NamedTuple):
    """A column that a database names as the reason why it refuses a row.

    Attributes:
        table: its table as the database calls it, without a schema; None where that is not said.
        column: its name.
        null: it must not be NULL, and is; or else the value is of another type.
    """

    table: str | None
    column: str
    null: bool


def column_to_blame(error: BaseException) -> ColumnRefusal | None:
    """Return the column that was not given, or is of another type than its value, where that is why a row is refused.

    A column that was not given has a code of its own in MySQL and MariaDB: 1364, a configuration error.
    """
    cause = _cause(error)
    family, code = _code(cause)
    if family is _Family.SQLITE:
        for pattern, null in ((_SQLITE_NULL, True), (_SQLITE_STRICT, False)):
            if found := pattern.fullmatch(str(cause)):
                return ColumnRefusal(found[1], found[2], null)
        return None
    if code in _MISTYPED:
        found = _MYSQL_COLUMN.fullmatch(str(cause.args[-1]))
        return ColumnRefusal(found[1], found[2], null=False) if found else None
    diagnostics = getattr(cause, "diag", None)
    if code == "23502" and diagnostics is not None and diagnostics.column_name and not _raised(diagnostics):
        return ColumnRefusal(diagnostics.table_name, diagnostics.column_name, null=True)
    return None


def _raised(diagnostics: Any) -> bool:
    """Tell whether an error of PostgreSQL was raised by a function in a procedural language, with any text."""
    return _PROCEDURAL.match(getattr(diagnostics, "source_file", None) or "") is not None


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, sa.exc.StatementError) and error.orig is not None:
        error = error.orig
    return error


def _code(cause: BaseException) -> tuple[_Family, str | int | None]:
    modules = {base.__module__.partition(".")[0].lower() for base in type(cause).__mro__}
    first = cause.args[0] if cause.args else None
    if modules & _MYSQL_DRIVERS:
        return _Family.MYSQL, first if isinstance(first, int) else None
    if "sqlite3" in modules:
        return _Family.SQLITE, getattr(cause, "sqlite_errorcode", None)
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state is None and isinstance(first, dict):
        state = first.get("C")  # pg8000
    return (_Family.NONE, None) if state is None else (_Family.SQLSTATE, str(state))


def _by_code(family: _Family, code: str | int | None) -> Failure | None:
    if isinstance(code, str):
        return _SQLSTATES.get(code) or _SQLSTATE_CLASSES.get(code[:2], Failure.CONFIGURATION)
    if code is None:
        return None
    if family is _Family.MYSQL:
        return _MYSQL_CODES.get(code, Failure.POISON if code >= _USERS_MYSQL else Failure.CONFIGURATION)
    return _SQLITE_CODES.get(code) or _SQLITE_CODES.get(code & 0xFF, Failure.CONFIGURATION)


def _by_class(cause: BaseException, family: _Family) -> Failure:
    """Judge what has no code: our own errors, Python's, and a driver's by the classes of PEP 249."""
    names = {base.__name__ for base in type(cause).__mro__}
    if isinstance(cause, PoisonEntryError | ValidationError | UnicodeEncodeError | OverflowError):
        return Failure.POISON
    if isinstance(cause, TransientError | OSError | sa.exc.TimeoutError):
        return Failure.TRANSIENT
    if isinstance(cause, WriteBehindError) or family is _Family.SQLITE:
        return Failure.CONFIGURATION
    if "OperationalError" in names:
        return Failure.TRANSIENT  # psycopg's lost connection
    return Failure.POISON if "DataError" in names else Failure.CONFIGURATION


def _message(cause: BaseException, family: _Family, code: str | int | None) -> str:
    """Return what may be shown of an error's message."""
    if isinstance(cause, WriteBehindError):
        return str(cause)
    if family is _Family.SQLITE:
        return str(cause)
    if family is _Family.MYSQL:
        text = str(cause.args[-1]) if cause.args else ""
        named = _MYSQL_NAME.match(text) if code in _MYSQL_NAMED else None
        hidden = code in _MYSQL_VALUES or (isinstance(code, int) and code >= _USERS_MYSQL)
        return (named[1] if named else "") if hidden else text
    diagnostics: Any = getattr(cause, "diag", None)
    if isinstance(code, str):
        names = [
            f"{kind} {name}"
            for kind in ("table", "column", "constraint")
            if (name := getattr(diagnostics, f"{kind}_name", None))
        ]
        told = (code[:2] not in {"22", "P0"} or code in _VALUELESS) and not _raised(diagnostics)
        primary = getattr(diagnostics, "message_primary", None) if told else None
        return primary or ", ".join(names)
    if any(base.__name__ == "OperationalError" for base in type(cause).__mro__):
        return str(cause)
    return ""
