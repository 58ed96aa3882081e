"""What an engine in an event loop makes of the service's own clients and databases."""

import asyncio
import contextlib
import logging
import math
import secrets
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

import aiosqlite
import pytest
import redis.asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from writebehind.engine import (
    AsyncWriteBehind,
    ConfigurationError,
    DatabaseUnavailable,
    RedisUnavailable,
    WriteBehind,
    WriteBehindError,
)
from writebehind.flushers import initialise

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 30.0

things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text),
)


def engine_on(redis_url: object, namespace: str, database: object, **more: object) -> AsyncWriteBehind:
    """Make an engine."""
    return AsyncWriteBehind(
        redis=redis_url,  # type: ignore[arg-type]
        database=database,  # type: ignore[arg-type]
        tables=[things],
        namespace=namespace,
        partitions=2,
        **more,  # type: ignore[arg-type]
    )


# A database that has no room


@contextlib.contextmanager
def without_connections(postgresql_url: str) -> Iterator[sa.URL]:
    """Give the URL of a user whom PostgreSQL lets have no connection, as it lets nobody where all are in use."""
    url = sa.make_url(postgresql_url)
    name, password = f"user_{secrets.token_hex(4)}", secrets.token_hex(8)
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' CONNECTION LIMIT 0")
        try:
            yield url.set(username=name, password=password)
        finally:
            connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async", "psycopg"])
def test_a_database_that_is_full_stops_no_write(
    driver: str, redis_url: str, namespace: str, postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine starts and writes beside it, and says why a read fails, whatever class the driver's error is of."""
    pytest.importorskip("asyncpg")

    async def main(url: sa.URL) -> None:
        async with engine_on(redis_url, namespace, url.set(drivername=f"postgresql+{driver}")) as engine:
            await engine.put(things, {"id": 1})
            with pytest.raises(DatabaseUnavailable, match="too many connections for role"):
                await engine.get(things, 2)

    with without_connections(postgresql_url) as url, caplog.at_level(logging.WARNING):
        asyncio.run(main(url))
        with WriteBehind(redis=redis_url, database=url, tables=[things], namespace=namespace, partitions=2) as blocking:
            blocking.put(things, {"id": 2})
    assert len([each for each in caplog.messages if "cannot be compared" in each]) == 2
    assert "too many connections for role" in caplog.text


# What the driver for threads is told


def told(url: str, **more: object) -> sa.URL:
    """Return the URL by which the engine for threads connects."""
    made = AsyncWriteBehind(
        redis="redis://",
        database=create_async_engine(url, **more),
        tables=[things],
        namespace="shop",
    )
    return made.blocking.database.url


@pytest.mark.parametrize(
    ("url", "arguments", "query"),
    [
        ("?ssl=require&prepared_statement_cache_size=0", {}, {"sslmode": "require"}),
        ("?host=one:1&host=two:2&target_session_attrs=primary", {}, {"target_session_attrs": "primary"}),
        (
            "",
            {"ssl": True, "timeout": 2.5},
            {"sslmode": "verify-full", "sslrootcert": "system", "connect_timeout": "3"},
        ),
        ("?ssl=require", {"ssl": "verify-full"}, {"sslmode": "verify-full"}),
        (
            "",
            {"server_settings": {"search_path": "a, b"}, "command_timeout": 5, "statement_cache_size": 0},
            {"options": "-c search_path=a,\\ b -c statement_timeout=5000"},
        ),
    ],
)
def test_what_asyncpg_is_told(url: str, arguments: dict[str, object], query: dict[str, str]) -> None:
    """Psycopg is told the same in its own words, by the same hosts, users and passwords."""
    pytest.importorskip("asyncpg")
    found = told(f"postgresql+asyncpg://me:secret@one/shop{url}", connect_args=arguments)
    assert found.drivername == "postgresql+psycopg"
    assert (found.username, found.password, found.database) == ("me", "secret", "shop")
    assert {name: value for name, value in found.query.items() if name != "host"} == query
    assert found.query.get("host") == (("one:1", "two:2") if "host" in url else None)


def test_what_is_told_arrives(postgresql_url: str) -> None:
    """PostgreSQL has it as it was given."""
    pytest.importorskip("asyncpg")
    text = "a\tb\nc\\ d  e"
    url = sa.make_url(postgresql_url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    blocking = told(url, connect_args={"server_settings": {"my.setting": text}, "timeout": math.inf})
    with sa.create_engine(blocking, poolclass=sa.NullPool).connect() as connection:
        assert connection.exec_driver_sql("SHOW my.setting").scalar_one() == text


@pytest.mark.parametrize(
    "arguments",
    [{"ssl": ssl.create_default_context()}, {"password": lambda: "secret"}, {"direct_tls": True}, {"ssl": {"ca": "x"}}],
)
def test_what_cannot_be_told(arguments: dict[str, object], sqlite_url: str) -> None:
    """It is refused by its name, with what to do; so is a function that connects. Another URL helps."""
    pytest.importorskip("asyncpg")
    (name,) = arguments
    url = "postgresql+asyncpg://me@127.0.0.1:1/shop"
    with pytest.raises(ConfigurationError, match=f"asyncpg is told by {name} cannot") as caught:
        told(url, connect_args=arguments)
    assert "blocking_database=" in caught.value.hint

    async def connect() -> object:
        raise OSError

    with pytest.raises(ConfigurationError, match="a function of its own"):
        told(url, async_creator=connect)
    database = create_async_engine(url, connect_args=arguments)
    made = engine_on("redis://", "shop", database, blocking_database="postgresql+psycopg://me@127.0.0.1:1/shop")
    assert made.blocking.database.url.drivername == "postgresql+psycopg"
    with pytest.raises(ConfigurationError, match="is sqlite, and database= is postgresql"):
        engine_on("redis://", "shop", database, blocking_database=sqlite_url)
    with pytest.raises(ConfigurationError, match="a driver for asyncio"):
        engine_on("redis://", "shop", database, blocking_database=url)


def test_other_drivers(sqlite_url: str) -> None:
    """What they are told goes on where it can be written down; a driver that is not installed is named."""
    url = sqlite_url.replace("sqlite:", "sqlite+aiosqlite:")
    assert told(url, connect_args={"timeout": 7}).query == {"timeout": "7"}
    both = told("postgresql+psycopg://me@127.0.0.1:1/shop?sslmode=require", connect_args={"connect_timeout": 7})
    assert both.drivername == "postgresql+psycopg"
    assert both.query == {"sslmode": "require", "connect_timeout": "7"}
    with pytest.raises(ConfigurationError, match="aiosqlite is told by factory cannot"):
        told(url, connect_args={"factory": object})
    with pytest.raises(ConfigurationError, match="not installed: asyncmy") as caught:
        engine_on("redis://", "shop", "mysql+asyncmy://me:secret@127.0.0.1/shop")
    assert "pip install" in caught.value.hint
    with pytest.raises(ConfigurationError, match="database URL is not usable"):
        engine_on("redis://", "shop", "nosuch+driver://me:secret@127.0.0.1/shop")


class Mine(redis.asyncio.Connection):
    """A service's own."""


def test_connections_of_a_class_of_its_own(sqlite_url: str) -> None:
    """A client whose connections do more than redis-py's is refused: the engine's would not do it."""
    own = redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(connection_class=Mine, host="127.0.0.1"))
    with pytest.raises(ConfigurationError, match="class of its own: Mine"):
        engine_on(own, "shop", sqlite_url)


# Event loops


def test_a_start_that_failed_in_another_loop(own_redis: "OwnRedisFactory", namespace: str, sqlite_url: str) -> None:
    """The engine belongs to no loop yet; one that has started stays with its own."""
    server = own_redis({"appendfsync": "always"})
    engine = engine_on(server.url, namespace, sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"))
    initialise(engine.blocking, create_tables=True)
    server.kill()
    with pytest.raises(RedisUnavailable):
        asyncio.run(engine.start())
    server.start()

    async def main() -> None:
        await engine.put(things, {"id": 1})
        assert await engine.get(things, 2) is None
        with pytest.raises(WriteBehindError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, engine.start())
        await engine.close()

    asyncio.run(main())


# Closing while the database is asked


class SlowToConnect:
    """A database to which connections are made one for each question, and slowly once it is told so.

    Args:
        sqlite_url: where it is.
        polite_seconds: how long it takes to end what is cancelled, unless it is cancelled once more.
    """

    def __init__(self, sqlite_url: str, polite_seconds: float = 0.0) -> None:
        self._polite_seconds = polite_seconds
        self.connecting = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.ended: list[str] = []
        self._path = sa.make_url(sqlite_url).database or ""
        self.database = create_async_engine(
            sqlite_url.replace("sqlite", "sqlite+aiosqlite", 1), async_creator=self._connect, poolclass=sa.NullPool
        )

    async def _connect(self) -> object:
        self.connecting.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            try:
                await asyncio.sleep(self._polite_seconds)
            finally:
                self.ended.append("cancelled")
            raise
        self.ended.append("connected")
        return await aiosqlite.connect(self._path)


async def closing_while_it_connects(slow: SlowToConnect, redis_url: str, namespace: str) -> "asyncio.Future[None]":
    """Cancel a read while it connects, and begin to close its engine."""
    engine = await engine_on(redis_url, namespace, slow.database).start()
    slow.ended.clear()
    slow.connecting.clear()
    slow.go_on.clear()
    reading = asyncio.ensure_future(engine.get(things, 1))
    await slow.connecting.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    return asyncio.ensure_future(engine.close())


def test_closing_waits_for_what_is_asked(redis_url: str, namespace: str, sqlite_url: str) -> None:
    """A connection that is being made for a read that nobody waits for is given back before ``close`` returns."""

    async def main() -> None:
        slow = SlowToConnect(sqlite_url)
        async with asyncio.timeout(DEADLINE_SECONDS):
            closing = await closing_while_it_connects(slow, redis_url, namespace)
            closing.add_done_callback(lambda _: slow.ended.append("closed"))
            asyncio.get_running_loop().call_later(0.5, slow.go_on.set)
            await closing
        assert slow.ended == ["connected", "closed"]

    asyncio.run(main())


@pytest.mark.parametrize("polite_seconds", [0.0, 2 * DEADLINE_SECONDS])
def test_closing_does_not_wait_for_a_database_that_hangs(
    redis_url: str, namespace: str, sqlite_url: str, polite_seconds: float
) -> None:
    """What it does not answer is cancelled, as often as it takes: nothing is left to ask it."""

    async def main() -> None:
        slow = SlowToConnect(sqlite_url, polite_seconds)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await (await closing_while_it_connects(slow, redis_url, namespace))
        assert slow.ended == ["cancelled"]
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
