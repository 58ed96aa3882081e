"""Backpressure on real servers: writers feel a backlog before it hurts, each partition for itself."""

# ruff: noqa: PT012 - a batch and a group raise when their block ends

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import redis
import sqlalchemy as sa

from running import flushing
from writebehind.drills.proxy import Mishap, Proxy
from writebehind.engine import (
    BacklogFull,
    Backpressure,
    ConfigurationError,
    Durability,
    DurabilityTimeout,
    EngineSettings,
    Receipt,
    RedisUnavailable,
    WriteBehind,
    WriteBehindError,
    WriteOutcomeUnknown,
)
from writebehind.engine.adapters import appender, memory, watch
from writebehind.engine.adapters.scripts import APPEND
from writebehind.engine.core.mutation_ids import made_ms
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.positions import EntryID
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, sessions, status
from writebehind.flushers.pacing import BURST_SECONDS
from writebehind.recovery.rewriting import ConditionalWriter, Rewrite

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 20.0
LIMIT = 10
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2, retention_seconds=0)
IMPATIENT = EngineSettings(backlog_entries_max=LIMIT, backpressure=Backpressure.REJECT)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text),
)
urgent = sa.Table(
    "urgent",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    info={"writebehind": {"backpressure": "reject"}},
)
exact = sa.Table(
    "exact",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    info={"writebehind": {"backpressure": Backpressure.WRITE_THROUGH}},
)
events = sa.Table("events", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("note", sa.Text))
TABLES = [accounts, urgent, exact]

Make = Callable[..., WriteBehind]
Write = Callable[[WriteBehind, int], Receipt]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do, and engines at the memory."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "WATCH_SECONDS", 0.05)


@pytest.fixture
def make(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[Make]:
    """Make initialised engines of one partition on SQLite, and close them."""
    with contextlib.ExitStack() as stack:

        def factory(settings: EngineSettings, **options: Any) -> WriteBehind:
            chosen: dict[str, Any] = {"redis": redis_url, "partitions": 1, "tables": TABLES} | options
            engine = WriteBehind(database=sqlite_url, namespace=namespace, settings=settings, **chosen)
            stack.callback(engine.close)
            initialise(engine, create_tables=True)
            return engine

        yield factory


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url) as plain:
        yield plain


def account(number: int, note: str = "") -> dict[str, Any]:
    """Return a record."""
    return {"id": number, "note": note}


def fill(engine: WriteBehind, count: int = LIMIT) -> list[Receipt]:
    """Put so many records."""
    return [engine.put(accounts, account(number)) for number in range(count)]


def ids(engine: WriteBehind, table: sa.Table = accounts) -> list[int]:
    """Return the keys in SQL."""
    with engine.database.connect() as connection:
        return list(connection.execute(sa.select(table.c.id).order_by(table.c.id)).scalars())


def until(happened: Callable[[], object]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def refused(write: Callable[[], object]) -> bool:
    """Tell whether a write is refused for the backlog."""
    try:
        write()
    except BacklogFull:
        return True
    return False


def applied(client: Any, receipt: Receipt) -> None:
    """Publish an offset as a flusher does that has committed so far."""
    client.hset(f"wb:{{{receipt._engine.keys.namespace}:00}}:meta", "watermark", str(receipt.entry_id))


def contents(client: Any, namespace: str) -> dict[bytes, Any]:
    """Return everything of a namespace in Redis but the note that it is held."""
    found = {key: client.dump(key) for key in client.scan_iter(f"wb:{{{namespace}*", count=1000)}
    for key in found:
        if key.endswith(b":meta"):
            found[key] = {name: value for name, value in client.hgetall(key).items() if name != b"held"}
    return found


def put(engine: WriteBehind, number: int) -> Receipt:
    """Write one record."""
    return engine.put(accounts, account(number))


def put_in_a_batch(engine: WriteBehind, number: int) -> Receipt:
    """Write one record as a batch."""
    with engine.batch() as batch:
        return batch.put(accounts, account(number))


WRITES = pytest.mark.parametrize("write", [put, put_in_a_batch])


# Policies


def test_reject_refuses_at_once_and_wholly(make: Make, client: Any) -> None:
    """At the limit a write of any kind is refused, leaves nothing behind, and says when to come again."""
    engine = make(IMPATIENT)
    fill(engine)
    before = contents(client, engine.keys.namespace)
    writes: list[Callable[[Any], object]] = [
        lambda w: w.put(accounts, account(1, "new")),
        lambda w: w.patch(accounts, 2, {"note": "new"}),
        lambda w: w.delete(accounts, 3),
        lambda w: w.insert(accounts, account(99)),
    ]
    for write in writes:
        with pytest.raises(BacklogFull, match="partition 0 takes no more: 10 of its entries") as caught:
            write(engine)
        assert caught.value.retry_after_seconds > 0
        with pytest.raises(BacklogFull), engine.batch() as batch:
            write(batch)
        with pytest.raises(BacklogFull), engine.atomic(accounts, 1) as group:
            write(group)
    assert contents(client, engine.keys.namespace) == before
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(LIMIT))


def test_it_resumes_below_half_of_the_limit(make: Make, client: Any) -> None:
    """Held once, a partition takes no more until less than half of the limit is left; then up to the limit again."""
    engine = make(IMPATIENT)
    receipts = fill(engine)
    assert refused(lambda: engine.put(accounts, account(10)))
    for receipt in receipts[:5]:
        applied(client, receipt)
        assert refused(lambda: engine.put(accounts, account(10)))
    applied(client, receipts[5])
    for number in range(LIMIT, LIMIT + 6):
        engine.put(accounts, account(number))
    assert refused(lambda: engine.put(accounts, account(99)))
    assert not refused(lambda: make(EngineSettings(backlog_entries_max=100)).put(accounts, account(99)))


def test_block_waits_for_room(make: Make, client: Any) -> None:
    """A write at the limit waits until a flusher has made room, and is then accepted as any other."""
    engine = make(EngineSettings(backlog_entries_max=LIMIT, write_timeout_seconds=DEADLINE_SECONDS))
    fill(engine)
    written: list[Receipt] = []
    thread = threading.Thread(target=lambda: written.append(engine.put(accounts, account(LIMIT))))
    thread.start()
    until(lambda: client.hexists(engine.keys.metas[0], "held"))
    assert client.xlen(engine.keys.logs[0]) == LIMIT
    drain(engine, DEADLINE_SECONDS, QUICK)
    thread.join()
    assert [receipt.durability for receipt in written] == [Durability.ACCEPTED]
    assert not client.hexists(engine.keys.metas[0], "held")
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(LIMIT + 1))


def test_block_gives_up_in_time(make: Make) -> None:
    """Where nobody flushes, a blocked write and a blocked batch end with the error, and nothing of them is written."""
    engine = make(EngineSettings(backlog_entries_max=LIMIT, write_timeout_seconds=0.1))
    fill(engine)
    with pytest.raises(BacklogFull, match="backlog_entries_max"):
        engine.put(accounts, account(LIMIT))
    with pytest.raises(BacklogFull, match="backlog_entries_max"), engine.batch() as batch:
        batch.put(accounts, account(LIMIT))
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(LIMIT))


def test_write_through_returns_when_sql_has_it(make: Make, client: Any) -> None:
    """At the limit a write is accepted, and the call returns with its row in SQL; or says that it is not there yet."""
    settings = {"backlog_entries_max": LIMIT, "backpressure": Backpressure.WRITE_THROUGH}
    hasty = make(EngineSettings(write_timeout_seconds=0.1, **settings))  # type: ignore[arg-type]
    assert [receipt.durability for receipt in fill(hasty)] == [Durability.ACCEPTED] * LIMIT
    with pytest.raises(DurabilityTimeout):
        hasty.put(accounts, account(LIMIT))
    assert client.xlen(hasty.keys.logs[0]) == LIMIT + 1
    engine = make(EngineSettings(write_timeout_seconds=DEADLINE_SECONDS, **settings))  # type: ignore[arg-type]
    found: list[tuple[Durability | None, list[int]]] = []

    def write() -> None:
        receipt = engine.put(accounts, account(LIMIT + 1))
        found.append((receipt.durability, ids(engine)))

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: client.xlen(engine.keys.logs[0]) == LIMIT + 2)
    assert found == []
    with flushing(engine, QUICK):
        thread.join()
    assert found == [(Durability.PERSISTED, list(range(LIMIT + 2)))]


def test_a_table_has_a_policy_of_its_own(make: Make) -> None:
    """Tables may reject or write through where the engine blocks; in one call whoever rejects goes first."""
    engine = make(EngineSettings(backlog_entries_max=LIMIT, write_timeout_seconds=0.1))
    fill(engine)
    begun = time.monotonic()
    with pytest.raises(BacklogFull):
        make(EngineSettings(backlog_entries_max=LIMIT, write_timeout_seconds=60)).put(urgent, {"id": 1})
    with pytest.raises(BacklogFull), engine.atomic(accounts, 1) as group:
        group.put(exact, {"id": 1})
        group.put(urgent, {"id": 1})
    with pytest.raises(DurabilityTimeout):
        engine.put(exact, {"id": 2})
    with pytest.raises(DurabilityTimeout), engine.batch() as batch:
        batch.put(exact, {"id": 3})
        batch.delete(exact, 4)
    with pytest.raises(BacklogFull), engine.atomic(accounts, 1) as group:
        group.put(exact, {"id": 5})
        group.put(accounts, account(1))
    assert time.monotonic() - begun < DEADLINE_SECONDS
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert (ids(engine, urgent), ids(engine, exact)) == ([], [2, 3])


def test_a_policy_that_there_is_not(make: Make) -> None:
    """A table's policy is checked when the engine is made."""
    bad = sa.Table(
        "bad", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), info={"writebehind": {"backpressure": "x"}}
    )
    with pytest.raises(ConfigurationError, match="table bad: backpressure is 'x'"):
        make(IMPATIENT, tables=[bad])


# Fairness


def keys_by_partition(partitions: int, count: int) -> list[list[int]]:
    """Return so many keys of each partition."""
    found: list[list[int]] = [[] for _ in range(partitions)]
    for number in range(1000):
        found[partition_of(str(number), partitions)].append(number)
    return [numbers[:count] for numbers in found]


def test_a_full_partition_refuses_only_its_own_writes(make: Make) -> None:
    """The others take single writes, and their part of a batch, whose error says so."""
    engine = make(IMPATIENT, partitions=2)
    full, free = keys_by_partition(2, 2 * LIMIT)
    for number in full[:LIMIT]:
        engine.put(accounts, account(number))
    assert refused(lambda: engine.put(accounts, account(full[LIMIT])))
    engine.put(accounts, account(free[0]))
    with pytest.raises(BacklogFull, match="1 of 2 writes of a batch are accepted") as caught, engine.batch() as batch:
        batch.put(accounts, account(full[LIMIT]))
        receipt = batch.put(accounts, account(free[1]))
    assert receipt.durability is Durability.ACCEPTED
    assert caught.value.retry_after_seconds > 0
    assert [each.pressure for each in status(engine).partitions] == ["entries", None]
    assert status(engine).as_json()["pressed"] == [0]
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert status(engine).pressed == []
    assert ids(engine) == sorted([*full[:LIMIT], *free[:2]])


@pytest.mark.parametrize("flushed", [True, False])
def test_what_a_failed_batch_wrote_through_is_waited_for(make: Make, client: Any, *, flushed: bool) -> None:
    """Another partition's failure is raised once SQL has what was let in beyond the limit, or time ran out."""
    engine = make(
        EngineSettings(
            backlog_entries_max=LIMIT,
            backpressure=Backpressure.WRITE_THROUGH,
            write_timeout_seconds=DEADLINE_SECONDS if flushed else 0.2,
        ),
        partitions=2,
    )
    full, other = keys_by_partition(2, LIMIT + 1)
    for number in full[:LIMIT]:
        engine.put(accounts, account(number))
    client.set(engine.keys.record(1, "accounts", str(other[0])), "foreign")
    batch = engine.batch()
    refused, through = (batch.put(accounts, account(number)) for number in (other[0], full[LIMIT]))
    failed: list[ConfigurationError] = []

    def flush() -> None:
        try:
            batch.flush()
        except ConfigurationError as error:
            failed.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    until(lambda: client.xlen(engine.keys.logs[0]) == LIMIT + 1)
    with flushing(engine, QUICK) if flushed else contextlib.nullcontext():
        thread.join()
    (error,) = failed
    assert error.message.startswith("1 of 2 writes of a batch are accepted: a key of this namespace")
    assert refused.durability is None
    if flushed:
        assert through.durability is Durability.PERSISTED
        assert ids(engine) == full
    else:
        assert through.durability is Durability.ACCEPTED
        assert error.__notes__[0].startswith(
            "what was written through: the write is accepted, but not PERSISTED in time"
        )


def test_a_batch_that_waits_lets_its_other_partitions_go_on(make: Make, client: Any) -> None:
    """All calls for other partitions are accepted while one partition's wait; then those are, in their order."""
    settings = EngineSettings(backlog_entries_max=LIMIT, write_timeout_seconds=DEADLINE_SECONDS, call_entries_max=2)
    engine = make(settings, partitions=2)
    full, free = keys_by_partition(2, 2 * LIMIT)
    for number in full[:LIMIT]:
        engine.put(accounts, account(number))
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with engine.batch() as batch:
                for number in full[LIMIT : LIMIT + 4]:
                    batch.put(accounts, account(number))
                for number in free[:8]:
                    batch.put(accounts, account(number))
        except BacklogFull as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: client.xlen(engine.keys.logs[1]) == 8)
    assert thread.is_alive()
    assert client.xlen(engine.keys.logs[0]) == LIMIT
    with flushing(engine, QUICK):
        thread.join()
    assert failed == []
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == sorted([*full[: LIMIT + 4], *free[:8]])


def test_a_call_beyond_the_limit_is_taken_where_there_is_room(make: Make) -> None:
    """A batch of many times the limit goes in as one call below the limit, and as many calls beside a flusher."""
    engine = make(IMPATIENT)
    with engine.batch() as batch:
        for number in range(10 * LIMIT):
            batch.put(accounts, account(number))
    assert refused(lambda: engine.put(accounts, account(1000)))
    drain(engine, DEADLINE_SECONDS, QUICK)
    small = make(EngineSettings(backlog_entries_max=1, write_timeout_seconds=DEADLINE_SECONDS, call_entries_max=2))
    with flushing(small, QUICK), small.batch() as batch:
        for number in range(100, 100 + LIMIT):
            batch.put(accounts, account(number))
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(11 * LIMIT))


# Age and memory


def test_the_age_of_the_oldest_entry_is_a_limit(make: Make) -> None:
    """Once the oldest entry is too old its partition takes no more, until that one is flushed."""
    engine = make(EngineSettings(backlog_seconds_max=0.1, backpressure=Backpressure.REJECT))
    accepted = 0

    def put() -> bool:
        nonlocal accepted
        if refused(lambda: engine.put(accounts, account(accepted))):
            return True
        accepted += 1
        return False

    until(put)
    assert accepted > 0
    with pytest.raises(BacklogFull, match="too old"):
        engine.put(accounts, account(accepted))
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert not put()
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(accepted))


@WRITES
def test_an_entry_is_as_old_as_its_admission(make: Make, client: Any, write: Write) -> None:
    """What its writer has waited does not count: else it would hold the next ones up as soon as it is let in."""
    engine = make(EngineSettings(backlog_seconds_max=0.05, write_timeout_seconds=DEADLINE_SECONDS))
    first = write(engine, 0)
    written: list[Receipt] = []
    thread = threading.Thread(target=lambda: written.append(write(engine, 1)))
    until(lambda: time.time() > made_ms(first.mutation_id) / 1000 + 0.1)
    thread.start()
    until(lambda: client.hexists(engine.keys.metas[0], "held"))
    held_ms = time.time() * 1000
    until(lambda: time.time() * 1000 > held_ms + 300)
    applied(client, first)
    thread.join()
    (receipt,) = written
    assert made_ms(receipt.mutation_id) > held_ms + 50
    ((_, fields),) = client.xrange(engine.keys.logs[0], str(receipt.entry_id), str(receipt.entry_id))
    assert fields[b"m"].decode() == receipt.mutation_id


def test_a_redis_short_of_memory_gets_no_more_than_is_flushed(own_redis: "OwnRedisFactory", make: Make) -> None:
    """From the share on a partition has to be flushed first; one that is flushed takes a write all the same."""
    server = own_redis({"maxmemory-policy": "noeviction"})
    settings = EngineSettings(redis_memory_share_max=0.5, backpressure=Backpressure.REJECT)
    engine = make(settings, redis=server.url)
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        fill(engine, 3)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.5))
        until(lambda: refused(lambda: engine.put(accounts, account(0))))
        with pytest.raises(BacklogFull, match="short of memory"):
            engine.put(accounts, account(0))
        assert status(engine).partitions[0].pressure == "memory"
        for _ in range(2):
            drain(engine, DEADLINE_SECONDS, QUICK)
            engine.put(accounts, account(3))
        assert refused(lambda: engine.put(accounts, account(4)))
        client.config_set("maxmemory-policy", "volatile-lru")
        until(lambda: not refused(lambda: engine.put(accounts, account(4))))
        client.config_set("maxmemory-policy", "noeviction")
        until(lambda: refused(lambda: engine.put(accounts, account(0))))
        client.config_set("maxmemory", 0)
        until(lambda: not refused(lambda: engine.put(accounts, account(5))))
        drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(6))


def test_a_burst_between_two_looks(own_redis: "OwnRedisFactory", make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer counts what it sends: it is held before Redis is full, though nobody looks meanwhile."""
    monkeypatch.setattr(watch, "WATCH_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(watch, "MEMORY_SECONDS", DEADLINE_SECONDS)
    server = own_redis({"maxmemory-policy": "noeviction"})
    engine = make(EngineSettings(redis_memory_share_max=0.9, backpressure=Backpressure.REJECT), redis=server.url)
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        engine.put(accounts, account(0))
        limit = int(client.info("memory")["used_memory"]) + 8_000_000
        client.config_set("maxmemory", limit)
        engine._memory.look()
        with pytest.raises(BacklogFull, match="short of memory"):
            for number in range(1, 1000):
                engine.put(accounts, account(number, "x" * 10_000))
        assert number > 100
        assert client.info("memory")["used_memory"] < limit
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(number))


def test_a_server_that_hides_its_memory_is_not_short_of_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known holds nobody."""
    engine = make(EngineSettings(redis_memory_share_max=0.000001))
    look = memory.Memory(engine.links, 0.000001)
    monkeypatch.setattr(
        "writebehind.engine.adapters.links.Link.command", lambda *_: b"# Memory\r\nused_memory:many\r\n"
    )
    look.look()
    assert not look.short


# What must not be held


def test_a_retry_finds_its_entry_in_a_full_backlog(redis_url: str, namespace: str, sqlite_url: str) -> None:
    """A write that was accepted, and whose reply was lost, is not refused when it asks again."""
    with Proxy(urlsplit(redis_url).port or 6379) as proxy:
        engine = WriteBehind(
            redis=f"redis://127.0.0.1:{proxy.port}/0",
            database=sqlite_url,
            tables=TABLES,
            namespace=namespace,
            partitions=1,
            settings=IMPATIENT,
        )
        with contextlib.closing(engine):
            fill(engine, LIMIT - 1)
            proxy.inject(Mishap.CUT_AFTER, APPEND.sha)
            receipt = engine.put(accounts, account(LIMIT - 1))
            assert proxy.suffered(Mishap.CUT_AFTER) == 1
            assert receipt.entry_id == EntryID(receipt.entry_id.epoch, LIMIT - 1)
            assert refused(lambda: engine.put(accounts, account(LIMIT)))


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """A proxy in front of the shared Redis."""
    with Proxy(urlsplit(redis_url).port or 6379) as between:
        yield between


@WRITES
@pytest.mark.parametrize("fault", [Mishap.CUT_BEFORE, Mishap.DELAY])
def test_a_write_that_was_lost_and_finds_no_room_waits_for_it(
    proxy: Proxy, make: Make, client: Any, write: Write, fault: Mishap
) -> None:
    """The retry has fenced the lost attempt off, so nothing is written: it waits as any other, and stands once."""
    settings = EngineSettings(
        backlog_entries_max=LIMIT, write_timeout_seconds=DEADLINE_SECONDS, redis_timeout_seconds=0.5
    )
    engine = make(settings, redis=f"redis://127.0.0.1:{proxy.port}/0")
    fill(engine)
    proxy.inject(fault, APPEND.sha)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            write(engine, LIMIT)
        except WriteBehindError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: not thread.is_alive() or client.hexists(engine.keys.metas[0], "held"))
    assert failed == []
    assert client.xlen(engine.keys.logs[0]) == LIMIT
    drain(engine, DEADLINE_SECONDS, QUICK)
    thread.join()
    assert failed == []
    assert all(b"FENCED" in reply for reply in proxy.release())
    assert client.xinfo_stream(engine.keys.logs[0])["entries-added"] == LIMIT + 1
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(LIMIT + 1))


@WRITES
@pytest.mark.parametrize("fault", [Mishap.CUT_BEFORE, Mishap.DELAY])
def test_a_write_that_was_lost_and_finds_no_room_is_rejected(
    proxy: Proxy, make: Make, client: Any, write: Write, fault: Mishap
) -> None:
    """The error says that nothing was written, and it stays true whenever the lost attempt arrives."""
    engine = make(
        EngineSettings(backlog_entries_max=LIMIT, backpressure=Backpressure.REJECT, redis_timeout_seconds=0.5),
        redis=f"redis://127.0.0.1:{proxy.port}/0",
    )
    fill(engine)
    proxy.inject(fault, APPEND.sha)
    with pytest.raises(BacklogFull, match="10 of its entries") as caught:
        write(engine, LIMIT)
    assert "nothing was written" in caught.value.hint
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert all(b"FENCED" in reply for reply in proxy.release())
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(LIMIT))


def test_a_lost_write_that_finds_redis_full_is_not_known(own_redis: "OwnRedisFactory", make: Make) -> None:
    """A full Redis does not take the fence, so the lost attempt may still arrive: nobody can say that it will not."""
    server = own_redis({"maxmemory-policy": "noeviction"})
    with redis.Redis.from_url(server.url) as plain, Proxy(urlsplit(server.url).port or 6379) as between:
        client: Any = plain
        settings = EngineSettings(
            backpressure=Backpressure.REJECT, redis_memory_share_max=None, redis_timeout_seconds=0.5
        )
        engine = make(settings, redis=f"redis://127.0.0.1:{between.port}/0")
        fill(engine)
        between.inject(Mishap.DELAY, APPEND.sha)
        client.config_set("maxmemory", 1)
        with pytest.raises(WriteOutcomeUnknown):
            put(engine, LIMIT)
        client.config_set("maxmemory", 0)
        between.release()
        drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(LIMIT + 1))


def test_repairs_are_not_held(make: Make) -> None:
    """What is written again to mend something is accepted however long the backlog is."""
    engine = make(IMPATIENT)
    fill(engine)
    assert refused(lambda: engine.put(accounts, account(0)))
    record = engine.keys.record(0, "accounts", "0")
    with engine.links.link() as link:
        version = link.command("HGET", record, ":version")
    entry = engine.composer.put(engine.plan_of(accounts), account(0, "mended"))
    assert ConditionalWriter(engine).write([Rewrite(record, version, entry)]) == [True]
    assert refused(lambda: engine.put(accounts, account(0)))


def test_an_empty_backlog_of_a_long_log_holds_nobody(make: Make, client: Any) -> None:
    """Flushed entries that are retained are not counted, also when Redis was restarted since."""
    engine = make(IMPATIENT)
    retaining = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2, retention_seconds=60)
    for start in range(0, 5 * LIMIT, LIMIT):
        for number in range(start, start + LIMIT):
            engine.put(accounts, account(number))
        drain(engine, DEADLINE_SECONDS, retaining)
    assert client.xlen(engine.keys.logs[0]) == 5 * LIMIT
    assert not refused(lambda: engine.put(accounts, account(0)))


def test_a_new_epoch_counts_what_was_before_it(own_redis: "OwnRedisFactory", make: Make) -> None:
    """After a restart of Redis the backlog is that of both histories, and flushing it makes room."""
    server = own_redis({"appendfsync": "always"})
    engine = make(IMPATIENT, redis=server.url)
    with flushing(engine, QUICK):
        fill(engine, 3)[-1].wait(Durability.PERSISTED, DEADLINE_SECONDS)
    for number in range(3, 9):
        engine.put(accounts, account(number))
    server.restart()
    accepted = 3 + LIMIT
    for number in range(9, accepted):
        engine.put(accounts, account(number))
    assert refused(lambda: engine.put(accounts, account(accepted)))
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert not refused(lambda: engine.put(accounts, account(accepted)))
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(accepted + 1))


def test_an_offset_that_was_set_back_is_published_again(make: Make, client: Any) -> None:
    """A late command of a frozen flusher makes the backlog look long; the holder sees it, and writers go on."""
    engine = make(IMPATIENT)
    with flushing(engine, QUICK):
        receipts = fill(engine)
        receipts[-1].wait(Durability.PERSISTED, DEADLINE_SECONDS)
        applied(client, receipts[0])
        until(lambda: client.hget(engine.keys.metas[0], "watermark") == str(receipts[-1].entry_id).encode())
        engine.put(accounts, account(LIMIT)).wait(Durability.PERSISTED, DEADLINE_SECONDS)


# Redis full


def test_a_full_redis_tells_writers_that_it_is_drained(own_redis: "OwnRedisFactory", make: Make) -> None:
    """The offset is published although Redis is out of memory, and nothing was trimmed: so nobody stays held."""
    server = own_redis({"maxmemory-policy": "noeviction"})
    settings = EngineSettings(backlog_entries_max=LIMIT, redis_memory_share_max=None, backpressure=Backpressure.REJECT)
    engine = make(settings, redis=server.url)
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        receipts = fill(engine)
        assert refused(lambda: engine.put(accounts, account(LIMIT)))
        client.config_set("maxmemory", 1)
        with pytest.raises(BacklogFull):
            engine.put(accounts, account(LIMIT))
        retaining = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2, retention_seconds=60)
        drain(engine, DEADLINE_SECONDS, retaining)
        until(lambda: client.hget(engine.keys.metas[0], "watermark") == str(receipts[-1].entry_id).encode())
        with pytest.raises(BacklogFull, match="out of memory"):
            engine.put(accounts, account(LIMIT))
        client.config_set("maxmemory", 0)
        engine.put(accounts, account(LIMIT))
        drain(engine, DEADLINE_SECONDS, QUICK)
    assert ids(engine) == list(range(LIMIT + 1))


@pytest.mark.parametrize("share", [None, 0.9])
def test_a_full_redis_is_freed_by_who_takes_over(own_redis: "OwnRedisFactory", make: Make, share: float | None) -> None:
    """What fills it was flushed by a flusher that died before its retention was over: the next one trims it."""
    server = own_redis({"maxmemory-policy": "noeviction"})
    settings = EngineSettings(write_timeout_seconds=1, redis_memory_share_max=share)
    engine = make(settings, redis=server.url, tables=[events])
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        with flushing(engine, FlusherSettings(linger_seconds=0, retention_seconds=3600)):
            for _ in range(200):
                engine.insert(events, {"note": "x" * 10_000})
            until(lambda: status(engine).backlog == 0)
        assert client.xlen(engine.keys.logs[0]) == 200
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - 300_000)
        with flushing(engine, FlusherSettings(linger_seconds=0, retention_seconds=2)):
            until(lambda: _inserted(engine))


def _inserted(engine: WriteBehind) -> bool:
    try:
        engine.insert(events, {"note": "y"})
    except (BacklogFull, RedisUnavailable):
        return False
    return True


def put_in_all(engine: WriteBehind) -> list[Receipt]:
    """Write records of all of 16 partitions as a batch, in several calls each."""
    with engine.batch() as batch:
        return [batch.put(accounts, account(number)) for number in range(200)]


def test_a_batch_waits_for_a_full_redis_once(own_redis: "OwnRedisFactory", make: Make) -> None:
    """All partitions wait together, no longer than one does; nothing is written; and all go on when there is room."""
    server = own_redis({"maxmemory-policy": "noeviction"})
    settings = {"redis_memory_share_max": None, "call_entries_max": 5}
    hasty = make(EngineSettings(write_timeout_seconds=1, **settings), redis=server.url, partitions=16)  # type: ignore[arg-type]
    hasty.start()
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        client.config_set("maxmemory", 1)
        begun = time.monotonic()
        with pytest.raises(RedisUnavailable, match="out of memory") as caught:
            put_in_all(hasty)
        assert time.monotonic() - begun < 8
        assert "nothing was written" in caught.value.hint
        assert status(hasty).backlog == 0
        patient = make(
            EngineSettings(write_timeout_seconds=DEADLINE_SECONDS, **settings),  # type: ignore[arg-type]
            redis=server.url,
            partitions=16,
        )
        written: list[list[Receipt]] = []
        thread = threading.Thread(target=lambda: written.append(put_in_all(patient)))
        rejected = client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"]
        thread.start()
        until(lambda: client.info("errorstats")["errorstat_OOM"]["count"] > rejected + 16)
        client.config_set("maxmemory", 0)
        thread.join()
    ((*receipts,),) = written
    assert {receipt.durability for receipt in receipts} == {Durability.ACCEPTED}
    drain(patient, DEADLINE_SECONDS, QUICK)
    assert ids(patient) == list(range(200))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_batch_waits_for_a_redis_that_is_away_once(
    *, own_redis: "OwnRedisFactory", make: Make, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    """Whatever keeps 16 partitions from writing, and from being asked where they stand, the batch gives up as one."""
    monkeypatch.setattr(appender, "ANCHOR_SECONDS_MAX", 0)
    server = own_redis()
    settings = EngineSettings(write_timeout_seconds=0.6, redis_timeout_seconds=0.3)
    engine = make(settings, redis=server.url, partitions=16)
    put_in_all(engine)
    if frozen:
        os.kill(server.pid, signal.SIGSTOP)
    else:
        server.kill()
    begun = time.monotonic()
    try:
        with pytest.raises((RedisUnavailable, WriteOutcomeUnknown)):
            put_in_all(engine)
        assert time.monotonic() - begun < 5
    finally:
        if frozen:
            os.kill(server.pid, signal.SIGCONT)


def _accepted(engine: WriteBehind, number: int) -> bool:
    try:
        engine.put(accounts, account(number, "x" * 10_000))
    except (BacklogFull, RedisUnavailable):
        return False
    return True


@pytest.mark.parametrize("share", [None, 0.8])
def test_a_full_redis_under_load(own_redis: "OwnRedisFactory", make: Make, share: float | None) -> None:
    """Several writers run into the end of the memory beside a flusher that is slower than they are.

    Every refused write has left nothing, every accepted one is in SQL; draining frees memory, and writing goes on, all
    by itself. Whoever waits long enough is never refused.
    """
    server = own_redis({"maxmemory-policy": "noeviction"})
    settings = EngineSettings(
        write_timeout_seconds=0.05, redis_memory_share_max=share, record_ttl_seconds=0.2, retained_bytes_max=0
    )
    engine = make(settings, redis=server.url, partitions=3)
    slow = FlusherSettings(linger_seconds=0, retention_seconds=0.1, rows_per_second_max=400, lease_ttl_seconds=2)
    accepted: list[set[int]] = [set() for _ in range(4)]
    refusals = [0] * 4
    finish = threading.Event()

    def write(thread: int) -> None:
        number = thread
        while not finish.is_set():
            receipts = {}
            try:
                if number % 3 == 0:
                    with engine.batch() as batch:
                        for each in range(number, number + 12, 4):
                            receipts[each] = batch.put(accounts, account(each, "x" * 10_000))
                else:
                    receipts[number] = engine.put(accounts, account(number, "x" * 10_000))
            except (BacklogFull, RedisUnavailable):
                refusals[thread] += 1
            accepted[thread] |= {each for each, receipt in receipts.items() if receipt.durability is not None}
            number += 12

    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 8_000_000)
        with flushing(engine, slow):
            threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            try:
                until(lambda: min(refusals) >= 3)
            finally:
                finish.set()
                for thread in threads:
                    thread.join()
            for number in range(1_000_000, 1_000_020):
                until(lambda number=number: _accepted(engine, number))  # type: ignore[misc]
                accepted[0].add(number)
        drain(engine, DEADLINE_SECONDS, QUICK)
        assert status(engine).lost_entries == 0
    assert ids(engine) == sorted(set().union(*accepted))


def test_who_waits_is_never_refused_by_a_full_redis(own_redis: "OwnRedisFactory", make: Make) -> None:
    """Much more than fits is written through a small Redis, which keeps nothing that is flushed; no write fails."""
    server = own_redis({"maxmemory-policy": "noeviction"})
    settings = EngineSettings(write_timeout_seconds=DEADLINE_SECONDS, record_ttl_seconds=0.2, retained_bytes_max=0)
    engine = make(settings, redis=server.url, partitions=3)
    writes = 300
    failed: list[BaseException] = []

    def write(first: int) -> None:
        try:
            for number in range(first, writes, 3):
                engine.put(accounts, account(number, "x" * 30_000))
        except BaseException as error:  # noqa: BLE001 - looked at below
            failed.append(error)

    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 6_000_000)
        usual = FlusherSettings(linger_seconds=0, retention_seconds=60, rows_per_second_max=200, lease_ttl_seconds=2)
        with flushing(engine, usual):
            threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        drain(engine, DEADLINE_SECONDS, QUICK)
    assert failed == []
    assert ids(engine) == list(range(writes))


# The database's side


def test_a_statement_timeout_halves_the_batch(
    redis_url: str, namespace: str, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that take their time are written in ever smaller batches, and nothing halts."""
    usual = sessions._postgresql
    monkeypatch.setattr(sessions, "_postgresql", lambda *given: [*usual(*given), "SET statement_timeout = 200"])
    engine = WriteBehind(redis=redis_url, database=postgresql_url, tables=[accounts], namespace=namespace, partitions=1)
    with contextlib.closing(engine):
        initialise(engine, create_tables=True)
        with engine.database.begin() as connection:
            connection.exec_driver_sql(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.001); "
                "RETURN NEW; END $$"
            )
            connection.exec_driver_sql(
                "CREATE TRIGGER slowly BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION slow()"
            )
        with engine.batch() as batch:
            for number in range(600):
                batch.put(accounts, account(number))
        sizes: list[int] = []

        class Noting(Flusher):
            def _attempt(self, batch: Any) -> Any:
                outcomes = super()._attempt(batch)
                sizes.append(batch.changes.entries)
                return outcomes

        with flushing(engine, QUICK, Noting):
            until(lambda: status(engine).backlog == 0)
        assert status(engine).halted == []
        assert ids(engine) == list(range(600))
        assert max(sizes) < 300


@pytest.mark.parametrize("batches", [None, 1])
def test_a_flusher_that_cannot_reach_redis_hands_over(
    redis_url: str, make: Make, monkeypatch: pytest.MonkeyPatch, batches: int | None
) -> None:
    """Whoever has lost Redis, and it alone, keeps neither partitions nor its place among the flushers."""
    names = iter("ab")
    monkeypatch.setattr("writebehind.flushers.flusher.holder_name", lambda: next(names))
    settings = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, concurrent_batches_max=batches)
    with Proxy(urlsplit(redis_url).port or 6379) as proxy:
        cut_off = make(EngineSettings(), redis=f"redis://127.0.0.1:{proxy.port}/0", partitions=2)
        engine = make(EngineSettings(), partitions=2)

        def holders() -> set[str | None]:
            return {each.holder for each in status(engine).partitions}

        first = {"a"} if batches else {"a", "b"}
        with flushing(cut_off, settings), flushing(engine, settings):
            until(lambda: holders() == first)
            proxy.refuse()
            until(lambda: holders() == {"b"})
            fill(engine)[-1].wait(Durability.PERSISTED, DEADLINE_SECONDS)
            until(lambda: status(engine).backlog == 0)
            proxy.accept()
            until(lambda: status(engine).flushers == 2 and holders() == first)
            engine.put(accounts, account(LIMIT)).wait(Durability.PERSISTED, DEADLINE_SECONDS)
    assert ids(engine) == list(range(LIMIT + 1))


def test_the_rate_holds_for_groups_and_costs_no_lease(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of more rows than the rate yields while a lease lasts is waited for; its partition is kept meanwhile."""
    rate, rows, groups = 400, 600, 3
    engine = make(EngineSettings())
    for group in range(groups):
        with engine.atomic(accounts, group) as members:
            for number in range(rows):
                members.put(accounts, account(group * rows + number))
    settings = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, rows_per_second_max=rate)
    taken: list[tuple[float, int]] = []

    def noting(*given: Any) -> Flusher:
        """Make a flusher that notes what it gives SQL."""
        flusher = Flusher(*given)
        take = flusher._pacing.take

        def note(count: int, now: float) -> None:
            taken.append((now, count))
            take(count, now)

        monkeypatch.setattr(flusher._pacing, "take", note)
        return flusher

    with flushing(engine, settings, noting) as holder:
        until(lambda: holder.tally.takeovers == 1)
        with flushing(engine, settings) as other:
            until(lambda: status(engine).backlog == 0)
            assert (holder.tally.takeovers, other.tally.takeovers) == (1, 0)
    assert [count for _, count in taken] == [rows] * groups, "one by one, though they were there together"
    begun, _ = taken[0]
    for before, (now, _) in enumerate(taken):
        assert before * rows <= rate * (now - begun + BURST_SECONDS) + 1
    assert ids(engine) == list(range(groups * rows))


def test_so_many_flushers_serve_at_a_time(make: Make) -> None:
    """Beyond the limit flushers stand by; when one ends, another takes its place, and everything is flushed."""
    engine = make(EngineSettings(), partitions=4)
    settings = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, concurrent_batches_max=1)
    with contextlib.ExitStack() as stack:
        running: dict[str, contextlib.ExitStack] = {}
        for _ in range(3):
            own = stack.enter_context(contextlib.ExitStack())
            running[own.enter_context(flushing(engine, settings)).holder] = own

        def holders() -> set[str | None]:
            return {each.holder for each in status(engine).partitions}

        serving = min(running)
        until(lambda: status(engine).flushers == 3 and holders() == {serving})
        fill(engine)[-1].wait(Durability.PERSISTED, DEADLINE_SECONDS)
        assert holders() == {serving}
        running.pop(serving).close()
        until(lambda: holders() == {min(running)})
        until(lambda: status(engine).backlog == 0)
    assert ids(engine) == list(range(LIMIT))
