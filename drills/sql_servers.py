"""The databases that a drill can run on: servers of its own, a SQLite file, or one that is given."""

import contextlib
import itertools
import shutil
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import sqlalchemy as sa

from writebehind.engine.embedded import EmbeddedDatabase, EmbeddedMariaDB, EmbeddedPostgreSQL
from writebehind.engine.errors import ConfigurationError

__all__ = ["SQL_KINDS", "SqlServer", "can_have", "given_sql", "own_sql"]

SQL_KINDS = ("postgresql", "mariadb", "sqlite")
DATABASE = "drill"
_SERVERS: Mapping[str, type[EmbeddedDatabase]] = {"postgresql": EmbeddedPostgreSQL, "mariadb": EmbeddedMariaDB}


class SqlServer(ABC):
    """A database, and what a drill may do to it.

    Attributes:
        kind: one of ``SQL_KINDS``.
        own: whether the drill has it for itself.
        has_process: whether there is a server that can be killed.
        port: TCP port, or 0.
        host: the server's address.
    """

    kind: str
    own = True
    has_process = True
    port = 0
    host = "127.0.0.1"

    @property
    @abstractmethod
    def url(self) -> str:
        """The SQLAlchemy URL of the drill's database, password included."""

    @abstractmethod
    def kill(self) -> None:
        """Send SIGKILL to the server."""

    @abstractmethod
    def start(self) -> None:
        """Start the server again, on the data and port that it had."""

    @abstractmethod
    def save(self) -> None:
        """Keep a copy of the data as it is on disk now; the server is down while it is made."""

    @abstractmethod
    def restore(self) -> None:
        """Put the copy back: what was committed since is gone."""

    @abstractmethod
    def renew(self) -> None:
        """Go on with an empty database."""

    def url_through(self, port: int) -> str:
        """Return the URL by which the database is reached through a proxy on this machine."""
        return sa.make_url(self.url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)


class _Embedded(SqlServer):
    """A PostgreSQL or MariaDB of the drill's own."""

    def __init__(self, kind: str, server: EmbeddedDatabase) -> None:
        self.kind = kind
        self._server = server
        self._number = itertools.count(1)
        self._url = ""
        self.renew()
        self.port = server.port

    @property
    def url(self) -> str:
        return self._url

    def kill(self) -> None:
        self._server.kill()

    def start(self) -> None:
        self._server.start()

    def save(self) -> None:
        self._server.kill()
        _copy(self._server.directory / "data", self._copy)
        self._server.start()

    def restore(self) -> None:
        self._server.kill()
        shutil.rmtree(self._server.directory / "data")
        _copy(self._copy, self._server.directory / "data")
        self._server.start()

    def renew(self) -> None:
        last, self._url = self._url, self._server.create_database(f"{DATABASE}{next(self._number)}")
        if last:
            self._drop(str(sa.make_url(last).database))

    def _drop(self, name: str) -> None:
        engine = sa.create_engine(self._server.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}{' WITH (FORCE)' if self.kind == 'postgresql' else ''}")

    @property
    def _copy(self) -> Path:
        return self._server.directory / "copy"


class _SqliteFile(SqlServer):
    """A SQLite file. There is no server; who writes to it may be killed."""

    kind = "sqlite"
    has_process = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = itertools.count(1)
        self.renew()

    @property
    def url(self) -> str:
        return f"sqlite:///{self._path}"

    def renew(self) -> None:
        self._path = self._directory / f"{DATABASE}{next(self._number)}.sqlite"

    def kill(self) -> None:
        raise ConfigurationError("SQLite has no server to kill", "choose postgresql or mariadb")

    def start(self) -> None:
        raise ConfigurationError("SQLite has no server to start", "choose postgresql or mariadb")

    def save(self) -> None:
        self._transfer(self._path, self._copy)

    def restore(self) -> None:
        # Through the file's own locks, as a transaction of another process: whoever has it open sees the old rows.
        self._transfer(self._copy, self._path)

    @property
    def _copy(self) -> Path:
        return self._path.with_suffix(".copy")

    @staticmethod
    def _transfer(source: Path, target: Path) -> None:
        with (
            contextlib.closing(sqlite3.connect(source)) as read,
            contextlib.closing(sqlite3.connect(target, timeout=30)) as written,
        ):
            read.backup(written)


class _Given(SqlServer):
    """A database of the user's, in which the drill has only tables of its own."""

    own = False
    has_process = False

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError as error:
            raise ConfigurationError("--database is not usable", "give a SQLAlchemy URL") from error
        self.kind = parsed.get_backend_name().replace("mysql", "mariadb")
        if self.kind not in SQL_KINDS or (self.kind == "sqlite" and parsed.database in {None, "", ":memory:"}):
            raise ConfigurationError(
                f"drills do not run on {parsed.get_backend_name()} like this", f"use one of {', '.join(SQL_KINDS)}"
            )
        self._url = url
        self.host = parsed.host or "127.0.0.1"
        self.port = parsed.port or {"postgresql": 5432, "mariadb": 3306, "sqlite": 0}[self.kind]

    @property
    def url(self) -> str:
        return self._url

    def kill(self) -> None:
        raise _not_ours()

    def start(self) -> None:
        raise _not_ours()

    def save(self) -> None:
        raise _not_ours()

    def restore(self) -> None:
        raise _not_ours()

    def renew(self) -> None:
        raise _not_ours()


@contextlib.contextmanager
def own_sql(kind: str, directory: Path) -> Iterator[SqlServer]:
    """Run a database of the drill's own.

    Args:
        kind: one of ``SQL_KINDS``.
        directory: where a SQLite file goes.

    Raises:
        ConfigurationError: the binaries are not there.
    """
    if kind == "sqlite":
        yield _SqliteFile(directory)
        return
    with _SERVERS[kind]() as server:
        yield _Embedded(kind, server)


def can_have(kind: str) -> bool:
    """Tell whether a database of a kind can be run here."""
    try:
        if kind != "sqlite":
            _SERVERS[kind]()
    except ConfigurationError:
        return False
    return True


def given_sql(url: str) -> SqlServer:
    """Return a database of the user's.

    Raises:
        ConfigurationError: the URL is not usable, or of a database that drills do not know.
    """
    return _Given(url)


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    # The owner has to stay: servers refuse data of another user.
    subprocess.run(["cp", "-a", "--", str(source), str(target)], check=True)  # noqa: S607 - cp is on every system


def _not_ours() -> ConfigurationError:
    return ConfigurationError("this database is not the drill's own", "leave --database out")
