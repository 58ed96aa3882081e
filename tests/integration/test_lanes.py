"""Writers that share calls: whoever leaves, waits or is refused, the others go on and are told."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import sqlalchemy as sa

from running import flushing
from writebehind.drills.proxy import Proxy
from writebehind.engine import (
    AsyncWriteBehind,
    BacklogFull,
    Backpressure,
    Durability,
    DurabilityTimeout,
    EngineSettings,
    RedisUnavailable,
    ValidationError,
    lane,
)
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import FlusherSettings, drain, initialise

DEADLINE_SECONDS = 10.0
PARTITIONS = 16
BIGGEST = 2**63 - 1
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)

metadata = sa.MetaData()


def counters_of(name: str, **policies: str) -> sa.Table:
    """Return a table of counters."""
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("amount", sa.BigInteger, nullable=False, default=0),
        info={"writebehind": policies} if policies else {},
    )


counters = counters_of("counters")
urgent = counters_of("urgent", backpressure="reject")
patient = counters_of("patient", backpressure="block")

IDS = {partition_of(str(number), PARTITIONS): number for number in range(400)}
"""A key of each partition."""

Make = Callable[..., AsyncWriteBehind]


@pytest.fixture
def make(redis_url: str, namespace: str, sqlite_url: str) -> Make:
    """A factory of engines on an initialised database; the test closes what it makes."""

    def start(url: str = redis_url, partitions: int = 1, **settings: Any) -> AsyncWriteBehind:
        engine = AsyncWriteBehind(
            redis=url,
            database=sqlite_url,
            tables=[counters, urgent, patient],
            namespace=namespace,
            partitions=partitions,
            settings=EngineSettings(**({"write_timeout_seconds": DEADLINE_SECONDS} | settings)),
        )
        initialise(engine.blocking, create_tables=True)
        return engine

    return start


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """A proxy in front of the shared Redis."""
    with Proxy(urlsplit(redis_url).port or 6379) as between:
        yield between


class Gate:
    """Holds calls up in their threads, before they are sent, until it is opened.

    Args:
        engine: whose calls, once it is started.

    Attributes:
        calls: of each call made since, how many entries it has, and how many records it changes.
    """

    def __init__(self, engine: AsyncWriteBehind) -> None:
        appender = engine._lanes._appender
        self._append_each = appender.append_each
        self._arrived = threading.Semaphore(0)
        self._opened = threading.Event()
        self.calls: list[tuple[int, int]] = []
        appender.append_each = self._held  # type: ignore[method-assign]

    def _held(self, sent: Any) -> Any:
        self.calls += [(call.entries, len(call.records)) for call, _ in sent]
        self._arrived.release()
        assert self._opened.wait(DEADLINE_SECONDS)
        return self._append_each(sent)

    async def arrived(self) -> None:
        """Wait until one more round trip is held up."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=DEADLINE_SECONDS)

    def open(self) -> None:
        """Let calls through from now on."""
        self._opened.set()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test in an event loop that ends in time."""

    async def in_time() -> None:
        async with asyncio.timeout(3 * DEADLINE_SECONDS):
            await main()

    asyncio.run(in_time())


async def turns() -> None:
    """Let the tasks that can do so come to where they wait."""
    for _ in range(3):
        await asyncio.sleep(0)


def begin(write: Coroutine[Any, Any, Any]) -> "asyncio.Future[Any]":
    """Begin a write in a task of its own."""
    return asyncio.ensure_future(write)


def add(engine: AsyncWriteBehind, number: int, amount: int = 1) -> "asyncio.Future[Any]":
    """Begin an increment."""
    return begin(engine.increment(counters, number, {"amount": amount}))


async def amount_of(engine: AsyncWriteBehind, number: int, table: sa.Table = counters) -> int:
    """Return what a record holds."""
    record = await engine.get(table, number)
    return -1 if record is None else int(record["amount"])


async def gone(write: "asyncio.Future[Any]") -> str:
    """Cancel a write, and return what its caller is told."""
    write.cancel()
    with pytest.raises(asyncio.CancelledError) as told:
        await write
    return str(told.value.__notes__[0])


# Threads


def test_the_only_writer_of_a_lane_that_is_ready_leaves(make: Make) -> None:
    """While all threads are busy the others' lanes stay ready, and go when a thread is free."""

    async def main() -> None:
        engine = make(partitions=PARTITIONS)
        for number in IDS.values():
            await engine.put(counters, {"id": number})
        gate = Gate(engine)
        busy = []
        for partition in range(4):
            busy.append(add(engine, IDS[partition]))
            await gate.arrived()
        waiting = [add(engine, IDS[partition]) for partition in (4, 5, 6)]
        await turns()
        assert "not sent" in await gone(waiting[1])
        gate.open()
        await asyncio.gather(*busy, waiting[0], waiting[2])
        await asyncio.gather(*[add(engine, number) for number in IDS.values()])
        amounts = [await amount_of(engine, IDS[partition]) for partition in range(8)]
        assert amounts == [2, 2, 2, 2, 2, 1, 2, 1]
        await engine.close()

    run(main)


def test_a_thread_that_cannot_be_had(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writers of that round trip are told, and the next ones get through."""

    async def main() -> None:
        engine = make()
        await engine.put(counters, {"id": 1})

        def refuse(*_: Any) -> Any:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(engine._lanes._threads, "submit", refuse)
            outcomes = await asyncio.gather(add(engine, 1), add(engine, 1), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["can't start new thread"] * 2
        await add(engine, 1)
        assert await amount_of(engine, 1) == 1
        await engine.close()

    run(main)


# Those who have gone


@pytest.mark.parametrize("neighbour_first", [True, False])
def test_a_write_under_way_survives_its_neighbours_fault(make: Make, *, neighbour_first: bool) -> None:
    """Where the call is divided, who was told that the write goes on was told the truth."""

    async def main() -> None:
        engine = make()
        await engine.put(counters, {"id": 1, "amount": BIGGEST})
        await engine.put(counters, {"id": 2})
        gate = Gate(engine)
        if neighbour_first:
            refused, mine = add(engine, 1), add(engine, 2, 5)
        else:
            mine, refused = add(engine, 2, 5), add(engine, 1)
        await gate.arrived()
        assert "under way" in await gone(mine)
        gate.open()
        with pytest.raises(ValidationError):
            await refused
        await engine.close()
        again = make()
        assert await amount_of(again, 2) == 5
        await again.close()

    run(main)


def test_a_write_under_way_that_finds_no_room_waits_without_its_caller(make: Make) -> None:
    """It is tried as long as any other, in its order, and ``close`` waits for it."""

    async def main() -> None:
        engine, other = make(backlog_entries_max=1), make()
        await engine.put(counters, {"id": 1})
        gate = Gate(engine)
        first, mine, last = add(engine, 1, 1), add(engine, 1, 10), add(engine, 1, 100)
        await gate.arrived()
        assert "under way" in await gone(mine)
        gate.open()
        closing = begin(engine.close())
        with flushing(other.blocking, QUICK):
            receipts = await asyncio.gather(first, last)
            await closing
        assert [receipt.entry_id.sequence for receipt in receipts] == [1, 3]
        assert await amount_of(other, 1) == 111
        await other.close()

    run(main)


def test_who_rejects_is_not_refused_for_those_who_have_gone(make: Make) -> None:
    """Where those who waited for room have left, nobody is refused for what was known then."""

    async def main() -> None:
        engine = make(backlog_entries_max=1)
        await engine.put(counters, {"id": 1})
        blocked = add(engine, 1)
        with pytest.raises(BacklogFull):
            await engine.put(urgent, {"id": 1})
        await gone(blocked)
        while True:
            # Until what was known has expired; if it was being tried just then, the one that has gone is written, too.
            await asyncio.to_thread(drain, engine.blocking, DEADLINE_SECONDS)
            try:
                await engine.put(urgent, {"id": 1})
                break
            except BacklogFull:
                await turns()
        await engine.close()

    run(main)


# Who waits, and who does not


def test_a_batch_has_the_policy_of_its_tables(make: Make) -> None:
    """One whose tables wait does so where the engine rejects; one whose tables reject does not where it waits."""

    async def put_in_batch(engine: AsyncWriteBehind, table: sa.Table) -> None:
        async with engine.batch() as batch:
            batch.put(table, {"id": 2})

    async def main() -> None:
        strict = make(backlog_entries_max=1, backpressure=Backpressure.REJECT)
        await strict.put(patient, {"id": 1})
        waiting = begin(put_in_batch(strict, patient))
        for table in (counters, urgent):
            with pytest.raises(BacklogFull):
                await put_in_batch(strict, table)
        assert not waiting.done()
        with flushing(strict.blocking, QUICK):
            await waiting
        await strict.close()
        mild = make(backlog_entries_max=1)
        await asyncio.to_thread(drain, mild.blocking, DEADLINE_SECONDS)
        await mild.put(counters, {"id": 1})
        blocked = add(mild, 1)
        with pytest.raises(BacklogFull):
            await put_in_batch(mild, urgent)
        assert not blocked.done()
        await gone(blocked)
        await mild.close()

    run(main)


def test_who_rejects_does_not_wait_for_a_place(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the partition is known to be full, also those are refused who wait outside."""
    monkeypatch.setattr(lane, "PLACES_MAX", 2)

    async def main() -> None:
        engine = make(backlog_entries_max=1)
        await engine.put(counters, {"id": 1})
        gate = Gate(engine)
        first = add(engine, 1)
        await gate.arrived()
        blocked = [first, *(add(engine, 1) for _ in range(3))]
        rejected = begin(engine.put(urgent, {"id": 1}))
        await turns()
        gate.open()
        with pytest.raises(BacklogFull):
            await rejected
        assert not any(each.done() for each in blocked)
        with flushing(engine.blocking, QUICK):
            receipts = await asyncio.gather(*blocked)
        assert [receipt.entry_id.sequence for receipt in receipts] == [1, 2, 3, 4]
        await engine.close()

    run(main)


def test_who_gets_no_place_is_told_what_is_the_matter(
    make: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that is away is no backlog."""
    monkeypatch.setattr(lane, "PLACES_MAX", 2)

    async def main() -> None:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        engine = make(url, write_timeout_seconds=0.3)
        await engine.put(counters, {"id": 1})
        engine._lanes._appender.links.drop_idle()
        proxy.refuse()
        outcomes = await asyncio.gather(*[add(engine, 1) for _ in range(8)], return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {RedisUnavailable}
        assert any("wait in this process" in str(outcome) for outcome in outcomes)
        proxy.accept()
        await add(engine, 1)
        assert await amount_of(engine, 1) == 1
        await engine.close()

    run(main)


def test_places_are_counted_in_bytes_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large writes wait outside earlier; one that is larger than all places together gets one; the order is kept."""
    monkeypatch.setattr(lane, "PLACES_BYTES_MAX", 50)

    async def main() -> None:
        engine = make()
        await engine.put(counters, {"id": 1})
        gate = Gate(engine)
        first = add(engine, 1)
        await gate.arrived()
        others = [add(engine, 1) for _ in range(20)]

        async def many() -> list[Any]:
            async with engine.batch() as batch:
                return [batch.increment(counters, 1, {"amount": 1}) for _ in range(20)]

        batched = begin(many())
        others += [add(engine, 1) for _ in range(20)]
        await turns()
        assert len(engine._lanes._lanes[0].queue) < 5
        gate.open()
        single = await asyncio.gather(first, *others)
        receipts = single[:21] + await batched + single[21:]
        assert [receipt.entry_id.sequence for receipt in receipts] == list(range(1, 62))
        await engine.close()

    run(main)


def test_groups_share_calls_only_as_long_as_redis_is_not_busy(make: Make) -> None:
    """A call of several entries is bounded by the records that it changes, not by its entries alone."""

    async def group(engine: AsyncWriteBehind, begin_at: int) -> None:
        async with engine.atomic(counters, 1) as members:
            for number in range(begin_at, begin_at + 40):
                members.delete(counters, number)

    async def main() -> None:
        engine = make(call_entries_max=100)
        await engine.put(counters, {"id": 1})
        gate = Gate(engine)
        writes = [add(engine, 1)]
        await gate.arrived()
        writes += [begin(group(engine, 1000 * number)) for number in range(6)]
        await turns()
        gate.open()
        await asyncio.gather(*writes)
        assert gate.calls == [(1, 1), (2, 80), (2, 80), (2, 80)]
        await engine.close()

    run(main)


# Closing


def test_a_write_that_begins_as_the_last_one_ends_is_waited_for(make: Make) -> None:
    """Closing looks again, after it has been woken."""

    async def main() -> None:
        engine = make()
        await engine.put(counters, {"id": 1})
        with engine._lanes.kept_open():
            closing = begin(engine._lanes.end())
            await turns()
        await engine.increment(counters, 1, {"amount": 1})
        await closing
        await engine.close()

    run(main)


def test_closing_waits_for_the_level_of_a_write(make: Make) -> None:
    """A write under way gets its receipt at its level; nobody is left with an error of the thread pool's."""

    async def batch(engine: AsyncWriteBehind) -> None:
        async with engine.batch(durability=Durability.PERSISTED) as many:
            many.put(counters, {"id": 2})

    async def main() -> None:
        engine, other = make(), make()
        writes = [begin(engine.put(counters, {"id": 1}, durability=Durability.PERSISTED)), begin(batch(engine))]
        await turns()
        closing = begin(engine.close())
        await turns()
        assert not closing.done()
        with flushing(other.blocking, QUICK):
            receipt, _ = await asyncio.gather(*writes)
            await closing
        assert receipt.durability is Durability.PERSISTED
        await other.close()

    run(main)


def test_closing_ends_those_who_wait_for_a_receipt(make: Make) -> None:
    """They are told that the write is accepted; so is a write whose level is not reached in time."""

    async def main() -> None:
        engine = make(write_timeout_seconds=0.3)
        receipt = await engine.put(counters, {"id": 1})
        waiting = begin(receipt.wait(Durability.PERSISTED, timeout=600))
        late = begin(engine.put(counters, {"id": 2}, durability=Durability.PERSISTED))
        await turns()
        await engine.close()
        with pytest.raises(DurabilityTimeout, match="the write is accepted; this engine is closed"):
            await waiting
        with pytest.raises(DurabilityTimeout, match="accepted"):
            await late
        with pytest.raises(DurabilityTimeout, match="the write is accepted; this engine is closed"):
            await receipt.wait(Durability.PERSISTED)
        assert receipt.durability is Durability.ACCEPTED

    run(main)


def test_no_connection_is_lost_on_the_way(make: Make, redis_url: str, namespace: str) -> None:
    """An engine that was closed under all that leaves no client behind."""

    async def main() -> None:
        engine = make(f"{redis_url}?client_name={namespace}")
        receipts = await asyncio.gather(*[add(engine, number) for number in range(20)])
        waiting = [begin(receipt.wait(Durability.PERSISTED, timeout=600)) for receipt in receipts]
        await turns()
        await engine.close()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(main)
    with redis.Redis.from_url(redis_url) as client:
        assert not [each for each in client.client_list() if each["name"] == namespace]
