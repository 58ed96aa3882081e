"""What reads load from SQL stays in Redis, once for all, and never in place of what was written."""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy import orm

import record_reader
import servers
from flights import Flight
from sources import Source
from writebehind.drills.proxy import Proxy
from writebehind.engine import (
    ConfigurationError,
    DatabaseUnavailable,
    EngineSettings,
    ReadTimeout,
    WriteBehind,
)
from writebehind.engine.adapters.fills import Fills
from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.read_counters import summed_reads
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.read_effects import Keep, Wait
from writebehind.flushers import FlusherSettings, drain, initialise, status
from writebehind.recovery import Outcome, Repair, Verdict, Winner, verify

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 20.0
# Test modules are no packages: this is how one has the values of another.
KEPT = runpy.run_path(str(Path(__file__).with_name("test_types.py")))["KEPT"]
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)


class Base(orm.DeclarativeBase):
    """Declared classes."""


class Account(Base):
    """An account; one attribute is not called as its column is."""

    __tablename__ = "accounts"
    id: orm.Mapped[int] = orm.mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    owner: orm.Mapped[str] = orm.mapped_column(sa.String(50))
    amount: orm.Mapped[int] = orm.mapped_column("balance", sa.Integer, default=0)
    note: orm.Mapped[str | None] = orm.mapped_column(sa.Text)


events = sa.Table(
    "events",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)
Engines = Callable[..., WriteBehind]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url) as plain:
        yield plain


@pytest.fixture
def engines(redis_url: str, namespace: str, sqlite_url: str) -> Iterator[Engines]:
    """Make engines of one namespace, and close them."""
    made: list[WriteBehind] = []

    def make(
        *,
        database: str = sqlite_url,
        redis: str = redis_url,
        tables: Sequence[Any] = (Account, events),
        **settings: Any,
    ) -> WriteBehind:
        made.append(
            WriteBehind(
                redis=redis,
                database=database,
                tables=tables,
                namespace=namespace,
                partitions=2,
                settings=EngineSettings(**{"read_timeout_seconds": DEADLINE_SECONDS, **settings}),
            )
        )
        initialise(made[-1], create_tables=True)
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """The database, watched."""
    return Source(monkeypatch)


def account(number: int, amount: int = 0, note: str | None = None) -> dict[str, Any]:
    """Return a record."""
    return {"id": number, "owner": f"owner {number}", "balance": amount, "note": note}


def store(engine: WriteBehind, *records: dict[str, Any]) -> None:
    """Have rows in SQL that Redis has never heard of."""
    with engine.database.begin() as connection:
        for record in records:
            connection.execute(sa.delete(Account).where(Account.id == record["id"]))
            connection.execute(sa.insert(Account.__table__).values(**record))  # type: ignore[arg-type]


def name(engine: WriteBehind, number: int) -> str:
    """Return the name of a record's hash."""
    return engine.keys.record(partition_of(str(number), engine.keys.partitions), "accounts", str(number))


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Loading once


def test_misses_of_many_keys_are_one_query(engines: Engines, source: Source, client: Any) -> None:
    """All misses are loaded together, and then found without SQL; each record ends by itself, at its own time."""
    engine = engines()
    store(engine, *(account(number, number, "x\\") for number in range(300)))
    expected = {number: account(number, number, "x\\") if number < 300 else None for number in range(400)}
    assert engine.get_many(Account, range(400)) == expected
    assert len(source.queries) == 1
    assert engine.get_many(Account, range(400)) == expected
    assert len(source.queries) == 1
    lives = [client.pttl(name(engine, number)) for number in range(400)]
    assert all(3_200_000 < life <= 3_600_000 for life in lives[:300])
    assert len(set(lives[:300])) > 200
    assert all(0 < life <= 30_000 for life in lives[300:])
    counts = engine.read_counts()["accounts"]
    assert (counts.hits, counts.negative_hits, counts.misses, counts.loads) == (400, 100, 400, 400)


def test_two_hundred_threads_ask_once(engines: Engines, source: Source) -> None:
    """One caller loads; the others wait, and find what it has loaded."""
    engine = engines()
    store(engine, account(1, 5))
    source.hold()
    with ThreadPoolExecutor(200) as pool:
        reads = [pool.submit(engine.get, Account, 1) for _ in range(200)]
        source.wait()
        eventually(lambda: engine.read_counts()["accounts"].waits == 199)
        source.go_on.set()
        assert all(read.result(DEADLINE_SECONDS) == account(1, 5) for read in reads)
    assert source.queries == [["1"]]


PATCHED = {**account(1, 5), "note": "mine"}


def leave_some(engine: WriteBehind, client: Any, kind: str) -> None:
    """Have Redis know some columns of record 1, which SQL has: it was patched while cold, or lacks a new column."""
    store(engine, account(1, 5))
    if kind == "patched":
        engine.patch(Account, 1, {"note": "mine"})
    else:
        store(engine, PATCHED)
        engine.get(Account, 1)
        client.hdel(name(engine, 1), "note")


@pytest.mark.parametrize("kind", ["patched", "lacks a column"])
def test_two_hundred_threads_ask_once_for_the_rest(engines: Engines, source: Source, client: Any, kind: str) -> None:
    """The row is loaded once, by one of two engines for all, and laid under what Redis has; no lease is left."""
    engine, other = engines(), engines()
    leave_some(engine, client, kind)
    source.queries.clear()
    source.begun.acquire(blocking=False)
    source.hold()
    with ThreadPoolExecutor(200) as pool:
        reads = [pool.submit(each.get, Account, 1) for _ in range(100) for each in (engine, other)]
        source.wait()
        eventually(lambda: sum(each.read_counts()["accounts"].waits for each in (engine, other)) == 199)
        source.go_on.set()
        assert all(read.result(DEADLINE_SECONDS) == PATCHED for read in reads)
    assert source.queries == [["1"]]
    assert client.hget(name(engine, 1), ":overlay") is None
    assert (client.pttl(name(engine, 1)) == -1) is (kind == "patched")  # what SQL has not does not end
    assert engine.get(Account, 1) == PATCHED
    assert source.queries == [["1"]]


@pytest.mark.parametrize("kind", ["patched", "lacks a column"])
def test_a_lease_for_the_rest_ends(engines: Engines, source: Source, client: Any, kind: str) -> None:
    """With its time, with an error, and with the next write; a clock that was set back prolongs it for nobody."""
    engine = engines(load_lease_seconds=600)
    leave_some(engine, client, kind)
    known = client.hgetall(name(engine, 1))
    version = known.get(b":version", known.get(b":loaded")).decode()
    expected = dict(PATCHED)
    seconds = client.time()[0]
    for until, about in ((seconds - 1, version), (seconds + 86_400, version), (seconds + 300, "1-1")):
        client.hset(name(engine, 1), ":overlay", f"{1000 * until} dead {about}")
        source.fails = True
        with pytest.raises(DatabaseUnavailable):
            engine.get(Account, 1)
        assert client.hget(name(engine, 1), ":overlay") is None
    source.fails = False
    source.hold()
    with ThreadPoolExecutor(2) as pool:
        for _ in source.queries:
            source.begun.acquire(timeout=DEADLINE_SECONDS)
        slow = pool.submit(engine.get, Account, 1)
        source.wait()
        engine.patch(Account, 1, {"owner": "new"})
        expected["owner"] = "new"
        next_one = pool.submit(engine.get, Account, 1)
        if kind == "patched":
            source.wait()  # it loads, too: the lease was for what was there before
        source.go_on.set()
        assert slow.result(DEADLINE_SECONDS) in ([expected] if kind == "patched" else [expected, PATCHED])
        if kind != "patched":
            drain(engine, DEADLINE_SECONDS, QUICK)
        assert next_one.result(DEADLINE_SECONDS) == expected
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert engine.get(Account, 1) == expected


@pytest.mark.parametrize("kind", ["patched", "lacks a column"])
def test_who_looked_before_the_rest_came(engines: Engines, source: Source, client: Any, kind: str) -> None:
    """It looks again instead of loading once more."""
    engine = engines()
    leave_some(engine, client, kind)
    flight = Flight(engine, Account.__table__, 1, PATCHED)  # type: ignore[arg-type]
    assert flight.step()  # it has looked
    assert engine.get(Account, 1) == PATCHED
    loads = len(source.queries)
    while flight.step():
        pass
    assert len(source.queries) == loads


def test_readers_of_a_patch_without_a_row(engines: Engines, source: Source, client: Any) -> None:
    """They wait for one load that finds nothing, and then ask side by side instead of one after the other."""
    engine = engines(load_lease_seconds=600)
    engine.patch(Account, 1, {"note": "mine"})
    source.hold()
    with ThreadPoolExecutor(50) as pool:
        reads = [pool.submit(engine.get, Account, 1) for _ in range(50)]
        source.wait()
        eventually(lambda: engine.read_counts()["accounts"].waits == 49)
        assert source.queries == [["1"]]
        source.go_on.set()
        assert all(read.result(DEADLINE_SECONDS) is None for read in reads)
    assert client.hget(name(engine, 1), ":overlay").startswith(b"0 ")
    engine.put(Account, account(1, 6))
    assert engine.get(Account, 1) == account(1, 6)


def test_the_rest_where_redis_is_full(own_redis: "OwnRedisFactory", engines: Engines, source: Source) -> None:
    """Each read asks SQL for itself, and nobody waits; also where it is full only when the row has come."""
    server = own_redis({"maxmemory": "0"})
    engine = engines(redis=server.url, load_lease_seconds=600)
    store(engine, account(1, 5))
    engine.patch(Account, 1, {"note": "mine"})
    source.hold()
    with redis.Redis.from_url(server.url) as plain, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(engine.get, Account, 1)
        source.wait()
        plain.config_set("maxmemory", 1)
        source.go_on.set()
        assert slow.result(DEADLINE_SECONDS) == PATCHED
        assert [engine.get(Account, 1) for _ in range(2)] == [PATCHED] * 2
        assert engine.read_counts()["accounts"].waits == 0
        plain.config_set("maxmemory", 0)
        assert engine.get(Account, 1) == PATCHED
        assert len(source.queries) == 4
        assert engine.get(Account, 1) == PATCHED
        assert len(source.queries) == 4


def test_a_flush_while_the_rest_is_loaded(engines: Engines, source: Source) -> None:
    """It takes what Redis had, and one of those who waited loads all of it; also where "no row" is never kept."""
    engine = engines()
    engine.insert(events, {"id": 1, "kind": "old"})
    drain(engine, DEADLINE_SECONDS, QUICK)
    engine.patch(events, 1, {"kind": "new"})
    source.hold()
    with ThreadPoolExecutor(50) as pool:
        reads = [pool.submit(engine.get, events, 1) for _ in range(50)]
        source.wait()
        eventually(lambda: engine.read_counts()["events"].waits == 49)
        drain(engine, DEADLINE_SECONDS, QUICK)
        source.wait()
        source.go_on.set()
        assert all(read.result(DEADLINE_SECONDS) == {"id": 1, "kind": "new"} for read in reads)
    assert source.queries == [["1"]] * 2


def test_four_processes_ask_once(engines: Engines, redis_url: str, namespace: str, sqlite_url: str) -> None:
    """The lease is everybody's; and what each process has counted is summed."""
    engine = engines()
    store(engine, account(1, 5))
    command = [sys.executable, str(Path(record_reader.__file__)), redis_url, sqlite_url, namespace, "50", "0.3"]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        for process in processes:
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert [found for each in told for found in each["found"]] == [5] * 200
    assert sum(each["queries"] for each in told) == 1
    counts = summed_reads(engine.links, engine.keys)["accounts"]
    assert (counts.hits + counts.misses, counts.loads) == (200, 1)
    assert status(engine).reads["accounts"] == counts


def test_a_loader_that_dies(engines: Engines, source: Source, client: Any) -> None:
    """Its lease runs out, and then another one loads; a lease without an end counts as nothing."""
    engine = engines(load_lease_seconds=0.2)
    store(engine, account(1), account(2))
    engine.get(Account, 1)
    client.delete(name(engine, 1))
    client.hset(name(engine, 1), mapping={":state": "loading", ":token": "dead", ":loaded": "0-0"})
    client.pexpire(name(engine, 1), 100)
    client.hset(name(engine, 2), mapping={":state": "loading", ":token": "dead", ":loaded": "0-0"})
    assert engine.get_many(Account, [1, 2]) == {1: account(1), 2: account(2)}
    assert engine.read_counts()["accounts"].waits == 1


def test_a_load_that_takes_too_long(engines: Engines, source: Source) -> None:
    """Who waits for it is told in time, and who loads still gets the row."""
    engine, hasty = engines(), engines(read_timeout_seconds=0.2)
    store(engine, account(1, 5))
    source.hold()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(engine.get, Account, 1)
        source.wait()
        with pytest.raises(ReadTimeout, match="being loaded"):
            hasty.get(Account, 1)
        source.go_on.set()
        assert slow.result(DEADLINE_SECONDS) == account(1, 5)


def test_every_type_comes_back_as_it_was_loaded(engines: Engines, source: Source, database_url: str) -> None:
    """What Redis gives is what SQL gave, of every type, NULL included."""
    dialect = sa.make_url(database_url).get_backend_name()
    kinds = [(name, kind, values) for name, kind, dialects, values in KEPT if dialect in dialects]
    tables = {
        name: sa.Table(
            f"t_{name}",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("value", kind),
        )
        for name, kind, _ in kinds
    }
    writing, reading = (engines(database=database_url, tables=list(tables.values())) for _ in range(2))
    for name, _, values in kinds:
        for number, value in enumerate([*values, None]):
            writing.put(tables[name], {"id": number, "value": value})
    drain(writing, DEADLINE_SECONDS, QUICK)
    with redis.Redis.from_url(writing.redis_target) as plain:  # type: ignore[arg-type]
        for key in plain.scan_iter(f"wb:{{{writing.keys.namespace}:*}}:t_*", count=1000):
            plain.unlink(key)
    for name, _, values in kinds:
        keys = range(len(values) + 1)
        loaded, found = (reading.get_many(tables[name], keys) for _ in range(2))
        assert repr(found) == repr(loaded), name
        assert None not in loaded.values()
    assert len(source.queries) == len(kinds)
    assert sum(counts.not_kept for counts in reading.read_counts().values()) == 0


# Writing meanwhile


@pytest.mark.parametrize("op", ["put", "patch", "increment", "delete", "insert"])
@pytest.mark.parametrize("flushed", [False, True], ids=["not flushed", "flushed"])
@pytest.mark.parametrize("known", [True, False], ids=["row", "no row"])
def test_a_late_fill_is_discarded(
    *, engines: Engines, source: Source, client: Any, op: str, flushed: bool, known: bool
) -> None:
    """Whatever is written while a load is under way cancels it, also where it is flushed and gone."""
    if op == "insert" and known:
        pytest.skip("SQL would refuse the row")
    engine = engines()
    if known:
        store(engine, account(1, 5))
    expected: dict[str, Any] | None
    source.hold()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(engine.get, Account, 1)
        source.wait()
        if op in {"put", "insert"}:
            getattr(engine, op)(Account, account(1, 9))
            expected = account(1, 9)
        elif op == "delete":
            engine.delete(Account, 1)
            expected = None
        else:
            getattr(engine, op)(Account, 1, {"balance": 9})
            expected = account(1, 9 if op == "patch" else 14) if known else None
        if flushed:
            drain(engine, DEADLINE_SECONDS, QUICK)
            client.delete(name(engine, 1))
        source.go_on.set()
        assert slow.result(DEADLINE_SECONDS) == (account(1, 5) if known else None)
        if not flushed:
            assert client.pttl(name(engine, 1)) == -1
            drain(engine, DEADLINE_SECONDS, QUICK)
        assert engine.get(Account, 1) == expected
    assert engine.read_counts()["accounts"].not_kept == 1


def test_an_overtaken_loader(engines: Engines, client: Any) -> None:
    """Whose lease has run out, and is another one's now, keeps nothing: it may be from before what that one loads."""
    engine = engines()
    store(engine, account(1, 5))
    slow, quick = (Flight(engine, Account.__table__, 1, account(1, 5)) for _ in range(2))  # type: ignore[arg-type]
    while not isinstance(slow.effect, Keep):
        assert slow.step()
    engine.put(Account, account(1, 9))
    quick.note(account(1, 9))
    drain(engine, DEADLINE_SECONDS, QUICK)
    client.delete(name(engine, 1))
    while not isinstance(quick.effect, Keep):
        assert quick.step()
    assert not slow.step()
    assert client.hget(name(engine, 1), ":state") == b"loading"
    assert not quick.step()
    assert engine.get(Account, 1) == account(1, 9)


@pytest.mark.parametrize("op", ["put", "patch", "increment", "delete", "insert"])
@pytest.mark.parametrize("known", [True, False], ids=["row", "no row"])
def test_writes_build_on_what_was_loaded(*, engines: Engines, client: Any, op: str, known: bool) -> None:
    """A record that was loaded, or is known not to exist, takes every write; then it has no end until it is flushed."""
    if op == "insert" and known:
        pytest.skip("SQL would refuse the row")
    engine = engines()
    if known:
        store(engine, account(1, 5))
    before = engine.get(Account, 1)
    assert client.pttl(name(engine, 1)) > 0
    expected: dict[str, Any] | None
    if op in {"put", "insert"}:
        getattr(engine, op)(Account, account(1, 9))
        expected = account(1, 9)
    elif op == "delete":
        engine.delete(Account, 1)
        expected = None
    else:
        getattr(engine, op)(Account, 1, {"balance": 9})
        expected = {**before, "balance": 9 if op == "patch" else 14} if before else None
    assert client.pttl(name(engine, 1)) == -1
    if known or op in {"put", "delete", "patch"}:
        assert engine.get(Account, 1) == expected
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert engine.get(Account, 1) == expected
    client.delete(name(engine, 1))
    assert engine.get(Account, 1) == expected


@pytest.mark.parametrize("ttl_seconds", [None, 3600], ids=["for ever", "an hour"])
@pytest.mark.parametrize("op", ["put", "patch"])
def test_a_late_commit(*, engines: Engines, client: Any, op: str, ttl_seconds: float | None) -> None:
    """What was loaded goes with the commit of what SQL had not got then; what is of that commit stays."""
    engine = engines(record_ttl_seconds=ttl_seconds)
    for number in (1, 2):
        engine.put(Account, account(number, 5))
    drain(engine, DEADLINE_SECONDS, QUICK)
    for number in (1, 2):
        if op == "put":
            engine.put(Account, account(number, 6))
        else:
            engine.patch(Account, number, {"balance": 6})
    client.delete(name(engine, 1))  # as after a rollback of SQL that was judged before the replay
    assert engine.get(Account, 1) == account(1, 5)
    assert client.hget(name(engine, 1), ":version") is None
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert not client.exists(name(engine, 1))
    assert engine.get_many(Account, [1, 2]) == {1: account(1, 6), 2: account(2, 6)}
    assert (client.pttl(name(engine, 2)) == -1) == (ttl_seconds is None)
    assert client.hget(name(engine, 2), ":version") is not None


def test_a_row_is_laid_under_a_patch_once(engines: Engines, source: Source, client: Any) -> None:
    """The first read makes the record whole; it stays until its flush, and is clean from then on."""
    engine = engines()
    store(engine, account(1, 5))
    engine.patch(Account, 1, {"note": "patched"})
    for _ in range(3):
        assert engine.get(Account, 1) == account(1, 5, "patched")
    assert len(source.queries) == 1
    assert client.pttl(name(engine, 1)) == -1
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert client.pttl(name(engine, 1)) > 0
    assert engine.get(Account, 1) == account(1, 5, "patched")
    assert len(source.queries) == 1


def test_an_insert_that_nobody_knows_the_key_of(engines: Engines, source: Source) -> None:
    """Where the database makes keys, it is not remembered that there was no row; nor does anybody queue up for it."""
    engine = engines()
    assert engine.get(events, 1) is None
    engine.insert(events, {"kind": "late"})
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert engine.get(events, 1) == {"id": 1, "kind": "late"}
    source.hold()
    with ThreadPoolExecutor(50) as pool:
        reads = [pool.submit(engine.get, events, 2) for _ in range(50)]
        eventually(lambda: engine.read_counts()["events"].waits == 49)
        source.go_on.set()
        assert {read.result(DEADLINE_SECONDS) for read in reads} == {None}


def test_an_insert_before_the_lease(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """An insert leaves no record: what was found absent under a watermark below it is not believed after it."""
    engine, writer = engines(), engines()
    lease = Fills.lease

    def late(fills: Fills, *arguments: Any) -> Any:
        monkeypatch.undo()
        writer.insert(Account, account(1, 9))
        return lease(fills, *arguments)

    monkeypatch.setattr(Fills, "lease", late)
    assert engine.get(Account, 1) is None
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(engine.get, Account, 1)
        eventually(lambda: engine.read_counts()["accounts"].waits == 1)
        drain(engine, DEADLINE_SECONDS, QUICK)
        assert read.result(DEADLINE_SECONDS) == account(1, 9)


def test_no_row_is_not_remembered_for_longer_than_asked(engines: Engines, source: Source, client: Any) -> None:
    """Without negative caching SQL is asked each time."""
    engine = engines(negative_ttl_seconds=None)
    for _ in range(3):
        assert engine.get(Account, 1) is None
    assert len(source.queries) == 3
    assert not client.exists(name(engine, 1))


# SQL away, Redis away, Redis full


def test_sql_away(engines: Engines, source: Source) -> None:
    """What is not in Redis cannot be read, and nobody waits for who has tried."""
    engine = engines()
    store(engine, account(1, 5))
    source.fails = True
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            engine.get(Account, 1)
    source.fails = False
    assert engine.get(Account, 1) == account(1, 5)
    assert engine.read_counts()["accounts"].waits == 0


def test_a_stale_record(engines: Engines, source: Source, client: Any) -> None:
    """Past its time a record is loaded again by one caller; others get it, and all do where SQL is away."""
    engine = engines(record_ttl_seconds=100, stale_seconds=1000, ttl_jitter_share=0)
    store(engine, account(1, 5))
    assert engine.get(Account, 1) == account(1, 5)
    assert 1_000_000 < client.pttl(name(engine, 1)) <= 1_100_000
    store(engine, account(1, 6))
    assert engine.get(Account, 1) == account(1, 5)
    client.pexpire(name(engine, 1), 999_000)
    source.fails = True
    assert [engine.get(Account, 1) for _ in range(3)] == [account(1, 5)] * 3
    assert len(source.queries) == 2  # the lease of who has tried holds the others back
    assert engine.read_counts()["accounts"].stale == 3
    source.fails = False
    client.hdel(name(engine, 1), ":token", ":until")
    source.hold()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(engine.get, Account, 1)
        for _ in range(3):
            source.begun.acquire(timeout=DEADLINE_SECONDS)
        assert engine.get(Account, 1) == account(1, 5)
        source.go_on.set()
        assert slow.result(DEADLINE_SECONDS) == account(1, 6)
    assert engine.get(Account, 1) == account(1, 6)
    assert 1_000_000 < client.pttl(name(engine, 1)) <= 1_100_000


def test_a_hot_record_is_loaded_ahead(engines: Engines, source: Source, client: Any) -> None:
    """Towards its end one caller loads it again, and nothing is stale; what is dirty never is loaded again."""
    engine = engines(record_ttl_seconds=100, refresh_ahead_share=0.5, ttl_jitter_share=0)
    store(engine, account(1, 5))
    engine.get(Account, 1)
    store(engine, account(1, 6))
    client.pexpire(name(engine, 1), 49_000)
    assert engine.get(Account, 1) == account(1, 6)
    assert len(source.queries) == 2
    assert 90_000 < client.pttl(name(engine, 1)) <= 100_000
    engine.patch(Account, 1, {"note": "dirty"})
    assert engine.get(Account, 1) == account(1, 6, "dirty")
    assert len(source.queries) == 2
    assert engine.read_counts()["accounts"].stale == 0


def test_what_was_partial_is_loaded_again(engines: Engines, client: Any) -> None:
    """Columns that a record had at an earlier look are not laid over the row that a later look has loaded."""
    engine = engines(record_ttl_seconds=100, refresh_ahead_share=0.9)
    engine.insert(Account, account(1, 5))
    engine.patch(Account, 1, {"note": "patched"})
    flight = Flight(engine, Account.__table__, 1, account(1, 5, "patched"))  # type: ignore[arg-type]
    while not isinstance(flight.effect, Wait):
        assert flight.step()
    engine.put(Account, account(1, 6))
    flight.note(account(1, 6))
    drain(engine, DEADLINE_SECONDS, QUICK)
    client.pexpire(name(engine, 1), 50_000)
    while flight.step():
        pass
    assert engine.read_counts()["accounts"].loads == 1


def test_a_locked_table(engines: Engines, client: Any, database_url: str) -> None:
    """Where the server can end a query, a lock holds up no reader for longer than a load may take.

    Least of all one who has the record, which is only to be loaded again.
    """
    engine = engines(
        database=database_url,
        record_ttl_seconds=100,
        refresh_ahead_share=0.5,
        ttl_jitter_share=0,
        load_lease_seconds=0.3,
    )
    dialect = engine.database.dialect.name
    if dialect == "sqlite":
        pytest.skip("SQLite ends no query; its driver ends the wait for a lock")
    store(engine, account(1, 5), account(2, 6))
    assert engine.get(Account, 1) == account(1, 5)
    client.pexpire(name(engine, 1), 49_000)
    with engine.database.connect() as connection:
        connection.exec_driver_sql(
            "LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE" if dialect == "postgresql" else "LOCK TABLES accounts WRITE"
        )
        assert engine.get(Account, 1) == account(1, 5)
        assert engine.read_counts()["accounts"].stale == 1
        with pytest.raises(DatabaseUnavailable, match="accounts cannot be read"):
            engine.get(Account, 2)
        with pytest.raises(DatabaseUnavailable):
            engine.get_many(Account, [1, 2])
        if dialect != "postgresql":
            connection.exec_driver_sql("UNLOCK TABLES")
    assert engine.get_many(Account, [1, 2]) == {1: account(1, 5), 2: account(2, 6)}


def test_a_limit_of_the_session_stays(engines: Engines, postgresql_url: str) -> None:
    """A shorter statement timeout is not made longer, and other work with the connection has no limit of ours."""
    engine = engines(database=postgresql_url, load_lease_seconds=7)
    shown: list[str] = []

    @sa.event.listens_for(engine.database, "after_cursor_execute")
    def looked(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM accounts" in statement:
            with connection.connection.cursor() as another:
                another.execute("SHOW statement_timeout")
                shown.append(another.fetchone()[0])

    for number, limit in enumerate(["0", "2s", "1min"]):
        with engine.database.begin() as connection:
            connection.exec_driver_sql(f"SET statement_timeout = '{limit}'")
        engine.get(Account, number)
    with engine.database.connect() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "1min"
    assert shown == ["7s", "2s", "7s"]


def test_a_limit_where_a_row_cannot_be_read(engines: Engines, postgresql_url: str) -> None:
    """What looks for the column that cannot be read has the limit, too, in its new transaction."""
    guards = sa.Table(
        "guards",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime),
    )
    engine = engines(database=postgresql_url, tables=[guards], load_lease_seconds=7)
    with engine.database.begin() as connection:
        connection.exec_driver_sql("INSERT INTO guards VALUES (1, 'infinity')")  # which Python has no value for
    shown: list[str] = []

    @sa.event.listens_for(engine.database, "after_cursor_execute")
    def looked(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM guards" in statement:
            with connection.connection.cursor() as another:
                another.execute("SHOW statement_timeout")
                shown.append(another.fetchone()[0])

    with pytest.raises(ConfigurationError, match=r"^guards\.at: "):
        engine.get(guards, 1)
    assert shown == ["7s"] * 3


# What other programs store


logs = sa.Table(
    "logs",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.DateTime),
    sa.Column("data", sa.JSON),
)


def test_a_row_that_cannot_be_read(engines: Engines, client: Any) -> None:
    """The error names table and column and quotes nothing; who has the record keeps it."""
    engine = engines(tables=[logs], record_ttl_seconds=100, refresh_ahead_share=0.5, ttl_jitter_share=0)
    moment = datetime(2020, 1, 1)  # noqa: DTZ001 - the column has no time zone
    good = {"id": 2, "at": moment, "data": None}
    with engine.database.begin() as connection:
        connection.execute(sa.insert(logs), [good])
        connection.exec_driver_sql("INSERT INTO logs VALUES (1, 'secret', NULL), (3, NULL, '{secret')")
    reads: list[tuple[Callable[[], object], str]] = [
        (lambda: engine.get(logs, 1), "at"),
        (lambda: engine.get_many(logs, [1, 2]), "at"),
        (lambda: engine.get(logs, 3), "data"),
    ]
    for read, column in reads:
        with pytest.raises(ConfigurationError, match=rf"^logs\.{column}: ") as caught:
            read()
        assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert engine.get(logs, 2) == good
    with engine.database.begin() as connection:
        connection.exec_driver_sql("UPDATE logs SET at = 'secret' WHERE id = 2")
    client.pexpire(engine.keys.record(partition_of("2", 2), "logs", "2"), 49_000)
    assert [engine.get(logs, 2) for _ in range(3)] == [good] * 3
    assert engine.read_counts()["logs"].stale == 1
    (finding,) = verify(engine).findings
    assert "logs.at" in str(finding)
    assert "secret" not in str(finding)


@pytest.mark.parametrize("op", ["put", "patch", "increment", "delete"])
def test_a_write_overtakes_a_renewal(engines: Engines, source: Source, client: Any, op: str) -> None:
    """What was written while a record was loaded again stays."""
    engine = engines(record_ttl_seconds=100, refresh_ahead_share=0.5, ttl_jitter_share=0)
    store(engine, account(1, 5))
    engine.get(Account, 1)
    source.wait()
    client.pexpire(name(engine, 1), 49_000)
    source.hold()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(engine.get, Account, 1)
        source.wait()
        expected: dict[str, Any] | None = account(1, 9)
        if op == "put":
            engine.put(Account, account(1, 9))
        elif op == "delete":
            engine.delete(Account, 1)
            expected = None
        else:
            getattr(engine, op)(Account, 1, {"balance": 9 if op == "patch" else 4})
        source.go_on.set()
        slow.result(DEADLINE_SECONDS)
    assert engine.get(Account, 1) == expected
    drain(engine, DEADLINE_SECONDS, QUICK)
    assert engine.get(Account, 1) == expected


def test_redis_full(own_redis: "OwnRedisFactory", engines: Engines, source: Source) -> None:
    """A full Redis takes nothing in; reads ask SQL, and nobody waits."""
    server = own_redis({"maxmemory": "0"})
    engine = engines(redis=server.url)
    store(engine, account(1, 5), account(2, 6))
    assert engine.get(Account, 2) == account(2, 6)
    with redis.Redis.from_url(server.url) as plain:
        plain.config_set("maxmemory", 1)
    for _ in range(2):
        assert engine.get_many(Account, [1, 2]) == {1: account(1, 5), 2: account(2, 6)}
    assert source.queries == [["2"], ["1"], ["1"]]
    assert engine.read_counts()["accounts"].waits == 0


# Another history


@pytest.mark.parametrize("kind", ["patch", "nothing"])
def test_redis_is_rolled_back_behind_a_load(
    *, own_redis: "OwnRedisFactory", engines: Engines, source: Source, kind: str
) -> None:
    """A replica has the lease and not the write that had cancelled it: the fill is discarded."""
    server = own_redis({"appendfsync": "always"}, binary=servers.newest_redis_binary())
    engine = engines(redis=server.url, retained_bytes_max=0)
    store(engine, account(1, 5), account(2, 5))
    assert engine.get(Account, 2) == account(2, 5)
    source.wait()
    source.hold()
    aof = next(iter(server.directory.glob("data/appendonlydir/*.incr.aof")))  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(engine.get, Account, 1)
        source.wait()
        size = aof.stat().st_size
        for number in (1, 2):
            engine.put(Account, account(number, 9))
        drain(engine, DEADLINE_SECONDS, QUICK)
        server.kill()
        with aof.open("r+b") as file:
            file.truncate(size)
        server.start()
        engine.links.drop_idle()
        source.go_on.set()
        slow.result(DEADLINE_SECONDS)
        if kind == "patch":
            for number in (1, 2):
                engine.patch(Account, number, {"note": "new"})
        else:
            assert engine.get_many(Account, [1, 2]) == {1: account(1, 9), 2: account(2, 9)}
    drain(engine, DEADLINE_SECONDS, QUICK)
    note = "new" if kind == "patch" else None
    assert engine.get_many(Account, [1, 2]) == {1: account(1, 9, note), 2: account(2, 9, note)}


@pytest.mark.parametrize("known", ["lease", "record", "no row"])
def test_a_replica_is_promoted(own_redis: "OwnRedisFactory", engines: Engines, source: Source, known: str) -> None:
    """What it has of a load is from before a write that the old primary had, and SQL: it is not given, nor kept."""
    # Local ones: a container could not reach another's port on this machine.
    binary = servers.newest_redis_binary()
    primary, replica = (own_redis({"repl-diskless-sync-delay": 0}, binary=binary) for _ in range(2))
    ports = [int(each.url.rpartition(":")[2].partition("/")[0]) for each in (primary, replica)]
    with (
        Proxy(ports[0]) as address,
        redis.Redis.from_url(replica.url) as plain,
        ThreadPoolExecutor(1) as pool,
    ):
        new: Any = plain
        engine = engines(redis=f"redis://127.0.0.1:{address.port}/0", retained_bytes_max=0)
        before = None if known == "no row" else account(1, 5)
        if before:
            store(engine, before)
        new.replicaof("127.0.0.1", ports[0])
        if known == "lease":
            source.hold()
        reading = pool.submit(engine.get, Account, 1)
        source.wait()
        state = {"lease": b"loading", "record": b"full", "no row": b"absent"}[known]
        eventually(lambda: new.hget(name(engine, 1), ":state") == state)
        new.replicaof("NO", "ONE")
        engine.put(Account, account(1, 9))
        drain(engine, DEADLINE_SECONDS, QUICK)
        address.retarget(ports[1])
        primary.kill()
        engine.links.drop_idle()
        source.go_on.set()
        assert reading.result(DEADLINE_SECONDS) == before  # it began before the write
        if known == "lease":
            assert engine.read_counts()["accounts"].not_kept == 1
        for _ in range(3):
            assert engine.get(Account, 1) == account(1, 9)
            assert engine.get_many(Account, [1]) == {1: account(1, 9)}
        engine.patch(Account, 1, {"note": "new"})
        drain(engine, DEADLINE_SECONDS, QUICK)
        for _ in range(2):
            assert engine.get(Account, 1) == account(1, 9, "new")
            new.delete(name(engine, 1))


def test_a_fill_in_another_history(engines: Engines, source: Source, client: Any) -> None:
    """A lease that a promoted replica has, too, is worth nothing there: whether it has begun its own epoch or not."""
    engine = engines()
    store(engine, account(1, 5))
    assert engine.get(Account, 2) is None
    source.wait()
    meta = engine.keys.metas[int(name(engine, 1).partition("}")[0][-2:])]
    for field in ("epoch", "identity"):
        source.hold()
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(engine.get, Account, 1)
            source.wait()
            was = client.hget(meta, field)
            client.hset(meta, field, "9" * 15)
            source.go_on.set()
            assert slow.result(DEADLINE_SECONDS) == account(1, 5)
            client.hset(meta, field, was)
        assert not client.exists(name(engine, 1))
    assert engine.read_counts()["accounts"].not_kept == 2


# Verifying


@pytest.mark.parametrize("winner", list(Winner))
def test_what_was_loaded_is_verified(engines: Engines, client: Any, winner: Winner) -> None:
    """It agrees; and where others have changed SQL since, either side can win."""
    engine = engines()
    store(engine, account(1, 5), account(2, 6))
    assert None not in engine.get_many(Account, [1, 2]).values()
    assert engine.get_many(Account, [3, 4]) == {3: None, 4: None}
    client.hset(name(engine, 9), mapping={":state": "loading", ":token": "x", ":loaded": "0-0"})
    found = verify(engine)
    assert (found.sound, found.counts[Verdict.AGREES]) == (True, 5)
    store(engine, account(1, 50), account(3, 7))
    repair = Repair(engine, winner, dry_run=False)
    found = verify(engine, on_judged=repair)
    assert found.counts[Verdict.DIVERGED] == 2
    assert {(finding.key_text, finding.state) for finding in found.findings} == {("1", "full"), ("3", "absent")}
    if winner is Winner.SQL:
        assert repair.counts[Outcome.REMOVED] == 2
        assert engine.get_many(Account, [1, 3]) == {1: account(1, 50), 3: account(3, 7)}
    else:
        assert (repair.counts[Outcome.REWRITTEN], repair.counts[Outcome.IMPOSSIBLE]) == (1, 1)
        drain(engine, DEADLINE_SECONDS, QUICK)
        assert engine.get(Account, 1) == account(1, 5)


def test_a_fork_while_another_thread_notes_a_record(engines: Engines) -> None:
    """The child loads records all the same."""
    engine = engines()
    store(engine, account(1, 5), account(2, 6))
    engine.get(Account, 1)
    with engine._reader._fills._kept._lock:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(DEADLINE_SECONDS))
            good = False
            try:
                good = engine.get(Account, 2) == account(2, 6)
            finally:
                os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_others_change_under_a_hot_record(engines: Engines, source: Source, client: Any) -> None:
    """Each flush begins its time anew, and brings the columns that were written: the others stay, until a repair."""
    engine = engines(record_ttl_seconds=100, ttl_jitter_share=0)
    store(engine, account(1, 5))
    engine.get(Account, 1)
    store(engine, account(1, 5, "by others"))
    for amount in (6, 7):
        client.pexpire(name(engine, 1), 50_000)
        engine.increment(Account, 1, {"balance": 1})
        assert client.pttl(name(engine, 1)) == -1
        drain(engine, DEADLINE_SECONDS, QUICK)
        assert client.pttl(name(engine, 1)) > 90_000
        assert engine.get(Account, 1) == account(1, amount)
    verify(engine, on_judged=Repair(engine, Winner.SQL, dry_run=False))
    assert engine.get(Account, 1) == account(1, 7, "by others")


# Instances


def test_instances(engines: Engines) -> None:
    """Records come as instances of their class: detached, loaded, unchanged."""
    engine = engines()
    engine.put(Account, account(1, 5, "x"))
    found = engine.get(Account, 1, as_model=True)
    assert isinstance(found, Account)
    assert (found.id, found.owner, found.amount, found.note) == (1, "owner 1", 5, "x")
    state: Any = sa.inspect(found)
    assert state.detached
    assert not state.modified
    assert engine.get_many(Account, [1, 2], as_model=True)[2] is None
    drain(engine, DEADLINE_SECONDS, QUICK)
    with orm.Session(engine.database) as session:
        merged = session.merge(found, load=False)
        merged.amount = 6
        session.commit()
    with pytest.raises(ConfigurationError, match="without a class"):
        engine.get(events, 1, as_model=True)  # type: ignore[call-overload]


# Counting


def test_evictions_are_seen(own_redis: "OwnRedisFactory", engines: Engines) -> None:
    """What Redis has evicted counts when it is missed; what was written, flushed or renewed since does not."""
    server = own_redis({"maxmemory": "0", "maxmemory-policy": "volatile-lru"})
    engine = engines(redis=server.url)
    store(engine, *(account(number) for number in range(20)))
    assert None not in engine.get_many(Account, range(20)).values()
    assert engine.get(Account, 20) is None
    engine.put(Account, account(0, 1))
    with redis.Redis.from_url(server.url) as plain:
        plain.config_set("maxmemory", 1)
        with contextlib.suppress(redis.ResponseError):
            plain.set("more", 1)
        assert plain.info("stats")["evicted_keys"] == 20  # not that which was written
        plain.config_set("maxmemory", 0)
    assert engine.get_many(Account, range(20))[0] == account(0, 1)
    assert engine.get(Account, 20) is None
    counts = engine.read_counts()["accounts"]
    assert (counts.evictions, counts.hits, counts.loads) == (20, 1, 41)


def test_counts_are_summed(engines: Engines, client: Any, redis_url: str) -> None:
    """What a process has counted is in Redis when it ends, and not in another namespace."""
    engine, other = engines(), engines()
    store(engine, account(1))
    engine.get(Account, 1)
    engine.get(Account, 1)
    other.get(Account, 1)
    other.close()
    engine._counters.tell()
    engine._counters.tell()
    client.hset(engine.keys.reads, "accounts:waits", "9" * 5000)  # another program's
    counts = status(engine).reads["accounts"]
    assert (counts.hits, counts.misses, counts.loads, counts.waits) == (2, 1, 1, 0)
    assert counts.hit_rate == pytest.approx(2 / 3)
    told = status(engine).as_json()["reads"]["accounts"]
    assert told["hits"] == 2
    links = Links(redis_url, 5)
    assert summed_reads(links, type(engine.keys)("other", 2)) == {}
    links.close()
