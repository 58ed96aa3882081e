"""The SQLAlchemy engine that the service's reads use."""

import sqlalchemy as sa

from writebehind.engine.errors import ConfigurationError

__all__ = ["belongs_to_threads", "engine_of"]


def engine_of(database: str | sa.URL | sa.Engine) -> sa.Engine:
    """Return the engine for a URL, or a given one, whose errors do not quote the values of rows.

    Raises:
        ConfigurationError: the URL cannot be used, or its driver is not installed.
    """
    if isinstance(database, sa.Engine):
        # The same engine and pool, whose errors do not quote the values of rows.
        hiding = database.execution_options()
        hiding.hide_parameters = True
        return hiding
    try:
        # A connection that ended while it was idle, with its server, is replaced before it is used.
        return sa.create_engine(database, hide_parameters=True, pool_pre_ping=True)
    except ImportError as error:
        raise ConfigurationError(
            f"the database URL needs a driver that is not installed: {error.name}", "pip install it"
        ) from error
    except (sa.exc.ArgumentError, ValueError):
        # The parser's own words may quote the password: they must not be seen in a traceback either.
        raise ConfigurationError(
            "the database URL is not usable", "use dialect+driver://user:password@host/name"
        ) from None


def belongs_to_threads(engine: sa.Engine) -> bool:
    """Tell whether each thread has a connection of its own, as to an SQLite database in memory, which never hangs."""
    return isinstance(engine.pool, sa.SingletonThreadPool)
