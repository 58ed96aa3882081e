"""Many tasks that wait for the durability of their writes, together and for long, on real servers."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import servers
from running import flushing
from writebehind.engine import AsyncWriteBehind, Durability, DurabilityTimeout, EngineSettings
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import FlusherSettings, drain, initialise

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
DEADLINE_SECONDS = 30.0
WRITERS = 100

counters = sa.Table(
    "counters",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.BigInteger, nullable=False, default=0),
)


def engine_on(redis_url: str, namespace: str, database: str, partitions: int = 2) -> AsyncWriteBehind:
    """Make an engine."""
    return AsyncWriteBehind(
        redis=redis_url,
        database=database,
        tables=[counters],
        namespace=namespace,
        partitions=partitions,
        settings=EngineSettings(write_timeout_seconds=DEADLINE_SECONDS),
    )


def counting(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> list[Any]:
    """Note the calls of a method."""
    calls: list[Any] = []
    method = getattr(target, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return method(*arguments, **options)

    monkeypatch.setattr(target, name, counted)
    return calls


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_asks_sql_for_all_who_wait(
    redis_url: str, namespace: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a flusher is away, one looks for each partition; when it has come all are answered."""
    engine = engine_on(redis_url, namespace, sqlite_url)
    initialise(engine.blocking, create_tables=True)
    looks = counting(monkeypatch, engine._core._confirmer, "_watermark")
    asked_sql = counting(monkeypatch, engine._core.rows, "applied_of")
    alone = counting(monkeypatch, engine._core, "confirming")

    async def main() -> None:
        async with engine:
            writes = [engine.put(counters, {"id": each}, durability=Durability.PERSISTED) for each in range(WRITERS)]
            waiting = asyncio.gather(*writes)
            await asyncio.to_thread(eventually, lambda: len(asked_sql) >= 8)  # twice a second for each partition
            # A task that looks does so up to thirty times for each of them.
            assert len(looks) < 60 * len(asked_sql)
            assert alone == []
            assert not waiting.done()
            with flushing(engine.blocking, QUICK):
                receipts = await waiting
            assert {receipt.durability for receipt in receipts} == {Durability.PERSISTED}

    asyncio.run(main())
    assert alone == []
    engine.blocking.close()


def test_a_disk_that_stalls_holds_up_those_who_wait_for_it(
    own_redis: "OwnRedisFactory", namespace: str, sqlite_url: str
) -> None:
    """Limiters, caches and receipts of what SQL has go on, however many wait for the disk."""
    server = own_redis({"appendfsync": "everysec"}, binary=servers.newest_redis_binary())
    partitions = 40
    engine = engine_on(server.url, namespace, sqlite_url, partitions)
    initialise(engine.blocking, create_tables=True)
    # All partitions but one: more than there are threads that wait for disks.
    numbers = [each for each in range(400) if partition_of(str(each), partitions)]
    others = (each for each in range(400, 10_000) if not partition_of(str(each), partitions))

    async def main() -> None:
        async with engine:
            await engine.put(counters, {"id": -1}, durability=Durability.FSYNCED)
            with redis.Redis.from_url(server.url) as client:
                client.config_set("appendfsync", "no")  # nothing reaches the disk, and WAITAOF waits
                waiting = asyncio.gather(
                    *[engine.put(counters, {"id": each}, durability=Durability.FSYNCED) for each in numbers]
                )
                # All threads that wait for disks.
                await asyncio.to_thread(eventually, lambda: client.info("clients")["blocked_clients"] >= 32)
                async with asyncio.timeout(DEADLINE_SECONDS / 3):
                    assert (await engine.rate_limiter("api", 5, 60).hit("me")).allowed
                    await engine.cache("profile", ttl_seconds=60).invalidate("me")
                    with flushing(engine.blocking, QUICK):
                        await engine.put(counters, {"id": -2}, durability=Durability.PERSISTED)
                    # One of another partition who waits for the disk finds no thread, and is told in time.
                    receipt = await engine.put(counters, {"id": next(others)})
                    with pytest.raises(DurabilityTimeout, match="not FSYNCED in time"):
                        await receipt.wait(Durability.FSYNCED, 0.2)
                assert not waiting.done()
                client.config_set("appendfsync", "everysec")
            await waiting

    asyncio.run(main())
    engine.blocking.close()


def test_a_receipt_of_a_closed_engine(redis_url: str, namespace: str, sqlite_url: str) -> None:
    """It says that nobody waits any more, and not that SQL does not have the write; what it knows it says."""
    engine = engine_on(redis_url, namespace, sqlite_url)
    initialise(engine.blocking, create_tables=True)

    async def main() -> None:
        async with engine:
            receipt = await engine.put(counters, {"id": 1})
            waiting = asyncio.ensure_future(receipt.wait(timeout=DEADLINE_SECONDS))
            await asyncio.sleep(0)
            await engine.close()
        with flushing(engine.blocking, QUICK):
            drain(engine.blocking, DEADLINE_SECONDS)
        for wait in (waiting, receipt.wait()):
            with pytest.raises(DurabilityTimeout, match="is accepted; this engine is closed, and cannot tell"):
                await wait
        assert (await receipt.wait(Durability.ACCEPTED)).durability is Durability.ACCEPTED

    asyncio.run(main())
    engine.blocking.close()
