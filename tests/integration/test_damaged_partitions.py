"""A partition that another program has damaged refuses its own writes, and costs the other partitions nothing."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

from writebehind.engine import AsyncWriteBehind, ConfigurationError, Durability, Receipt, WriteBehind, WritePolicy
from writebehind.flushers import drain, initialise

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 20.0
ROUNDS = 20

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
)


def until(happened: Callable[[], object]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class Shop:
    """An application with two partitions, and keys of each; what it calls is on the Redis and database given."""

    def __init__(self, redis_url: str, database: str, namespace: str) -> None:
        self.options: dict[str, Any] = {
            "redis": redis_url, "database": database, "namespace": namespace, "partitions": 2, "tables": [accounts]
        }  # fmt: skip
        self.client = redis.Redis.from_url(redis_url)
        self.app = WriteBehind(**self.options)
        initialise(self.app, create_tables=True)
        self.of: dict[int, list[int]] = {0: [], 1: []}
        for key in range(20):
            self.of[self.app.composer.put(self.app.plan_of(accounts), {"id": key}).partition].append(key)
        for partition in self.of:
            self.app.put(accounts, {"id": self.of[partition][0], "balance": 1})

    def damage(self, what: str) -> None:
        """Have another program write over the first partition's meta hash."""
        meta = self.app.keys.metas[0]
        self.client.copy(meta, f"kept:{meta}")
        if what == "lineage":
            self.client.hset(meta, mapping={"epoch": "7", "lineage:7": "nonsense"})
        else:
            self.client.set(meta, "foreign")

    def mend(self) -> None:
        """Put back what was there."""
        meta = self.app.keys.metas[0]
        self.client.copy(f"kept:{meta}", meta, replace=True)

    def in_sql(self) -> dict[int, int]:
        """Return the rows."""
        with self.app.database.connect() as connection:
            return {row.id: row.balance for row in connection.execute(sa.select(accounts))}

    def connections(self) -> int:
        """Return how many connections Redis was ever asked for."""
        return int(self.client.info("stats")["total_connections_received"])

    def close(self) -> None:
        """Close it."""
        self.app.close()
        self.client.close()


@pytest.fixture
def shop(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[Shop]:
    """A shop on the shared Redis."""
    with contextlib.closing(Shop(redis_url, sqlite_url, namespace)) as made:
        yield made


def outcomes(receipts: list[Receipt]) -> list[Durability | None]:
    """Return what each receipt says."""
    return [receipt.durability for receipt in receipts]


@pytest.mark.parametrize("what", ["lineage", "another type"])
@pytest.mark.parametrize("policy", list(WritePolicy))
def test_a_batch(shop: Shop, what: str, policy: WritePolicy) -> None:
    """The error says how many of its writes are accepted, the receipts which; the others can be written again."""
    shop.damage(what)
    accepted = Durability.PERSISTED if policy is WritePolicy.WRITE_THROUGH else Durability.ACCEPTED
    with contextlib.closing(WriteBehind(**shop.options)) as other:
        batch = other.batch(policy=policy)
        receipts = [
            batch.increment(accounts, shop.of[partition][number], {"balance": 10})
            for number in (0, 1)
            for partition in (0, 1)
        ]
        with pytest.raises(ConfigurationError, match="2 of 4 writes of a batch are accepted"):
            batch.flush()
        assert outcomes(receipts) == [None, accepted, None, accepted]
        assert other.get(accounts, shop.of[1][0]) == {"id": shop.of[1][0], "balance": 11}
        shop.mend()
        for key in shop.of[0][:2]:
            other.increment(accounts, key, {"balance": 10})
    drain(shop.app, DEADLINE_SECONDS)
    assert shop.in_sql() == {shop.of[0][0]: 11, shop.of[0][1]: 10, shop.of[1][0]: 11, shop.of[1][1]: 10}


@pytest.mark.parametrize("what", ["lineage", "another type"])
def test_tasks_that_know_nothing_of_each_other(shop: Shop, what: str) -> None:
    """Who shares a round trip with a write to a damaged partition is written; no connection is given up for it."""
    shop.damage(what)

    async def write() -> None:
        async with AsyncWriteBehind(**shop.options) as other:

            async def together() -> list[Any]:
                writes = [other.increment(accounts, shop.of[each][0], {"balance": 1}) for each in (0, 1)]
                return await asyncio.gather(*writes, return_exceptions=True)

            await other.start()
            before = shop.connections()
            for _ in range(ROUNDS):
                refused, receipt = await together()
                assert isinstance(refused, ConfigurationError)
                assert receipt.durability is Durability.ACCEPTED
            assert shop.connections() < before + ROUNDS // 2
            shop.mend()
            for receipt in await together():
                assert receipt.durability is Durability.ACCEPTED

    asyncio.run(write())
    drain(shop.app, DEADLINE_SECONDS)
    assert shop.in_sql() == {shop.of[0][0]: 2, shop.of[1][0]: 2 + ROUNDS}


def test_a_batch_gives_no_connection_up(shop: Shop) -> None:
    """Also where nothing of it can be sent."""
    shop.damage("lineage")
    with contextlib.closing(WriteBehind(**shop.options)) as other:
        other.start()
        before = shop.connections()
        for _ in range(ROUNDS):
            batch = other.batch()
            receipt = batch.increment(accounts, shop.of[0][0], {"balance": 1})
            with pytest.raises(ConfigurationError, match="does not hold what the engine writes"):
                batch.flush()
            assert receipt.durability is None
        assert shop.connections() < before + ROUNDS // 2


@pytest.mark.parametrize("what", ["lineage", "another type"])
def test_what_redis_loses_of_the_other_is_written_again(
    shop: Shop, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that has written to both writes again what it can, and says once which partition it cannot."""
    shop.damage(what)
    app, key = shop.app, shop.of[1][0]
    record = app.composer.put(app.plan_of(accounts), {"id": key})
    shop.client.delete(app.keys.logs[1], app.keys.metas[1], app.keys.record(1, *record.member[1:3]))
    until(lambda: shop.client.xlen(app.keys.logs[1]) == 1)
    until(lambda: "partition 0: what Redis has lost of it cannot be written again" in caplog.text)
    shop.mend()
    app.increment(accounts, shop.of[0][0], {"balance": 1})
    drain(app, DEADLINE_SECONDS)
    assert shop.in_sql() == {shop.of[0][0]: 2, key: 1}
    assert caplog.text.count("partition 0: what Redis has lost of it cannot be written again") == 1


@pytest.mark.parametrize("what", ["lineage", "another type"])
def test_redis_is_restarted(own_redis: "OwnRedisFactory", sqlite_url: str, namespace: str, what: str) -> None:
    """Who has written to both meets the new history of each; the damaged one stands in nobody's way."""
    server = own_redis({"appendfsync": "always"})
    with contextlib.closing(Shop(server.url, sqlite_url, namespace)) as shop:
        shop.damage(what)
        server.restart()
        assert shop.app.increment(accounts, shop.of[1][0], {"balance": 1}).durability is Durability.ACCEPTED
        with pytest.raises(ConfigurationError):
            shop.app.increment(accounts, shop.of[0][0], {"balance": 1})
        shop.mend()
        shop.app.increment(accounts, shop.of[0][0], {"balance": 1})
        drain(shop.app, DEADLINE_SECONDS)
        assert shop.in_sql() == {shop.of[0][0]: 2, shop.of[1][0]: 2}
