"""Redis loses a tail, entries, groups, or itself: what comes after lands in SQL, and what is lost is counted."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import servers
from running import flushing
from writebehind.drills.proxy import Proxy
from writebehind.engine import DataLossDetected, Durability, EngineSettings, WriteBehind
from writebehind.engine.adapters.log import GROUP
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import Flusher, FlusherSettings, Status, drain, initialise, status
from writebehind.flushers.flush import Commit
from writebehind.flushers.flusher import Effect
from writebehind.flushers.flusher import Reply as FlushReply

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 15.0
SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


class World:
    """One partition: its writes are numbered events, so that SQL shows which of them it has."""

    def __init__(self, redis_url: str, database: str, namespace: str) -> None:
        self.app = WriteBehind(
            redis=redis_url,
            database=database,
            tables=[accounts, events],
            namespace=namespace,
            partitions=1,
            settings=EngineSettings(redis_timeout_seconds=2, write_timeout_seconds=5, retained_bytes_max=0),
        )
        initialise(self.app, create_tables=True)
        self.log = self.app.keys.logs[0]
        self.written = 0

    def write(self, count: int) -> list[int]:
        """Append numbered events; return their numbers."""
        numbers = list(range(self.written, self.written + count))
        for number in numbers:
            self.app.insert(events, {"kind": str(number)})
        self.written += count
        return numbers

    def drain(self, timeout: float = DEADLINE_SECONDS) -> Status:
        """Flush what there is."""
        return drain(self.app, timeout, SETTINGS)

    def stored(self) -> list[int]:
        """Return the numbers in SQL, in order."""
        with self.app.database.connect() as connection:
            return sorted(int(kind) for kind in connection.execute(sa.select(events.c.kind)).scalars())

    def wait_for_losses(self, entries: int) -> None:
        """Wait until status knows exactly of so many."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while status(self.app).lost_entries != entries and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status(self.app).lost_entries == entries

    def wait_for(self, numbers: list[int]) -> None:
        """Wait until SQL has exactly these."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.stored() != numbers and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.stored() == numbers


@pytest.fixture
def world(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[World]:
    """A world on the shared Redis."""
    made = World(redis_url, sqlite_url, namespace)
    yield made
    made.app.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url) as plain:
        yield plain


@pytest.fixture
def server(own_redis: "OwnRedisFactory") -> EmbeddedRedis:
    """A Redis whose files the test may cut."""
    started = own_redis({"appendfsync": "always"}, binary=servers.newest_redis_binary())
    assert isinstance(started, EmbeddedRedis)
    return started


def appended(server: EmbeddedRedis) -> Path:
    """Return the file that the server appends its writes to."""
    (newest,) = server.directory.glob("data/appendonlydir/*.incr.aof")
    return newest


def crash(server: EmbeddedRedis, size: int) -> None:
    """Kill the server, cut its file to a size, and start it again."""
    server.kill()
    with appended(server).open("r+b") as file:
        file.truncate(size)
    server.start()


# A lost tail


@pytest.mark.parametrize("served", [False, True], ids=["flushed later", "flusher running"])
@pytest.mark.parametrize(("flushed", "kept"), [(10, 6), (10, 1), (6, 8), (6, 6), (1, 10), (10, 10), (0, 6)], ids=str)
def test_redis_lost_its_tail(
    *,
    server: EmbeddedRedis,
    sqlite_url: str,
    namespace: str,
    flushed: int,
    kept: int,
    served: bool,
) -> None:
    """Of ten writes SQL has some and the restarted Redis some: all later ones land, and none of the ten twice."""
    world = World(server.url, sqlite_url, namespace)
    sizes = [0]
    for number in range(10):
        world.write(1)
        sizes.append(appended(server).stat().st_size)
        if number + 1 == flushed:
            assert world.drain().backlog == 0
            if kept == flushed:
                sizes[-1] = appended(server).stat().st_size
    with flushing(world.app, SETTINGS) if served and flushed == 10 else contextlib.nullcontext():
        crash(server, sizes[kept])
        later = world.write(7)
        if not (served and flushed == 10):
            assert world.drain().backlog == 0
        expected = [*range(max(flushed, kept)), *later]
        world.wait_for(expected)
    # The writer keeps nothing here, but it knows how many of its own are gone.
    world.wait_for_losses(10 - max(flushed, kept))
    crash(server, appended(server).stat().st_size)
    again = world.write(3)
    assert world.drain().backlog == 0
    assert world.stored() == [*expected, *again]
    world.app.close()


def test_a_cut_anywhere_drops_whole_writes(server: EmbeddedRedis, sqlite_url: str, namespace: str) -> None:
    """Wherever the file is cut, log and records agree, and the writes that follow land once."""
    world = World(server.url, sqlite_url, namespace)
    world.app.put(accounts, {"id": 1, "balance": 0})
    world.drain()
    balance = 0
    for step in range(6):
        before = appended(server).stat().st_size
        for _ in range(4):
            world.app.increment(accounts, 1, {"balance": 1})
        after = appended(server).stat().st_size
        crash(server, before + (after - before) * (step + 1) // 7)
        with redis.Redis.from_url(server.url) as plain:
            unflushed: Any = plain.xrange(world.log)
        assert world.drain().backlog == 0
        record = world.app.get(accounts, 1)
        with world.app.database.connect() as connection:
            stored = connection.execute(sa.select(accounts.c.balance)).scalar_one()
        assert record == {"id": 1, "balance": stored}
        assert balance <= stored <= balance + 4
        assert len(unflushed) >= stored - balance
        balance = stored
    world.app.close()


@pytest.mark.parametrize("op", ["nothing", "increment", "patch", "put", "delete", "insert"])
@pytest.mark.parametrize("served", [False, True], ids=["flushed later", "flusher running"])
def test_records_that_sql_has_newer_are_loaded(
    *, server: EmbeddedRedis, sqlite_url: str, namespace: str, op: str, served: bool
) -> None:
    """Redis comes back without a change that SQL has: no read gives the old value, and no write builds on it."""
    world = World(server.url, sqlite_url, namespace)
    world.app.put(accounts, {"id": 1, "balance": 10})
    world.app.put(accounts, {"id": 2, "balance": 7})
    world.drain()
    size = appended(server).stat().st_size
    world.app.increment(accounts, 1, {"balance": 5})
    world.app.delete(accounts, 2)
    world.drain()
    crash(server, size)
    world.app.links.drop_idle()
    assert world.app.get_many(accounts, [1, 2]) == {1: {"id": 1, "balance": 15}, 2: None}
    expected: Any = 15
    with flushing(world.app, SETTINGS) if served else contextlib.nullcontext():
        if op == "increment":
            world.app.increment(accounts, 1, {"balance": 1})
            expected = 16
        elif op in {"patch", "put"}:
            getattr(world.app, op)(accounts, *([1, {"balance": 3}] if op == "patch" else [{"id": 1, "balance": 3}]))
            expected = 3
        elif op == "delete":
            world.app.delete(accounts, 1)
            expected = None
        elif op == "insert":
            world.app.insert(accounts, {"id": 2, "balance": 4})
        if op in {"put", "delete"} or served:
            assert (world.app.get(accounts, 1) or {}).get("balance") == expected
        if not served:
            world.drain()
        assert (world.app.get(accounts, 1) or {}).get("balance") == expected
        assert (world.app.get(accounts, 2) is None) == (op != "insert")
    Flusher(world.app, SETTINGS).run(until=lambda: True)
    with redis.Redis.from_url(server.url) as plain:
        assert plain.hget(world.app.keys.metas[0], "floor") is None
    with world.app.database.connect() as connection:
        assert connection.execute(sa.select(accounts.c.balance).where(accounts.c.id == 1)).scalar() == expected
    world.app.close()


def test_an_undone_write_stays_undone(server: EmbeddedRedis, sqlite_url: str, namespace: str) -> None:
    """A write whose transaction was cut in the file stays lost, though Redis finds its beginning at a later start."""
    world = World(server.url, sqlite_url, namespace)
    world.app.put(accounts, {"id": 1, "balance": 0})
    world.drain()
    before = appended(server).stat().st_size
    world.app.increment(accounts, 1, {"balance": 1})
    after = appended(server).stat().st_size
    crash(server, before + (after - before) * 9 // 10)
    world.app.increment(accounts, 1, {"balance": 10})
    crash(server, appended(server).stat().st_size)
    world.app.links.drop_idle()
    world.drain()
    assert world.app.get(accounts, 1) == {"id": 1, "balance": 10}
    world.app.increment(accounts, 1, {"balance": 100})
    world.drain()
    assert world.app.get(accounts, 1) == {"id": 1, "balance": 110}
    with world.app.database.connect() as connection:
        assert connection.execute(sa.select(accounts.c.balance)).scalar_one() == 110
    world.app.close()


def test_an_undone_write_is_not_read(server: EmbeddedRedis, sqlite_url: str, namespace: str) -> None:
    """A record that came back with a lost write is not shown, also before a flusher has looked."""
    world = World(server.url, sqlite_url, namespace)
    world.app.put(accounts, {"id": 1, "balance": 1})
    world.app.put(accounts, {"id": 2, "balance": 2})
    crash(server, appended(server).stat().st_size - len("EXEC"))
    assert world.app.get(accounts, 2) is None
    world.app.put(accounts, {"id": 1, "balance": 3})
    crash(server, appended(server).stat().st_size)
    with redis.Redis.from_url(server.url) as plain:
        assert plain.hget(world.app.keys.record(0, "accounts", "2"), "balance") == b"2"
    world.app.links.drop_idle()
    for _ in range(2):
        assert world.app.get_many(accounts, [1, 2]) == {1: {"id": 1, "balance": 3}, 2: None}
        world.drain()
    world.app.close()


@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("again", ["nothing", "increment", "put"])
def test_half_a_write_comes_back(
    server: EmbeddedRedis, sqlite_url: str, namespace: str, *, flushed: bool, again: str
) -> None:
    """Where a transaction was cut behind the log's entry, its record is read as SQL has it once the entry is there."""
    world = World(server.url, sqlite_url, namespace)
    world.app.put(accounts, {"id": 1, "balance": 1})
    world.drain()
    before = appended(server).stat().st_size
    world.app.put(accounts, {"id": 1, "balance": 2})
    written = appended(server).read_bytes()[before:]
    if flushed:
        world.drain()
    record = b":accounts:1\r\n"
    # In the middle of the command that writes the record: where a command ends, Redis would drop the whole transaction.
    crash(server, before + written.index(record))
    with redis.Redis.from_url(server.url) as plain:
        with plain.pipeline(transaction=True) as other:
            other.set("other", 1).set("more", 1).execute()
        assert plain.xrevrange(world.log, count=1)[0][0].endswith(b"-0")
        crash(server, appended(server).stat().st_size)
        assert plain.xrevrange(world.log, count=1)[0][0].endswith(b"-1")
        assert plain.hget(world.app.keys.record(0, "accounts", "1"), "balance") == b"1"
    world.app.links.drop_idle()
    expected = 2
    if again == "increment":
        world.app.increment(accounts, 1, {"balance": 10})
        expected = 12
    elif again == "put":
        world.app.put(accounts, {"id": 1, "balance": 10})
        expected = 10
    world.drain()
    assert world.app.get(accounts, 1) == {"id": 1, "balance": expected}
    world.app.increment(accounts, 1, {"balance": 100})
    world.drain()
    assert world.app.get(accounts, 1) == {"id": 1, "balance": expected + 100}
    with world.app.database.connect() as connection:
        assert connection.execute(sa.select(accounts.c.balance)).scalar_one() == expected + 100
    world.app.close()


@pytest.mark.parametrize("flushed", [True, False])
def test_a_foreign_key_under_a_doubted_record(
    server: EmbeddedRedis, sqlite_url: str, namespace: str, *, flushed: bool
) -> None:
    """What another program has put in the place of a record is left alone, and stops no takeover."""
    world = World(server.url, sqlite_url, namespace)
    world.app.put(accounts, {"id": 1, "balance": 1})
    if flushed:
        world.drain()
    name = world.app.keys.record(0, "accounts", "1")
    with redis.Redis.from_url(server.url) as plain:
        plain.set(name, "foreign")
        crash(server, appended(server).stat().st_size)
        world.app.links.drop_idle()
        world.app.put(accounts, {"id": 2, "balance": 2})
        world.drain()
        assert plain.get(name) == b"foreign"
    with world.app.database.connect() as connection:
        assert sorted(connection.execute(sa.select(accounts.c.balance)).scalars()) == [1, 2]
    world.app.close()


def test_an_emptied_redis_takes_new_writes(server: EmbeddedRedis, sqlite_url: str, namespace: str, caplog: Any) -> None:
    """After FLUSHALL under a running flusher, new writes land beside what SQL has, and the loss is logged."""
    world = World(server.url, sqlite_url, namespace)
    with redis.Redis.from_url(server.url) as client, flushing(world.app, SETTINGS):
        first = world.write(5)
        world.wait_for(first)
        client.flushall()
        later = world.write(5)
        world.wait_for([*first, *later])
    assert "DATA LOSS" in caplog.text
    world.app.close()


# Gaps


@pytest.mark.parametrize("position", ["first", "middle", "last"])
@pytest.mark.parametrize("delivered", [False, True], ids=["undelivered", "delivered"])
def test_deleted_entries_are_counted(
    *,
    world: World,
    client: Any,
    caplog: pytest.LogCaptureFixture,
    position: str,
    delivered: bool,
) -> None:
    """Foreign XDEL of entries that SQL does not have: the others land, and the loss is exact."""
    before = world.write(4)
    world.drain()
    numbers = world.write(10)

    class Dying(Flusher):
        def perform(self, effect: Effect) -> FlushReply:
            if isinstance(effect, Commit):
                self.stopping.set()
                raise sa.exc.OperationalError("COMMIT", {}, OSError("gone"))
            return super().perform(effect)

    if delivered:
        Dying(world.app, SETTINGS).run()
        assert client.xpending(world.log, GROUP)["pending"] == 10
    ids = [entry for entry, _ in client.xrange(world.log)][-10:]
    gone = {"first": range(3), "middle": range(4, 7), "last": range(7, 10)}[position]
    client.xdel(world.log, *(ids[number] for number in gone))
    if position == "last":
        found = world.drain(1)
        assert found.backlog + found.lost_entries > 0  # not silent, even before anything follows
    later = world.write(2)
    assert world.drain().backlog == 0
    assert world.stored() == [*before, *(n for n in numbers if n - numbers[0] not in gone), *later]
    assert status(world.app).lost_entries == 3
    assert "DATA LOSS" in caplog.text


@pytest.mark.parametrize("keep", [0, 3])
def test_trimmed_entries_are_counted(world: World, client: Any, caplog: pytest.LogCaptureFixture, keep: int) -> None:
    """Foreign XTRIM above the offset: what follows lands, and the loss is exact."""
    before = world.write(4)
    world.drain()
    numbers = world.write(10)
    client.xtrim(world.log, maxlen=keep, approximate=False)
    later = world.write(2)
    assert world.drain().backlog == 0
    assert world.stored() == [*before, *numbers[10 - keep :], *later]
    assert status(world.app).lost_entries == 10 - keep
    assert "DATA LOSS" in caplog.text


def test_a_gap_under_a_running_flusher_is_counted_once(world: World, client: Any) -> None:
    """Entries deleted again and again while a flusher works add up exactly."""
    stored: list[int] = []
    with flushing(world.app, SETTINGS):
        stored += world.write(3)
        world.wait_for(stored)
        for _ in range(3):
            epoch, _, last = client.xinfo_stream(world.log)["last-generated-id"].decode().partition("-")
            # In one MULTI, so that the flusher cannot come between.
            with client.pipeline() as pipeline:
                for sequence in (int(last) + 1, int(last) + 2):
                    pipeline.xadd(world.log, {"m": "x", "p": "y"}, id=f"{epoch}-{sequence}")
                    pipeline.xdel(world.log, f"{epoch}-{sequence}")
                pipeline.execute()
            stored += world.write(2)
            world.wait_for(stored)
    assert status(world.app).lost_entries == 6


# Consumer groups


@pytest.mark.parametrize("served", [False, True], ids=["flushed later", "flusher running"])
@pytest.mark.parametrize("harm", ["destroyed", "set to the end", "set to the beginning", "consumers deleted"])
def test_a_group_changed_by_hand(
    *,
    world: World,
    client: Any,
    harm: str,
    served: bool,
) -> None:
    """Whatever becomes of the group, SQL's offset says where to go on: nothing is lost or doubled."""
    expected = world.write(5)
    world.drain()
    for _ in range(3):
        with flushing(world.app, SETTINGS) if served else contextlib.nullcontext():
            expected += world.write(5)
            if served:
                world.wait_for(expected)
            match harm:
                case "destroyed":
                    client.xgroup_destroy(world.log, GROUP)
                case "set to the end":
                    client.xgroup_setid(world.log, GROUP, "$")
                case "set to the beginning":
                    client.xgroup_setid(world.log, GROUP, "0")
                case _:
                    for consumer in client.xinfo_consumers(world.log, GROUP):
                        client.xgroup_delconsumer(world.log, GROUP, consumer["name"])
            expected += world.write(5)
            if served:
                world.wait_for(expected)
        assert world.drain().backlog == 0
        assert world.stored() == expected
    assert status(world.app).lost_entries == 0
    assert client.xpending(world.log, GROUP)["pending"] == 0


def test_entries_skipped_by_the_group_are_flushed_without_another_write(world: World, client: Any) -> None:
    """A group moved past entries that were not delivered does not keep them from SQL."""
    with flushing(world.app, SETTINGS) as flusher:
        expected = world.write(3)
        world.wait_for(expected)
        epoch = client.hget(world.app.keys.metas[0], "epoch").decode()
        with client.pipeline() as pipeline:
            # In one MULTI, so that the group skips the entry for certain.
            pipeline.xadd(world.log, dict(client.xrange(world.log)[0][1]), id=f"{epoch}-*")
            pipeline.xgroup_setid(world.log, GROUP, "$")
            pipeline.execute()
        deadline = time.monotonic() + 5
        while status(world.app).backlog and time.monotonic() < deadline:
            flusher.stopping.wait(0.01)
        assert status(world.app).backlog == 0
    assert world.stored() == sorted([*expected, 0])


# Failover


@pytest.mark.parametrize("flushed", [5, 8, 10])
def test_a_promoted_replica_that_missed_entries(
    own_redis: "OwnRedisFactory", sqlite_url: str, namespace: str, flushed: int
) -> None:
    """Writes after the failover all land, whatever SQL had of the tail; what only the old primary knew is lost."""
    # Local ones: a container could not reach another's port on this machine.
    binary = servers.newest_redis_binary()
    primary, replica = (own_redis({"repl-diskless-sync-delay": 0}, binary=binary) for _ in range(2))
    ports = [int(each.url.rpartition(":")[2].partition("/")[0]) for each in (primary, replica)]
    with (
        Proxy(ports[0]) as address,
        redis.Redis.from_url(primary.url) as old_client,
        redis.Redis.from_url(replica.url) as new_client,
    ):
        old: Any = old_client
        new: Any = new_client
        world = World(f"redis://127.0.0.1:{address.port}/0", sqlite_url, namespace)
        new.replicaof("127.0.0.1", ports[0])
        world.write(5)
        if flushed == 5:
            world.drain()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while new.info("replication")["master_link_status"] != "up" or (
            old.info("replication")["slave0"]["offset"] < old.info("replication")["master_repl_offset"]
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        new.replicaof("NO", "ONE")
        tail = []
        for number in range(5, 10):
            tail.append(world.app.insert(events, {"kind": str(number)}))
            world.written += 1
            if number + 1 == flushed:
                world.drain()
        address.retarget(ports[1])
        primary.kill()
        world.app.links.drop_idle()  # what is sent over a connection that has ended has no known outcome
        later = world.write(8)
        assert world.drain().backlog == 0
        assert world.stored() == [*range(flushed), *later]
        for number, receipt in enumerate(tail, 5):
            if number < flushed:
                receipt.wait(Durability.PERSISTED, 2)
            else:
                with pytest.raises(DataLossDetected):
                    receipt.wait(Durability.PERSISTED, 2)
        # The old primary comes back with its tail, follows, and is promoted in its turn.
        primary.start()
        old.replicaof("127.0.0.1", ports[1])
        while old.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        between = world.write(3)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while new.info("replication")["slave0"]["offset"] < new.info("replication")["master_repl_offset"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        old.replicaof("NO", "ONE")
        address.retarget(ports[0])
        last = world.write(3)
        assert world.drain().backlog == 0
        assert world.stored() == [*range(flushed), *later, *between, *last]
        world.wait_for_losses(10 - flushed)
        world.app.close()


def test_a_failover_under_a_running_flusher(own_redis: "OwnRedisFactory", sqlite_url: str, namespace: str) -> None:
    """A flusher that serves through the failover takes the new primary over and flushes everything after it."""
    # Local ones: a container could not reach another's port on this machine.
    binary = servers.newest_redis_binary()
    primary, replica = (own_redis({"repl-diskless-sync-delay": 0}, binary=binary) for _ in range(2))
    ports = [int(each.url.rpartition(":")[2].partition("/")[0]) for each in (primary, replica)]
    with Proxy(ports[0]) as address, redis.Redis.from_url(replica.url) as new_client:
        new: Any = new_client
        world = World(f"redis://127.0.0.1:{address.port}/0", sqlite_url, namespace)
        new.replicaof("127.0.0.1", ports[0])
        with flushing(world.app, SETTINGS):
            first = world.write(5)
            world.wait_for(first)
            deadline = time.monotonic() + DEADLINE_SECONDS
            while new.info("replication")["master_link_status"] != "up" or new.xlen(world.log) != 5:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            new.replicaof("NO", "ONE")
            tail = world.write(5)
            world.wait_for([*first, *tail])
            address.retarget(ports[1])
            later = world.write(8)
            world.wait_for([*first, *tail, *later])
        assert status(world.app).lost_entries == 0
        world.app.close()
