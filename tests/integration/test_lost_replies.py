"""Between client and Redis anything may be lost, late or repeated: an accepted write stands in the log once."""

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

from writebehind.drills.proxy import Mishap, Proxy
from writebehind.engine import (
    ConfigurationError,
    EngineSettings,
    Receipt,
    RedisUnavailable,
    ValidationError,
    WriteBehind,
    WriteOutcomeUnknown,
)
from writebehind.engine.adapters.scripts import APPEND
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

TIMEOUT_SECONDS = 0.25
UNREACHABLE = "postgresql+psycopg://nobody@127.0.0.1:1/none"
SCRIPT = APPEND.sha

metadata = sa.MetaData()
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.Integer, nullable=False, default=0),
    sa.Column("note", sa.String(50)),
)

Write = Callable[[WriteBehind], Receipt]


def put(engine: WriteBehind) -> Receipt:
    """Write one record."""
    return engine.put(counters, {"id": 1, "amount": 1})


def increment(engine: WriteBehind) -> Receipt:
    """Add to one record."""
    return engine.increment(counters, 1, {"amount": 1})


def batch(engine: WriteBehind) -> Receipt:
    """Write many entries of every partition."""
    with engine.batch() as many:
        receipt = many.increment(counters, 1, {"amount": 1})
        for number in range(2, 40):
            many.increment(counters, number, {"amount": 1})
    return receipt


def atomic(engine: WriteBehind) -> Receipt:
    """Write a group."""
    with engine.atomic(counters, 1) as group:
        group.patch(counters, 1, {"note": "group"})
        group.increment(counters, 1, {"amount": 1})
    return group.receipt


WRITES = pytest.mark.parametrize("write", [put, increment, batch, atomic])


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """A proxy in front of the shared Redis."""
    with Proxy(urlsplit(redis_url).port or 6379) as between:
        yield between


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A client that goes around the proxy."""
    with redis.Redis.from_url(redis_url) as plain:
        yield plain


def through(proxy: Proxy, namespace: str, **settings: Any) -> WriteBehind:
    """Make an engine whose connections go through the proxy, and open its partitions."""
    limits = {"redis_timeout_seconds": TIMEOUT_SECONDS, "write_timeout_seconds": 5.0, "call_entries_max": 7} | settings
    engine = WriteBehind(
        redis=f"redis://127.0.0.1:{proxy.port}/0",
        database=UNREACHABLE,
        tables=[counters],
        namespace=namespace,
        partitions=3,
        settings=EngineSettings(**limits),
    )
    with engine.batch() as many:
        for number in range(1, 40):
            many.put(counters, {"id": number, "amount": 0})
    return engine


@pytest.fixture
def engine(proxy: Proxy, namespace: str) -> Iterator[WriteBehind]:
    """An engine that retries for long enough."""
    with through(proxy, namespace) as made:
        yield made


@pytest.fixture
def hasty(proxy: Proxy, namespace: str) -> Iterator[WriteBehind]:
    """An engine that soon gives up."""
    with through(proxy, namespace, write_timeout_seconds=0.3) as made:
        yield made


def refuse_after(proxy: Proxy, fault: Mishap) -> None:
    """Let Redis be away from a fault on."""
    proxy.wait_for(fault)
    proxy.refuse()


def mutations(client: Any, engine: WriteBehind) -> list[str]:
    """Return the mutation IDs in all logs."""
    return [fields[b"m"].decode() for log in engine.keys.logs for _, fields in client.xrange(log)]


def amounts(engine: WriteBehind) -> list[int]:
    """Return what the records hold."""
    return [record["amount"] if record else -1 for record in engine.get_many(counters, range(1, 40)).values()]


def expected(write: Write, times: int = 1) -> list[int]:
    """Return what the records hold after a write was applied so often."""
    return [times] * 39 if write is batch else [times, *([0] * 38)]


def entries(write: Write) -> int:
    """Return how many entries a write makes."""
    return 39 if write is batch else 1


def check_once(client: Any, engine: WriteBehind, write: Write) -> None:
    """Check that the write was applied once, after what opened the partitions."""
    found = mutations(client, engine)
    assert len(found) == len(set(found)) == 39 + entries(write)
    assert amounts(engine) == expected(write)


@pytest.mark.parametrize(("write", "skip"), [(put, 0), (increment, 0), (batch, 0), (batch, 2), (atomic, 0)])
@pytest.mark.parametrize("fault", list(Mishap))
def test_a_write_survives_one_fault(
    *, proxy: Proxy, engine: WriteBehind, client: Any, write: Write, fault: Mishap, skip: int
) -> None:
    """The write returns its one entry, whichever of its requests or replies is lost, or comes late."""
    proxy.inject(fault, SCRIPT, skip=skip)
    receipt = write(engine)
    assert proxy.suffered(fault) == 1
    check_once(client, engine, write)
    assert receipt.mutation_id in mutations(client, engine)
    late = proxy.release()
    assert all(b"FENCED" in reply for reply in late), late
    check_once(client, engine, write)
    log = engine.keys.logs[receipt.partition]
    ((_, fields),) = client.xrange(log, str(receipt.entry_id), str(receipt.entry_id))
    assert fields[b"m"].decode() == receipt.mutation_id


@WRITES
@pytest.mark.parametrize(
    "faults",
    [
        [Mishap.CUT_AFTER, Mishap.CUT_AFTER],
        [Mishap.STALL, Mishap.CUT_INSIDE, Mishap.CUT_BEFORE],
        [Mishap.DELAY, Mishap.DELAY],
        [Mishap.CUT_BEFORE, Mishap.DELAY, Mishap.STALL],
        [Mishap.DELAY, Mishap.CUT_AFTER, Mishap.DELAY],
    ],
    ids=lambda faults: "-".join(fault.name for fault in faults),
)
def test_a_write_survives_several_faults(
    proxy: Proxy, engine: WriteBehind, client: Any, write: Write, faults: list[Mishap]
) -> None:
    """Retries that suffer in their turn, and originals that arrive after all of them, change nothing."""
    for fault in faults:
        proxy.inject(fault, SCRIPT)
    write(engine)
    check_once(client, engine, write)
    proxy.release()
    check_once(client, engine, write)
    increment(engine)
    assert engine.get(counters, 1) is not None
    assert amounts(engine)[0] == 2


@WRITES
def test_a_redis_that_refuses_connections_for_a_while(
    proxy: Proxy, engine: WriteBehind, client: Any, write: Write
) -> None:
    """The write waits for Redis to come back."""
    proxy.refuse()
    timer = threading.Timer(0.3, proxy.accept)
    timer.start()
    write(engine)
    timer.join()
    check_once(client, engine, write)


@WRITES
def test_a_redis_that_cannot_be_reached_got_nothing(
    proxy: Proxy, hasty: WriteBehind, client: Any, write: Write
) -> None:
    """Where nothing can have been sent, the error says that nothing was written, and it is true."""
    hasty.links.drop_idle()
    before = mutations(client, hasty)
    proxy.refuse()
    with pytest.raises(RedisUnavailable, match=r"nothing was written|^0 of 39 writes"):
        write(hasty)
    assert mutations(client, hasty) == before
    proxy.accept()
    write(hasty)
    check_once(client, hasty, write)


@WRITES
@pytest.mark.parametrize("fault", [Mishap.CUT_BEFORE, Mishap.CUT_AFTER])
def test_an_outcome_that_cannot_be_found_out_is_unknown(
    proxy: Proxy, hasty: WriteBehind, client: Any, write: Write, fault: Mishap
) -> None:
    """Redis stays away after a lost reply: the error says so, and the write stands there once or not at all."""
    proxy.inject(fault, SCRIPT)
    refusing = threading.Thread(target=refuse_after, args=(proxy, fault))
    refusing.start()
    with pytest.raises(WriteOutcomeUnknown):
        write(hasty)
    refusing.join()
    proxy.accept()
    found = mutations(client, hasty)
    assert len(found) == len(set(found))
    assert amounts(hasty)[0] == (0 if fault is Mishap.CUT_BEFORE else 1)


@pytest.mark.parametrize(
    ("write", "later"),
    [
        *((put, later) for later in ("put", "batch", "atomic", "delete")),
        *((w, "put") for w in (increment, batch, atomic)),
    ],
)
def test_a_late_original_cannot_overwrite_a_later_write(
    proxy: Proxy, hasty: WriteBehind, client: Any, write: Write, later: str
) -> None:
    """An original that arrives after its writer gave up and wrote again is fenced off."""
    proxy.inject(Mishap.DELAY, SCRIPT)
    refusing = threading.Thread(target=refuse_after, args=(proxy, Mishap.DELAY))
    refusing.start()
    with pytest.raises(WriteOutcomeUnknown):
        write(hasty)
    refusing.join()
    proxy.accept()
    newer = {"id": 1, "amount": 100, "note": "later"}
    match later:
        case "put":
            hasty.put(counters, newer)
        case "batch":
            with hasty.batch() as many:
                many.put(counters, newer)
                many.put(counters, {"id": 2, "amount": 0})
        case "atomic":
            with hasty.atomic(counters, 1) as group:
                group.put(counters, newer)
        case _:
            hasty.delete(counters, 1)
    log = hasty.keys.logs[partition_of("1", 3)]
    before = client.xrange(log)
    replies = proxy.release()
    assert len(replies) == 1
    assert b"FENCED" in replies[0]
    assert client.xrange(log) == before
    assert hasty.get(counters, 1) == (None if later == "delete" else newer)
    found = mutations(client, hasty)
    assert len(found) == len(set(found))


def test_threads_do_not_fence_each_other_out(proxy: Proxy, engine: WriteBehind, client: Any) -> None:
    """While one thread's reply is late, the others' writes to the same partition go on, and each counts once."""
    stop_at = time.monotonic() + 2.0
    counts = [0] * 4

    def work(mine: int) -> None:
        while time.monotonic() < stop_at:
            increment(engine)
            counts[mine] += 1

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(4)]
    for thread in threads:
        thread.start()
    for fault in [Mishap.CUT_AFTER, Mishap.DELAY, Mishap.STALL, Mishap.CUT_BEFORE, Mishap.DELAY, Mishap.CUT_INSIDE] * 2:
        proxy.inject(fault, SCRIPT, skip=5)
    for thread in threads:
        thread.join()
    proxy.release()
    assert amounts(engine)[0] == sum(counts)
    found = mutations(client, engine)
    assert len(found) == len(set(found)) == 39 + sum(counts)


def test_a_retry_finds_its_entry_behind_many_others(
    proxy: Proxy, engine: WriteBehind, client: Any, redis_url: str
) -> None:
    """Other writers' entries between the original and its retry do not hide it."""
    proxy.inject(Mishap.STALL, SCRIPT)
    other = WriteBehind(
        redis=redis_url, database=UNREACHABLE, tables=[counters], namespace=engine.keys.namespace, partitions=3
    )

    def crowd() -> None:
        proxy.wait_for(Mishap.STALL)
        with other.batch() as many:
            for _ in range(1000):
                many.increment(counters, 1, {"amount": 1})

    thread = threading.Thread(target=crowd)
    thread.start()
    increment(engine)
    thread.join()
    assert amounts(engine)[0] == 1001
    found = mutations(client, engine)
    assert len(found) == len(set(found)) == 39 + 1001
    other.close()


def test_a_log_too_long_to_search_makes_the_outcome_unknown(proxy: Proxy, namespace: str, redis_url: str) -> None:
    """A retry that cannot see far enough back does not write a second time."""
    with (
        through(proxy, namespace, retry_search_entries_max=256) as engine,
        WriteBehind(
            redis=redis_url, database=UNREACHABLE, tables=[counters], namespace=namespace, partitions=3
        ) as other,
    ):
        proxy.inject(Mishap.STALL, SCRIPT)

        def crowd() -> None:
            proxy.wait_for(Mishap.STALL)
            with other.batch() as many:
                for _ in range(1000):
                    many.increment(counters, 1, {"amount": 1})

        thread = threading.Thread(target=crowd)
        thread.start()
        with pytest.raises(WriteOutcomeUnknown, match="too long"):
            increment(engine)
        thread.join()
        assert amounts(engine)[0] == 1001


@pytest.mark.parametrize("which", ["logs", "metas"])
@pytest.mark.parametrize("fault", [Mishap.CUT_BEFORE, Mishap.CUT_AFTER])
def test_a_log_overwritten_before_the_retry_makes_the_outcome_unknown(
    *, proxy: Proxy, engine: WriteBehind, client: Any, monkeypatch: pytest.MonkeyPatch, fault: Mishap, which: str
) -> None:
    """A retry that cannot look for its entry does not say that nothing was written."""
    name, kept = getattr(engine.keys, which)[partition_of("1", 3)], f"kept:{engine.keys.namespace}"

    def overwrite(_: int, __: float) -> None:
        client.rename(name, kept)
        client.set(name, "foreign")

    monkeypatch.setattr("writebehind.engine.adapters.attempts.pause", overwrite)
    proxy.inject(fault, SCRIPT)
    with pytest.raises(WriteOutcomeUnknown, match="refuses to look for it: WRONGTYPE"):
        increment(engine)
    client.rename(kept, name)
    assert amounts(engine)[0] == (fault is Mishap.CUT_AFTER)


@WRITES
@pytest.mark.parametrize("fault", [Mishap.CUT_BEFORE, Mishap.CUT_AFTER])
def test_a_server_that_hides_what_it_is_leaves_a_lost_outcome_unknown(
    own_redis: "OwnRedisFactory", namespace: str, monkeypatch: pytest.MonkeyPatch, write: Write, fault: Mishap
) -> None:
    """Who reconnects after a lost reply and is denied INFO does not say that nothing was written."""
    server = own_redis()
    with redis.Redis.from_url(server.url) as plain, Proxy(urlsplit(server.url).port or 0) as proxy:
        client: Any = plain
        with through(proxy, namespace) as engine:
            monkeypatch.setattr(
                "writebehind.engine.adapters.attempts.pause",
                lambda *_: client.execute_command("ACL", "SETUSER", "default", "-info"),
            )
            proxy.inject(fault, SCRIPT)
            with pytest.raises(WriteOutcomeUnknown, match="run_id"):
                write(engine)
            with pytest.raises(ConfigurationError, match="run_id"):
                write(engine)
            client.execute_command("ACL", "SETUSER", "default", "+info")
            assert amounts(engine)[0] == (fault is Mishap.CUT_AFTER)
            found = mutations(client, engine)
            assert len(found) == len(set(found))


@pytest.mark.parametrize("fault", [Mishap.CUT_BEFORE, Mishap.DELAY])
def test_a_retry_that_leaves_the_range_has_looked_before(
    *, proxy: Proxy, engine: WriteBehind, client: Any, monkeypatch: pytest.MonkeyPatch, redis_url: str, fault: Mishap
) -> None:
    """Another writer's increment came first: nothing was written, and nothing will be."""
    other = WriteBehind(
        redis=redis_url, database=UNREACHABLE, tables=[counters], namespace=engine.keys.namespace, partitions=3
    )

    def overtake(_: int, __: float) -> None:
        other.increment(counters, 1, {"amount": 2**31 - 1})

    monkeypatch.setattr("writebehind.engine.adapters.attempts.pause", overtake)
    proxy.inject(fault, SCRIPT)
    with contextlib.closing(other), pytest.raises(ValidationError, match="nothing was written"):
        increment(engine)
    assert all(b"FENCED" in reply for reply in proxy.release())
    assert amounts(engine)[0] == 2**31 - 1
    assert len(mutations(client, engine)) == 39 + 1


def test_an_entry_flushed_and_trimmed_before_the_retry_is_not_written_again(
    proxy: Proxy, namespace: str, redis_url: str, sqlite_url: str, client: Any
) -> None:
    """A reply lost while the flusher already trims what it has flushed doubles nothing."""
    with (
        through(proxy, namespace, redis_timeout_seconds=3.0) as engine,
        WriteBehind(
            redis=redis_url, database=sqlite_url, tables=[counters], namespace=namespace, partitions=3
        ) as other,
    ):
        initialise(other, create_tables=True)
        flusher = Flusher(other, FlusherSettings(linger_seconds=0, retention_seconds=0))
        service = threading.Thread(target=flusher.run)
        outcome: list[object] = []

        def write() -> None:
            try:
                outcome.append(increment(engine))
            except WriteOutcomeUnknown as unknown:
                outcome.append(unknown)

        writer = threading.Thread(target=write)
        proxy.inject(Mishap.STALL, SCRIPT)
        writer.start()
        proxy.wait_for(Mishap.STALL)
        log = other.keys.logs[partition_of("1", 3)]
        after = increment(other).entry_id
        others = 1
        service.start()
        # The original stands right before the first of the others.
        while client.xrange(log, f"{after.epoch}-{after.sequence - 1}", str(after)):
            increment(other)
            others += 1
            assert outcome == []
        writer.join()
        flusher.stopping.set()
        service.join()
        drain(other, 5, FlusherSettings(linger_seconds=0))
        with other.database.connect() as connection:
            amount = connection.execute(sa.select(counters.c.amount).where(counters.c.id == 1)).scalar_one()
        assert amount == others + 1


@WRITES
def test_a_frozen_redis_that_goes_on_in_time(own_redis: "OwnRedisFactory", namespace: str, write: Write) -> None:
    """Requests that a frozen Redis finds in its buffers when it goes on are executed once in all."""
    server = own_redis()
    with redis.Redis.from_url(server.url) as plain, Proxy(urlsplit(server.url).port or 0) as proxy:
        client: Any = plain
        with through(proxy, namespace) as engine:
            os.kill(server.pid, signal.SIGSTOP)
            timer = threading.Timer(3 * TIMEOUT_SECONDS, lambda: os.kill(server.pid, signal.SIGCONT))
            timer.start()
            write(engine)
            timer.join()
            client.ping()
            check_once(client, engine, write)


@WRITES
def test_a_frozen_redis_that_goes_on_too_late(own_redis: "OwnRedisFactory", namespace: str, write: Write) -> None:
    """The outcome is unknown, and what the buffers still hold cannot overwrite a later write."""
    server = own_redis()
    with redis.Redis.from_url(server.url) as plain, Proxy(urlsplit(server.url).port or 0) as proxy:
        client: Any = plain
        with through(proxy, namespace, write_timeout_seconds=0.4) as engine:
            os.kill(server.pid, signal.SIGSTOP)
            try:
                with pytest.raises(WriteOutcomeUnknown):
                    write(engine)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            newer = {"id": 1, "amount": 50, "note": "later"}
            with contextlib.suppress(RedisUnavailable):
                engine.put(counters, newer)
            engine.put(counters, newer)
            client.ping()
            assert engine.get(counters, 1) == newer
            found = mutations(client, engine)
            assert len(found) == len(set(found))
            assert set(amounts(engine)[1:]) <= {0, 1}
