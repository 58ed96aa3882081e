"""Records, log and rows are compared on real servers: what differs is found and mended, what is on its way is not."""

import contextlib
import dataclasses
import runpy
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from running import flushing
from writebehind.engine import ConfigurationError, EngineSettings, ValidationError, WriteBehind
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.adapters.log import GROUP
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import FlusherSettings, drain, initialise
from writebehind.recovery import Outcome, Progress, Repair, Verdict, Verification, Winner, from_cache, verify
from writebehind.recovery.offsets import Offset, offsets

QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
TRIMMING = dataclasses.replace(QUICK, retention_seconds=0)
DEADLINE_SECONDS = 20.0
BUSY_SECONDS = 4.0
PARTITIONS = 4

# Test modules are no packages: this is how one has the values of another.
KEPT = runpy.run_path(str(Path(__file__).with_name("test_types.py")))["KEPT"]

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(100), nullable=False, default=""),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
)
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("tenant", sa.String(20), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("total", sa.Numeric(12, 2), nullable=False),
    sa.Column("rate", sa.Double),
    info={"writebehind": {"partition_by": "tenant"}},
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


class Shop:
    """An application, and what may happen to it behind its back."""

    def __init__(self, redis_url: str, database: str, namespace: str, **options: Any) -> None:
        given: dict[str, Any] = {"tables": [accounts, orders, events], "partitions": PARTITIONS} | options
        self.app = WriteBehind(redis=redis_url, database=database, namespace=namespace, **given)
        initialise(self.app, create_tables=True)
        self.client: Any = redis.Redis.from_url(redis_url)

    def put(self, *keys: int, balance: int = 1) -> None:
        """Write whole accounts."""
        with self.app.batch() as batch:
            for key in keys:
                batch.put(accounts, {"id": key, "owner": f"owner {key}", "balance": balance})

    def drain(self, settings: FlusherSettings = QUICK) -> None:
        """Flush what there is."""
        assert drain(self.app, DEADLINE_SECONDS, settings).backlog == 0

    def trim(self) -> None:
        """Take everything out of the logs: what is flushed, as a retention that is over does, and what is not."""
        for log in self.app.keys.logs:
            self.client.xtrim(log, maxlen=0, approximate=False)

    def name(self, key: int) -> str:
        """Return the name of an account's hash."""
        return self.app.keys.record(self.partition(key), "accounts", str(key))

    def partition(self, key: int) -> int:
        """Return the partition of an account."""
        return partition_of(str(key), self.app.keys.partitions)

    def sql(self, statement: sa.Executable) -> None:
        """Change the database by hand."""
        with self.app.database.begin() as connection:
            connection.execute(statement)

    def rows(self) -> dict[int, int]:
        """Return the balances in SQL."""
        with self.app.database.connect() as connection:
            return {row.id: row.balance for row in connection.execute(sa.select(accounts))}

    def close(self) -> None:
        """Close connections."""
        self.client.close()
        self.app.close()


Opened = Callable[..., Shop]


@pytest.fixture
def opened(redis_url: str, namespace: str) -> Iterator[Opened]:
    """Open shops on the shared Redis, and close them."""
    with contextlib.ExitStack() as stack:

        def factory(database: str, **options: Any) -> Shop:
            shop = Shop(redis_url, database, namespace, **options)
            stack.callback(shop.close)
            return shop

        yield factory


@pytest.fixture
def shop(opened: Opened, sqlite_url: str) -> Shop:
    """A shop on SQLite."""
    return opened(sqlite_url)


@pytest.fixture
def each_shop(opened: Opened, database_url: str) -> Shop:
    """A shop on each kind of database."""
    return opened(database_url)


def counts(found: Verification) -> dict[Verdict, int]:
    """Return the verdicts that were given."""
    return {verdict: count for verdict, count in found.counts.items() if count}


# What agrees


def test_every_type_agrees(opened: Opened, database_url: str) -> None:
    """What was flushed agrees, with values of every type; a value that is changed afterwards does not."""
    dialect = sa.make_url(database_url).get_backend_name()
    kinds = [(name, kind, values) for name, kind, dialects, values in KEPT if dialect in dialects]
    tables = [
        sa.Table(
            f"t_{name}",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("value", kind),
        )
        for name, kind, _ in kinds
    ]
    shop = opened(database_url, tables=tables)
    total = 0
    for table, (_, _, values) in zip(tables, kinds, strict=True):
        for number, value in enumerate([*values, None]):
            shop.app.put(table, {"id": number, "value": value})
            total += 1
    shop.drain()
    found = verify(shop.app)
    assert found.sound, found.findings
    assert counts(found) == {Verdict.AGREES: total}
    for table in tables:
        shop.sql(sa.update(table).values(value=sa.null()))
    found = verify(shop.app)
    assert counts(found) == {Verdict.AGREES: len(tables), Verdict.DIVERGED: total - len(tables)}
    assert {finding.columns for finding in found.findings} == {("value",)}


def test_every_write_agrees_once_it_is_flushed(each_shop: Shop) -> None:
    """Puts, patches, increments, deletes, inserts and groups, of warm and of cold records."""
    shop = each_shop
    app = shop.app
    shop.put(*range(40))
    for number in range(10):
        app.put(orders, {"tenant": "ä:b", "number": number, "total": Decimal("1.10"), "rate": 0.1})
    shop.drain()
    for key in range(10, 20):
        shop.client.delete(shop.name(key))
    for key in range(5, 15):
        app.patch(accounts, key, {"owner": "\\N"})
        app.increment(accounts, key + 5, {"balance": 7})
        app.delete(accounts, key + 20)
        app.insert(events, {"kind": "x"})
    for _ in range(9):
        app.increment(orders, ("ä:b", 3), {"rate": 0.1, "total": Decimal("0.01")})
    with app.atomic(orders, ("ä:b", 1)) as group:
        group.delete(orders, ("ä:b", 1))
        group.put(orders, {"tenant": "ä:b", "number": 11, "total": Decimal(3), "rate": None})
    busy = verify(app)
    assert busy.sound, busy.findings
    assert busy.counts[Verdict.PENDING] == 28
    assert sum(log.backlog for log in busy.logs) == 50
    shop.drain()
    found = verify(app)
    assert found.sound, found.findings
    assert found.counts[Verdict.PENDING] == sum(log.backlog for log in found.logs) == 0
    assert found.tables["orders"] == {Verdict.AGREES: 10}


def test_an_empty_namespace_agrees(shop: Shop) -> None:
    """There is nothing that could be wrong."""
    found = verify(shop.app)
    assert found.sound
    assert found.records == 0


# What is wrong


def test_damage_is_named(each_shop: Shop) -> None:
    """Rows and hashes that others have changed are found one by one, and nothing else is."""
    shop = each_shop
    shop.put(*range(20))
    shop.drain()
    shop.app.delete(accounts, 19)
    shop.sql(sa.update(accounts).where(accounts.c.id == 1).values(balance=99))
    shop.sql(sa.delete(accounts).where(accounts.c.id == 2))
    shop.client.hset(shop.name(3), "owner", "somebody")
    shop.client.delete(shop.name(4))
    shop.client.hset(shop.name(5), "balance", "many")
    shop.client.delete(shop.name(6))
    shop.client.set(shop.name(6), "a string")
    shop.client.hdel(shop.name(7), ":version")
    shop.client.hset(shop.name(8), ":state", "frozen")
    stem = shop.app.keys.stems[0]
    strange = [
        f"{stem}other:1",
        f"{stem}nothing",
        f"{stem}accounts:x",
        f"wb:{{{shop.app.keys.namespace}:77}}:accounts:1",
    ]
    strange.append(shop.app.keys.record((shop.partition(9) + 1) % PARTITIONS, "accounts", "9"))
    for name in strange:
        shop.client.hset(name, "a", "b")
    found = verify(shop.app)
    assert not found.sound
    assert {
        (finding.verdict, finding.key_text, tuple(finding.columns)) for finding in found.findings if finding.table
    } == {
        (Verdict.DIVERGED, "1", ("balance",)),
        (Verdict.DIVERGED, "2", ()),
        (Verdict.DIVERGED, "3", ("owner",)),
        (Verdict.UNREADABLE, "5", ()),
        (Verdict.UNREADABLE, "6", ()),
        (Verdict.UNREADABLE, "7", ()),
        (Verdict.UNREADABLE, "8", ()),
    }
    assert {finding.name for finding in found.findings if finding.verdict is Verdict.FOREIGN} == set(strange)
    # 4 has no hash, 19 is not flushed.
    assert (found.counts[Verdict.AGREES], found.counts[Verdict.PENDING]) == (11, 1)
    assert all(finding.values is None and "99" not in finding.detail for finding in found.findings)


def test_values_are_shown_only_on_demand(shop: Shop) -> None:
    """They may be secret."""
    shop.put(1)
    shop.drain()
    shop.sql(sa.update(accounts).values(owner="secret"))
    assert "secret" not in str(verify(shop.app).as_json())
    (finding,) = verify(shop.app, with_values=True).findings
    assert finding.values == {"owner": ("owner 1", "secret")}
    assert "secret" not in repr(finding)


def test_a_value_that_sql_cannot_give_is_damage(shop: Shop) -> None:
    """SQLite stores anything anywhere; the other records of the chunk are compared all the same."""
    dated = sa.Table(
        "dated",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("day", sa.DateTime),
    )
    app = WriteBehind(
        redis=shop.app.redis_target, database=shop.app.database, namespace=shop.app.keys.namespace, tables=[dated],
        partitions=PARTITIONS,
    )  # fmt: skip
    with app:
        initialise(app, create_tables=True)
        for key in range(10):
            app.put(dated, {"id": key, "day": None})
        drain(app, DEADLINE_SECONDS, QUICK)
        shop.sql(sa.text("UPDATE dated SET day = 'someday' WHERE id = 7"))
        found = verify(app)
        assert counts(found) == {Verdict.AGREES: 9, Verdict.DIVERGED: 1}
        (finding,) = found.findings
        assert (finding.key_text, "someday" in finding.detail) == ("7", False)


def test_counts_are_exact_where_findings_are_cut(shop: Shop) -> None:
    """Only so many findings are kept."""
    shop.put(*range(30))
    shop.drain()
    shop.sql(sa.delete(accounts))
    found = verify(shop.app, findings_max=4)
    assert (found.counts[Verdict.DIVERGED], len(found.findings)) == (30, 4)
    assert len(found.as_json()["findings"]) == 4


def test_entries_that_are_gone_are_lost(each_shop: Shop) -> None:
    """Gaps in the log are counted, and the records are named whose last change was there."""
    shop = each_shop
    shop.put(*range(12))
    shop.drain()
    for key in range(12):
        shop.app.patch(accounts, key, {"balance": 5})
    number = shop.partition(1)
    mine = [key for key in range(12) if shop.partition(key) == number]
    log = shop.app.keys.logs[number]
    entries = [entry for entry, _ in shop.client.xrange(log)][-len(mine) :]
    shop.client.xdel(log, entries[0], entries[-1])
    found = verify(shop.app)
    audit = found.logs[number]
    assert (audit.lost, audit.backlog, [gap.entries for gap in audit.gaps]) == (2, len(mine) - 2, [1, 1])
    assert audit.gaps[-1].before is None
    lost = [finding for finding in found.findings if finding.verdict is Verdict.LOST]
    assert {finding.key_text for finding in lost} == {str(mine[0]), str(mine[-1])}
    assert {tuple(finding.columns) for finding in lost} == {("balance",)}
    assert found.counts[Verdict.PENDING] == 10


def test_a_trimmed_log_is_no_gap(shop: Shop) -> None:
    """What SQL has may go from the log."""
    for _ in range(3):
        shop.put(*range(20))
        shop.drain(TRIMMING)
    shop.put(3)
    found = verify(shop.app)
    assert found.sound, found.logs
    assert sum(log.backlog for log in found.logs) == 1


def test_a_flusher_that_trims_meanwhile_makes_no_gap(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is flushed and taken out of the log just after SQL was asked how far it is."""
    shop.put(*range(40))
    asked: list[Any] = []

    def overtaken(app: WriteBehind, numbers: Collection[int]) -> dict[int, Offset]:
        found = offsets(app, numbers)
        if not asked:
            shop.drain()
            shop.trim()
        asked.append(numbers)
        return found

    monkeypatch.setattr("writebehind.recovery.log_audit.offsets", overtaken)
    found = verify(shop.app)
    assert found.sound, found.logs
    assert len(asked) == PARTITIONS + 1


def test_a_damaged_group_is_seen(shop: Shop) -> None:
    """A missing group, and pending entries that are not in the log; a log that is gone altogether."""
    shop.put(*range(40))
    number = 0
    log = shop.app.keys.logs[number]
    shop.client.xreadgroup(GROUP.decode(), "somebody", {log: ">"}, count=3)
    first = shop.client.xrange(log, count=1)[0][0]
    shop.client.xdel(log, first)
    audit = verify(shop.app).logs[number]
    assert (audit.dangling, audit.lost, audit.group_missing) == (1, 1, False)
    shop.client.xgroup_destroy(log, GROUP)
    audit = verify(shop.app).logs[number]
    assert (audit.dangling, audit.group_missing, audit.sound) == (0, True, False)
    shop.drain()
    assert verify(shop.app).logs[number].sound
    shop.client.delete(log, shop.app.keys.metas[number])
    assert verify(shop.app).logs[number].history_missing


def test_entries_that_nobody_can_read_are_named(shop: Shop) -> None:
    """Another program's entry, a damaged one, and one of a table that is not declared here."""
    shop.put(1)
    log = shop.app.keys.logs[shop.partition(1)]
    epoch = shop.client.xrange(log)[-1][0].split(b"-")[0].decode()
    payload = shop.client.xrange(log)[-1][1][b"p"]
    shop.client.xadd(log, {"a": "b"}, id=f"{epoch}-*")
    shop.client.xadd(log, {"m": "x", "p": payload.replace(b"accounts", b"accountz")}, id=f"{epoch}-*")
    shop.client.xadd(log, {"m": "x", "p": b"\x00"}, id=f"{epoch}-*")
    audit = verify(shop.app).logs[shop.partition(1)]
    assert (audit.unreadable, audit.unreadable_ids) == (3, [f"{epoch}-1", f"{epoch}-2", f"{epoch}-3"])
    assert not audit.sound
    assert verify(shop.app, tables=["accounts"]).logs[shop.partition(1)].unreadable == 2


def test_a_record_deleted_before_its_flush_is_seen(shop: Shop) -> None:
    """Reads are stale until the flush; afterwards nothing is wrong any more, because SQL has it."""
    shop.put(1, 2)
    shop.client.delete(shop.name(1))
    found = verify(shop.app)
    audit = found.logs[shop.partition(1)]
    assert (audit.orphaned, audit.orphans, found.sound) == (1, [("accounts", "1")], False)
    shop.drain()
    assert verify(shop.app).sound


def test_a_record_from_before_a_rollback_is_suspect(shop: Shop) -> None:
    """As long as nobody has compared the new history with SQL, reads ask SQL, so an older record harms nobody."""
    shop.put(1, 2)
    shop.drain()
    before = shop.client.hgetall(shop.name(1))
    shop.put(1, balance=2)
    shop.drain()
    shop.client.hset(shop.name(1), mapping=before)
    assert counts(verify(shop.app)) == {Verdict.DIVERGED: 1, Verdict.AGREES: 1}
    meta = shop.app.keys.metas[shop.partition(1)]
    shop.client.hset(meta, "floor", 2**53)
    found = verify(shop.app)
    assert (found.sound, counts(found)) == (True, {Verdict.SUSPECT: 1, Verdict.AGREES: 1})
    assert shop.app.get(accounts, 1) == {"id": 1, "owner": "owner 1", "balance": 2}
    shop.client.hdel(meta, "floor")
    shop.client.hset(meta, "identity", "another")
    assert verify(shop.app).counts[Verdict.SUSPECT] == 1
    assert from_cache(shop.app, everything=True, dry_run=True).suspect == 1 + (shop.partition(2) == shop.partition(1))


# What is looked at


def test_a_sample_is_compared(shop: Shop) -> None:
    """So many records of each table, not always the same ones, and how many there are."""
    shop.put(*range(200))
    shop.app.put(orders, {"tenant": "a", "number": 1, "total": Decimal(1)})
    shop.drain()
    shop.sql(sa.update(accounts).values(balance=2))
    found = [verify(shop.app, sample=20) for _ in range(2)]
    for each in found:
        assert each.totals == {"accounts": 200, "orders": 1}
        assert counts(each) == {Verdict.DIVERGED: 20, Verdict.AGREES: 1}
    first, second = ({finding.key_text for finding in each.findings} for each in found)
    assert first != second


def test_tables_and_partitions_can_be_chosen(shop: Shop) -> None:
    """Others are passed over, foreign keys too; what does not exist is refused."""
    shop.put(*range(40))
    shop.app.put(orders, {"tenant": "a", "number": 1, "total": Decimal(1)})
    shop.client.hset(f"{shop.app.keys.stems[0]}other:1", "a", "b")
    whole = verify(shop.app)
    assert (whole.records, whole.counts[Verdict.FOREIGN]) == (42, 1)
    assert verify(shop.app, tables=["orders"]).records == 1
    assert verify(shop.app, tables=[accounts]).records == 40
    parts = [verify(shop.app, partitions=[number]) for number in range(PARTITIONS)]
    assert sum(part.records for part in parts) == 42
    assert [log.partition for log in parts[2].logs] == [2]
    with pytest.raises(ValidationError, match="table nothing is not declared"):
        verify(shop.app, tables=["nothing"])
    with pytest.raises(ValidationError, match="partition"):
        verify(shop.app, partitions=[PARTITIONS])
    with pytest.raises(ValidationError, match="sample"):
        verify(shop.app, sample=0)


def test_another_number_of_partitions_is_refused(shop: Shop, redis_url: str, tmp_path: Path) -> None:
    """Else every record would seem to be in the wrong place."""
    shop.put(1)
    other = WriteBehind(
        redis=redis_url,
        database=f"sqlite:///{tmp_path / 'other'}",
        tables=[accounts],
        namespace=shop.app.keys.namespace,
        partitions=8,
    )
    with pytest.raises(ConfigurationError, match="4 partitions in Redis"):
        verify(other)
    other.close()


def test_progress_is_told(shop: Shop) -> None:
    """Logs first, then keys; it ends where all is done."""
    shop.put(*range(20))
    told: list[Progress] = []
    verify(shop.app, sample=5, on_progress=told.append)
    assert [each.part for each in told] == sorted((each.part for each in told), key=["logs", "keys", "records"].index)
    last = {each.part: each for each in told}
    assert all(each.done == each.total for each in last.values())
    assert last["records"].total == 5


def test_memory_does_not_grow_with_the_records(shop: Shop) -> None:
    """Five times as many records take no more of it."""

    def peak() -> int:
        tracemalloc.start()
        found = verify(shop.app)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.sound
        return size

    shop.put(*range(2000))
    shop.drain()
    verify(shop.app)
    small = peak()
    shop.put(*range(2000, 10_000))
    shop.drain()
    assert peak() < 1.3 * small


# While everything goes on


@pytest.mark.slow
def test_nothing_seems_wrong_under_load(each_shop: Shop) -> None:
    """Writers, and a flusher that trims at once, work on few keys all the time; no comparison finds anything."""
    shop = each_shop
    app = shop.app
    ended = threading.Event()
    failures: list[BaseException] = []
    writes: list[Callable[[int, int], object]] = [
        lambda _, key: app.delete(accounts, key),
        lambda number, key: app.patch(accounts, key, {"owner": str(number)}),
        lambda number, key: app.increment(accounts, key, {"balance": number}),
        lambda number, key: app.patch(accounts, key, {"balance": number}),
        lambda _, key: app.increment(orders, ("t", key), {"rate": 0.1}),
        lambda number, key: app.put(orders, {"tenant": "t", "number": key, "total": number, "rate": 1 / 3}),
        lambda number, key: shop.put(key, key + 40, key + 80, balance=number),
    ]

    def write(seed: int) -> None:
        number = seed
        try:
            while not ended.is_set():
                number += 1
                writes[number % len(writes)](number, number % 40)
        except BaseException as error:  # noqa: BLE001 - the test raises it
            failures.append(error)

    threads = [threading.Thread(target=write, args=(seed,), name=f"writer {seed}") for seed in (0, 3)]
    looks: list[Verification] = []
    with flushing(shop.app, TRIMMING):
        for thread in threads:
            thread.start()
        try:
            until = time.monotonic() + BUSY_SECONDS
            while time.monotonic() < until and not failures:
                looks.append(verify(shop.app))
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert not failures
    assert len(looks) > 2
    for look in looks:
        assert look.sound, (look.findings, look.logs)
    assert sum(look.counts[Verdict.PENDING] for look in looks) > 0
    assert sum(look.counts[Verdict.AGREES] for look in looks) > 0
    shop.drain()
    last = verify(shop.app)
    assert last.sound, last.findings
    assert last.counts[Verdict.PENDING] == 0


# Repair


def damage(shop: Shop) -> None:
    """Damage records in every way that has a repair on both sides."""
    shop.put(*range(10))
    shop.drain()
    for key in range(3):
        shop.app.delete(accounts, key)
    shop.app.patch(accounts, 3, {"balance": 3})
    shop.client.delete(shop.name(4))
    shop.app.patch(accounts, 4, {"balance": 4})
    # Another program takes the backlog away.
    shop.trim()
    shop.sql(sa.update(accounts).where(accounts.c.id == 5).values(balance=99))
    shop.sql(sa.delete(accounts).where(accounts.c.id == 6))
    shop.client.hset(shop.name(7), "owner", "somebody")


@pytest.mark.parametrize("winner", list(Winner))
def test_repair_makes_one_side_follow(each_shop: Shop, winner: Winner) -> None:
    """A dry run changes nothing; a repair and a flush later both sides agree on what the winner had."""
    shop = each_shop
    damage(shop)
    before = verify(shop.app)
    assert counts(before) == {Verdict.LOST: 5, Verdict.DIVERGED: 3, Verdict.AGREES: 2}
    cached = {key: shop.app.get(accounts, key) for key in (3, 5, 6, 7)}
    outcome = Outcome.REWRITTEN if winner is Winner.REDIS else Outcome.REMOVED
    dry = Repair(shop.app, winner, dry_run=True)
    verify(shop.app, on_judged=dry)
    assert (dry.counts[outcome], dry.counts.total()) == (8, 8)
    assert counts(verify(shop.app)) == counts(before)
    rows = shop.rows()
    real = Repair(shop.app, winner, dry_run=False)
    verify(shop.app, on_judged=real)
    assert (real.counts[outcome], real.counts.total()) == (8, 8)
    shop.drain()
    after = verify(shop.app)
    assert after.sound, after.findings
    if winner is Winner.SQL:
        assert shop.rows() == rows
        assert {key: (shop.app.get(accounts, key) or {}).get("balance") for key in rows} == rows
    else:
        assert shop.rows().keys() == set(range(3, 10))
        assert {key: shop.app.get(accounts, key) for key in cached} == cached
        shop.client.delete(*(shop.name(key) for key in cached))
        assert {key: shop.app.get(accounts, key) for key in cached} == cached
        assert shop.rows()[4] == 4


def test_repair_removes_what_cannot_be_read(shop: Shop) -> None:
    """SQL can win over garbage, Redis cannot; foreign keys are nobody's to remove."""
    shop.put(1, 2, 3)
    shop.drain()
    shop.client.hset(shop.name(1), "balance", "many")
    shop.client.delete(shop.name(2))
    shop.client.set(shop.name(2), "a string")
    shop.client.delete(shop.name(3))
    shop.client.hset(shop.name(3), "a", "b")
    foreign = f"{shop.app.keys.stems[0]}other:1"
    shop.client.hset(foreign, "a", "b")
    impossible = Repair(shop.app, Winner.REDIS, dry_run=False)
    verify(shop.app, on_judged=impossible)
    assert impossible.counts == Counter({Outcome.IMPOSSIBLE: 3})
    real = Repair(shop.app, Winner.SQL, dry_run=False)
    verify(shop.app, on_judged=real)
    assert real.counts[Outcome.REMOVED] == 3
    assert counts(verify(shop.app)) == {Verdict.FOREIGN: 1}
    assert shop.app.get(accounts, 1) == {"id": 1, "owner": "owner 1", "balance": 1}


def test_what_sql_still_has_to_hear_of_is_not_removed(shop: Shop) -> None:
    """A record that cannot be read is left until its last change is flushed: reads would miss that."""
    shop.put(1)
    shop.client.hset(shop.name(1), "balance", "many")
    repair = Repair(shop.app, Winner.SQL, dry_run=False)
    found = verify(shop.app, on_judged=repair)
    assert counts(found) == {Verdict.UNREADABLE: 1}
    assert repair.counts == Counter({Outcome.LEFT_ALONE: 1})
    assert shop.client.exists(shop.name(1))
    shop.drain()
    verify(shop.app, on_judged=Repair(shop.app, Winner.SQL, dry_run=False))
    assert not shop.client.exists(shop.name(1))


@pytest.mark.parametrize("winner", list(Winner))
def test_a_record_written_meanwhile_is_left_alone(shop: Shop, winner: Winner) -> None:
    """Whoever wins: a write that comes between judgement and repair is the last word."""
    shop.put(*range(6))
    shop.drain()
    shop.sql(sa.update(accounts).values(balance=99))
    repair = Repair(shop.app, winner, dry_run=False)

    def overtaken(chunk: Any) -> None:
        shop.app.put(accounts, {"id": 2, "owner": "newer", "balance": 7})
        repair(chunk)

    verify(shop.app, on_judged=overtaken)
    assert repair.counts[Outcome.LEFT_ALONE] == 1
    assert repair.counts[Outcome.REMOVED] + repair.counts[Outcome.REWRITTEN] == 5
    shop.drain()
    assert shop.rows()[2] == 7
    assert verify(shop.app).sound


def test_a_write_between_check_and_put_wins(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check and the write of a repair are one: what comes between them makes Redis refuse the write."""
    shop.put(*range(6))
    shop.drain()
    shop.sql(sa.update(accounts).values(balance=99))
    repair = Repair(shop.app, Winner.REDIS, dry_run=False)
    writer = repair._writer
    append = writer._append
    overtaken: list[Any] = []

    def slow(*arguments: Any) -> Any:
        if not overtaken:
            overtaken.append(shop.app.put(accounts, {"id": 2, "owner": "newer", "balance": 7}))
        return append(*arguments)

    monkeypatch.setattr(writer, "_append", slow)
    verify(shop.app, on_judged=repair)
    assert (repair.counts[Outcome.REWRITTEN], repair.counts[Outcome.LEFT_ALONE]) == (5, 1)
    shop.drain()
    assert shop.rows() == {key: 7 if key == 2 else 1 for key in range(6)}
    assert verify(shop.app).sound


def test_a_left_over_is_no_harm_and_goes_with_a_repair(shop: Shop) -> None:
    """A tombstone that its flusher was killed before it could remove."""
    shop.put(1)
    shop.drain()
    receipt = shop.app.delete(accounts, 1)
    shop.drain()
    shop.client.hset(shop.name(1), mapping={":state": "tombstone", ":version": str(receipt.entry_id)})
    found = verify(shop.app)
    assert (found.sound, counts(found)) == (True, {Verdict.LEFT_OVER: 1})
    verify(shop.app, on_judged=Repair(shop.app, Winner.REDIS, dry_run=False))
    assert verify(shop.app).records == 0


# From the cache


def restore(shop: Shop, positions: Mapping[int, tuple[int, int]], rows: Mapping[int, int]) -> None:
    """Restore an earlier state of SQL."""
    shop.sql(sa.delete(accounts))
    if rows:
        shop.sql(
            sa.insert(accounts).values([{"id": key, "owner": f"owner {key}", "balance": rows[key]} for key in rows])
        )
    for number, (epoch, sequence) in positions.items():
        mine = sa.and_(partitions.c.namespace == shop.app.keys.namespace, partitions.c.partition == number)
        shop.sql(sa.update(partitions).where(mine).values(epoch=epoch, sequence=sequence))


def offsets_of(shop: Shop) -> dict[int, tuple[int, int]]:
    """Return where SQL stands."""
    with shop.app.database.connect() as connection:
        mine = sa.select(partitions).where(partitions.c.namespace == shop.app.keys.namespace)
        return {row.partition: (row.epoch, row.sequence) for row in connection.execute(mine)}


def test_the_cache_gives_back_what_a_restored_database_misses(each_shop: Shop) -> None:
    """SQL is restored to a time that the log does not reach back to; the hashes still know."""
    shop = each_shop
    shop.put(*range(20))
    shop.drain()
    before, rows = offsets_of(shop), shop.rows()
    shop.put(*range(10, 30), balance=2)
    shop.drain()
    shop.trim()
    expected = shop.rows()
    shop.put(40)
    restore(shop, before, rows)
    assert verify(shop.app).counts[Verdict.LOST] == 20
    dry = from_cache(shop.app, dry_run=True)
    assert (dry.records, dry.rewritten, dry.in_sql, dry.pending) == (31, 20, 10, 1)
    assert verify(shop.app).counts[Verdict.LOST] == 20
    done = from_cache(shop.app)
    assert (done.rewritten, done.changed, done.unusable) == (20, 0, 0)
    again = from_cache(shop.app)
    assert (again.rewritten, again.pending) == (0, 21)
    shop.drain()
    assert shop.rows() == expected | {40: 1}
    assert counts(verify(shop.app)) == {Verdict.AGREES: 31}


def test_everything_reaches_behind_a_gap_that_was_stepped_over(shop: Shop) -> None:
    """A flusher came first and counted the gap as lost: SQL's offset no longer tells, the hashes still do."""
    shop.put(*range(20))
    shop.drain()
    shop.trim()
    restore(shop, dict.fromkeys(range(PARTITIONS), (0, -1)), {})
    shop.drain()
    assert from_cache(shop.app).rewritten == 0
    assert verify(shop.app).counts[Verdict.DIVERGED] == 20
    assert from_cache(shop.app, everything=True).rewritten == 20
    shop.drain()
    assert shop.rows() == dict.fromkeys(range(20), 1)
    assert verify(shop.app).sound


def test_the_cache_opens_an_epoch_where_redis_was_restarted(own_redis: Any, sqlite_url: str, namespace: str) -> None:
    """Nobody has written since: the rewriting finds the new history by itself."""
    server = own_redis({"appendonly": "yes", "appendfsync": "always"})
    shop = Shop(server.url, sqlite_url, namespace, settings=EngineSettings(redis_timeout_seconds=2))
    try:
        shop.put(*range(10))
        shop.drain()
        shop.trim()
        restore(shop, dict.fromkeys(range(PARTITIONS), (0, -1)), {})
        server.kill()
        server.start()
        assert from_cache(shop.app).rewritten == 10
        shop.drain()
        assert shop.rows() == dict.fromkeys(range(10), 1)
        assert verify(shop.app).sound
    finally:
        shop.close()
