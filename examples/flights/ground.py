"""The servers that a replay runs on, and the removal of its traces there."""

import contextlib
import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis as redis_client
import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import control
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable
from writebehind.examples.flights.app import make
from writebehind.examples.flights.tables import Base
from writebehind.flushers.initialisation import initialise

__all__ = ["Ground", "ground", "masked"]

logger = logging.getLogger(__name__)

SCAN_KEYS = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """Where a replay runs.

    Attributes:
        redis: URL, password included.
        database: URL, password included.
        namespace: one that nobody else has.
        directory: for the logs of the flushers.
        app: the engine, its namespace and tables made.
    """

    redis: str
    database: str
    namespace: str
    directory: Path
    app: WriteBehind


@contextlib.contextmanager
def ground(redis: str | None, database: str | None, *, replace: bool, keep: bool) -> Iterator[Ground]:
    """Prepare servers, namespace and tables, and remove them at the end.

    Args:
        redis: URL of a server to use; None starts one.
        database: SQLAlchemy URL of a database to use; None makes a SQLite file.
        replace: drop tables of the example's names even where they have rows.
        keep: leave tables, offsets, keys and files as they are at the end. A server started here ends in any case.

    Crash: what was given keeps tables and keys; ``replace`` gets rid of the tables.

    Raises:
        ConfigurationError: tables of these names have rows, or a URL is not usable.
        RedisUnavailable, DatabaseUnavailable: a server cannot be reached.
    """
    _refuse_memory(database)
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="writebehind-flights-"))
        if not keep:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        redis_url = redis if redis is not None else stack.enter_context(EmbeddedRedis()).url
        database_url = database if database is not None else f"sqlite:///{directory / 'flights.sqlite'}"
        namespace = f"flights-{secrets.token_hex(4)}"
        app = make(redis_url, database_url, namespace)
        stack.callback(app.close)
        _make_room(app.database, replace=replace)
        if not keep:
            if redis is not None:
                stack.callback(_forget_keys, redis, namespace)
            if database is not None:
                stack.callback(_forget_rows, app.database, namespace)
        initialise(app, create_tables=True)
        app.start()
        yield Ground(redis=redis_url, database=database_url, namespace=namespace, directory=directory, app=app)


def masked(url: str) -> str:
    """Return a URL for the eyes, without its passwords; rather too little of it than too much."""
    return re.sub(r"([?&]\w*password=)[^&]*", r"\1***", re.sub(r"(://[^:/@]*:).*@", r"\1***@", url))


def _refuse_memory(database: str | None) -> None:
    if database is None:
        return
    try:
        url = sa.make_url(database)
    except sa.exc.ArgumentError:
        return  # the engine says it better
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigurationError("a SQLite database in memory belongs to one process", "name a file")


def _make_room(database: sa.Engine, *, replace: bool) -> None:
    """Drop what is left of an earlier run."""
    try:
        present = set(sa.inspect(database).get_table_names())
        tables = [table for table in Base.metadata.sorted_tables if table.name in present]
        with database.connect() as connection:
            full = [table.name for table in tables if _has_rows(connection, table)]
        if full and not replace:
            raise ConfigurationError(
                f"the database has rows in {', '.join(full)}", "choose another database, or --replace to drop them"
            )
        Base.metadata.drop_all(database, tables=tables)
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(
            f"the database cannot be prepared: {type(error).__name__}", "check the URL, the server and the permissions"
        ) from error


def _has_rows(connection: sa.Connection, table: sa.Table) -> bool:
    return connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None


def _forget_rows(database: sa.Engine, namespace: str) -> None:
    """Drop the example's tables and the namespace's rows; the engine's own tables may have others and stay."""
    try:
        Base.metadata.drop_all(database)
        with database.begin() as connection:
            for table in control.sorted_tables:
                connection.execute(sa.delete(table).where(table.c.namespace == namespace))
    except sa.exc.SQLAlchemyError as error:
        logger.warning("the tables of namespace %s could not be removed: %s", namespace, type(error).__name__)


def _forget_keys(url: str, namespace: str) -> None:
    try:
        with redis_client.Redis.from_url(url) as client:
            for pattern in (f"wb:{{{namespace}}}:*", f"wb:{{{namespace}:*"):
                names: list[bytes] = []
                for name in client.scan_iter(pattern, count=SCAN_KEYS):
                    names.append(name)
                    if len(names) == SCAN_KEYS:
                        client.unlink(*names)
                        names.clear()
                if names:
                    client.unlink(*names)
    except redis_client.RedisError as error:
        logger.warning("the keys of namespace %s could not be removed: %s", namespace, type(error).__name__)
