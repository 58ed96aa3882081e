"""Reads in an event loop: many at a time, cancelled anywhere; one of them loads, and nobody is left waiting for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from shells import cancelled_at
from sources import Source
from writebehind.engine import AsyncWriteBehind, EngineSettings, WriteBehindError
from writebehind.flushers import FlusherSettings, drain, initialise

DEADLINE_SECONDS = 30.0
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
SUSPENSIONS_MAX = 200

things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.Integer, nullable=False, default=0),
)


class World:
    """A namespace with one row that Redis does not have."""

    def __init__(self, redis_url: str, database: str, namespace: str, *, in_loop: bool) -> None:
        self.redis_url = f"{redis_url}?client_name={namespace}"
        self.database = database
        self.namespace = namespace
        self.in_loop = in_loop
        self.client: Any = redis.Redis.from_url(redis_url)
        engine = self.engine()
        initialise(engine.blocking, create_tables=True)
        with engine.blocking.database.begin() as connection:
            connection.execute(sa.insert(things).values(id=1, amount=5))
        self.name = engine.blocking.keys.record(0, "things", "1")
        engine.blocking.close()

    def engine(self, **settings: Any) -> AsyncWriteBehind:
        """Make an engine, whose leases last for longer than anybody waits."""
        tuned: dict[str, Any] = {"read_timeout_seconds": DEADLINE_SECONDS, "load_lease_seconds": 600.0} | settings
        return AsyncWriteBehind(
            redis=self.redis_url,
            database=self.database.replace("sqlite", "sqlite+aiosqlite", 1) if self.in_loop else self.database,
            tables=[things],
            namespace=self.namespace,
            partitions=1,
            settings=EngineSettings(**tuned),
        )

    def make_cold(self, *, leased: bool) -> None:
        """Have Redis know nothing of the row; or that somebody loads it, for a moment."""
        self.client.delete(self.name)
        if leased:
            self.client.hset(self.name, mapping={":state": "loading", ":token": "x", ":loaded": "0-0"})
            self.client.pexpire(self.name, 20)

    def check_no_connection_is_left(self) -> None:
        """Wait until no client is connected; a read that was cancelled may still be ending."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any(each["name"] == self.namespace for each in self.client.client_list()):
            assert time.monotonic() < deadline, "a connection is left"
            time.sleep(0.01)


@pytest.fixture(params=[False, True], ids=["Engine", "AsyncEngine"])
def world(request: pytest.FixtureRequest, redis_url: str, sqlite_url: str, namespace: str) -> Iterator[World]:
    """The namespace, with SQL in threads and in the event loop."""
    made = World(redis_url, sqlite_url, namespace, in_loop=request.param)
    yield made
    made.client.close()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """The database, watched."""
    return Source(monkeypatch)


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""

    def wait() -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    await asyncio.to_thread(wait)


def test_two_hundred_tasks_load_once(world: World, source: Source) -> None:
    """One task loads for all, those of another engine included, and hits are read meanwhile."""

    async def main() -> None:
        async with world.engine() as one, world.engine() as other:
            await one.put(things, {"id": 2, "amount": 6})
            source.hold()
            reads = [asyncio.ensure_future(engine.get(things, 1)) for engine in (one, other) for _ in range(100)]
            await asyncio.to_thread(source.wait)
            engines = one, other
            await eventually(lambda: sum(engine.read_counts()["things"].waits for engine in engines) == 199)
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert [await one.get(things, 2) for _ in range(20)] == [{"id": 2, "amount": 6}] * 20
            source.go_on.set()
            assert await asyncio.gather(*reads) == [{"id": 1, "amount": 5}] * 200
            assert source.queries == [["1"]]

    asyncio.run(main())


def test_two_hundred_tasks_load_the_rest_once(world: World, source: Source) -> None:
    """So they do where Redis has a part of the record."""

    async def main() -> None:
        async with world.engine() as one, world.engine() as other:
            await one.patch(things, 1, {"amount": 7})
            source.hold()
            reads = [asyncio.ensure_future(engine.get(things, 1)) for engine in (one, other) for _ in range(100)]
            await asyncio.to_thread(source.wait)
            await eventually(lambda: sum(each.read_counts()["things"].waits for each in (one, other)) == 199)
            source.go_on.set()
            assert await asyncio.gather(*reads) == [{"id": 1, "amount": 7}] * 200
            assert source.queries == [["1"]]

    asyncio.run(main())


@pytest.mark.parametrize("state", ["cold", "patched", "renewed", "awaited"])
def test_cancelled_at_every_suspension(world: World, state: str) -> None:
    """Wherever a read is cancelled, another one of the record is not held up, and reads what there is."""

    async def once(number: int, expected: dict[str, int]) -> bool:
        engine = world.engine(refresh_ahead_share=0.9 if state == "renewed" else 0.0)
        async with engine:
            if state == "patched":
                await engine.patch(things, 1, {"amount": number})
                expected["amount"] = number
            elif state == "renewed":
                await engine.get(things, 1)
                world.client.pexpire(world.name, 1_000_000)
            else:
                world.make_cold(leased=state == "awaited")
            try:
                await asyncio.ensure_future(_awaited(cancelled_at(number, engine.get(things, 1))))
                ended = True
            except asyncio.CancelledError:
                ended = False
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await engine.get(things, 1) == expected
        if state == "patched":
            await asyncio.to_thread(drain, engine.blocking, DEADLINE_SECONDS, QUICK)
            world.client.delete(world.name)
        await asyncio.to_thread(engine.blocking.close)
        return ended

    async def all_of_them() -> int:
        expected = {"id": 1, "amount": 5}
        for number in range(1, SUSPENSIONS_MAX):
            if await once(number, expected):
                return number
        raise AssertionError("the read never ends")

    assert asyncio.run(all_of_them()) > 1
    world.check_no_connection_is_left()


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


@pytest.mark.parametrize("event", ["nothing", "put", "flush", "expiry"])
def test_a_cancelled_load_goes_on(world: World, source: Source, event: str) -> None:
    """It fills Redis for the others as if its caller were there, unless it has been overtaken."""

    async def main() -> None:
        async with world.engine() as engine, world.engine() as other:
            source.hold()
            reading = asyncio.ensure_future(engine.get(things, 1))
            await asyncio.to_thread(source.wait)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            expected = {"id": 1, "amount": 5 if event in {"nothing", "expiry"} else 9}
            if event in {"put", "flush"}:
                await other.put(things, expected)
            if event == "flush":
                await asyncio.to_thread(drain, other.blocking, DEADLINE_SECONDS, QUICK)
            if event in {"flush", "expiry"}:
                world.client.delete(world.name)
            waiting = asyncio.ensure_future(other.get(things, 1))
            await asyncio.sleep(0)
            source.go_on.set()
            assert await waiting == expected
            await eventually(lambda: engine.read_counts()["things"].not_kept == (event != "nothing"))
            assert await engine.get(things, 1) == expected
            assert len(source.queries) == (2 if event in {"flush", "expiry"} else 1)
        assert world.client.hget(world.name, ":state") == b"full"

    asyncio.run(main())


def test_closed_while_a_read_waits(world: World) -> None:
    """It says so."""

    async def main() -> None:
        async with world.engine() as engine:
            world.make_cold(leased=True)
            world.client.pexpire(world.name, 600_000)
            reading = asyncio.ensure_future(engine.get(things, 1))
            await eventually(lambda: engine.read_counts()["things"].waits == 1)
        with pytest.raises(WriteBehindError, match="closed meanwhile"):
            await reading

    asyncio.run(main())
