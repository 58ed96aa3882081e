"""What errors mean, and what may be told of them."""

import sqlite3
from typing import Any

import psycopg
import pymysql
import pytest
import sqlalchemy as sa

from writebehind.engine.core.payload import PayloadError
from writebehind.engine.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    PoisonEntryError,
    ValidationError,
    WriteBehindError,
)
from writebehind.flushers.failures import Failure, classify, describe

SECRET = "ada@example.org"


def postgresql_error(sqlstate: str) -> psycopg.Error:
    """An error of psycopg's class for the code."""
    try:
        kind = psycopg.errors.lookup(sqlstate)
    except KeyError:
        kind = psycopg.DatabaseError
    error = kind("message")
    error.sqlstate = sqlstate
    return error


def sqlite_error(code: int, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> sqlite3.Error:
    """An error with an extended code."""
    error = kind("message")
    error.sqlite_errorcode = code
    return error


def wrapped(error: Exception, *, invalidated: bool = False) -> sa.exc.DBAPIError:
    """The driver's error as SQLAlchemy raises it."""
    return sa.exc.DBAPIError(
        "INSERT", {"email": SECRET}, error, hide_parameters=True, connection_invalidated=invalidated
    )


@pytest.mark.parametrize(
    ("sqlstate", "failure"),
    [
        *((state, Failure.TRANSIENT) for state in ("40001", "40P01", "55P03", "08006", "57P01", "53300", "25006")),
        ("40003", Failure.UNKNOWN),
        ("08007", Failure.UNKNOWN),
        ("57014", Failure.TIMEOUT),
        ("23503", Failure.FOREIGN_KEY),
        *((state, Failure.POISON) for state in ("22003", "22P02", "23505", "23502", "23514", "21000")),
        *((state, Failure.CONFIGURATION) for state in ("42P01", "42703", "42501", "28P01", "3D000", "P0002", "ZZZZZ")),
    ],
)
def test_sqlstates(sqlstate: str, failure: Failure) -> None:
    """Each SQLSTATE has its class, wrapped by SQLAlchemy or not; unknown ones halt."""
    error = postgresql_error(sqlstate)
    assert classify(error, committing=False) is failure
    assert classify(wrapped(error), committing=False) is failure


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        *((code, Failure.TRANSIENT) for code in (1205, 1213, 2006, 2013, 1040, 1290)),
        (1969, Failure.TIMEOUT),
        (3024, Failure.TIMEOUT),
        (1451, Failure.FOREIGN_KEY),
        (1452, Failure.FOREIGN_KEY),
        *((code, Failure.POISON) for code in (1062, 1048, 1264, 1366, 1406, 4025, 1153)),
        *((code, Failure.CONFIGURATION) for code in (1146, 1054, 1045, 1364, 9999)),
    ],
)
def test_mysql_codes(code: int, failure: Failure) -> None:
    """Each number of MySQL and MariaDB has its class; unknown ones halt."""
    assert classify(wrapped(pymysql.err.OperationalError(code, "message")), committing=False) is failure


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (sqlite3.SQLITE_BUSY, Failure.TRANSIENT),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Failure.TRANSIENT),
        (sqlite3.SQLITE_LOCKED, Failure.TRANSIENT),
        (sqlite3.SQLITE_FULL, Failure.TRANSIENT),
        (sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, Failure.FOREIGN_KEY),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, Failure.POISON),
        (sqlite3.SQLITE_CONSTRAINT_NOTNULL, Failure.POISON),
        (sqlite3.SQLITE_ERROR, Failure.CONFIGURATION),
        (sqlite3.SQLITE_READONLY, Failure.CONFIGURATION),
        (sqlite3.SQLITE_CORRUPT, Failure.CONFIGURATION),
    ],
)
def test_sqlite_codes(code: int, failure: Failure) -> None:
    """Extended codes of SQLite are judged by their primary code, foreign keys apart."""
    assert classify(wrapped(sqlite_error(code)), committing=False) is failure


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (PoisonEntryError("x"), Failure.POISON),
        (ValidationError("x"), Failure.POISON),
        (ConfigurationError("x"), Failure.CONFIGURATION),
        (PayloadError("x"), Failure.CONFIGURATION),
        (DatabaseUnavailable("x"), Failure.TRANSIENT),
        (ConnectionResetError(), Failure.TRANSIENT),
        (sa.exc.TimeoutError(), Failure.TRANSIENT),
        (psycopg.OperationalError("server closed the connection unexpectedly"), Failure.TRANSIENT),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), Failure.POISON),
        (psycopg.ProgrammingError("the query has 1 placeholder but 2 parameters were passed"), Failure.CONFIGURATION),
        (pymysql.err.InterfaceError(0, ""), Failure.TRANSIENT),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), Failure.POISON),
        (OverflowError("Python int too large to convert to SQLite INTEGER"), Failure.POISON),
        (sqlite3.ProgrammingError("Error binding parameter 1"), Failure.CONFIGURATION),
        (TypeError("unsupported"), Failure.CONFIGURATION),
        (KeyError("accounts"), Failure.CONFIGURATION),
    ],
)
def test_errors_without_code(error: BaseException, failure: Failure) -> None:
    """Our own errors, Python's, and drivers' that carry no code."""
    assert classify(error, committing=False) is failure


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (psycopg.OperationalError("server closed the connection unexpectedly"), Failure.UNKNOWN),
        (wrapped(psycopg.InterfaceError("x"), invalidated=True), Failure.UNKNOWN),
        (wrapped(pymysql.err.OperationalError(2013, "Lost connection")), Failure.UNKNOWN),
        (postgresql_error("57P01"), Failure.UNKNOWN),
        (postgresql_error("57014"), Failure.UNKNOWN),
        (ConnectionResetError(), Failure.UNKNOWN),
        (postgresql_error("40001"), Failure.TRANSIENT),
        (wrapped(pymysql.err.OperationalError(1213, "Deadlock")), Failure.TRANSIENT),
        (postgresql_error("23503"), Failure.FOREIGN_KEY),
        (wrapped(sqlite_error(sqlite3.SQLITE_BUSY)), Failure.TRANSIENT),
        (ConfigurationError("x"), Failure.CONFIGURATION),
    ],
)
def test_errors_while_committing(error: BaseException, failure: Failure) -> None:
    """A connection lost during COMMIT leaves the outcome open; what the database refused, it refused."""
    assert classify(error, committing=True) is failure


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            wrapped(pymysql.err.IntegrityError(1062, f"Duplicate entry '{SECRET}' for key 'email'")),
            "IntegrityError 1062: for key 'email'",
        ),
        (
            wrapped(
                pymysql.err.DataError(1366, f"Incorrect integer value: '{SECRET}' for column `d`.`t`.`n` at row 1")
            ),
            "DataError 1366: column `d`.`t`.`n`",
        ),
        (wrapped(pymysql.err.DataError(1292, f"Truncated incorrect DOUBLE value: '{SECRET}'")), "DataError 1292"),
        (
            wrapped(pymysql.err.ProgrammingError(1146, "Table 'd.t' doesn't exist")),
            "ProgrammingError 1146: Table 'd.t' doesn't exist",
        ),
        (
            wrapped(sqlite_error(sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.IntegrityError)),
            "IntegrityError 2067: message",
        ),
        (psycopg.OperationalError("connection\n\tlost"), "OperationalError: connection lost"),
        (psycopg.DataError(SECRET), "DataError"),
        (ValueError(SECRET), "ValueError"),
        (ConfigurationError("no such column", "run init"), "ConfigurationError: no such column (run init)"),
    ],
)
def test_descriptions_have_no_values(error: BaseException, line: str) -> None:
    """A description is one line with class, code and names, but without values of rows."""
    assert describe(error) == line
    assert SECRET not in describe(error)


def test_descriptions_are_short() -> None:
    """A description fits a log line."""
    assert len(describe(WriteBehindError("x" * 10_000))) == 300


def with_diagnostics(sqlstate: str, **fields: str) -> psycopg.Error:
    """An error of psycopg as the server fills it."""

    class Diagnostics:
        def __getattr__(self, name: str) -> Any:
            return fields.get(name)

    class Failed(psycopg.Error):
        diag = Diagnostics()  # type: ignore[assignment]

    error = Failed(f"{fields.get('message_primary')}\nDETAIL:  Key (email)=({SECRET}) already exists.")
    error.sqlstate = sqlstate
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            with_diagnostics("23505", message_primary='duplicate key value violates unique constraint "t_email_key"'),
            'Failed 23505: duplicate key value violates unique constraint "t_email_key"',
        ),
        (
            with_diagnostics("22P02", message_primary=f'invalid input syntax: "{SECRET}"', column_name="n"),
            "Failed 22P02: column n",
        ),
        (with_diagnostics("22003", message_primary="integer out of range"), "Failed 22003: integer out of range"),
    ],
)
def test_descriptions_of_postgresql_leave_the_detail_out(error: psycopg.Error, line: str) -> None:
    """The primary message is told unless it quotes values; the detail always does."""
    assert describe(wrapped(error)) == line
