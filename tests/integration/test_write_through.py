"""Writing through on real servers: when the call returns, SQL has the write, and what was written before it."""

# ruff: noqa: PT012 - a batch and a group raise when their block ends

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from running import flushing
from writebehind.drills.proxy import Proxy
from writebehind.engine import (
    AsyncWriteBehind,
    Backpressure,
    ConfigurationError,
    DataLossDetected,
    DeadLetter,
    Durability,
    EngineSettings,
    PoisonEntryError,
    Receipt,
    WriteBehind,
    WritePolicy,
    WriteThroughTimeout,
)
from writebehind.engine.adapters.control_tables import control
from writebehind.engine.adapters.log import Log
from writebehind.engine.adapters.rows import Applied
from writebehind.engine.own_flusher import OwnFlusher
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, status

DEADLINE_SECONDS = 30.0
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
IMPATIENT = EngineSettings(write_timeout_seconds=1.0)
THROUGH = WritePolicy.WRITE_THROUGH

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
    sa.CheckConstraint("balance >= 0", name="solvent"),
)
payments = sa.Table(
    "payments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.BigInteger, nullable=False, default=0),
    info={"writebehind": {"policy": "write_through"}},
)
events = sa.Table("events", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("kind", sa.Text))
TABLES = [accounts, payments, events]

Make = Callable[..., WriteBehind]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)


@pytest.fixture
def make(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[Make]:
    """Make initialised engines on SQLite, and close them."""
    with contextlib.ExitStack() as stack:

        def factory(**options: Any) -> WriteBehind:
            chosen: dict[str, Any] = {
                "redis": redis_url, "database": sqlite_url, "namespace": namespace, "partitions": 2, "tables": TABLES
            } | options  # fmt: skip
            engine = WriteBehind(**chosen)
            stack.callback(engine.close)
            if "database" not in options:
                initialise(engine, create_tables=True)
            return engine

        yield factory


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as plain:
        yield plain


def in_sql(engine: WriteBehind, table: sa.Table = accounts) -> dict[int, Any]:
    """Return the rows."""
    with engine.database.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(sa.select(table))}


def in_redis(client: Any, engine: WriteBehind, key: int, table: sa.Table = accounts) -> dict[str, str]:
    """Return the record as any client of Redis sees it."""
    partition = engine.composer.put(engine.plan_of(table), {"id": key}).partition
    found: dict[str, str] = client.hgetall(engine.keys.record(partition, table.name, str(key)))
    return found


def is_clean(client: Any, engine: WriteBehind, key: int) -> bool:
    """Tell whether a record is whole and has a time to live, as only what SQL has may."""
    partition = engine.composer.put(engine.plan_of(accounts), {"id": key}).partition
    name = engine.keys.record(partition, "accounts", str(key))
    return bool(client.hget(name, ":state") == "full" and client.pttl(name) > 0)


def until(happened: Callable[[], object]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


# SQL and hash agree


@pytest.mark.parametrize("flushed", [True, False], ids=["a flusher", "no flusher"])
def test_sql_and_hash_agree_on_return(make: Make, client: Any, *, flushed: bool) -> None:
    """Every kind of write is in SQL when it returns, with what was written before it, and the record is clean."""
    engine, other = make(), make()
    with flushing(engine, QUICK) if flushed else contextlib.nullcontext():
        for number in range(1, 6):
            other.increment(accounts, 1, {"balance": number})
        receipt = engine.patch(accounts, 1, {"balance": 7}, policy=THROUGH)
        assert receipt.durability is Durability.PERSISTED
        assert in_sql(engine) == {1: 7}
        assert engine.get(accounts, 1) == {"id": 1, "balance": 7}

        other.put(accounts, {"id": 1, "balance": 100})
        engine.increment(accounts, 1, {"balance": 5}, policy=THROUGH)
        assert in_sql(engine) == {1: 105}
        assert in_redis(client, engine, 1)["balance"] == "105"
        assert is_clean(client, engine, 1)

        engine.put(accounts, {"id": 1, "balance": 6}, policy=THROUGH)
        assert in_sql(engine) == {1: 6}
        assert in_redis(client, engine, 1)["balance"] == "6"
        assert is_clean(client, engine, 1)

        engine.insert(events, {"kind": "login"}, policy=THROUGH)
        assert list(in_sql(engine, events).values()) == ["login"]

        other.increment(accounts, 1, {"balance": 1})
        engine.delete(accounts, 1, policy=THROUGH)
        assert in_sql(engine) == {}
        assert in_redis(client, engine, 1) == {}


def test_on_each_database(make: Make, database_url: str) -> None:
    """Without a flusher, then with one, after what another writer has put before it."""
    engine, other = make(database=database_url), make(database=database_url)
    initialise(engine, create_tables=True)
    for flushed in (False, True):
        with flushing(engine, QUICK) if flushed else contextlib.nullcontext():
            for _ in range(3):
                other.increment(accounts, 1, {"balance": 1})
                engine.increment(accounts, 1, {"balance": 10}, policy=THROUGH)
                with engine.database.connect() as connection:
                    balance = connection.execute(sa.select(accounts.c.balance)).scalar_one()
                assert other.get(accounts, 1) == {"id": 1, "balance": balance}
    assert in_sql(engine) == {1: 66}


def test_a_table_and_a_call(make: Make) -> None:
    """A table says how its writes return; a call says otherwise; the rest is written behind."""
    engine = make()
    assert engine.put(payments, {"id": 1, "amount": 1}).durability is Durability.PERSISTED
    assert in_sql(engine, payments) == {1: 1}
    behind = engine.put(payments, {"id": 2, "amount": 2}, policy=WritePolicy.WRITE_BEHIND)
    assert behind.durability is Durability.ACCEPTED
    assert engine.put(accounts, {"id": 1}).durability is Durability.ACCEPTED
    with pytest.raises(ConfigurationError, match="policy"):
        engine.put(accounts, {"id": 9}, policy="around")  # type: ignore[arg-type] # what users may try
    assert engine.get(accounts, 9) is None
    with pytest.raises(ConfigurationError, match="table wrong"):
        make(tables=[sa.Table("wrong", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True),
                              info={"writebehind": {"policy": "around"}})])  # fmt: skip


def test_batches_and_groups(make: Make) -> None:
    """In a batch each table has its own policy, or the call one for all; a group is written through as a whole."""
    engine = make()
    with engine.batch() as batch:
        through = [batch.put(payments, {"id": number, "amount": number}) for number in range(8)]
        behind = [batch.put(accounts, {"id": number}) for number in range(8)]
    assert {receipt.durability for receipt in through} == {Durability.PERSISTED}
    assert {receipt.durability for receipt in behind} == {Durability.ACCEPTED}
    assert len(in_sql(engine, payments)) == 8
    with engine.batch(policy=THROUGH) as batch:
        batch.increment(accounts, 1, {"balance": 3})
        batch.increment(accounts, 2, {"balance": 4})
    assert {key: in_sql(engine)[key] for key in (1, 2)} == {1: 3, 2: 4}
    with engine.batch(policy=WritePolicy.WRITE_BEHIND) as batch:
        assert batch.put(payments, {"id": 99}) is not None
    with engine.atomic(payments, 1) as group:
        group.patch(payments, 1, {"amount": 50})
    assert group.receipt.durability is Durability.PERSISTED
    assert in_sql(engine, payments)[1] == 50
    with engine.atomic(accounts, 1, policy=THROUGH) as group:
        group.put(accounts, {"id": 1, "balance": 60})
    assert in_sql(engine)[1] == 60


@pytest.mark.parametrize("flushed", [True, False], ids=["a flusher", "no flusher"])
def test_many_writers_of_one_key(make: Make, *, flushed: bool) -> None:
    """Each sees its own write in SQL, and none is lost or doubled, whatever else is written to the key."""
    engine, other = make(), make()
    seen: list[tuple[int, int]] = []

    def through(app: WriteBehind) -> None:
        for _ in range(10):
            receipt = app.increment(accounts, 1, {"balance": 1}, policy=THROUGH)
            seen.append((receipt.entry_id.sequence, in_sql(app)[1]))

    def behind() -> None:
        for _ in range(50):
            other.increment(accounts, 1, {"balance": 1})

    with flushing(engine, QUICK) if flushed else contextlib.nullcontext():
        threads = [threading.Thread(target=through, args=[app]) for app in (engine, other)]
        threads += [threading.Thread(target=behind)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen) == 20
    # The n-th increment and all before it were in SQL when its call returned.
    assert all(balance > sequence for sequence, balance in seen)
    drain(engine, DEADLINE_SECONDS)
    assert in_sql(engine) == {1: 70}


def test_where_a_flusher_is_alive_it_does_the_work(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """No flusher of the service's own is made."""
    engine = make()
    with flushing(engine, QUICK) as flusher:
        engine.put(accounts, {"id": 1}, policy=THROUGH)  # it is alive now, and has its leases
        monkeypatch.setattr(type(engine.own_flusher), "_flusher", lambda *_: pytest.fail("it flushes itself"))
        batches = flusher.tally.batches
        for number in range(5):
            engine.put(accounts, {"id": number}, policy=THROUGH)
        assert flusher.tally.batches >= batches + 5


def test_where_none_is_alive_nothing_else_is_taken(make: Make) -> None:
    """Its own flusher takes the partition that is waited for, ends, and leaves it free for the next."""
    engine = make()
    of_partition = {engine.composer.put(engine.plan_of(accounts), {"id": key}).partition: key for key in range(9)}
    mine, theirs = of_partition[0], of_partition[1]
    engine.put(accounts, {"id": theirs})
    engine.put(accounts, {"id": mine}, policy=THROUGH)
    assert in_sql(engine) == {mine: 0}
    until(lambda: all(each.holder is None for each in status(engine).partitions))
    assert status(engine).backlog == 1
    with flushing(engine, QUICK):
        until(lambda: status(engine).backlog == 0)


def test_a_batch_is_whole(make: Make) -> None:
    """It returns when SQL has the last of its writes to each partition, also where these are several batches."""
    engine = make(partitions=1)
    with flushing(engine, FlusherSettings(linger_seconds=0, batch_entries_max=5)):
        for start in range(0, 600, 200):
            with engine.batch(policy=THROUGH) as batch:
                receipts = [batch.put(accounts, {"id": number}) for number in range(start, start + 200)]
            assert len(in_sql(engine)) == start + 200
            assert {receipt.durability for receipt in receipts} == {Durability.PERSISTED}


def test_a_live_flusher_is_left_to_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a flusher is alive, also what it has not taken yet is its to take: nothing is even begun."""
    engine = make()
    begun: list[Any] = []
    monkeypatch.setattr(OwnFlusher, "_flusher", lambda _, among: begun.append(among))
    with engine.database.begin() as connection:
        connection.execute(
            sa.insert(control.tables["writebehind_flushers"]).values(
                namespace=engine.keys.namespace, holder="another", seen_until_ms=int((time.time() + 600) * 1000)
            )
        )
    hasty = make(settings=IMPATIENT)
    with pytest.raises(WriteThroughTimeout):
        hasty.put(accounts, {"id": 1}, policy=THROUGH)
    assert in_sql(engine) == {}
    assert [each.holder for each in status(engine).partitions] == [None, None]
    assert begun == []


@pytest.mark.parametrize("awaited", [False, True], ids=["threads", "an event loop"])
def test_redis_hears_of_it_late(
    make: Make, client: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch, *, awaited: bool
) -> None:
    """Who finds the offset in SQL before Redis has heard of it waits for the record to be settled."""
    engine = make(partitions=1)
    acknowledge, covers, asked = Log.acknowledge, Applied.covers, threading.Event()

    def late(log: Log, done: Any) -> None:
        done = list(done)
        if any(each.ids for each in done):
            assert asked.wait(DEADLINE_SECONDS)
            time.sleep(0.1)  # a Redis that is slow to answer
        acknowledge(log, done)

    def noticed(applied: Applied, entry_id: Any) -> bool | None:
        has = covers(applied, entry_id)
        if has:
            asked.set()
        return has

    monkeypatch.setattr(Log, "acknowledge", late)
    monkeypatch.setattr(Applied, "covers", noticed)

    async def in_a_loop() -> None:
        async with AsyncWriteBehind(
            redis=redis_url, database=engine.database, namespace=engine.keys.namespace, partitions=1, tables=TABLES
        ) as other:
            await other.put(accounts, {"id": 1}, policy=THROUGH)
            assert is_clean(client, engine, 1)

    with flushing(engine, QUICK):
        if awaited:
            asyncio.run(in_a_loop())
        else:
            engine.put(accounts, {"id": 1}, policy=THROUGH)
            assert is_clean(client, engine, 1)


# What is in the way


def test_a_flusher_is_killed_meanwhile(
    make: Make, redis_url: str, sqlite_url: str, namespace: str, tmp_path: Path
) -> None:
    """A flusher that dies with the lease is replaced when the lease has run out; the write is in SQL once."""
    engine = make(partitions=1)
    program = tmp_path / "flusher.py"
    program.write_text(
        "import sys, time\n"
        "from writebehind.engine import WriteBehind\n"
        "from writebehind.flushers import Flusher, FlusherSettings\n"
        "import sqlalchemy as sa\n"
        "metadata = sa.MetaData()\n"
        "tables = [sa.Table('accounts', metadata, sa.Column('id', sa.Integer, primary_key=True, autoincrement=False),"
        " sa.Column('balance', sa.BigInteger))]\n"
        f"app = WriteBehind(redis={redis_url!r}, database={sqlite_url!r}, namespace={namespace!r}, partitions=1,"
        " tables=tables)\n"
        "flusher = Flusher(app, FlusherSettings(linger_seconds=0, lease_ttl_seconds=2))\n"
        "flusher.holdings.tend()\n"
        "print('holding', flush=True)\n"
        "time.sleep(600)\n"
    )
    held = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE)
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == b"holding\n"
        done: list[Receipt] = []
        writer = threading.Thread(
            target=lambda: done.append(engine.increment(accounts, 1, {"balance": 1}, policy=THROUGH))
        )
        writer.start()
        os.kill(held.pid, signal.SIGKILL)
        writer.join(DEADLINE_SECONDS)
    finally:
        held.kill()
        held.communicate()
    assert [receipt.durability for receipt in done] == [Durability.PERSISTED]
    assert in_sql(engine) == {1: 1}


def test_sql_is_down(make: Make, postgresql_url: str) -> None:
    """The error says that the write is accepted and why SQL has it not; SQL gets it once, later, in its order."""
    target = sa.make_url(postgresql_url)
    assert target.host is not None
    with Proxy(target.port or 5432, target.host) as proxy:
        away = target.set(host="127.0.0.1", port=proxy.port)
        engine = make(database=away, partitions=1, settings=IMPATIENT)
        initialise(engine, create_tables=True)
        engine.put(accounts, {"id": 1, "balance": 10}, policy=THROUGH)
        proxy.refuse()
        engine.increment(accounts, 1, {"balance": 1})
        with pytest.raises(WriteThroughTimeout, match=r"accepted.*cannot be read from SQL") as late:
            engine.increment(accounts, 1, {"balance": 5}, policy=THROUGH)
        (receipt,) = late.value.receipts
        assert receipt.durability is Durability.ACCEPTED
        assert engine.get(accounts, 1) == {"id": 1, "balance": 16}
        assert str(pickle.loads(pickle.dumps(late.value))) == str(late.value)  # noqa: S301 - our own bytes
        proxy.accept()
        # Its own flusher may have left a lease behind that has to run out.
        patient = make(database=away, partitions=1)
        patient.increment(accounts, 1, {"balance": 100}, policy=THROUGH)
        assert in_sql(engine) == {1: 116}
        assert receipt.wait(Durability.PERSISTED).durability is Durability.PERSISTED
        drain(engine, DEADLINE_SECONDS)
        assert in_sql(engine) == {1: 116}


def test_it_cannot_flush_itself(make: Make) -> None:
    """Where nobody flushes and this process may not, the error says why; a flusher that comes writes it."""
    engine = make(partitions=1, settings=IMPATIENT)
    engine.own_flusher._app = lambda: make(database="sqlite://", partitions=1)
    with pytest.raises(WriteThroughTimeout, match=r"no flusher is alive, and this process cannot.*in-memory") as late:
        engine.put(accounts, {"id": 1, "balance": 3}, policy=THROUGH)
    with flushing(engine, QUICK):
        late.value.receipts[0].wait(Durability.PERSISTED, DEADLINE_SECONDS)
    assert in_sql(engine) == {1: 3}


def test_a_halted_partition(make: Make) -> None:
    """A table that is missing halts the partition; the error says so, and the write follows when it is mended."""
    engine = make(partitions=1, settings=IMPATIENT)
    accounts.drop(engine.database)
    with pytest.raises(WriteThroughTimeout, match=r"halted.*accounts") as late:
        engine.put(accounts, {"id": 1, "balance": 3}, policy=THROUGH)
    accounts.create(engine.database)
    drain(engine, DEADLINE_SECONDS)
    assert late.value.receipts[0].wait(timeout=DEADLINE_SECONDS).durability is Durability.PERSISTED
    assert in_sql(engine) == {1: 3}


@pytest.mark.parametrize("flushed", [True, False], ids=["a flusher", "no flusher"])
def test_what_sql_refuses(make: Make, *, flushed: bool) -> None:
    """A dead letter's error is raised; what waits behind it says so in time, and other keys are written through."""
    letters: list[DeadLetter] = []
    engine = make(partitions=1, settings=IMPATIENT, on_dead_letter=letters.append)
    with flushing(engine, QUICK) if flushed else contextlib.nullcontext():
        engine.put(accounts, {"id": 1, "balance": 1}, policy=THROUGH)
        with pytest.raises(PoisonEntryError, match=r"dead letter.*solvent"):
            engine.put(accounts, {"id": 1, "balance": -1}, policy=THROUGH)
        assert len(letters) == 1
        with pytest.raises(WriteThroughTimeout):
            engine.increment(accounts, 1, {"balance": 1}, policy=THROUGH)
        engine.put(accounts, {"id": 2, "balance": 2}, policy=THROUGH)
        with pytest.raises(PoisonEntryError), engine.batch(policy=THROUGH) as batch:
            refused = batch.put(accounts, {"id": 3, "balance": -3})
            taken = batch.put(accounts, {"id": 4, "balance": 4})
        assert (refused.durability, taken.durability) == (Durability.ACCEPTED, Durability.PERSISTED)
        # A whole record supersedes what is refused.
        engine.put(accounts, {"id": 1, "balance": 9}, policy=THROUGH)
    assert in_sql(engine) == {1: 9, 2: 2, 4: 4}


def test_a_write_that_redis_loses(make: Make, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Redis loses the entry before SQL has it, and nobody can write it again, that is what is raised."""
    engine = make(partitions=1, settings=EngineSettings(retained_bytes_max=0, write_timeout_seconds=20))
    engine.put(accounts, {"id": 1, "balance": 1}, policy=THROUGH)
    raised: list[BaseException] = []
    until(lambda: not engine.own_flusher._flushing)  # else it may read the entry before it is lost
    monkeypatch.setattr(engine.own_flusher, "_flush", lambda _: None)

    def write() -> None:
        try:
            engine.put(accounts, {"id": 2, "balance": 2}, policy=THROUGH)
        except BaseException as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    writer = threading.Thread(target=write)
    before = status(engine).backlog
    writer.start()
    until(lambda: status(engine).backlog > before)
    for key in client.scan_iter(f"wb:{{{engine.keys.namespace}:*"):
        client.delete(key)
    engine.put(accounts, {"id": 3, "balance": 3})  # another history
    writer.join(DEADLINE_SECONDS)
    assert [type(error) for error in raised] == [DataLossDetected]


def test_a_full_backlog_comes_first(make: Make) -> None:
    """A write that there is no room for is refused, or waits, before it is written through."""
    settings = EngineSettings(backlog_entries_max=2, backpressure=Backpressure.REJECT)
    engine = make(partitions=1, settings=settings)
    for number in range(2):
        engine.put(accounts, {"id": number})
    with pytest.raises(Exception, match="takes no more") as full:
        engine.put(accounts, {"id": 5}, policy=THROUGH)
    assert type(full.value).__name__ == "BacklogFull"
    assert status(engine).backlog == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork(make: Make) -> None:
    """A child writes through on its own, though its parent was at it."""
    engine = make()
    engine.put(accounts, {"id": 1, "balance": 1}, policy=THROUGH)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            engine.put(accounts, {"id": 2, "balance": 2}, policy=THROUGH)
            engine.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert in_sql(engine) == {1: 1, 2: 2}
    engine.put(accounts, {"id": 3, "balance": 3}, policy=THROUGH)
    assert in_sql(engine) == {1: 1, 2: 2, 3: 3}


def test_closing_while_it_flushes(make: Make) -> None:
    """Closing ends its flusher, also one that cannot get on; what is in the log stays there."""
    engine = make(partitions=1, settings=IMPATIENT)
    accounts.drop(engine.database)

    def write() -> None:
        with contextlib.suppress(WriteThroughTimeout):
            engine.put(accounts, {"id": 1}, policy=THROUGH)

    writer = threading.Thread(target=write)
    writer.start()
    until(lambda: engine.own_flusher._flushing)
    engine.close()
    assert "writebehind-own-flusher" not in {thread.name for thread in threading.enumerate()}
    writer.join(DEADLINE_SECONDS)
    other = make(partitions=1)
    assert status(other).backlog == 1


def test_a_member_comes_while_the_own_flusher_serves(make: Make) -> None:
    """A flusher that starts meanwhile gets its partitions; nothing is lost or doubled in the hand-over."""
    engine = make()
    stopped = threading.Event()
    count = 0

    def write() -> None:
        nonlocal count
        while not stopped.is_set():
            engine.increment(accounts, 1, {"balance": 1}, policy=THROUGH)
            count += 1

    writer = threading.Thread(target=write)
    writer.start()
    until(lambda: count >= 3)
    with flushing(engine, QUICK) as flusher:
        until(lambda: len(flusher.holdings.cursors) == 2)
        before = count
        until(lambda: count >= before + 3)
        stopped.set()
        writer.join()
    assert in_sql(engine) == {1: count}
    assert isinstance(flusher, Flusher)


PATIENT = EngineSettings(write_timeout_seconds=6.0)


def write_for_ever(engine: WriteBehind, stopped: threading.Event, written: dict[int, int]) -> None:
    """Write through from a thread for each key; one more always waits, behind the dead letter of another key."""

    def write(key: int) -> None:
        while not stopped.is_set():
            engine.increment(accounts, key, {"balance": 1}, policy=THROUGH)
            written[key] += 1

    def wait_in_vain() -> None:
        while not stopped.is_set():
            with contextlib.suppress(WriteThroughTimeout):
                engine.increment(accounts, 99, {"balance": -1}, policy=THROUGH)

    threads = [threading.Thread(target=write, args=[key]) for key in written] + [threading.Thread(target=wait_in_vain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def write_for_ever_in_a_loop(other: AsyncWriteBehind, stopped: threading.Event, written: dict[int, int]) -> None:
    """Do what ``write_for_ever`` does, in tasks."""

    async def write(key: int) -> None:
        while not stopped.is_set():
            await other.increment(accounts, key, {"balance": 1}, policy=THROUGH)
            written[key] += 1

    async def wait_in_vain() -> None:
        while not stopped.is_set():
            with contextlib.suppress(WriteThroughTimeout):
                await other.increment(accounts, 99, {"balance": -1}, policy=THROUGH)

    async with other:
        await asyncio.gather(wait_in_vain(), *map(write, written))


@pytest.mark.parametrize("awaited", [False, True], ids=["threads", "an event loop"])
def test_a_member_comes_while_somebody_always_waits(make: Make, redis_url: str, *, awaited: bool) -> None:
    """The service's own flusher gives way also where there is always somebody who waits; nothing is lost or doubled."""
    engine = make(partitions=1, settings=PATIENT)
    with pytest.raises(PoisonEntryError):
        engine.put(accounts, {"id": 99, "balance": -1}, policy=THROUGH)
    stopped = threading.Event()
    written = dict.fromkeys(range(4), 0)

    def in_a_loop() -> None:
        other = AsyncWriteBehind(
            redis=redis_url, database=engine.database, namespace=engine.keys.namespace, partitions=1, tables=TABLES,
            settings=PATIENT,
        )  # fmt: skip
        asyncio.run(write_for_ever_in_a_loop(other, stopped, written))

    writer = threading.Thread(target=in_a_loop if awaited else lambda: write_for_ever(engine, stopped, written))
    writer.start()
    try:
        until(lambda: sum(written.values()) >= 10)
        with flushing(engine, QUICK) as flusher:
            until(lambda: flusher.holdings.cursors)
            before = sum(written.values())
            until(lambda: sum(written.values()) >= before + 10)
            assert flusher.tally.entries >= 10
            stopped.set()
            writer.join()
    finally:
        stopped.set()
        writer.join()
    assert in_sql(engine) == written


@pytest.mark.parametrize("awaited", [False, True], ids=["threads", "an event loop"])
def test_an_error_that_nobody_expects(
    make: Make, redis_url: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, *, awaited: bool
) -> None:
    """What a hook of the application raises is told to who waits, and nobody has to start anew when it is over."""
    make(partitions=1)
    monkeypatch.setattr("writebehind.engine.own_flusher.RETRY_SECONDS", 0.1)
    database = sa.create_engine(sqlite_url, poolclass=sa.NullPool)
    broken = threading.Event()
    broken.set()

    @sa.event.listens_for(database, "do_connect")
    def ask_for_a_token(*_: object) -> None:
        if broken.is_set() and threading.current_thread().name == "writebehind-own-flusher":
            raise OSError("the token service does not answer")

    engine = make(database=database, partitions=1, settings=IMPATIENT)

    async def in_a_loop() -> None:
        async with AsyncWriteBehind(
            redis=redis_url, database=database, namespace=engine.keys.namespace, partitions=1, tables=TABLES,
            settings=IMPATIENT,
        ) as other:  # fmt: skip
            with pytest.raises(WriteThroughTimeout, match="failed to flush itself: OSError"):
                await other.put(accounts, {"id": 1}, policy=THROUGH)
            broken.clear()
            await other.put(accounts, {"id": 2}, policy=THROUGH)

    if awaited:
        asyncio.run(in_a_loop())
    else:
        with pytest.raises(WriteThroughTimeout, match="failed to flush itself: OSError"):
            engine.put(accounts, {"id": 1}, policy=THROUGH)
        broken.clear()
        engine.put(accounts, {"id": 2}, policy=THROUGH)
    assert in_sql(engine) == {1: 0, 2: 0}


def test_no_thread_can_be_had(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so, the next one who waits gets one, and closing is not held up by what never began."""
    engine = make(partitions=1, settings=IMPATIENT)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "writebehind-own-flusher":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as refusing:
        refusing.setattr(threading.Thread, "start", refuse)
        with pytest.raises(WriteThroughTimeout, match="cannot flush itself: can't start new thread"):
            engine.put(accounts, {"id": 1}, policy=THROUGH)
        never_begun = make(partitions=1, settings=IMPATIENT)
        with pytest.raises(WriteThroughTimeout):
            never_begun.put(accounts, {"id": 3}, policy=THROUGH)
        never_begun.close()
    assert not engine.own_flusher._waiting
    engine.put(accounts, {"id": 2}, policy=THROUGH)
    assert in_sql(engine) == {1: 0, 2: 0, 3: 0}


def test_what_was_in_the_way_is_forgotten(make: Make) -> None:
    """A halt that is over is not named for the next write that is late."""
    engine = make(partitions=1, settings=IMPATIENT)
    accounts.drop(engine.database)
    with pytest.raises(WriteThroughTimeout, match="halted"):
        engine.put(accounts, {"id": 1, "balance": 3}, policy=THROUGH)
    accounts.create(engine.database)
    drain(engine, DEADLINE_SECONDS)
    with pytest.raises(PoisonEntryError):
        engine.put(accounts, {"id": 2, "balance": -1}, policy=THROUGH)
    with pytest.raises(WriteThroughTimeout) as late:
        engine.increment(accounts, 2, {"balance": 1}, policy=THROUGH)
    assert "halted" not in str(late.value)
