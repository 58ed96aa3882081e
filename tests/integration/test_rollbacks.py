"""Redis or SQL forgets, or somebody takes the log apart: what is left lands exactly once, what is lost is counted."""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import servers
from writebehind.engine import DataLossDetected, Durability, DurabilityTimeout, WriteBehind
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.engine.receipts import Receipt
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, status
from writebehind.flushers.flush import Acknowledge, Begin, Effect, Fenced

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

Factory = Callable[..., WriteBehind]

SECONDS_MAX = 30.0
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
FAR = (1 << 52) + 1
"""An epoch number that no clock reaches."""

metadata = sa.MetaData()
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hits", sa.Integer, nullable=False, default=0),
)


@pytest.fixture
def make(namespace: str) -> Iterator[Factory]:
    """Make initialised engines of one partition, and close them."""
    made: list[WriteBehind] = []

    def factory(url: str, database: str) -> WriteBehind:
        engine = WriteBehind(redis=url, database=database, namespace=namespace, tables=[events, counters], partitions=1)
        made.append(engine)
        initialise(engine, create_tables=True)
        return engine

    yield factory
    for engine in made:
        engine.close()


@pytest.fixture
def server(own_redis: "OwnRedisFactory") -> EmbeddedRedis:
    """A Redis whose files can be cut."""
    own = own_redis(binary=servers.newest_redis_binary())
    assert isinstance(own, EmbeddedRedis)
    return own


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[Any]:
    """A plain client of that Redis, for somebody else's commands."""
    with redis.Redis.from_url(server.url) as plain:
        yield plain


@pytest.fixture
def engine(server: EmbeddedRedis, make: Factory, sqlite_url: str) -> WriteBehind:
    """An initialised engine on that Redis and SQLite."""
    return make(server.url, sqlite_url)


def write(engine: WriteBehind, numbers: Iterable[int]) -> list[Receipt]:
    """Make one entry for each number: a row that would be seen twice, and an increment that would count twice."""
    receipts = []
    for number in numbers:
        with engine.atomic(counters, 1) as group:
            group.insert(events, {"number": number})
            group.increment(counters, 1, {"hits": 1})
        receipts.append(group.receipt)
    return receipts


def landed(engine: WriteBehind) -> list[int]:
    """Return the numbers in SQL, and check that the increments tell the same."""
    with engine.database.connect() as connection:
        numbers = list(connection.execute(sa.select(events.c.number).order_by(events.c.number)).scalars())
        hits = connection.execute(sa.select(counters.c.hits)).scalar_one_or_none() or 0
    assert hits == len(numbers)
    return numbers


def flush(engine: WriteBehind, *, lost: int = 0, settings: FlusherSettings = QUICK) -> None:
    """Drain; check that nothing remains and that the losses ever found are as many as expected."""
    last = drain(engine, SECONDS_MAX, settings)
    assert (last.backlog, last.halted, last.lost_entries) == (0, [], lost)


@contextlib.contextmanager
def serving(flusher: Flusher) -> Iterator[Flusher]:
    """Keep a flusher running."""
    thread = threading.Thread(target=flusher.run)
    thread.start()
    try:
        yield flusher
    finally:
        flusher.stopping.set()
        thread.join()


def until(happened: Callable[[], bool]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + SECONDS_MAX
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def until_landed(engine: WriteBehind, entries: int) -> None:
    """Wait until SQL has so many."""
    until(lambda: len(landed(engine)) == entries)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged at ERROR."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def appended(server: EmbeddedRedis) -> Path:
    """Return the file that the server appends its writes to."""
    (newest,) = server.directory.glob("data/appendonlydir/*.incr.aof")
    return newest


def crash(server: EmbeddedRedis, size: int) -> None:
    """Kill Redis, cut what it appended after that size, and start it again."""
    path = appended(server)
    server.kill()
    with path.open("r+b") as file:
        file.truncate(size)
    server.start()


def size_of(server: EmbeddedRedis) -> int:
    """Return how much Redis has appended; it appends before it answers."""
    return appended(server).stat().st_size


def change_history(client: Any, engine: WriteBehind, epoch: int | None = None) -> None:
    """Have the next write open a new epoch, as after a failover; above a given number, as a clock ahead would."""
    meta = engine.keys.metas[0]
    if epoch is not None:
        client.hset(meta, "epoch", epoch)
    client.hdel(meta, "identity")


class Held(Flusher):
    """A flusher that waits before it begins a transaction, with a batch in its hands."""

    def __init__(self, app: WriteBehind, settings: FlusherSettings) -> None:
        super().__init__(app, settings)
        self.holds = threading.Event()
        self.released = threading.Event()

    def perform(self, effect: Effect) -> Fenced | None:
        """Wait, then do the effect."""
        if isinstance(effect, Begin):
            self.holds.set()
            assert self.released.wait(SECONDS_MAX)
        return super().perform(effect)


# Redis loses a tail


@pytest.mark.parametrize("torn", [0, 7], ids=["whole", "torn"])
@pytest.mark.parametrize("ahead", [False, True], ids=["clock right", "clock was ahead"])
@pytest.mark.parametrize("flushed", [20, 60, 100])
def test_a_lost_tail(
    engine: WriteBehind, server: EmbeddedRedis, client: Any, flushed: int, torn: int, *, ahead: bool
) -> None:
    """Wherever SQL stood, what is left of the log and all that is written later lands, and nothing twice."""
    receipts = write(engine, range(20))
    flush(engine)
    receipts += write(engine, range(20, 60))
    if flushed == 60:
        flush(engine)
    cut = size_of(server) - torn
    kept = 60 if not torn or flushed == 60 else 59  # a drain appends after the writes
    if ahead:
        change_history(client, engine, FAR)
    receipts += write(engine, range(60, 100))
    if flushed == 100:
        flush(engine)
    crash(server, cut)
    later = write(engine, range(100, 150))
    assert later[0].entry_id.sequence == 0
    assert (later[0].entry_id.epoch > receipts[-1].entry_id.epoch) is not ahead
    flush(engine)
    known = max(kept, flushed)
    assert landed(engine) == [*range(known), *range(100, 150)]
    for receipt in (*receipts[:known], *later):
        receipt.wait(Durability.PERSISTED, 1)
    # Of an epoch that was lost whole, SQL cannot tell whether it is over.
    told = (DataLossDetected, DurabilityTimeout) if ahead else DataLossDetected
    for receipt in receipts[known:][:1] + receipts[known:][-1:]:
        with pytest.raises(told):
            receipt.wait(Durability.PERSISTED, 0.5)


@pytest.mark.parametrize("ahead", [False, True], ids=["clock right", "clock was ahead"])
def test_a_lost_tail_while_a_flusher_serves(
    engine: WriteBehind, server: EmbeddedRedis, client: Any, *, ahead: bool
) -> None:
    """The flusher notices the other history by itself, and goes on exactly where SQL stands in it."""
    with serving(Flusher(engine, QUICK)):
        write(engine, range(30))[-1].wait()
        cut = size_of(server)
        if ahead:
            change_history(client, engine, FAR)
        write(engine, range(30, 60))[-1].wait()
        crash(server, cut)
        write(engine, range(60, 90))[-1].wait()
    flush(engine)
    assert landed(engine) == list(range(90))


def test_lost_tails_one_after_the_other(
    engine: WriteBehind, server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """Histories that end where the last one began, or before it, are told apart however often it happens."""
    write(engine, range(10))
    flush(engine)
    cut = size_of(server)
    for number in range(10, 50, 10):
        write(engine, range(number, number + 10))
        flush(engine)
        if number == 20:
            cut = size_of(server)
        crash(server, cut)
    write(engine, range(50, 60))
    flush(engine)
    assert landed(engine) == list(range(60))
    assert errors(caplog) == []


def test_a_log_lost_whole(engine: WriteBehind, server: EmbeddedRedis, caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that comes back empty is an alarm; what is written to it lands, and SQL keeps what it has."""
    write(engine, range(20))
    flush(engine)
    crash(server, 0)
    write(engine, range(20, 40))
    flush(engine)
    assert landed(engine) == list(range(40))
    assert [error for error in errors(caplog) if "DATA LOSS" in error]


def test_nothing_is_trimmed_by_a_number_of_another_history(
    engine: WriteBehind, server: EmbeddedRedis, client: Any
) -> None:
    """An acknowledgement that arrives after a rollback does not remove what the new history has to flush."""

    class Late(Flusher):
        """A flusher whose acknowledgement of its third batch reaches the Redis of after the crash."""

        acknowledged = 0

        def perform(self, effect: Effect) -> Fenced | None:
            """Crash Redis between a commit and its acknowledgement."""
            if isinstance(effect, Acknowledge):
                self.acknowledged += 1
                if self.acknowledged == 3:
                    self._settlement.collect(everything=True)
                    crash(server, cut)
                    write(engine, range(40, 50))
                    self._links.drop_idle()
            return super().perform(effect)

    write(engine, range(10))
    flush(engine)
    cut = size_of(server)
    change_history(client, engine, FAR)
    write(engine, range(10, 40))
    settings = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2, retention_seconds=0, batch_entries_max=10)
    with serving(Late(engine, settings)):
        until(lambda: 49 in landed(engine))
    flush(engine)
    assert landed(engine) == list(range(50))


# Somebody removes entries


@pytest.mark.parametrize("delivered", [0, 15], ids=["undelivered", "some pending"])
@pytest.mark.parametrize(
    ("removed", "trim"),
    [((10, 15), True), ((10, 11), False), ((13, 17), False), ((10, 19), False)],
    ids=["XTRIM", "first", "middle", "all but the last"],
)
def test_removed_entries_are_counted(
    engine: WriteBehind,
    client: Any,
    caplog: pytest.LogCaptureFixture,
    removed: tuple[int, int],
    delivered: int,
    *,
    trim: bool,
) -> None:
    """What a foreign XTRIM or XDEL took is counted exactly and logged as an error; the rest lands."""
    receipts = write(engine, range(10))
    flush(engine)
    receipts += write(engine, range(10, 20))
    log = engine.keys.logs[0]
    if delivered:
        client.xreadgroup("flushers", "somebody", {log: ">"}, count=delivered - 10)
    gone = receipts[slice(*removed)]
    if trim:
        client.xtrim(log, minid=str(receipts[removed[1]].entry_id), approximate=False)
    else:
        client.xdel(log, *(str(receipt.entry_id) for receipt in gone))
    flush(engine, lost=len(gone))
    assert landed(engine) == [number for number in range(20) if number not in range(*removed)]
    assert any(f"{len(gone)} entries" in error and "DATA LOSS" in error for error in errors(caplog))
    write(engine, range(20, 30))
    flush(engine, lost=len(gone))
    assert landed(engine)[-10:] == list(range(20, 30))


@pytest.mark.parametrize("delivered", [False, True], ids=["undelivered", "pending"])
@pytest.mark.parametrize("kept", [0, 5])
def test_a_removed_end_of_the_log_is_counted(
    engine: WriteBehind, client: Any, caplog: pytest.LogCaptureFixture, kept: int, *, delivered: bool
) -> None:
    """Entries that are gone with nothing after them are counted too, and do not hold up a drain."""
    write(engine, range(10))
    flush(engine)
    receipts = write(engine, range(10, 20))
    log = engine.keys.logs[0]
    if delivered:
        client.xreadgroup("flushers", "somebody", {log: ">"})
    client.xdel(log, *(str(receipt.entry_id) for receipt in receipts[kept:]))
    flush(engine, lost=10 - kept)
    assert [error for error in errors(caplog) if "DATA LOSS" in error]
    write(engine, range(20, 30))
    flush(engine, lost=10 - kept)
    assert landed(engine) == [*range(10 + kept), *range(20, 30)]


def test_entries_removed_under_a_flusher(engine: WriteBehind, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What the flusher has read already lands; what it has not is counted."""
    receipts = write(engine, range(40))
    flusher = Held(engine, FlusherSettings(linger_seconds=0, lease_ttl_seconds=20, batch_entries_max=10))
    with serving(flusher):
        assert flusher.holds.wait(SECONDS_MAX)
        log = engine.keys.logs[0]
        until(lambda: client.xpending(log, "flushers")["pending"] == 20)
        client.xdel(log, *(str(receipt.entry_id) for receipt in [*receipts[12:14], *receipts[25:30]]))
        flusher.released.set()
        receipts[-1].wait()
    flush(engine, lost=5)
    assert landed(engine) == [*range(25), *range(30, 40)]
    assert any("DATA LOSS" in error and "5 entries" in error for error in errors(caplog))


@pytest.mark.parametrize("served", [False, True], ids=["stopped", "serving"])
def test_everything_removed(
    engine: WriteBehind, client: Any, caplog: pytest.LogCaptureFixture, *, served: bool
) -> None:
    """FLUSHALL is an alarm, not silence; what is written after it lands, and SQL keeps what it has."""
    write(engine, range(10))
    flush(engine)
    with serving(Flusher(engine, QUICK)) if served else contextlib.nullcontext():
        for number in (10, 20):
            write(engine, range(number, number + 10))
            if served:
                until_landed(engine, number + 10)
            client.flushall()
        receipts = write(engine, range(30, 40))
        if served:
            receipts[-1].wait()
    flush(engine)
    assert landed(engine) == [*range(30 if served else 10), *range(30, 40)]
    assert [error for error in errors(caplog) if "DATA LOSS" in error]


# Somebody changes the group


def test_a_destroyed_group_is_rebuilt_at_the_offset(
    engine: WriteBehind, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a flusher, and with entries pending: the next one continues where SQL stands."""
    write(engine, range(10))
    flush(engine)
    write(engine, range(10, 20))
    log = engine.keys.logs[0]
    client.xreadgroup("flushers", "somebody", {log: ">"}, count=5)
    client.xgroup_destroy(log, "flushers")
    flush(engine)
    assert landed(engine) == list(range(20))
    assert "the consumer group was missing" in caplog.text
    assert client.xpending(log, "flushers")["pending"] == 0


def test_a_group_destroyed_under_a_flusher_is_rebuilt(engine: WriteBehind, client: Any) -> None:
    """Again and again while it reads, commits and acknowledges: exactly once."""
    log = engine.keys.logs[0]
    with serving(Flusher(engine, QUICK)):
        for number in range(0, 200, 10):
            write(engine, range(number, number + 10))
            client.xgroup_destroy(log, "flushers")
        write(engine, [200])[0].wait()
    flush(engine)
    assert landed(engine) == list(range(201))


def test_a_group_set_elsewhere_changes_nothing(engine: WriteBehind, client: Any) -> None:
    """A group that was set back delivers again, one that was set ahead skips: SQL has the authority in both cases."""
    receipts = write(engine, range(10))
    flush(engine)
    receipts += write(engine, range(10, 20))
    log = engine.keys.logs[0]
    client.xgroup_setid(log, "flushers", str(receipts[14].entry_id))
    flush(engine)
    client.xgroup_setid(log, "flushers", "0")
    flush(engine)
    with serving(Flusher(engine, QUICK)):
        for number in range(20, 120, 20):
            receipts += write(engine, range(number, number + 10))
            client.xgroup_setid(log, "flushers", str(receipts[-1].entry_id))
            receipts += write(engine, range(number + 10, number + 20))
            client.xgroup_setid(log, "flushers", "0")
        receipts += write(engine, range(120, 121))
        receipts[-1].wait()
    flush(engine)
    assert landed(engine) == list(range(121))


def test_a_deleted_consumer_with_pending_entries(engine: WriteBehind, client: Any) -> None:
    """Entries that nobody is answerable for any more are found by position."""
    write(engine, range(10))
    flush(engine)
    write(engine, range(10, 20))
    log = engine.keys.logs[0]
    client.xreadgroup("flushers", "somebody", {log: ">"}, count=7)
    assert client.xgroup_delconsumer(log, "flushers", "somebody") == 7
    flush(engine)
    assert landed(engine) == list(range(20))


def test_a_consumer_deleted_under_its_flusher(engine: WriteBehind, client: Any) -> None:
    """What it has in its hands lands once."""
    receipts = write(engine, range(20))
    flusher = Held(engine, FlusherSettings(linger_seconds=0, lease_ttl_seconds=20, batch_entries_max=10))
    with serving(flusher):
        assert flusher.holds.wait(SECONDS_MAX)
        log = engine.keys.logs[0]
        until(lambda: client.xpending(log, "flushers")["pending"] == 20)
        assert client.xgroup_delconsumer(log, "flushers", flusher.holder) == 20
        flusher.released.set()
        receipts[-1].wait()
    flush(engine)
    assert landed(engine) == list(range(20))


# A replica that lagged is promoted


@pytest.mark.parametrize("opened", ["nothing", "an epoch", "an epoch far ahead"])
@pytest.mark.parametrize("flushed", [20, 60, 100])
def test_a_lagging_replica_is_promoted(
    own_redis: "OwnRedisFactory", make: Factory, sqlite_url: str, flushed: int, opened: str
) -> None:
    """All that the new primary accepts lands once, whichever epochs it never saw and whatever SQL has of them."""
    old, new = own_redis({"repl-diskless-sync-delay": 0}), own_redis()
    engine = make(old.url, sqlite_url)
    with redis.Redis.from_url(old.url) as primary, redis.Redis.from_url(new.url) as replica:
        host, port = old.url.removeprefix("redis://").removesuffix("/0").split(":")
        replica.replicaof(host, int(port))
        write(engine, range(20))
        flush(engine)
        write(engine, range(20, 60))
        if flushed == 60:
            flush(engine)
        # WAIT covers the writes of its own connection.
        primary.set("mark", 1)
        until(lambda: int(primary.wait(1, 1000)) == 1)
        replica.replicaof("NO", "ONE")
        if opened != "nothing":
            change_history(primary, engine, FAR if opened == "an epoch far ahead" else None)
        far = write(engine, range(60, 100))[-1].entry_id
    if flushed == 100:
        flush(engine)
    engine.close()
    old.kill()
    promoted = make(new.url, sqlite_url)
    receipts = write(promoted, range(100, 150))
    assert (receipts[0].entry_id < far) is (opened == "an epoch far ahead")
    flush(promoted)
    assert landed(promoted) == [*range(max(60, flushed)), *range(100, 150)]
    for receipt in receipts:
        receipt.wait(Durability.PERSISTED, 1)
    write(promoted, range(150, 160))
    flush(promoted)
    assert landed(promoted)[-60:] == list(range(100, 160))


# SQL is rolled back


def copy(engine: WriteBehind, source: Path, target: Path) -> None:
    """Copy a SQLite database over another, while nobody uses them."""
    engine.database.dispose()
    for suffix in ("-wal", "-shm"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(source)) as a, contextlib.closing(sqlite3.connect(target)) as b:
        a.backup(b)


@pytest.mark.parametrize("between", ["nothing", "a restart of Redis", "a lost tail"])
def test_a_restored_database_is_replayed(
    engine: WriteBehind, server: EmbeddedRedis, tmp_path: Path, between: str
) -> None:
    """What the log retains above the restored offset lands again, exactly, across epochs too."""
    database, saved = tmp_path / "database.sqlite", tmp_path / "saved.sqlite"
    write(engine, range(30))
    flush(engine)
    copy(engine, database, saved)
    write(engine, range(30, 60))
    flush(engine)
    cut = size_of(server)
    write(engine, range(60, 70))
    if between == "a restart of Redis":
        server.restart()
    elif between == "a lost tail":
        flush(engine)
        crash(server, cut)
    write(engine, range(70, 100))
    flush(engine)
    assert landed(engine) == list(range(100))
    copy(engine, saved, database)
    assert landed(engine) == list(range(30))
    flush(engine)
    lost_by_both = range(60, 70) if between == "a lost tail" else range(0)
    assert landed(engine) == [number for number in range(100) if number not in lost_by_both]
    write(engine, range(100, 110))
    flush(engine)
    assert landed(engine)[-10:] == list(range(100, 110))


def test_a_restored_database_below_the_retention(
    engine: WriteBehind, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was trimmed since is counted exactly, and the rest is replayed."""
    database, saved = tmp_path / "database.sqlite", tmp_path / "saved.sqlite"
    write(engine, range(10))
    flush(engine)
    copy(engine, database, saved)
    write(engine, range(10, 60))
    flush(engine, settings=FlusherSettings(linger_seconds=0, retention_seconds=0, batch_entries_max=10))
    assert landed(engine) == list(range(60))
    first = int(client.xrange(engine.keys.logs[0], count=1)[0][0].split(b"-")[1])
    assert first > 10
    copy(engine, saved, database)
    flush(engine, lost=first - 10)
    assert landed(engine) == [*range(10), *range(first, 60)]
    assert any("DATA LOSS" in error and f"{first - 10} entries" in error for error in errors(caplog))


def test_a_database_rolled_back_under_a_flusher(make: Factory, server: EmbeddedRedis, database_url: str) -> None:
    """The flusher finds an offset that it did not leave, takes the partition over anew and replays."""
    engine = make(server.url, database_url)
    with serving(Flusher(engine, QUICK)):
        earlier = write(engine, range(30))[-1]
        earlier.wait()
        write(engine, range(30, 60))[-1].wait()
        with engine.database.begin() as connection:
            connection.execute(
                sa.update(partitions)
                .where(partitions.c.namespace == engine.keys.namespace)
                .values(sequence=earlier.entry_id.sequence)
            )
            connection.execute(sa.delete(events).where(events.c.number >= 30))
            connection.execute(sa.update(counters).values(hits=30))
        write(engine, range(60, 70))
        until(lambda: status(engine).backlog == 0)
    assert status(engine).lost_entries == 0
    assert landed(engine) == list(range(70))
