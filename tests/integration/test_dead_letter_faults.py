"""Dead letters where something else goes wrong, too: lost replies, other releases, odd schemas, forged entries."""

import dataclasses
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from refusing import DEADLINE_SECONDS, SETTINGS, World, accounts, events, orders, until
from running import flushing
from writebehind.engine import DeadLetter, Durability, WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters
from writebehind.engine.core.payload import Op, encode
from writebehind.flushers import drain, initialise, status
from writebehind.flushers.flusher import Flusher
from writebehind.flushers.letters import Letters
from writebehind.flushers.quarantine import Quarantine
from writebehind.flushers.suspect import Suspect
from writebehind.flushers.transaction import Transaction
from writebehind.recovery import dead_letters as listed
from writebehind.recovery import discard, replay

RETRYING = dataclasses.replace(SETTINGS, lease_ttl_seconds=30, foreign_key_seconds=60)
LONG = dataclasses.replace(SETTINGS, lease_ttl_seconds=30)


@pytest.fixture
def small(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[World]:
    """An engine with one partition on SQLite."""
    found = World(redis_url, sqlite_url, namespace, 1)
    with found.app:
        yield found


def flushed(world: World) -> None:
    """Wait until the running flusher has nothing to do."""
    until(lambda: status(world.app).backlog == 0)


def forge(world: World, fields: dict[str, bytes]) -> None:
    """Append an entry by hand."""
    with redis.Redis.from_url(world.redis_url) as client:
        epoch = client.hget(world.app.keys.metas[0], "epoch").decode()
        client.xadd(world.app.keys.logs[0], fields, id=f"{epoch}-*")


def table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    """Make a table with a number for a key."""
    return sa.Table(name, sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), *columns)


def rows(app: WriteBehind, found: sa.Table) -> list[tuple[Any, ...]]:
    """What SQL has."""
    with app.database.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(found).order_by(*found.primary_key))]


def letters(app: WriteBehind) -> list[str]:
    """The keys of the letters."""
    with app.database.connect() as connection:
        return list(connection.execute(sa.select(dead_letters.c.record_key).order_by(dead_letters.c.place)).scalars())


def test_what_is_superseded_in_the_batch_in_which_it_waits(small: World) -> None:
    """The flusher's memory has no letter of it: later entries of the key do not wait for nothing."""
    small.put(5, limited=1000)
    with flushing(small.app, LONG):
        flushed(small)
        with small.app.batch() as batch:
            batch.patch(accounts, 5, {"owner": "P"})
            batch.put(accounts, {"id": 5, "owner": "Ada", "balance": 50, "name": "n5"})
        flushed(small)
        small.put(6, limited=1000)
        flushed(small)
        small.app.increment(accounts, 5, {"balance": 1})
        flushed(small)
        until(lambda: small.letters() == [("6", "poison")])
        assert small.balances()[5] == 51


def test_what_is_superseded_in_the_isolation_in_which_it_is_refused(small: World) -> None:
    """Nobody is told of it, and nothing waits behind it."""
    with flushing(small.app, LONG):
        flushed(small)
        with small.app.batch() as batch:
            for key, limited in ((5, 1000), (6, 1000), (7, 0), (5, 0)):
                batch.put(accounts, {"id": key, "owner": "Ada", "balance": key, "name": f"n{key}", "limited": limited})
        flushed(small)
        small.app.increment(accounts, 5, {"balance": 1})
        flushed(small)
        assert small.balances()[5] == 6
    assert small.letters() == [("6", "poison")]
    assert {letter.key_text for letter in small.told} == {"6"}


def test_what_waits_for_nothing_is_applied(small: World) -> None:
    """The letter before it was deleted by hand: whoever takes the partition over applies it."""
    small.put(5)
    small.drain()
    small.app.patch(accounts, 5, {"limited": 5000})
    small.app.increment(accounts, 5, {"balance": 1})
    small.drain()
    with small.app.database.begin() as connection:
        connection.execute(sa.delete(dead_letters).where(dead_letters.c.failure == "poison"))
    small.drain()
    with flushing(small.app, LONG):
        until(lambda: small.letters() == [])
    assert small.balances()[5] == 6


parents = sa.Table("parents", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
audits = sa.Table(
    "audits",
    parents.metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent", sa.ForeignKey("parents.id"), nullable=False),
)


def test_a_retry_whose_reply_is_lost_is_applied_once(
    redis_url: str, database_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's row is in SQL, its letter is not; the next attempt sees that."""
    app = WriteBehind(
        redis=redis_url, database=database_url, tables=[parents, audits], namespace=namespace, partitions=1
    )
    initialise(app, create_tables=True)
    armed, lost = threading.Event(), threading.Event()
    real = Transaction.commit

    def commit(self: Transaction) -> None:
        losing = armed.is_set() and not lost.is_set()
        real(self)
        if losing:
            lost.set()
            raise OSError("the reply is lost")

    monkeypatch.setattr(Transaction, "commit", commit)
    with app, flushing(app, RETRYING):
        app.insert(audits, {"parent": 7})
        until(lambda: letters(app) == [""])
        armed.set()
        lost.wait(DEADLINE_SECONDS)
        with app.database.begin() as connection:
            connection.execute(sa.insert(parents).values(id=7))
            lost.clear()
        until(lambda: letters(app) == [] and lost.is_set())
        app.put(parents, {"id": 8}).wait(Durability.PERSISTED, DEADLINE_SECONDS)
        assert len(rows(app, audits)) == 1


def test_sql_rolled_back_to_other_letters(redis_url: str, tmp_path: Path, namespace: str) -> None:
    """The offset is the same, but SQL has a letter again that was applied: what is written meanwhile is not undone."""
    file, snapshot = str(tmp_path / "database.sqlite"), str(tmp_path / "snapshot.sqlite")
    world = World(redis_url, f"sqlite:///{file}", namespace, 1)
    with world.app, flushing(world.app, RETRYING):
        world.app.put(orders, {"id": 1, "account": 999})
        until(lambda: world.letters() == [("1", "foreign key")])
        copy(file, snapshot)
        parent = "INSERT INTO accounts (id, balance, limited) VALUES (999, 0, 0)"
        for path in (file, snapshot):
            with closing(sqlite3.connect(path, timeout=DEADLINE_SECONDS)) as connection, connection:
                connection.execute(parent)
        until(lambda: world.letters() == [])
        copy(snapshot, file)
        assert world.letters() == [("1", "foreign key")]
        world.app.put(orders, {"id": 1, "account": 1})
        until(lambda: world.letters() == [])
        until(lambda: status(world.app).backlog == 0)
    assert {key: row.account for key, row in world.rows(orders).items()} == {1: 1}


def copy(path: str, over: str) -> None:
    """Copy a SQLite database over another one."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(over, timeout=DEADLINE_SECONDS)) as target:
        source.backup(target)


def test_sql_away_while_a_letter_is_due(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the letter fails for a while: it is read again."""
    fails = iter(range(3))
    real = Letters.read

    def read(self: Letters, connection: sa.Connection, partition: int, places: Collection[int]) -> list[Suspect]:
        if next(fails, None) is not None:
            raise sa.exc.OperationalError("x", {}, OSError("connection refused"), connection_invalidated=True)
        return real(self, connection, partition, places)

    monkeypatch.setattr(Letters, "read", read)
    with flushing(small.app, RETRYING):
        small.app.put(orders, {"id": 1, "account": 77})
        until(lambda: small.letters() == [("1", "foreign key")])
        small.put(77)
        until(lambda: small.letters() == [])
    assert next(fails, None) is None
    assert small.rows(orders).keys() == {1}


def test_a_put_does_not_supersede_a_group_with_another_row(small: World) -> None:
    """The other row's key is the database's: it would be lost."""
    with small.app.atomic(accounts, 5) as group:
        group.insert(events, {"kind": "audit"})
        group.put(accounts, {"id": 5, "owner": "Ada", "balance": 5, "limited": 1000})
    small.drain()
    small.put(5)
    small.drain()
    assert small.letters() == [("", "poison"), ("5", "")]


def test_a_chain_that_cannot_be_merged(redis_url: str, postgresql_url: str, namespace: str) -> None:
    """The sum of what waits leaves the column's range: that is the last one's fault, not the first one's."""
    world = World(redis_url, postgresql_url, namespace, 1)
    with world.app:
        world.put(5, balance=2_000_000_000, limited=1000)
        world.drain()
        world.resolve(Op.REPLAY, "5")
        world.drain()
        world.app.increment(accounts, 5, {"balance": 2_000_000_000})
        world.drain()
        world.resolve(Op.REPLAY, "5", limited=1)
        world.drain()
        assert world.balances()[5] == 2_000_000_000
        assert world.letters() == [("5", "poison")]


def test_forged_entries_with_control_characters(redis_url: str, database_url: str, namespace: str) -> None:
    """Whatever they consist of, SQL takes them as letters."""
    world = World(redis_url, database_url, namespace, 1)
    with world.app:
        world.drain()
        forge(world, {"m": b"a\x00b\x1b[2J", "p": b"garbage\x00" * 50_000})
        forge(world, {"m": b"x", "p": encode(Op.PATCH, "accounts", "a\x00b", {"id": "\x00", "limited": 1})})
        world.put(4)
        world.drain()
        assert 4 in world.balances()
        with world.app.database.connect() as connection:
            found = connection.execute(sa.select(dead_letters).order_by(dead_letters.c.place)).all()
    assert found[0].failure == "unreadable"
    assert found[0].mutation_id == r"a\x00b\x1b[2J"
    assert len(found[0].payload) < 100_000


def test_a_letter_that_cannot_be_written_down_halts(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal of the refusal is no endless loop: the partition halts, and says why."""
    small.drain()

    def record(*_: object) -> None:
        raise sa.exc.DataError("x", {}, ValueError("no such text"))

    monkeypatch.setattr(Letters, "record", record)
    small.put(5, limited=1000)
    last = drain(small.app, 2, SETTINGS)
    assert (last.backlog, len(last.halted)) == (1, 1)


known = table("known")
old = table("old", sa.Column("v", sa.Integer, sa.CheckConstraint("v < 10")))


@pytest.mark.parametrize("decide", [discard, replay])
def test_a_letter_of_a_table_that_is_not_declared_any_more(
    redis_url: str, sqlite_url: str, namespace: str, decide: Callable[[WriteBehind, list[Any]], object]
) -> None:
    """It can be discarded; to replay it is refused; the partition goes on."""
    servers: dict[str, Any] = {"redis": redis_url, "database": sqlite_url}
    with WriteBehind(**servers, tables=[known, old], namespace=namespace, partitions=1) as app:
        initialise(app, create_tables=True)
        app.put(old, {"id": 1, "v": 50})
        drain(app, DEADLINE_SECONDS, SETTINGS)
    with WriteBehind(**servers, tables=[known], namespace=namespace, partitions=1) as app:
        decide(app, list(listed(app)))
        app.put(known, {"id": 1})
        last = drain(app, DEADLINE_SECONDS, SETTINGS)
        assert (last.backlog, last.halted) == (0, [])
        assert rows(app, known) == [(1,)]
        assert letters(app) == ([] if decide is discard else ["1"])


def test_an_error_that_ends_the_transaction(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """The savepoint goes with it: nothing is written outside a transaction, and the guilty one is set aside."""
    named = table("named", sa.Column("n", sa.Integer, unique=True))
    unique = next(each for each in named.constraints if isinstance(each, sa.UniqueConstraint))
    unique.dialect_options["sqlite"]["on_conflict"] = "ROLLBACK"
    with WriteBehind(redis=redis_url, database=sqlite_url, namespace=namespace, partitions=1, tables=[named]) as app:
        initialise(app, create_tables=True)
        for key, number in ((1, 1), (2, 1), (3, 3)):
            app.put(named, {"id": key, "n": number})
        last = drain(app, DEADLINE_SECONDS, SETTINGS)
        assert (last.backlog, last.halted) == (0, [])
        assert rows(app, named) == [(1, 1), (3, 3)]
        assert letters(app) == ["2"]


def test_the_error_that_ended_the_transaction_is_told(mariadb_url: str, namespace: str) -> None:
    """A deadlock takes the savepoint with it: the deadlock is what is raised."""
    engine = sa.create_engine(mariadb_url)
    written = table("written", sa.Column("v", sa.Integer))
    written.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(written), [{"id": number, "v": 0} for number in range(1, 5)])
    transaction = Transaction(engine, namespace, {}, 5, holder="h", letters=Letters(namespace, 0, {}))
    transaction.begin()
    caught: list[BaseException] = []

    def change(connection: sa.Connection, number: int, value: int) -> None:
        connection.execute(sa.update(written).where(written.c.id == number).values(v=value))

    def write(_: object) -> None:
        change(transaction.connection, 1, 1)
        change(transaction.connection, 2, 1)

    def attempt() -> None:
        try:
            transaction.attempt([None])  # type: ignore[list-item]
        except sa.exc.SQLAlchemyError as error:
            caught.append(error)

    transaction._write_all = write  # type: ignore[assignment,method-assign]
    with engine.connect() as other:
        for number in (2, 3, 4):
            change(other, number, 2)
        thread = threading.Thread(target=attempt)
        thread.start()
        waits = sa.text("SELECT COUNT(*) FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK WAIT'")
        with engine.connect() as watching:
            until(lambda: watching.execute(waits).scalar_one() > 0)
        change(other, 1, 2)
        thread.join()
    (error,) = caught
    assert isinstance(error, sa.exc.DBAPIError)
    assert error.orig is not None
    assert error.orig.args[0] == 1213
    assert transaction.ended
    transaction.roll_back()
    engine.dispose()


def test_what_waited_and_lacks_its_own_parent_is_tried_again(small: World) -> None:
    """Its time begins when it is refused itself."""
    with flushing(small.app, RETRYING):
        small.app.put(orders, {"id": 1, "account": 77})
        small.app.patch(orders, 1, {"account": 78})
        flushed(small)
        small.put(77)
        until(lambda: small.letters() == [("1", "foreign key")] and len(small.rows(orders)) == 1)
        small.put(78)
        until(lambda: small.letters() == [])
    assert small.rows(orders)[1].account == 78
    assert small.told == []


def test_a_put_of_an_older_release(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """It lacks a column that a patch in the line changes: it waits, and the patch is not lost."""
    servers: dict[str, Any] = {"redis": redis_url, "database": sqlite_url}
    wide = table("t", sa.Column("a", sa.Integer, sa.CheckConstraint("a < 10")), sa.Column("b", sa.Integer))
    narrow = table("t", sa.Column("a", sa.Integer))
    with (
        WriteBehind(**servers, tables=[wide], namespace=namespace, partitions=1) as app,
        WriteBehind(**servers, tables=[narrow], namespace=namespace, partitions=1) as older,
    ):
        initialise(app, create_tables=True)
        app.put(wide, {"id": 1, "a": 1, "b": 1})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        app.patch(wide, 1, {"a": 50})
        app.patch(wide, 1, {"b": 5})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        older.put(narrow, {"id": 1, "a": 2})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        discard(app, list(listed(app))[:1])
        drain(app, DEADLINE_SECONDS, SETTINGS)
        assert rows(app, wide) == [(1, 2, 5)]
        assert letters(app) == []


DEFINITIONS = {
    "collation": """
        CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE things (id int PRIMARY KEY, s varchar(20) COLLATE ci CHECK (s = 'open'))""",
    "trigger of a partition": """
        CREATE TABLE things (id int PRIMARY KEY, s varchar(20) CHECK (s = 'open')) PARTITION BY RANGE (id);
        CREATE TABLE things_1 PARTITION OF things FOR VALUES FROM (0) TO (10000);
        CREATE FUNCTION fix() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN NEW.s := lower(NEW.s); RETURN NEW; END $$;
        CREATE TRIGGER fixing BEFORE INSERT ON things_1 FOR EACH ROW EXECUTE FUNCTION fix()""",
    "whole row": """
        CREATE TABLE things (id int PRIMARY KEY, s varchar(20));
        CREATE FUNCTION okay(things) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true';
        ALTER TABLE things ADD CHECK (okay(things.*) AND s <> '')""",
}


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
def test_nothing_is_refused_that_sql_would_take(
    redis_url: str, postgresql_url: str, namespace: str, caplog: pytest.LogCaptureFixture, definition: str
) -> None:
    """Constraints that mean something else, or nothing, where rows are asked before they are written."""
    found = table("things", sa.Column("s", sa.String(20)))
    with WriteBehind(
        redis=redis_url, database=postgresql_url, namespace=namespace, partitions=1, tables=[found]
    ) as app:
        with app.database.begin() as connection:
            connection.exec_driver_sql(definition)
        initialise(app)
        with app.batch() as batch:
            for key in range(200):
                batch.put(found, {"id": key, "s": "OPEN" if key == 7 else "open"})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        assert len(rows(app, found)) == 200
        assert letters(app) == []
        assert not [record for record in caplog.records if "failed" in record.getMessage()]


def test_a_group_that_is_right_in_the_end(redis_url: str, postgresql_url: str, namespace: str) -> None:
    """Rows that refer to each other are checked together, also beside an entry that is refused."""
    found = table("t", sa.Column("boss", sa.Integer), sa.Column("v", sa.Integer))
    with WriteBehind(
        redis=redis_url, database=postgresql_url, namespace=namespace, partitions=1, tables=[found]
    ) as app:
        with app.database.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE t (id int PRIMARY KEY, boss int REFERENCES t DEFERRABLE INITIALLY DEFERRED,"
                " v int CHECK (v < 10))"
            )
        initialise(app)
        with app.atomic(found, 3) as group:
            group.put(found, {"id": 3, "boss": 4, "v": 1})
            group.put(found, {"id": 4, "boss": 3, "v": 1})
        app.put(found, {"id": 9, "boss": None, "v": 50})
        app.put(found, {"id": 10, "boss": 11, "v": 5})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        assert rows(app, found) == [(3, 4, 1), (4, 3, 1)]
        assert letters(app) == ["9", "10"]


def test_children_that_only_the_commit_refuses(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """One parent comes, the other one does not: its child is told of, and the first one's is applied."""
    metadata = sa.MetaData()
    above = sa.Table("above", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
    below = sa.Table(
        "below",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("above", sa.ForeignKey("above.id", deferrable=True, initially="DEFERRED")),
    )
    told: list[DeadLetter] = []
    app = WriteBehind(
        redis=redis_url,
        database=sqlite_url,
        namespace=namespace,
        partitions=1,
        tables=[above, below],
        on_dead_letter=told.append,
    )
    with app:
        initialise(app, create_tables=True)
        with flushing(app, dataclasses.replace(RETRYING, foreign_key_seconds=4)):
            app.put(below, {"id": 1, "above": 70})
            app.put(below, {"id": 2, "above": 71})
            until(lambda: letters(app) == ["1", "2"])
            app.put(above, {"id": 71}).wait(Durability.PERSISTED, DEADLINE_SECONDS)
            until(lambda: rows(app, below) == [(2, 71)])
            until(lambda: len(told) == 1)
        assert letters(app) == ["1"]


def test_letters_that_take_long_to_read(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes a partition over with more letters than can be read within the TTL keeps it meanwhile."""
    for key in range(2, 8):
        small.put(key, limited=1000)
    small.drain()
    assert len(small.letters()) == 6
    monkeypatch.setattr("writebehind.flushers.letters.LETTERS_PER_PAGE", 1)
    real = Letters.load

    def slowly(self: Letters, connection: sa.Connection, partition: int, between: Callable[[], None]) -> Quarantine:
        def page() -> None:
            time.sleep(0.4)  # a slow database: six pages take twice the TTL
            between()

        return real(self, connection, partition, page)

    monkeypatch.setattr(Letters, "load", slowly)
    with flushing(small.app, SETTINGS), flushing(small.app, SETTINGS):
        small.app.increment(accounts, 1, {"balance": 1}).wait(Durability.PERSISTED, DEADLINE_SECONDS)
        (before,) = status(small.app).partitions
        small.app.increment(accounts, 1, {"balance": 1}).wait(Durability.PERSISTED, DEADLINE_SECONDS)
        (after,) = status(small.app).partitions
    assert before.holder == after.holder
    assert small.balances()[1] == 3


def test_very_many_letters_of_one_key(redis_url: str, postgresql_url: str, namespace: str) -> None:
    """A partition with them is taken over well within the lease, and serves its other keys."""
    world = World(redis_url, postgresql_url, namespace, 1)
    with world.app:
        world.put(5, limited=1000)
        world.drain()
        with world.app.database.begin() as connection:
            first = connection.execute(sa.select(dead_letters)).mappings().one()
            payload = encode(Op.INCREMENT, "accounts", "5", {"id": 5, "balance": 1})
            waiting = {**first, "payload": payload, "failure": "", "error": "", "attempts": 0}
            places = range(first["place"] + 1, first["place"] + 12_001)
            connection.execute(sa.insert(dead_letters), [{**waiting, "place": place} for place in places])
        world.put(9)
        world.drain()
        assert world.balances().keys() == {1, 9}
        world.put(5)
        world.drain()
        assert world.letters() == []


def test_retrying_tells_redis_nothing_about_the_log(small: World) -> None:
    """Where only letters are tried again, the position is where it was."""
    flusher = Flusher(small.app, RETRYING)
    small.app.put(orders, {"id": 1, "account": 77})
    seen: set[tuple[int, int]] = set()

    def tried() -> bool:
        for cursor in flusher.holdings.cursors.values():
            seen.add((len(cursor.milestones), cursor.base.sequence))
        with small.app.database.connect() as connection:
            return max(connection.execute(sa.select(dead_letters.c.attempts)).scalars(), default=0) > 2

    flusher.run(until=tried)
    assert {count for count, _ in seen} <= {0, 1, 2}


def test_what_was_tried_alone_and_taken_is_settled(redis_url: str, postgresql_url: str, namespace: str) -> None:
    """A row under suspicion that SQL takes becomes clean in Redis like the others."""
    found = table("things", sa.Column("s", sa.String(20)))
    app = WriteBehind(redis=redis_url, database=postgresql_url, namespace=namespace, partitions=1, tables=[found])
    with app, redis.Redis.from_url(redis_url) as client:
        with app.database.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE things (id int PRIMARY KEY, s varchar(20));"
                "CREATE FUNCTION okay(varchar) RETURNS bool LANGUAGE sql AS"
                " $$ SELECT $1 <> 'odd' OR strpos(current_query(), 'writebehind_position') = 0 $$;"
                "ALTER TABLE things ADD CHECK (okay(s))"
            )
        initialise(app)
        with app.batch() as batch:
            for key in range(200):
                batch.put(found, {"id": key, "s": "odd" if key == 7 else "plain"})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        assert letters(app) == []
        assert len(rows(app, found)) == 200
        assert all(client.ttl(app.keys.record(0, "things", str(key))) > 0 for key in (6, 7, 8))


@pytest.mark.parametrize("count", [1, 300])
def test_a_letter_is_told_of_where_the_reply_is_lost(
    redis_url: str, database_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The letter is in SQL, and the flusher did not hear so: it looks, and tells once."""
    world = World(redis_url, database_url, namespace, 1)
    lost = threading.Event()
    real = Transaction.commit

    def commit(self: Transaction) -> None:
        real(self)
        if not lost.is_set() and world.letters():
            lost.set()
            raise OSError("the reply is lost")

    with world.app:
        world.drain()
        monkeypatch.setattr(Transaction, "commit", commit)
        with world.app.batch() as batch:
            for key in range(2, 2 + count):
                batch.put(accounts, {"id": key, "owner": "Ada", "balance": 1, "limited": 1000 if key == 2 else 0})
        with flushing(world.app, LONG):
            until(lambda: [letter.key_text for letter in world.told] == ["2"])
            flushed(world)
        assert lost.is_set()
        assert world.letters() == [("2", "poison")]
        assert len(world.told) == 1


def test_a_retried_letter_is_told_of_where_the_reply_is_lost(
    redis_url: str, database_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry applies the first of a line, and SQL refuses the next one for good; the flusher did not hear either."""
    children = table(
        "children",
        sa.Column("parent", sa.ForeignKey(parents.c.id), nullable=False),
        sa.Column("number", sa.Integer, sa.CheckConstraint("number < 100")),
    )
    told: list[DeadLetter] = []
    app = WriteBehind(
        redis=redis_url, database=database_url, tables=[parents, children], namespace=namespace, partitions=1,
        on_dead_letter=told.append,
    )  # fmt: skip
    lost = threading.Event()
    real = Transaction.commit

    def commit(self: Transaction) -> None:
        real(self)
        if not lost.is_set() and [letter.failure for letter in listed(app)] == ["poison"]:
            lost.set()
            raise OSError("the reply is lost")

    with app:
        parents.create(app.database)
        initialise(app, create_tables=True)
        monkeypatch.setattr(Transaction, "commit", commit)
        app.put(children, {"id": 1, "parent": 7, "number": 1})
        app.patch(children, 1, {"number": 1000})
        with flushing(app, RETRYING):
            until(lambda: letters(app) == ["1", "1"])
            assert told == []
            with app.database.begin() as connection:
                connection.execute(sa.insert(parents).values(id=7))
            until(lambda: [(letter.key_text, letter.failure) for letter in told] == [("1", "poison")])
        assert lost.is_set()
        assert rows(app, children) == [(1, 7, 1)]
        assert len(told) == 1
