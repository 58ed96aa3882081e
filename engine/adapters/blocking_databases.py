"""Databases for threads in place of those that a service has for asyncio: the same server, by the same settings.

What a driver for asyncio is told, in the URL or by ``connect_args``, is translated for the driver for threads, or
refused; it is never dropped where it says how the connection is protected or which server is asked.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from writebehind.engine.errors import ConfigurationError

__all__ = ["async_engine", "blocking_url", "is_async", "require_blocking"]

BLOCKING_DRIVERS: Mapping[str, str] = {
    "aiomysql": "pymysql",
    "aioodbc": "pyodbc",
    "aiosqlite": "pysqlite",
    "asyncmy": "pymysql",
    "asyncpg": "psycopg",
    "oracledb_async": "oracledb",
    "psycopg_async": "psycopg",
}

STATEMENT_MILLISECONDS_MAX = 2**31 - 1
SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")
NO_SETTINGS = frozenset({"database", "options", "replication", "user"})
"""What a connection may begin with beside settings."""
PARTED = re.compile(r"([\\\s])", re.ASCII)
"""Where PostgreSQL parts options, and what keeps it from that."""

GIVE_ANOTHER = "give blocking_database=, the URL of the same database for a driver for threads"

Options = Mapping[str, str]


def is_async(database: str | sa.URL) -> bool:
    """Tell whether a URL's driver is for asyncio only; one that cannot be told is refused by who connects."""
    try:
        return bool(sa.make_url(database).get_dialect().is_async)
    except (sa.exc.ArgumentError, ValueError):
        return False


def async_engine(url: str | sa.URL) -> AsyncEngine:
    """Return an engine for asyncio, whose errors do not quote the values of rows; it connects later.

    Raises:
        ConfigurationError: the driver is not installed, or cannot use the URL.
    """
    try:
        return create_async_engine(url, hide_parameters=True, pool_pre_ping=True)
    except ImportError as error:
        raise ConfigurationError(
            f"the database URL needs a driver that is not installed: {error.name}", "pip install it"
        ) from error
    except (sa.exc.ArgumentError, ValueError):
        # The parser's own words may quote the password: they must not be seen in a traceback either.
        raise ConfigurationError(
            "the database URL is not usable", "use dialect+driver://user:password@host/name"
        ) from None


def require_blocking(given: str | sa.URL | sa.Engine, database: sa.Engine) -> None:
    """Refuse what cannot be the database for threads beside another one.

    Raises:
        ConfigurationError: its driver is for asyncio, or it is of another kind.
    """
    try:
        dialect = given.dialect if isinstance(given, sa.Engine) else sa.make_url(given).get_dialect()
    except (sa.exc.ArgumentError, ValueError):
        return  # whoever connects says so
    if dialect.is_async:
        raise ConfigurationError("blocking_database= has a driver for asyncio", "name one for threads, psycopg say")
    if dialect.name != database.dialect.name:
        raise ConfigurationError(
            f"blocking_database= is {dialect.name}, and database= is {database.dialect.name}",
            "both have to be the same database",
        )


def blocking_url(database: sa.Engine) -> sa.URL:
    """Return the URL by which a driver for threads connects to what an asynchronous engine connects to.

    Raises:
        ConfigurationError: there is no such driver, or something that the engine is told cannot be said in a URL.
    """
    url, driver = database.url, database.url.get_driver_name()
    # Some drivers are for both.
    blocking = url.set(drivername=f"{url.get_backend_name()}+{BLOCKING_DRIVERS.get(driver, driver)}")
    if is_async(blocking):
        raise ConfigurationError(f"no driver for threads is known that is like {driver}", GIVE_ANOTHER)
    translate = _of_asyncpg if driver == "asyncpg" else _as_it_is
    query = dict(url.query)
    arguments = _connect_args(database)
    if driver == "asyncpg":
        arguments = {**{name: query.pop(name) for name in url.query if name not in {"host", "port"}}, **arguments}
    for name, value in arguments.items():
        options = translate(name, value)
        if options is None:
            # Its value may be a secret.
            raise ConfigurationError(f"what {driver} is told by {name} cannot be told another driver", GIVE_ANOTHER)
        for option, text in options.items():
            query[option] = f"{query[option]} {text}" if option == "options" and option in query else text
    return blocking.set(query=query)


def _connect_args(database: sa.Engine) -> dict[str, Any]:
    """Return what an engine tells its driver beside the URL.

    SQLAlchemy keeps it nowhere but in the function that connects.
    """
    creator: Any = database.pool._creator  # noqa: SLF001 - there is no other way to it
    told = inspect.getclosurevars(creator).nonlocals.get("cparams") if inspect.isfunction(creator) else None
    if told is None:
        raise ConfigurationError("the AsyncEngine connects by a function of its own", GIVE_ANOTHER)
    _, by_url = database.dialect.create_connect_args(database.url)
    return {name: value for name, value in told.items() if name not in by_url or by_url[name] != value}


def _as_it_is(name: str, value: Any) -> Options | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return {name: str(value)}


def _of_asyncpg(name: str, value: Any) -> Options | None:
    """Translate an option of asyncpg, or of SQLAlchemy for it, to those of libpq; None where that is not possible."""
    translate = ASYNCPG.get(name)
    try:
        return None if translate is None else translate(value)
    except (OverflowError, TypeError, ValueError):
        return None


def _tls(value: Any) -> Options | None:
    if isinstance(value, str):
        return {"sslmode": value}  # one word for both
    if value is True:
        return {"sslmode": "verify-full", "sslrootcert": "system"}
    if value is None:
        return {}  # both look into the environment, and prefer it
    return {"sslmode": "disable"} if value is False else None


def _connect_timeout(value: Any) -> Options | None:
    if value is None or float(value) == math.inf:
        return {"connect_timeout": "0"}  # for ever
    seconds = math.ceil(float(value))
    return {"connect_timeout": str(seconds)} if seconds > 0 else None


def _command_timeout(value: Any) -> Options | None:
    if value is None or float(value) == math.inf:
        return {}
    milliseconds = min(STATEMENT_MILLISECONDS_MAX, math.ceil(1000 * float(value)))
    return {"options": f"-c statement_timeout={milliseconds}"} if milliseconds > 0 else None


def _server_settings(value: Any) -> Options | None:
    if not value and (value is None or isinstance(value, Mapping)):
        return {}
    if not isinstance(value, Mapping) or not all(_can_be_set(name, text) for name, text in value.items()):
        return None
    texts = {name: PARTED.sub(r"\\\1", text) for name, text in value.items()}
    return {"options": " ".join(f"-c {name}={text}" for name, text in texts.items())}


def _can_be_set(name: Any, text: Any) -> bool:
    if not isinstance(name, str) or not SETTING.fullmatch(name) or name in NO_SETTINGS:
        return False
    return isinstance(text, str) and "\0" not in text


def _same(name: str) -> Callable[[Any], Options | None]:
    def translate(value: Any) -> Options | None:
        if value is None:
            return {}
        return {name: str.__str__(value)} if isinstance(value, str) and "\0" not in value else None

    return translate


def _nothing(_: Any) -> Options:
    return {}


ASYNCPG: Mapping[str, Callable[[Any], Options | None]] = {
    "ssl": _tls,
    "timeout": _connect_timeout,
    "command_timeout": _command_timeout,
    "server_settings": _server_settings,
    **{name: _same(name) for name in ("gsslib", "krbsrvname", "passfile", "service", "target_session_attrs")},
    # How asyncpg itself keeps prepared statements.
    "max_cacheable_statement_size": _nothing,
    "max_cached_statement_lifetime": _nothing,
    "prepared_statement_cache_size": _nothing,
    "prepared_statement_name_func": _nothing,
    "statement_cache_size": _nothing,
}
"""Each option's translation; None for a value that has none."""
