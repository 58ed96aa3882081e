"""Fixtures that all tests share; servers.py says where the servers come from."""

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Protocol

import pytest
import redis

import servers
from servers import Databases, OwnRedis

LEAK_SECONDS_MAX = 2.0


def pytest_configure() -> None:
    """End like Ctrl-C on SIGTERM, so that the servers of the session do not outlive it."""
    main = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == main:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a forked child of a test dies as it would have
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


class OwnRedisFactory(Protocol):
    """What the fixture ``own_redis`` gives: call it for a started Redis, ended after the test."""

    def __call__(
        self, settings: Mapping[str, str | int] | None = None, *, binary: str | os.PathLike[str] | None = None
    ) -> OwnRedis:
        """Start a Redis with settings of redis.conf."""


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of the Redis that all tests share."""
    with servers.running_redis() as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Databases]:
    """The PostgreSQL that all tests share."""
    with servers.running_postgresql() as databases:
        yield databases


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Databases]:
    """The MariaDB that all tests share."""
    with servers.running_mariadb() as databases:
        yield databases


@pytest.fixture
def namespace() -> str:
    """A short name that no other test uses: the shared Redis is never flushed."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def redis_url(redis_server: str, namespace: str) -> Iterator[str]:
    """The shared Redis; keep to ``namespace`` in it."""
    yield redis_server
    if servers.source_of("WRITEBEHIND_TEST_REDIS_URL") is servers.Source.URL:
        with redis.Redis.from_url(redis_server) as client:
            for key in client.scan_iter(f"*{namespace}*", count=1000):
                client.unlink(key)


@pytest.fixture
def own_redis() -> Iterator[OwnRedisFactory]:
    """A factory of Redis servers that the test may kill and restart."""
    with contextlib.ExitStack() as stack:

        def start(
            settings: Mapping[str, str | int] | None = None, *, binary: str | os.PathLike[str] | None = None
        ) -> OwnRedis:
            return stack.enter_context(servers.own_redis(settings, binary=binary))

        yield start


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh SQLite database in a file."""
    return f"sqlite:///{tmp_path / 'database.sqlite'}"


@pytest.fixture
def postgresql_url(postgresql_server: Databases) -> Iterator[str]:
    """A fresh PostgreSQL database."""
    with postgresql_server.fresh() as url:
        yield url


@pytest.fixture
def mariadb_url(mariadb_server: Databases) -> Iterator[str]:
    """A fresh MariaDB database."""
    with mariadb_server.fresh() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database of each kind in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which threads or child processes go on living.

    It is set up before the test's other fixtures, so it looks when they have cleaned up.
    """
    threads_before = set(threading.enumerate())
    children_before = servers.child_processes().keys()
    yield
    may_leak_threads = request.node.get_closest_marker("leaks_threads") is not None

    def leaks() -> list[str]:
        threads = [] if may_leak_threads else [t for t in threading.enumerate() if t not in threads_before]
        children = {pid: c for pid, c in servers.child_processes().items() if pid not in children_before}
        return [f"thread {t.name}" for t in threads] + [f"process {pid}: {c}" for pid, c in children.items()]

    left = wait_until_empty(leaks)
    if left:
        pytest.fail("the test leaves behind: " + "; ".join(left))


def wait_until_empty(collect: Callable[[], list[str]]) -> list[str]:
    """Collect until there is nothing more, or until the deadline; give the last collection."""
    deadline = time.monotonic() + LEAK_SECONDS_MAX
    while (left := collect()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


@pytest.fixture
def even_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a value is refreshed early is no matter of luck: every draw is one half."""
    monkeypatch.setattr("random.random", lambda: 0.5)
