"""Writers in an event loop: many at a time, cancelled anywhere, against servers that fail; each write counts once."""

import asyncio
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from running import flushing
from shells import cancelled_at, during
from writebehind.drills.proxy import Mishap, Proxy
from writebehind.engine import (
    AsyncReceipt,
    AsyncWriteBehind,
    BacklogFull,
    ConfigurationError,
    DatabaseUnavailable,
    Durability,
    EngineSettings,
    RedisUnavailable,
    ValidationError,
    WriteBehindError,
    WriteOutcomeUnknown,
    WritePolicy,
    lane,
)
from writebehind.engine.adapters.scripts import APPEND
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import FlusherSettings, drain, initialise

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
BIGGEST = 2**63 - 1
WRITERS = 64
DEADLINE_SECONDS = 30.0

metadata = sa.MetaData()
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.BigInteger, nullable=False, default=0),
)
urgent = sa.Table(
    "urgent",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    info={"writebehind": {"backpressure": "reject"}},
)

Write = Callable[[AsyncWriteBehind], Coroutine[Any, Any, object]]


def engine_on(
    redis_url: Any,
    namespace: str,
    database: Any,
    durability: Durability = Durability.ACCEPTED,
    partitions: int = 3,
    **settings: Any,
) -> AsyncWriteBehind:
    """Make an engine."""
    return AsyncWriteBehind(
        redis=redis_url,
        database=database,
        tables=[counters, urgent],
        namespace=namespace,
        partitions=partitions,
        durability=durability,
        settings=EngineSettings(**({"write_timeout_seconds": DEADLINE_SECONDS} | settings)),
    )


@pytest.fixture
def engine(redis_url: str, namespace: str, sqlite_url: str) -> AsyncWriteBehind:
    """An engine on an initialised database; the test closes it."""
    made = engine_on(redis_url, namespace, sqlite_url)
    initialise(made.blocking, create_tables=True)
    return made


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """A proxy in front of the shared Redis."""
    with Proxy(urlsplit(redis_url).port or 6379) as between:
        yield between


def log(url: str, engine: AsyncWriteBehind) -> list[str]:
    """Return the mutation IDs in all logs, in order."""
    with redis.Redis.from_url(url) as client:
        return [fields[b"m"].decode() for each in engine.blocking.keys.logs for _, fields in client.xrange(each)]


def check_no_connection_is_left(url: str, name: str) -> None:
    """Wait until no client of this name is connected; a read that was cancelled may still be ending."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with redis.Redis.from_url(url) as client:
        while any(each["name"] == name for each in client.client_list()):
            assert time.monotonic() < deadline, "a connection is left"
            time.sleep(0.01)


def amounts(engine: AsyncWriteBehind) -> dict[int, int]:
    """Return what SQL has, after everything is flushed."""
    drain(engine.blocking, DEADLINE_SECONDS)
    with engine.blocking.database.connect() as connection:
        return {row.id: row.amount for row in connection.execute(sa.select(counters))}


# Cancelled


async def put(engine: AsyncWriteBehind) -> None:
    """Write one record, all the way into SQL."""
    await engine.increment(counters, 1, {"amount": 1}, durability=Durability.PERSISTED)


async def batch(engine: AsyncWriteBehind) -> None:
    """Write to all partitions."""
    async with engine.batch() as many:
        for number in range(1, 20):
            many.increment(counters, number, {"amount": 1})


async def atomic(engine: AsyncWriteBehind) -> None:
    """Write a group."""
    async with engine.atomic(counters, 1) as group:
        group.increment(counters, 1, {"amount": 1})


async def read(engine: AsyncWriteBehind) -> None:
    """Read, which writes nothing."""
    await engine.get(counters, 1)


ENTRIES: dict[Write, int] = {put: 1, batch: 19, atomic: 1, read: 0}

POSSIBLE = {
    "the write was not sent": {0},
    "the write is under way": {0, 1},
    "the write is accepted": {1},
}


@pytest.mark.parametrize("write", ENTRIES)
@pytest.mark.parametrize("warm", [True, False])
def test_cancelled_at_every_suspension(write: Write, *, warm: bool, engine: AsyncWriteBehind, redis_url: str) -> None:
    """Whatever is cancelled where, the log has it once or not at all, as the caller was told, and others go on."""
    told: Counter[str] = Counter()

    async def once(number: int) -> bool:
        namespace = engine.blocking.keys.namespace
        again = engine_on(f"{redis_url}?client_name={namespace}", namespace, engine.blocking.database)
        if warm:
            await again.put(counters, {"id": 99})
        before = len(log(redis_url, engine))
        notes: list[str] | None = None
        try:
            await asyncio.ensure_future(_awaited(cancelled_at(number, write(again))))
        except asyncio.CancelledError as error:
            notes = getattr(error, "__notes__", [])
        # The same connections serve others, and what is under way ends.
        assert await again.get(counters, 98) is None
        await again.close()
        written = len(log(redis_url, engine)) - before
        if notes is None:
            assert written == ENTRIES[write]
            return True
        if write in {put, atomic}:
            (note,) = [each for each in notes if each.startswith("the write")]
            standing = re.split("[:,]| and ", note)[0]
            told[standing] += 1
            assert written in POSSIBLE[standing]
        return False

    async def all_of_them() -> None:
        for number in range(1, 200):
            if await once(number):
                return
        pytest.fail("the write never ends")

    with flushing(engine.blocking, QUICK):
        asyncio.run(all_of_them())
    ids = log(redis_url, engine)
    assert len(ids) == len(set(ids))
    if write is put:
        # It suspends before it is sent, in its call, and while it waits for SQL.
        assert told["the write is under way"] + told["the write was not sent"] >= 1
        assert told["the write is accepted"] >= 1
    asyncio.run(engine.close())
    check_no_connection_is_left(redis_url, engine.blocking.keys.namespace)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


def test_cancelled_under_way(proxy: Proxy, redis_url: str, namespace: str, sqlite_url: str) -> None:
    """A call that is in the network goes on without its caller; ``close`` waits for it, and then the log has it."""

    async def noted(write: Awaitable[Any]) -> Any:
        try:
            return await write
        except asyncio.CancelledError as error:
            return error.__notes__[0]

    async def main() -> None:
        engine = engine_on(f"redis://127.0.0.1:{proxy.port}/0", namespace, sqlite_url)
        await engine.put(counters, {"id": 1})
        proxy.inject(Mishap.DELAY, APPEND.sha)
        task = asyncio.ensure_future(noted(engine.increment(counters, 1, {"amount": 5})))
        await asyncio.to_thread(proxy.wait_for, Mishap.DELAY)
        queued = [asyncio.ensure_future(noted(engine.increment(counters, 1, {"amount": 7}))) for _ in range(3)]
        await asyncio.sleep(0)
        for each in (task, queued[1]):
            each.cancel()
        assert re.match("the write is under way", await task)
        assert re.match("the write was not sent", await queued[1])
        closing = asyncio.ensure_future(engine.close())
        await asyncio.sleep(0)
        assert not closing.done()
        proxy.release()
        await closing
        assert all(each.result().durability is Durability.ACCEPTED for each in (queued[0], queued[2]))
        after = engine_on(redis_url, namespace, sqlite_url)
        async with after:
            assert await after.get(counters, 1) == {"id": 1, "amount": 19}
            assert len(log(redis_url, after)) == 4

    asyncio.run(main())


@pytest.mark.parametrize("partitions", [3, 16])
def test_cancelled_at_any_moment(partitions: int, redis_url: str, namespace: str, sqlite_url: str) -> None:
    """Writers that give up after a random time: what was accepted counts, what was not sent does not, nothing twice."""
    engine = engine_on(redis_url, namespace, sqlite_url, partitions=partitions)
    initialise(engine.blocking, create_tables=True)
    rng = random.Random(1)
    accepted: Counter[int] = Counter()
    perhaps: Counter[int] = Counter()

    async def writer(number: int) -> None:
        for _ in range(40):
            try:
                async with asyncio.timeout(rng.uniform(0, 0.02)):
                    try:
                        await engine.increment(counters, number, {"amount": 1})
                        accepted[number] += 1
                    except asyncio.CancelledError as error:
                        accepted[number] += "is accepted" in error.__notes__[0]
                        perhaps[number] += "is under way" in error.__notes__[0]
                        raise
            except TimeoutError:
                continue

    async def main() -> None:
        async with engine:
            await asyncio.gather(*map(writer, range(WRITERS)))

    asyncio.run(main())
    found = amounts(engine)
    for number in range(WRITERS):
        assert accepted[number] <= found.get(number, 0) <= accepted[number] + perhaps[number]
    ids = log(redis_url, engine)
    assert len(ids) == len(set(ids)) == sum(found.values())
    engine.blocking.close()


# Many at a time


def test_concurrent_writers_share_calls(engine: AsyncWriteBehind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 64 writers gets its own receipts, for far fewer calls than writes, and SQL has all of it."""
    calls = 0
    append_each = engine._core._appender.append_each

    def counted(sent: Any) -> Any:
        nonlocal calls
        calls += len(sent)
        return append_each(sent)

    monkeypatch.setattr(engine._core._appender, "append_each", counted)

    async def writer(number: int) -> set[tuple[int, Any]]:
        receipts = [await engine.increment(counters, number, {"amount": turn}) for turn in range(20)]
        return {(receipt.partition, receipt.entry_id) for receipt in receipts}

    async def main() -> None:
        async with engine:
            places = await asyncio.gather(*map(writer, range(WRITERS)))
            assert len(set().union(*places)) == WRITERS * 20

    asyncio.run(main())
    assert calls < WRITERS * 20 / 3
    assert amounts(engine) == dict.fromkeys(range(WRITERS), sum(range(20)))
    engine.blocking.close()


@pytest.mark.parametrize("level", [Durability.ACCEPTED, Durability.FSYNCED])
def test_order_of_a_key_at_the_first_use(
    own_redis: "OwnRedisFactory", namespace: str, sqlite_url: str, level: Durability
) -> None:
    """Also those that begin before the engine is started, or its level is checked, stand as they were called."""

    async def main(url: str) -> None:
        engine = engine_on(url, namespace, sqlite_url, durability=level)
        started = engine._core.start
        starts: list[None] = []

        def counted() -> Any:
            starts.append(None)
            return started()

        engine._core.start = counted  # type: ignore[method-assign]
        receipts = await asyncio.gather(*[engine.put(counters, {"id": 1, "amount": each}) for each in range(50)])
        ids = [receipt.entry_id for receipt in receipts]
        assert ids == sorted(ids)
        assert {receipt.durability for receipt in receipts} == {level}
        assert len(starts) == 1
        await engine.close()

    asyncio.run(main(own_redis({"appendfsync": "always"}).url))


def test_order_of_a_key_at_the_first_use_of_a_level(
    own_redis: "OwnRedisFactory", namespace: str, sqlite_url: str
) -> None:
    """Who asks for no level does not overtake who waits for the check of one; other partitions do not wait for it."""
    elsewhere = next(number for number in range(2, 60) if partition_of(str(number), 3) != partition_of("1", 3))

    async def main(url: str) -> None:
        async with engine_on(url, namespace, sqlite_url) as engine:
            checking, checked = threading.Event(), threading.Event()
            require = engine._core.require

            def slowly(level: Durability) -> None:
                checking.set()
                assert checked.wait(DEADLINE_SECONDS)
                require(level)

            engine._clearances._require = slowly
            writes = [
                engine.put(counters, {"id": 1, "amount": 1}),
                engine.put(counters, {"id": 1, "amount": 2}, durability=Durability.FSYNCED),
                engine.put(counters, {"id": 1, "amount": 3}),
            ]
            writing = [asyncio.ensure_future(write) for write in writes]
            await asyncio.to_thread(checking.wait, DEADLINE_SECONDS)
            await engine.put(counters, {"id": elsewhere})
            await writing[0]
            done, _ = await asyncio.wait(writing[1:], timeout=1.0)
            assert not done
            checked.set()
            receipts = await asyncio.gather(*writing)
            assert [receipt.entry_id.sequence for receipt in receipts] == [0, 1, 2]

    asyncio.run(main(own_redis({"appendfsync": "always"}).url))


@pytest.mark.parametrize("warm", [True, False])
def test_order_of_a_key_in_a_batch(engine: AsyncWriteBehind, *, warm: bool) -> None:
    """A batch of many calls has its place, which who writes later does not overtake, nor breaks into."""

    async def batch(small: AsyncWriteBehind) -> list[AsyncReceipt]:
        async with small.batch() as many:
            return [many.increment(counters, 1, {"amount": 1}) for _ in range(20)]

    async def main() -> None:
        keys = engine.blocking.keys
        small = engine_on(engine.blocking.redis_target, keys.namespace, engine.blocking.database, call_entries_max=3)
        if warm:
            await small.put(counters, {"id": 1})
        batches: list[Any] = []
        singles: list[Any] = []
        for _ in range(5):
            batches.append(asyncio.ensure_future(batch(small)))
            singles.append(asyncio.ensure_future(small.increment(counters, 1, {"amount": 1})))
        receipts = []
        for batched, single in zip(batches, singles, strict=True):
            receipts += [*await batched, await single]
        ids = [receipt.entry_id for receipt in receipts]
        assert ids == sorted(ids)
        await small.close()

    asyncio.run(main())
    assert amounts(engine) == {1: 105}
    engine.blocking.close()


@pytest.mark.parametrize("warm", [True, False])
def test_order_of_a_key_that_is_written_through(
    engine: AsyncWriteBehind, monkeypatch: pytest.MonkeyPatch, *, warm: bool
) -> None:
    """A write through has its place among those that are written behind; those who wait for SQL do so together."""

    async def batch() -> AsyncReceipt:
        async with engine.batch(policy=WritePolicy.WRITE_THROUGH) as many:
            return many.increment(counters, 1, {"amount": 1})

    async def main() -> None:
        async with engine:
            if warm:
                await engine.put(counters, {"id": 1})
            asked: list[Any] = []
            monkeypatch.setattr(engine._rounds, "_confirming", asked.append)
            writes = []
            for _ in range(WRITERS // 4):
                writes += [
                    asyncio.ensure_future(engine.increment(counters, 1, {"amount": 1}, policy=policy))
                    for policy in (WritePolicy.WRITE_BEHIND, WritePolicy.WRITE_THROUGH, None)
                ]
                writes.append(asyncio.ensure_future(batch()))
            receipts = await asyncio.gather(*writes)
            ids = [receipt.entry_id for receipt in receipts]
            assert ids == sorted(ids)
            assert {receipt.durability for receipt in receipts[1::2]} == {Durability.PERSISTED}
            assert {receipt.durability for receipt in receipts[::2]} == {Durability.ACCEPTED}
            assert asked == []

    asyncio.run(main())
    assert amounts(engine) == {1: WRITERS}
    engine.blocking.close()


def test_a_level_that_cannot_be_given_is_refused_alone(engine: AsyncWriteBehind, redis_url: str) -> None:
    """Nothing of it is written, each who asks is told, and those around it in the same partition are accepted."""

    async def main() -> None:
        async with engine:
            kinds = [None, Durability.REPLICATED, None, Durability.REPLICATED]
            writes = [engine.increment(counters, 1, {"amount": 1}, durability=kind) for kind in kinds]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert [isinstance(outcome, AsyncReceipt) for outcome in outcomes] == [True, False, True, False]
            assert isinstance(outcomes[1], ConfigurationError)
            assert isinstance(outcomes[3], ConfigurationError)
            assert outcomes[1] is not outcomes[3]
            with pytest.raises(ConfigurationError):
                async with engine.batch(durability=Durability.REPLICATED) as batch:
                    receipt = batch.increment(counters, 1, {"amount": 1})
            assert receipt.durability is None

    asyncio.run(main())
    assert len(log(redis_url, engine)) == 2
    assert amounts(engine) == {1: 2}
    engine.blocking.close()


def test_a_start_that_fails(proxy: Proxy, namespace: str, sqlite_url: str, redis_url: str) -> None:
    """All who waited for it are told that nothing was written, and the next ones try again."""

    async def main() -> AsyncWriteBehind:
        proxy.refuse()
        engine = engine_on(f"redis://127.0.0.1:{proxy.port}/0", namespace, sqlite_url)
        outcomes = await asyncio.gather(
            *[engine.put(counters, {"id": each}) for each in range(10)], return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {RedisUnavailable}
        assert len(set(map(id, outcomes))) == 10
        proxy.accept()
        await engine.put(counters, {"id": 1})
        await engine.close()
        return engine

    assert len(log(redis_url, asyncio.run(main()))) == 1


@pytest.mark.parametrize("mishap", [None, Mishap.CUT_BEFORE, Mishap.CUT_AFTER, Mishap.CUT_INSIDE])
def test_order_of_a_key(mishap: Mishap | None, proxy: Proxy, redis_url: str, namespace: str, sqlite_url: str) -> None:
    """Writes of one key stand in the log in the order in which they were called, whatever has to be tried again."""

    async def main() -> None:
        settings: dict[str, Any] = {"call_entries_max": 7, "redis_timeout_seconds": 0.5}
        async with engine_on(f"redis://127.0.0.1:{proxy.port}/0", namespace, sqlite_url, **settings) as engine:
            await engine.put(counters, {"id": 1})
            if mishap is not None:
                proxy.inject(mishap, APPEND.sha, skip=3)
            tasks = []
            for each in range(100):
                tasks.append(asyncio.ensure_future(engine.put(counters, {"id": 1, "amount": each})))
                # Some join those that wait, some find a call under way.
                await asyncio.sleep(0)
            receipts = await asyncio.gather(*tasks)
            ids = [receipt.entry_id for receipt in receipts]
            assert ids == sorted(ids)
            assert log(redis_url, engine)[1:] == [receipt.mutation_id for receipt in receipts]

    asyncio.run(main())


def test_a_refused_write_fails_alone(engine: AsyncWriteBehind, redis_url: str) -> None:
    """Those who share a call with one that would leave a column's range are accepted, in order."""

    async def main() -> None:
        async with engine:
            await engine.put(counters, {"id": 1, "amount": BIGGEST})
            writes = [engine.increment(counters, each, {"amount": 1}) for each in (1, *range(2, 80), 1)]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert outcomes[0] in refused
            assert outcomes[-1] in refused
            assert [type(error) for error in refused] == [ValidationError, ValidationError]
            assert refused[0] is not refused[1]
            for partition in range(3):
                accepted = [each for each in outcomes if isinstance(each, AsyncReceipt) and each.partition == partition]
                assert [each.entry_id for each in accepted] == sorted(each.entry_id for each in accepted)

    asyncio.run(main())
    assert len(log(redis_url, engine)) == 79
    assert amounts(engine) == {1: BIGGEST, **dict.fromkeys(range(2, 80), 1)}
    engine.blocking.close()


@pytest.mark.parametrize("fault", [Mishap.CUT_BEFORE, Mishap.CUT_AFTER])
def test_a_call_whose_reply_is_lost_is_not_divided(
    own_redis: "OwnRedisFactory", namespace: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, fault: Mishap
) -> None:
    """Where the server then hides what it is, nobody knows of any write, and none is sent a second time."""
    server = own_redis()

    def allow(sign: str) -> None:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "default", f"{sign}info")

    async def main(proxy: Proxy) -> None:
        async with engine_on(f"redis://127.0.0.1:{proxy.port}/0", namespace, sqlite_url) as engine:
            await engine.put(counters, {"id": 1})
            monkeypatch.setattr("writebehind.engine.adapters.attempts.pause", lambda *_: allow("-"))
            proxy.inject(fault, APPEND.sha)
            writes = [asyncio.ensure_future(engine.increment(counters, 1, {"amount": 1})) for _ in range(WRITERS)]
            await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
            allow("+")
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {WriteOutcomeUnknown}
            executed = WRITERS if fault is Mishap.CUT_AFTER else 0
            assert await engine.get(counters, 1) == {"id": 1, "amount": executed}
            assert len(log(server.url, engine)) == 1 + executed

    with Proxy(urlsplit(server.url).port or 0) as between:
        asyncio.run(main(between))


def test_levels_are_waited_for_together(own_redis: "OwnRedisFactory", namespace: str, sqlite_url: str) -> None:
    """Writers that wait for the disk ask once for many of them."""

    async def main(url: str) -> None:
        async with engine_on(url, namespace, sqlite_url) as engine:
            await engine.put(counters, {"id": 1}, durability=Durability.FSYNCED)
            asked: list[Any] = []
            confirming = engine._core.confirming

            def counted(*arguments: Any, **options: Any) -> Any:
                asked.append(arguments)
                return confirming(*arguments, **options)

            engine._rounds._confirming = counted
            writes = [engine.put(counters, {"id": each}, durability=Durability.FSYNCED) for each in range(WRITERS)]
            receipts = await asyncio.gather(*writes)
            assert {receipt.durability for receipt in receipts} == {Durability.FSYNCED}
            assert len(asked) < WRITERS / 3

    asyncio.run(main(own_redis({"appendfsync": "always"}).url))


# Backpressure


def test_a_full_partition_holds_up_its_own_writers(engine: AsyncWriteBehind, redis_url: str, namespace: str) -> None:
    """The event loop turns, other partitions take writes, and those that wait go on when there is room."""
    places: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number in range(60):
        places[partition_of(str(number), 3)].append(number)
    full, free = places[0], places[1]
    notes: list[str] = []

    async def main() -> None:
        async with engine_on(redis_url, namespace, engine.blocking.database, backlog_entries_max=4) as small:
            for number in full[:4]:
                await small.put(counters, {"id": number})
            waiting = [asyncio.ensure_future(small.put(counters, {"id": number})) for number in full[4:10]]
            async with asyncio.timeout(DEADLINE_SECONDS):
                await asyncio.gather(*[small.put(counters, {"id": number}) for number in free[:4]])
            assert not any(task.done() for task in waiting)
            waiting[2].cancel()
            try:
                await waiting[2]
            except asyncio.CancelledError as error:
                notes.extend(error.__notes__)
            await asyncio.to_thread(drain, small.blocking, DEADLINE_SECONDS)
            receipts = await asyncio.gather(*waiting[:2], *waiting[3:])
            assert [receipt.entry_id for receipt in receipts] == sorted(receipt.entry_id for receipt in receipts)

    asyncio.run(main())
    # One that is just being tried goes on without its caller, who is told so.
    gone = full[6:7] if "under way" in notes[0] else []
    assert sorted(amounts(engine)) == sorted([*full[:6], *gone, *full[7:10], *free[:4]])
    engine.blocking.close()


def test_policies_do_not_share_a_call(engine: AsyncWriteBehind, redis_url: str, namespace: str) -> None:
    """Of writes at the same time those whose table rejects are rejected, and those whose table waits wait."""
    numbers = [number for number in range(60) if partition_of(str(number), 3) == 0][:7]

    async def main() -> None:
        async with engine_on(redis_url, namespace, engine.blocking.database, backlog_entries_max=1) as small:
            await small.put(counters, {"id": numbers[0]})
            waiting = [asyncio.ensure_future(small.put(counters, {"id": number})) for number in numbers[1:4]]
            refused = [asyncio.ensure_future(small.put(urgent, {"id": number})) for number in numbers[4:]]
            async with asyncio.timeout(DEADLINE_SECONDS / 2):
                outcomes = await asyncio.gather(*refused, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {BacklogFull}
            with pytest.raises(BacklogFull):
                await small.put(urgent, {"id": numbers[4]})
            assert not any(task.done() for task in waiting)
            with flushing(engine.blocking, QUICK):
                await asyncio.gather(*waiting)
            await small.put(urgent, {"id": numbers[4]})

    asyncio.run(main())
    assert sorted(amounts(engine)) == sorted(numbers[:4])
    engine.blocking.close()


def test_so_many_wait_and_no_more(
    engine: AsyncWriteBehind, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers beyond the limit wait their turn, nobody beyond the deadline, and who gives up has written nothing."""
    monkeypatch.setattr(lane, "PLACES_MAX", 5)
    settings: dict[str, Any] = {"backlog_entries_max": 1, "write_timeout_seconds": 0.5}

    async def main() -> None:
        async with engine_on(redis_url, namespace, engine.blocking.database, **settings) as small:
            await small.put(counters, {"id": 1})
            writes = [small.increment(counters, 1, {"amount": 1}) for _ in range(20)]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {BacklogFull}
            assert any("wait in this process" in str(outcome) for outcome in outcomes)
        async with engine_on(redis_url, namespace, engine.blocking.database, backlog_entries_max=1) as patient:
            with flushing(engine.blocking, QUICK):
                await asyncio.gather(*[patient.increment(counters, 1, {"amount": 1}) for _ in range(20)])

    asyncio.run(main())
    assert amounts(engine) == {1: 20}
    engine.blocking.close()


# Servers that fail


def test_redis_is_restarted_under_load(own_redis: "OwnRedisFactory", namespace: str, sqlite_url: str) -> None:
    """Every write that was accepted is in SQL once, and none fails."""
    server = own_redis({"appendfsync": "always"})
    accepted: Counter[int] = Counter()

    async def main() -> AsyncWriteBehind:
        engine = engine_on(server.url, namespace, sqlite_url)
        initialise(engine.blocking, create_tables=True)
        stop = asyncio.Event()
        hundreds: asyncio.Queue[int] = asyncio.Queue()

        async def writer(number: int) -> None:
            while not stop.is_set():
                await engine.increment(counters, number, {"amount": 1})
                accepted[number] += 1
                if accepted.total() % 100 == 0:
                    hundreds.put_nowait(accepted.total())

        async with engine:
            writers = asyncio.gather(*map(writer, range(16)))
            async with during(writers):
                try:
                    for _ in range(2):
                        async with asyncio.timeout(DEADLINE_SECONDS):
                            await hundreds.get()
                            await hundreds.get()
                        await asyncio.to_thread(server.restart)
                finally:
                    stop.set()
            writers.result()
        return engine

    engine = asyncio.run(main())
    again = engine_on(server.url, namespace, sqlite_url)
    assert amounts(again) == dict(accepted)
    again.blocking.close()
    assert engine.settings.replicas == 1


# Loops and processes


def test_another_event_loop(engine: AsyncWriteBehind) -> None:
    """An engine belongs to one loop: another one is refused, with what to do."""

    async def first() -> None:
        async with engine:
            await engine.put(counters, {"id": 1})
            with pytest.raises(WriteBehindError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, engine.put(counters, {"id": 2}))

    asyncio.run(first())
    with pytest.raises(WriteBehindError, match="closed"):
        asyncio.run(_awaited(engine.put(counters, {"id": 2})))


def test_a_loop_that_ends_without_close(engine: AsyncWriteBehind, redis_url: str) -> None:
    """What was accepted stays so; the next loop is told to make an engine of its own."""

    async def leave() -> None:
        await engine.put(counters, {"id": 1})
        asyncio.ensure_future(engine.put(counters, {"id": 2}))  # noqa: RUF006 - left behind on purpose

    asyncio.run(leave())
    with pytest.raises(WriteBehindError, match="another event loop"):
        asyncio.run(_awaited(engine.put(counters, {"id": 3})))
    ids = log(redis_url, engine)
    assert len(ids) == len(set(ids)) in {1, 2}
    engine._core.close()
    engine.blocking.close()
    for threads in (engine._threads, engine._lanes._threads):
        threads.shutdown()


def test_a_forked_child(engine: AsyncWriteBehind, redis_url: str) -> None:
    """It goes on with connections and a loop of its own, and leaves the parent's alone."""

    async def child() -> None:
        async with engine:
            await engine.put(counters, {"id": 2})

    async def main() -> None:
        async with engine:
            await engine.put(counters, {"id": 1})
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    asyncio.run(child())
                    code = 0
                finally:
                    os._exit(code)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert status == 0
            await engine.put(counters, {"id": 3})

    asyncio.run(main())
    assert len(log(redis_url, engine)) == 3
    engine.blocking.close()


# Clients and databases


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_engine_on_postgresql(driver: str, redis_url: str, namespace: str, postgresql_url: str) -> None:
    """Receipts and reads go through its connections, in the event loop."""
    pytest.importorskip(driver)
    url = sa.make_url(postgresql_url).set(drivername=f"postgresql+{driver}")

    async def main() -> None:
        database = create_async_engine(url)
        engine = engine_on(redis_url, namespace, database)
        initialise(engine.blocking, create_tables=True)
        threads: set[str] = set()
        sa.event.listen(database.sync_engine, "connect", lambda *_: threads.add(threading.current_thread().name))
        async with engine:
            receipt = await engine.put(counters, {"id": 1, "amount": 3})
            await asyncio.to_thread(drain, engine.blocking, DEADLINE_SECONDS)
            assert (await receipt.wait(Durability.PERSISTED)).durability is Durability.PERSISTED
            assert await engine.get(counters, 2) is None
            receipt = await engine.increment(counters, 1, {"amount": 4}, policy=WritePolicy.WRITE_THROUGH)
            assert receipt.durability is Durability.PERSISTED
            with redis.Redis.from_url(redis_url) as client:
                for name in client.scan_iter(f"wb:{{{namespace}:*}}:counters:*"):
                    client.unlink(name)
            assert await engine.get_many(counters, [1]) == {1: {"id": 1, "amount": 7}}
        assert threads == {threading.current_thread().name}
        await database.dispose()

    asyncio.run(main())


def test_urls_of_both_kinds(redis_url: str, namespace: str, sqlite_url: str) -> None:
    """A URL of an asyncio driver makes an ``AsyncEngine`` that is closed with the engine."""

    async def main() -> None:
        url = sqlite_url.replace("sqlite:", "sqlite+aiosqlite:")
        async with engine_on(redis_url, namespace, url) as engine:
            initialise(engine.blocking, create_tables=True)
            await engine.put(counters, {"id": 1})
            await asyncio.to_thread(drain, engine.blocking, DEADLINE_SECONDS)
            assert await engine.get(counters, 2) is None

    asyncio.run(main())


def test_a_database_that_is_away(redis_url: str, namespace: str) -> None:
    """Writing does without it; a read that needs it says so, whatever the driver raises."""

    async def main(url: str) -> None:
        async with engine_on(redis_url, namespace, url) as engine:
            await engine.put(counters, {"id": 1})
            with pytest.raises(DatabaseUnavailable):
                await engine.get(counters, 2)

    for driver in ("psycopg_async", "psycopg"):
        asyncio.run(main(f"postgresql+{driver}://nobody@127.0.0.1:1/none"))


def test_a_client_for_asyncio(redis_url: str, namespace: str, sqlite_url: str) -> None:
    """Its connection settings are taken over, its decoding, protocol and retries are not, and it stays usable."""

    async def main() -> None:
        async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=3) as client:
            async with engine_on(client, namespace, sqlite_url) as engine:
                await engine.put(counters, {"id": 1})
                assert await engine.get(counters, 1) == {"id": 1, "amount": 0}
                assert len(log(redis_url, engine)) == 1
            assert await client.ping()

    asyncio.run(main())
    parts = urlsplit(redis_url)

    async def by_host() -> None:
        client = redis.asyncio.Redis(host=parts.hostname or "", port=parts.port or 6379)
        async with engine_on(client, namespace, sqlite_url) as engine:
            assert await engine.get(counters, 1) == {"id": 1, "amount": 0}
        await client.aclose()

    asyncio.run(by_host())
