"""Writes and reads on real servers: what was accepted is read at once, and lands in SQL exactly."""

# ruff: noqa: PT012 - a batch and a group raise when their block ends

import os
import threading
from collections.abc import Callable, Iterator
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import redis
import sqlalchemy as sa
from hypothesis import strategies as st

from writebehind.engine import (
    ConfigurationError,
    Durability,
    EngineSettings,
    ReadTimeout,
    RedisUnavailable,
    ValidationError,
    WriteBehind,
    WriteBehindError,
)
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, status
from writebehind.flushers.flush import Acknowledge, Commit
from writebehind.flushers.flusher import Effect
from writebehind.flushers.flusher import Reply as FlushReply

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

Factory = Callable[..., WriteBehind]

QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
UNREACHABLE = "postgresql+psycopg://nobody@127.0.0.1:1/none"
BIGGEST = 2**63 - 1

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(100), nullable=False),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
    sa.Column("note", sa.Text),
)
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("tenant", sa.String(20), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("total", sa.Numeric(12, 2), nullable=False),
    info={"writebehind": {"partition_by": "tenant"}},
)
items = sa.Table(
    "items",
    metadata,
    sa.Column("tenant", sa.String(20), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("price", sa.Numeric(12, 2), nullable=False),
    info={"writebehind": {"partition_by": "tenant"}},
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(50), nullable=False),
)
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("big", sa.BigInteger, nullable=False, default=0),
    sa.Column("money", sa.Numeric(38, 10), nullable=False, default=Decimal(0)),
    sa.Column("small", sa.Numeric(6, 2), nullable=False, default=Decimal(0)),
    sa.Column("loose", sa.Numeric, nullable=False, default=Decimal(0)),
    sa.Column("real", sa.Double, nullable=False, default=0.0),
    sa.Column("maybe", sa.BigInteger),
)
TABLES = [accounts, orders, items, events]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


@pytest.fixture
def make(redis_url: str, namespace: str) -> Iterator[Factory]:
    """Make engines on the shared Redis, and close them."""
    made: list[WriteBehind] = []

    def factory(database: str, **options: Any) -> WriteBehind:
        settings: dict[str, Any] = {"redis": redis_url, "namespace": namespace, "tables": TABLES, "partitions": 4}
        settings |= options
        made.append(WriteBehind(database=database, **settings))
        return made[-1]

    yield factory
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make: Factory, database_url: str) -> WriteBehind:
    """An initialised engine on each kind of database."""
    made = make(database_url)
    initialise(made, create_tables=True)
    return made


@pytest.fixture
def single(make: Factory, sqlite_url: str) -> WriteBehind:
    """An initialised engine of one partition on SQLite."""
    made = make(sqlite_url, partitions=1, settings=EngineSettings(write_timeout_seconds=0.3, read_timeout_seconds=0.3))
    initialise(made, create_tables=True)
    return made


@pytest.fixture
def arithmetic(make: Factory) -> WriteBehind:
    """An engine for PostgreSQL's numbers that writes to Redis only."""
    return make(UNREACHABLE, tables=[counters], partitions=1)


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url) as plain:
        yield plain


def flush(engine: WriteBehind) -> None:
    """Drain, and check that nothing remains, is lost or halted."""
    last = drain(engine, 20, QUICK)
    assert (last.backlog, last.lost_entries, last.halted) == (0, 0, [])


def rows_of(engine: WriteBehind, table: sa.Table) -> list[dict[str, Any]]:
    """Return the rows in SQL, in the order of the key."""
    with engine.database.connect() as connection:
        found = connection.execute(sa.select(table).order_by(*table.primary_key.columns)).mappings().all()
    return [dict(row) for row in found]


def evict(client: Any, engine: WriteBehind, table: sa.Table) -> None:
    """Remove a table's records from Redis, as an eviction of clean records would."""
    for key in client.scan_iter(f"wb:{{{engine.keys.namespace}:*}}:{table.name}:*", count=1000):
        assert client.ttl(key) > 0
        client.unlink(key)


def contents(client: Any, namespace: str) -> dict[bytes, Any]:
    """Return everything of a namespace in Redis."""
    return {key: client.dump(key) for key in client.scan_iter(f"wb:{{{namespace}*", count=1000)}


def account(number: int, **changes: Any) -> dict[str, Any]:
    """Return a whole record."""
    return {"id": number, "owner": "Ada", "balance": 0, "note": None, **changes}


# Reads


def test_every_accepted_write_is_read_before_and_after_the_flush(engine: WriteBehind, client: Any) -> None:
    """Puts, patches, increments and deletes show at once, after the flush, from cold, and in SQL."""
    for number in range(6):
        engine.put(accounts, {"id": number, "owner": f"owner {number}", "balance": 10 * number})
    engine.patch(accounts, 1, {"owner": "Grace", "note": "moved"})
    engine.increment(accounts, 2, {"balance": -25})
    engine.delete(accounts, 3)
    engine.delete(accounts, 4)
    engine.put(accounts, account(4, owner="back"))
    engine.increment(accounts, 5, {"balance": 7})
    engine.patch(accounts, 5, {"note": ""})
    expected = {
        0: account(0, owner="owner 0"),
        1: account(1, owner="Grace", balance=10, note="moved"),
        2: account(2, owner="owner 2", balance=-5),
        3: None,
        4: account(4, owner="back"),
        5: account(5, owner="owner 5", balance=57, note=""),
    }
    assert engine.get_many(accounts, range(6)) == expected
    flush(engine)
    assert engine.get_many(accounts, range(6)) == expected
    evict(client, engine, accounts)
    assert engine.get_many(accounts, range(6)) == expected
    assert rows_of(engine, accounts) == [record for record in expected.values() if record]


def test_a_cold_patch_lies_over_the_row(engine: WriteBehind, client: Any) -> None:
    """A record patched while it is not in Redis is read as row and patch together, without a flusher."""
    engine.put(accounts, account(1, balance=5, note="old"))
    flush(engine)
    evict(client, engine, accounts)
    engine.patch(accounts, 1, {"note": None})
    engine.patch(accounts, 1, {"owner": "Grace"})
    expected = account(1, owner="Grace", balance=5)
    assert engine.get(accounts, 1) == expected
    flush(engine)
    assert engine.get(accounts, 1) == expected
    assert rows_of(engine, accounts) == [expected]


def test_a_cold_patch_of_nothing_makes_no_record(engine: WriteBehind) -> None:
    """A patch of a record that does not exist changes nothing, and is counted."""
    engine.patch(accounts, 1, {"note": "x"})
    assert engine.get(accounts, 1) is None
    flush(engine)
    assert engine.get(accounts, 1) is None
    assert sum(row.missing_rows for row in status(engine).partitions) == 1


def test_a_cold_increment_is_read_after_its_flush(engine: WriteBehind, make: Factory, client: Any) -> None:
    """A read of a record incremented while cold waits for the flusher, and gives up in time without one."""
    engine.put(accounts, account(1, balance=5))
    flush(engine)
    evict(client, engine, accounts)
    engine.increment(accounts, 1, {"balance": 3})
    hasty = make(
        str(engine.database.url.render_as_string(hide_password=False)),
        settings=EngineSettings(read_timeout_seconds=0.2),
    )
    with pytest.raises(ReadTimeout, match="flusher"):
        hasty.get(accounts, 1)
    flusher = Flusher(engine, QUICK)
    thread = threading.Thread(target=flusher.run)
    thread.start()
    try:
        assert engine.get(accounts, 1) == account(1, balance=8)
        engine.increment(accounts, 1, {"balance": 1})
        engine.patch(accounts, 1, {"note": "after"})
        engine.increment(accounts, 1, {"balance": 1})
        assert engine.get(accounts, 1) == account(1, balance=10, note="after")
    finally:
        flusher.stopping.set()
        thread.join()
    flush(engine)
    assert rows_of(engine, accounts) == [account(1, balance=10, note="after")]


def test_writes_on_a_marker_and_on_an_overlay_end_up_right(engine: WriteBehind, client: Any) -> None:
    """Cold patches, increments, puts and deletes in every order give what SQL gives."""
    for number in range(8):
        engine.put(accounts, account(number, balance=100))
    flush(engine)
    evict(client, engine, accounts)
    engine.patch(accounts, 0, {"balance": 1})
    engine.increment(accounts, 0, {"balance": 1})
    engine.increment(accounts, 1, {"balance": 1})
    engine.patch(accounts, 1, {"balance": 1})
    engine.increment(accounts, 2, {"balance": 1})
    engine.put(accounts, account(2, balance=7))
    engine.increment(accounts, 3, {"balance": 1})
    engine.delete(accounts, 3)
    engine.delete(accounts, 4)
    engine.patch(accounts, 4, {"note": "x"})
    engine.patch(accounts, 5, {"note": "x"})
    engine.delete(accounts, 5)
    engine.put(accounts, account(5))
    engine.increment(accounts, 5, {"balance": 2})
    engine.patch(accounts, 6, {"note": "x"})
    engine.put(accounts, account(6, balance=6))
    assert engine.get_many(accounts, [2, 3, 4, 5, 6, 7]) == {
        2: account(2, balance=7),
        3: None,
        4: None,
        5: account(5, balance=2),
        6: account(6, balance=6),
        7: account(7, balance=100),
    }
    flush(engine)
    expected = {
        0: account(0, balance=2),
        1: account(1, balance=1),
        2: account(2, balance=7),
        3: None,
        4: None,
        5: account(5, balance=2),
        6: account(6, balance=6),
        7: account(7, balance=100),
    }
    assert engine.get_many(accounts, range(8)) == expected
    assert rows_of(engine, accounts) == [record for record in expected.values() if record]


def test_a_deleted_record_stays_deleted(engine: WriteBehind) -> None:
    """Before the delete is in SQL the old row is not read again, nor is it afterwards."""
    engine.put(accounts, account(1))
    flush(engine)
    engine.delete(accounts, 1)
    engine.delete(accounts, 2)
    assert engine.get_many(accounts, [1, 2]) == {1: None, 2: None}
    flush(engine)
    assert engine.get_many(accounts, [1, 2]) == {1: None, 2: None}
    assert rows_of(engine, accounts) == []


def test_an_inserted_row_is_read_after_its_flush(engine: WriteBehind) -> None:
    """A read of a row that was inserted under a known key waits until SQL has it."""
    engine.insert(accounts, {"id": 7, "owner": "Ada"})
    flusher = Flusher(engine, QUICK)
    thread = threading.Thread(target=flusher.run)
    thread.start()
    try:
        assert engine.get(accounts, 7) == account(7)
    finally:
        flusher.stopping.set()
        thread.join()


def test_inserted_rows_get_keys_from_the_database(engine: WriteBehind) -> None:
    """Append-only rows land once each, also those of one batch."""
    engine.insert(events, {"kind": "login"})
    with engine.batch() as batch:
        for number in range(50):
            batch.insert(events, {"kind": f"event {number}"})
    flush(engine)
    kinds = sorted(row["kind"] for row in rows_of(engine, events))
    assert kinds == sorted(["login", *(f"event {number}" for number in range(50))])


def test_composite_keys_and_partition_by(engine: WriteBehind) -> None:
    """Children live in their parent's partition, and tuples in the order of the key find them."""
    tenants = ["a", "b:c", "b", "ä {} %", " c", "d" * 20]
    for tenant in tenants:
        with engine.atomic(orders, (tenant, 1)) as group:
            group.put(orders, {"tenant": tenant, "number": 1, "total": Decimal("3.50")})
            group.put(items, {"tenant": tenant, "number": 1, "line": 1, "price": Decimal("1.25")})
            group.put(items, {"tenant": tenant, "number": 1, "line": 2, "price": Decimal("2.25")})
    for _ in range(2):
        for tenant in tenants:
            assert engine.get(orders, (tenant, 1)) == {"tenant": tenant, "number": 1, "total": Decimal("3.50")}
            found = engine.get_many(items, [(tenant, 1, 1), (tenant, 1, 2), (tenant, 1, 3)])
            assert [record and record["price"] for record in found.values()] == [Decimal("1.25"), Decimal("2.25"), None]
        flush(engine)
    assert len(rows_of(engine, orders)) == len(tenants)
    assert len(rows_of(engine, items)) == 2 * len(tenants)


def test_null_is_neither_empty_nor_a_backslash(engine: WriteBehind, client: Any) -> None:
    """NULL, the empty text and texts that look like the mark of NULL come back as they went in."""
    texts = [None, "", "\\N", "\\", "\\\\N", "N", "\\.", " ", "\r\n\t", "ü🦉", "None", "null"]
    for number, text in enumerate(texts):
        engine.put(accounts, account(number, note=text))
        engine.put(accounts, account(100 + number, note="before"))
        engine.patch(accounts, 100 + number, {"note": text})
    numbers = [*range(len(texts)), *range(100, 100 + len(texts))]

    def notes() -> list[Any]:
        return [record and record["note"] for record in engine.get_many(accounts, numbers).values()]

    assert notes() == texts + texts
    flush(engine)
    assert notes() == texts + texts
    evict(client, engine, accounts)
    assert notes() == texts + texts
    assert [row["note"] for row in rows_of(engine, accounts)] == texts + texts


# All or nothing


def test_an_exception_discards_an_atomic_group_and_a_batch(single: WriteBehind, client: Any) -> None:
    """What was added before the exception is nowhere."""
    single.put(accounts, account(1))
    before = contents(client, single.keys.namespace)
    with pytest.raises(KeyError), single.atomic(accounts, 1) as group:
        group.increment(accounts, 1, {"balance": 1})
        raise KeyError
    with pytest.raises(KeyError), single.batch() as batch:
        batch.increment(accounts, 1, {"balance": 1})
        raise KeyError
    assert contents(client, single.keys.namespace) == before
    with pytest.raises(WriteBehindError, match="not known to be accepted"):
        _ = group.receipt.entry_id


def test_an_atomic_group_lands_in_one_entry(engine: WriteBehind, client: Any) -> None:
    """Its members are one entry of the log, and apply in their order."""
    log = engine.keys.logs[partition_of("1", 4)]
    with engine.atomic(accounts, 1) as group:
        group.put(accounts, account(1, balance=1))
        group.increment(accounts, 1, {"balance": 2})
        group.patch(accounts, 1, {"note": "x"})
        group.insert(events, {"kind": "opened"})
    assert client.xlen(log) == 1
    assert engine.get(accounts, 1) == account(1, balance=3, note="x")
    flush(engine)
    assert rows_of(engine, accounts) == [account(1, balance=3, note="x")]
    assert [row["kind"] for row in rows_of(engine, events)] == ["opened"]
    assert group.receipt.wait(Durability.PERSISTED, 1).durability is Durability.PERSISTED


def test_a_member_of_another_partition_is_refused(make: Factory, sqlite_url: str, client: Any) -> None:
    """A group reaches over one partition only, and a refused one leaves nothing."""
    engine = make(sqlite_url)
    engine.put(accounts, account(1))
    other = next(number for number in range(2, 99) if partition_of(str(number), 4) != partition_of("1", 4))
    before = contents(client, engine.keys.namespace)
    with pytest.raises(ValidationError, match="another partition"), engine.atomic(accounts, 1) as group:
        group.increment(accounts, 1, {"balance": 1})
        group.put(accounts, account(other))
    assert contents(client, engine.keys.namespace) == before


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.put(accounts, {"id": 1, "owner": "x", "colour": "red"}),
        lambda w: w.put(accounts, {"id": 1}),
        lambda w: w.put(accounts, {"owner": "x"}),
        lambda w: w.put(accounts, {"id": 1, "owner": None}),
        lambda w: w.put(accounts, {"id": 1, "owner": "x" * 101}),
        lambda w: w.put(accounts, {"id": 2**63, "owner": "x"}),
        lambda w: w.put(accounts, {"id": "1", "owner": "x"}),
        lambda w: w.put(accounts, {"id": 1, "owner": "x", "note": "nul \0"}),
        lambda w: w.put(accounts, {"id": 1, "owner": "x", "note": "\ud800"}),
        lambda w: w.put(accounts, {"id": 1, "owner": "x", "note": "x" * 300_000}),
        lambda w: w.patch(accounts, 1, {}),
        lambda w: w.patch(accounts, 1, {"id": 2}),
        lambda w: w.patch(accounts, 1, {"owner": None}),
        lambda w: w.patch(accounts, None, {"owner": "x"}),
        lambda w: w.increment(accounts, 1, {"owner": 1}),
        lambda w: w.increment(accounts, 1, {"balance": 0.5}),
        lambda w: w.increment(accounts, 1, {"balance": BIGGEST}),
        lambda w: w.delete(accounts, (1, 2)),
        lambda w: w.insert(events, {}),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    single: WriteBehind, client: Any, write: Callable[[Any], Any]
) -> None:
    """A refused write, alone, in a batch or in a group, leaves log and records as they were."""
    single.put(accounts, account(1, balance=5))
    before = contents(client, single.keys.namespace)
    with pytest.raises(ValidationError):
        write(single)
    assert contents(client, single.keys.namespace) == before
    for several in (single.batch(), single.atomic(accounts, 1)):
        with pytest.raises(ValidationError), several:
            several.put(accounts, account(1, owner="sneaked in", balance=5))
            write(several)
        assert contents(client, single.keys.namespace) == before


def test_a_batch_adds_its_writes_to_what_was_there(engine: WriteBehind) -> None:
    """Many writes of many kinds in one batch keep the order of each key."""
    with engine.batch() as batch:
        for number in range(700):
            batch.put(accounts, account(number, balance=1))
            batch.increment(accounts, number, {"balance": number})
            if number % 3 == 0:
                batch.patch(accounts, number, {"note": "third"})
            if number % 5 == 0:
                batch.delete(accounts, number)
            if number % 10 == 0:
                batch.put(accounts, account(number, owner="again"))
        assert len(batch) > 1400
    expected = {
        number: (account(number, owner="again") if number % 10 == 0 else None)
        if number % 5 == 0
        else account(number, balance=1 + number, note="third" if number % 3 == 0 else None)
        for number in range(700)
    }
    assert engine.get_many(accounts, range(700)) == expected
    flush(engine)
    assert engine.get_many(accounts, range(700)) == expected
    assert rows_of(engine, accounts) == [record for record in expected.values() if record]


# Refusals


def test_the_payload_has_a_limit(make: Factory, sqlite_url: str, client: Any) -> None:
    """A write, and a group, larger than allowed is refused by size; one just below passes."""
    engine = make(sqlite_url, settings=EngineSettings(payload_bytes_max=1000))
    engine.put(accounts, account(1, note="x" * 900))
    before = contents(client, engine.keys.namespace)
    with pytest.raises(ValidationError, match="1000 are allowed"):
        engine.put(accounts, account(1, note="x" * 1000))
    with pytest.raises(ValidationError, match="1000 are allowed"), engine.atomic(accounts, 1) as group:
        group.patch(accounts, 1, {"note": "x" * 600})
        group.patch(accounts, 1, {"note": "y" * 600})
    assert contents(client, engine.keys.namespace) == before


def test_an_undeclared_table_is_named(single: WriteBehind) -> None:
    """The error says which table, and which there are."""
    with pytest.raises(ConfigurationError, match=r"counters is not declared.*accounts"):
        single.put(counters, {"id": 1})
    with pytest.raises(ConfigurationError, match="not declared"):
        single.get("accounts", 1)


def test_another_number_of_partitions_is_refused_by_redis(make: Factory, sqlite_url: str) -> None:
    """What the namespace began with holds."""
    make(sqlite_url, partitions=4).start()
    with pytest.raises(ConfigurationError, match=r"partitions=4|4 partitions"):
        make(sqlite_url, partitions=5).start()


def test_another_number_of_partitions_is_refused_by_sql(make: Factory, database_url: str, client: Any) -> None:
    """A Redis that forgot the namespace does not let other settings in."""
    engine = make(database_url, partitions=4)
    initialise(engine)
    client.delete(engine.keys.shared)
    other = make(database_url, partitions=5)
    with pytest.raises(ConfigurationError, match="4 partitions"):
        other.start()


@pytest.mark.parametrize("which", ["log", "log that is ahead", "meta", "record", "record of a hash"])
def test_a_foreign_key_in_redis_leaves_nothing_half_written(single: WriteBehind, client: Any, which: str) -> None:
    """Where a name is taken by something else, a write is refused and neither log nor records change."""
    single.put(accounts, account(1))
    taken = {"log": single.keys.logs[0], "meta": single.keys.metas[0]}.get(
        which, single.keys.record(0, "accounts", "2")
    )
    client.delete(taken)
    if which == "log that is ahead":
        client.xadd(single.keys.logs[0], {"foreign": "entry"}, id=f"{2**53}-0")
    elif which == "record of a hash":
        client.hset(taken, mapping={":state": "full", "balance": "many"})
    else:
        client.set(taken, "foreign")
    before = contents(client, single.keys.namespace)
    writes: list[Callable[[Any], Any]] = [lambda w: w.increment(accounts, 2, {"balance": 1})]
    if which != "record of a hash":
        writes += [lambda w: w.put(accounts, account(2)), lambda w: w.patch(accounts, 2, {"note": "x"})]
        writes += [lambda w: w.delete(accounts, 2)]
    for write in writes:
        with pytest.raises(ConfigurationError, match="nothing was written"):
            write(single)
        with pytest.raises(ConfigurationError), single.batch() as batch:
            batch.put(accounts, account(1, owner="neighbour"))
            write(batch)
        with pytest.raises(ConfigurationError), single.atomic(accounts, 1) as group:
            group.put(accounts, account(1, owner="neighbour"))
            write(group)
    assert contents(client, single.keys.namespace) == before


def test_a_full_redis_refuses_whole_writes_and_drains(
    own_redis: "OwnRedisFactory", make: Factory, sqlite_url: str
) -> None:
    """A refused put leaves neither entry nor record; flushing goes on, frees memory, and writes pass again."""
    server = own_redis({"maxmemory-policy": "noeviction"})
    engine = make(
        sqlite_url,
        redis=server.url,
        partitions=1,
        settings=EngineSettings(write_timeout_seconds=0.2, redis_memory_share_max=None),
    )
    initialise(engine, create_tables=True)
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        engine.put(accounts, account(0))
        limit = int(client.info("memory")["used_memory"]) + 6_000_000
        client.config_set("maxmemory", limit)
        accepted = 1
        with pytest.raises(RedisUnavailable, match="out of memory"):
            for number in range(1, 1000):
                engine.put(accounts, account(number, note="x" * 30_000))
                accepted += 1
        assert client.xlen(engine.keys.logs[0]) == accepted
        assert not client.exists(engine.keys.record(0, "accounts", str(accepted)))
        # What the connection of the refused write took is free again, and might be enough.
        client.config_set("maxmemory", 1)
        with pytest.raises(RedisUnavailable, match="out of memory"), engine.batch() as batch:
            batch.put(accounts, account(0, owner="half"))
            batch.put(accounts, account(accepted, note="x" * 30_000))
        client.config_set("maxmemory", limit)
        assert client.xlen(engine.keys.logs[0]) == accepted
        assert engine.get(accounts, 0) == account(0)
        last = drain(engine, 20, FlusherSettings(linger_seconds=0, batch_entries_max=20, retention_seconds=0))
        assert (last.backlog, last.lost_entries) == (0, 0)
        assert client.xlen(engine.keys.logs[0]) < accepted / 2
        engine.put(accounts, account(accepted, note="x" * 30_000))
        assert engine.get(accounts, accepted) == account(accepted, note="x" * 30_000)
        flush(engine)
    assert [row["id"] for row in rows_of(engine, accounts)] == list(range(accepted + 1))


def test_a_lost_script_cache_is_no_matter(single: WriteBehind, client: Any) -> None:
    """Scripts that the server forgets in the middle of batches and of a drain are sent again, and nothing doubles."""
    ended = threading.Event()

    def forget() -> None:
        with redis.Redis.from_url(str(single.redis_target)) as mine:
            while not ended.is_set():
                mine.script_flush()

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        single.put(accounts, account(1))
        for _ in range(100):
            with single.batch() as batch:
                for _ in range(5):
                    batch.increment(accounts, 1, {"balance": 1})
                batch.insert(events, {"kind": "x"})
            single.increment(accounts, 1, {"balance": 1})
        flush(single)
    finally:
        ended.set()
        thread.join()
    assert rows_of(single, accounts) == [account(1, balance=600)]
    assert len(rows_of(single, events)) == 100


# Records' time to live


def test_only_flushed_records_expire(single: WriteBehind, client: Any) -> None:
    """A record gets a time to live with its flush, and loses it with the next write."""
    key = single.keys.record(0, "accounts", "1")
    single.put(accounts, account(1))
    assert client.ttl(key) == -1
    flush(single)
    assert 0 < client.ttl(key) <= 3600
    writes: list[Callable[[], Any]] = [
        lambda: single.increment(accounts, 1, {"balance": 1}),
        lambda: single.patch(accounts, 1, {"note": "x"}),
        lambda: single.put(accounts, account(1)),
        lambda: single.delete(accounts, 1),
    ]
    for write in writes:
        write()
        assert client.ttl(key) == -1
        flush(single)
        assert client.ttl(key) > 0 or not client.exists(key)
    assert not client.exists(key)


@pytest.mark.parametrize("later", ["put", "patch", "delete", "increment"])
def test_a_record_written_since_its_flush_does_not_expire(single: WriteBehind, client: Any, later: str) -> None:
    """A write between the commit and the acknowledgement keeps the record in Redis as it is."""
    writes: dict[str, Callable[[], Any]] = {
        "put": lambda: single.put(accounts, account(1, owner="later")),
        "patch": lambda: single.patch(accounts, 1, {"owner": "later"}),
        "delete": lambda: single.delete(accounts, 1),
        "increment": lambda: single.increment(accounts, 1, {"balance": 1}),
    }

    class Interrupted(Flusher):
        def perform(self, effect: Effect) -> FlushReply:
            reply = super().perform(effect)
            if isinstance(effect, Commit):
                writes[later]()
            if isinstance(effect, Acknowledge):
                self.stopping.set()
            return reply

    key = single.keys.record(0, "accounts", "1")
    single.put(accounts, account(1))
    Interrupted(single, QUICK).run()
    assert client.ttl(key) == -1
    expected = {
        "put": account(1, owner="later"),
        "patch": account(1, owner="later"),
        "delete": None,
        "increment": account(1, balance=1),
    }[later]
    assert single.get(accounts, 1) == expected
    flush(single)
    assert single.get(accounts, 1) == expected
    assert rows_of(single, accounts) == ([expected] if expected else [])


# Arithmetic

MANY = hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
near = st.sampled_from([0, 1, -1, 10**12, 10**12 - 1, 4 * 10**15, 2**53, 2**53 + 1, BIGGEST, -BIGGEST - 1, -BIGGEST])
whole = st.one_of(near, st.integers(-BIGGEST - 1, BIGGEST), st.integers(-(10**13), 10**13))
money = st.one_of(
    st.decimals(-(10**28) + 1, 10**28 - 1, places=10, allow_nan=False, allow_infinity=False),
    st.decimals(-1000, 1000, places=10, allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [Decimal("0.0000000001"), Decimal("-0.0000000001"), Decimal("9999999999999999999999999999.9999999999")]
    ),
)


def units(amount: Decimal) -> int:
    """Return how many units of the last of ten digits an amount has."""
    return int(amount.scaleb(10, Context(prec=100)))


def counter(engine: WriteBehind) -> dict[str, Any]:
    """Return the record that the arithmetic works on."""
    record = engine.get(counters, 1)
    assert record is not None
    return record


@MANY
@hypothesis.given(begin=whole, deltas=st.lists(whole, min_size=1, max_size=6))
def test_integers_add_up_exactly(arithmetic: WriteBehind, begin: int, deltas: list[int]) -> None:
    """Increments of 64-bit integers equal Python's, and one that leaves the range changes nothing."""
    arithmetic.put(counters, {"id": 1, "big": begin})
    total = begin
    for delta in deltas:
        if -BIGGEST - 1 <= total + delta <= BIGGEST and delta != -BIGGEST - 1:
            arithmetic.increment(counters, 1, {"big": delta})
            total += delta
        else:
            with pytest.raises(ValidationError):
                arithmetic.increment(counters, 1, {"big": delta})
        assert counter(arithmetic)["big"] == total


@MANY
@hypothesis.given(begin=money, deltas=st.lists(money, min_size=1, max_size=6))
def test_decimals_add_up_exactly(arithmetic: WriteBehind, begin: Decimal, deltas: list[Decimal]) -> None:
    """Increments of 38 digits equal decimal arithmetic, and one that leaves the precision changes nothing."""
    arithmetic.put(counters, {"id": 1, "money": begin})
    total = units(begin)
    for delta in deltas:
        after = total + units(delta)
        if abs(after) < 10**38:
            arithmetic.increment(counters, 1, {"money": delta})
            total = after
        else:
            with pytest.raises(ValidationError):
                arithmetic.increment(counters, 1, {"money": delta})
        found = counter(arithmetic)["money"]
        assert (units(found), found.as_tuple().exponent) == (total, -10)


@MANY
@hypothesis.given(
    begin=st.floats(allow_nan=False, allow_infinity=False),
    deltas=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
)
def test_floats_add_up_as_in_python(arithmetic: WriteBehind, begin: float, deltas: list[float]) -> None:
    """Increments of doubles give the very double that Python gives, and one that overflows changes nothing."""
    arithmetic.put(counters, {"id": 1, "real": begin})
    total = begin
    for delta in deltas:
        if abs(total + delta) == float("inf"):
            with pytest.raises(ValidationError):
                arithmetic.increment(counters, 1, {"real": delta})
        else:
            arithmetic.increment(counters, 1, {"real": delta})
            total += delta
        assert counter(arithmetic)["real"] == total


@MANY
@hypothesis.given(
    begin=st.decimals(-1000, 1000, places=3, allow_nan=False, allow_infinity=False),
    deltas=st.lists(st.decimals(-10, 10, allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
)
def test_decimals_of_any_scale_add_up_exactly(arithmetic: WriteBehind, begin: Decimal, deltas: list[Decimal]) -> None:
    """Where a column keeps each value's own scale, nothing is rounded."""
    hypothesis.assume(all(-delta.as_tuple().exponent < 20 for delta in deltas))  # type: ignore[operator]
    arithmetic.put(counters, {"id": 1, "loose": begin})
    for delta in deltas:
        arithmetic.increment(counters, 1, {"loose": delta})
    assert counter(arithmetic)["loose"] == sum(deltas, begin)


def test_null_counts_as_zero(arithmetic: WriteBehind) -> None:
    """An increment of NULL begins at 0."""
    arithmetic.put(counters, {"id": 1})
    arithmetic.increment(counters, 1, {"maybe": -3})
    assert counter(arithmetic)["maybe"] == -3


@pytest.mark.parametrize("several", ["batch", "atomic"])
def test_increments_of_one_call_add_up(arithmetic: WriteBehind, several: str) -> None:
    """Writes of one key inside one call see each other."""
    with arithmetic.batch() if several == "batch" else arithmetic.atomic(counters, 1) as group:
        group.put(counters, {"id": 1, "big": BIGGEST - 10, "money": Decimal("0.1")})
        group.increment(counters, 1, {"big": 4, "money": Decimal("0.2")})
        group.patch(counters, 1, {"real": 1.5})
        group.increment(counters, 1, {"big": 6, "real": 0.25})
    record = counter(arithmetic)
    assert (record["big"], record["money"], record["real"]) == (BIGGEST, Decimal("0.3"), 1.75)


@pytest.mark.parametrize("several", ["batch", "atomic"])
@pytest.mark.parametrize(
    "writes",
    [
        [("put", BIGGEST), ("increment", 1)],
        [("increment", BIGGEST - 5), ("increment", 6)],
        [("patch", BIGGEST), ("increment", 1)],
        [("increment", 1), ("patch", BIGGEST), ("increment", 1)],
        [("delete", 0), ("put", BIGGEST), ("increment", 1)],
    ],
)
def test_increments_of_one_call_stay_in_range(
    arithmetic: WriteBehind, client: Any, several: str, writes: list[tuple[str, int]]
) -> None:
    """Where writes of one call together leave the column's range, the call is refused whole."""
    arithmetic.put(counters, {"id": 1, "big": 0})
    before = contents(client, arithmetic.keys.namespace)
    with (
        pytest.raises(ValidationError, match="range"),
        arithmetic.batch() if several == "batch" else arithmetic.atomic(counters, 1) as group,
    ):
        for operation, value in writes:
            match operation:
                case "put":
                    group.put(counters, {"id": 1, "big": value})
                case "patch":
                    group.patch(counters, 1, {"big": value})
                case "increment":
                    group.increment(counters, 1, {"big": value})
                case _:
                    group.delete(counters, 1)
    assert contents(client, arithmetic.keys.namespace) == before


@pytest.mark.parametrize("several", ["batch", "atomic"])
def test_increments_of_one_call_may_return_into_range(arithmetic: WriteBehind, several: str) -> None:
    """A put that makes room counts for the increments after it."""
    arithmetic.put(counters, {"id": 1, "big": BIGGEST})
    with arithmetic.batch() if several == "batch" else arithmetic.atomic(counters, 1) as group:
        group.patch(counters, 1, {"big": 0})
        group.increment(counters, 1, {"big": 5})
    assert counter(arithmetic)["big"] == 5


def test_sums_in_redis_equal_sums_in_sql(make: Factory, database_url: str) -> None:
    """Amounts of every numeric kind show the same before the flush and after it."""
    engine = make(database_url, tables=[accounts, orders, items, events], partitions=1)
    initialise(engine, create_tables=True)
    engine.put(orders, {"tenant": "t", "number": 1, "total": Decimal("0.10")})
    for amount in ("0.20", "-1.35", "99999.99", "0.01", "-0.01"):
        engine.increment(orders, ("t", 1), {"total": Decimal(amount)})
        flush(engine)
    engine.put(accounts, account(1, balance=BIGGEST - 1))
    engine.increment(accounts, 1, {"balance": -3})
    before = engine.get(orders, ("t", 1)), engine.get(accounts, 1)
    flush(engine)
    assert before == (rows_of(engine, orders)[0], rows_of(engine, accounts)[0])
    assert before[0] == {"tenant": "t", "number": 1, "total": Decimal("99998.94")}


# Threads and processes


def test_threads_share_an_engine(engine: WriteBehind) -> None:
    """Eight threads lose and double nothing, and each key keeps its thread's order, while a flusher works."""
    threads, rounds = 8, 60
    engine.put(accounts, account(0, owner="all"))
    failures: list[BaseException] = []

    def work(mine: int) -> None:
        try:
            for number in range(rounds):
                engine.put(accounts, account(mine, balance=number, note=f"{number}"))
                assert engine.get(accounts, mine) == account(mine, balance=number, note=f"{number}")
                engine.increment(accounts, 0, {"balance": 1})
                with engine.batch() as batch:
                    batch.patch(accounts, mine, {"owner": f"{mine} {number}"})
                    batch.insert(events, {"kind": f"{mine} {number}"})
                    batch.increment(accounts, 0, {"balance": 1})
        except BaseException as error:
            failures.append(error)
            raise

    flusher = Flusher(engine, QUICK)
    workers = [threading.Thread(target=work, args=(mine,)) for mine in range(1, threads + 1)]
    service = threading.Thread(target=flusher.run)
    for thread in (service, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    flusher.stopping.set()
    service.join()
    assert failures == []
    flush(engine)
    last = str(rounds - 1)
    assert rows_of(engine, accounts) == [
        account(0, owner="all", balance=2 * threads * rounds),
        *(account(mine, owner=f"{mine} {last}", balance=int(last), note=last) for mine in range(1, threads + 1)),
    ]
    assert sorted(row["kind"] for row in rows_of(engine, events)) == sorted(
        f"{mine} {number}" for mine in range(1, threads + 1) for number in range(rounds)
    )


def test_a_forked_child_writes_on_its_own(single: WriteBehind, client: Any) -> None:
    """Parent and child go on with connections and mutation IDs of their own."""
    single.put(accounts, account(1))
    assert single.get(accounts, 2) is None  # connections of both kinds are open
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for _ in range(50):
                single.increment(accounts, 1, {"balance": 1})
            single.put(accounts, account(3, owner="child"))
            code = 0 if single.get(accounts, 2) is None else 2
        finally:
            os._exit(code)
    for _ in range(50):
        single.increment(accounts, 1, {"balance": 1})
    assert os.waitpid(child, 0)[1] == 0
    single.increment(accounts, 1, {"balance": 1})
    assert single.get(accounts, 3) == account(3, owner="child")
    mutations = [fields[b"m"] for _, fields in client.xrange(single.keys.logs[0])]
    assert len(mutations) == len(set(mutations)) == 103
    flush(single)
    assert rows_of(single, accounts) == [account(1, balance=101), account(3, owner="child")]
