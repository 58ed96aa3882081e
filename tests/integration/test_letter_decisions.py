"""Dead letters are listed, and decisions about them go through the log; the letters are put there by hand."""

import contextlib
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from letters import damaged, place_letter
from writebehind.engine import ConfigurationError, EngineSettings, RedisUnavailable, ValidationError, WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters as letters_table
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.config import Backpressure
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.payload import LETTER, MEANT, Mutation, Op, decode
from writebehind.engine.errors import BacklogFull, ReadTimeout
from writebehind.flushers import initialise, status
from writebehind.recovery import (
    DeadLetter,
    Fate,
    LetterFilter,
    LetterID,
    LetterState,
    Outcome,
    Repair,
    Verdict,
    Winner,
    dead_letters,
    discard,
    replay,
    resolutions,
    verify,
)
from writebehind.recovery.dead_letters import ahead, behind, counts, find, last_places
from writebehind.recovery.letters import LetterCounts
from writebehind.recovery.survey import survey

PARTITIONS = 4

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(20), nullable=False, default=""),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
    sa.CheckConstraint("balance >= 0", name="balance_positive"),
)
names = sa.Table("names", metadata, sa.Column("name", sa.String(20), primary_key=True), sa.Column("number", sa.Integer))
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("tenant", sa.String(20), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("total", sa.Numeric(12, 2), nullable=False),
    info={"writebehind": {"partition_by": "tenant"}},
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)


class Shop:
    """An application, its log, and what is in its database."""

    def __init__(self, redis_url: str, database: str, namespace: str) -> None:
        self.app = WriteBehind(
            redis=redis_url, database=database, tables=[accounts, names, orders, events], namespace=namespace,
            partitions=PARTITIONS, settings=EngineSettings(call_entries_max=2, read_timeout_seconds=0.2),
        )  # fmt: skip
        initialise(self.app, create_tables=True)
        self.client: Any = redis.Redis.from_url(redis_url)

    def log(self, partition: int) -> list[list[Mutation]]:
        """Decode what stands in a partition's log."""
        return [decode(fields[b"p"]) for _, fields in self.client.xrange(self.app.keys.logs[partition])]

    def hash(self, partition: int, table: str, key: str) -> dict[bytes, bytes]:
        """Read a record's hash."""
        found: dict[bytes, bytes] = self.client.hgetall(self.app.keys.record(partition, table, key))
        return found

    def letters(self) -> list[tuple[Any, ...]]:
        """Read the letters as they are in SQL."""
        order = (letters_table.c.partition, letters_table.c.place)
        with self.app.database.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.select(letters_table).order_by(*order))]

    def apply(self, partition: int) -> None:
        """Move SQL's offset to the end of a log, as the flusher that has come to it."""
        (last, _) = self.client.xrevrange(self.app.keys.logs[partition], count=1)[0]
        epoch, sequence = map(int, last.split(b"-"))
        here = (partitions.c.namespace == self.app.keys.namespace) & (partitions.c.partition == partition)
        with self.app.database.begin() as connection:
            connection.execute(sa.update(partitions).where(here).values(epoch=epoch, sequence=sequence))

    def remove(self, *ids: LetterID) -> None:
        """Delete letters, as a flusher that has applied them."""
        with self.app.database.begin() as connection:
            for partition, place in ids:
                here = (letters_table.c.partition == partition) & (letters_table.c.place == place)
                connection.execute(sa.delete(letters_table).where(here))


@contextlib.contextmanager
def opened(redis_url: str, database: str, namespace: str) -> Iterator[Shop]:
    """Open a shop, and close it."""
    shop = Shop(redis_url, database, namespace)
    try:
        yield shop
    finally:
        shop.client.close()
        shop.app.close()


@pytest.fixture
def shop(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[Shop]:
    """A shop on SQLite."""
    with opened(redis_url, sqlite_url, namespace) as made:
        yield made


@pytest.fixture
def each_shop(redis_url: str, database_url: str, namespace: str) -> Iterator[Shop]:
    """A shop on each database in turn."""
    with opened(redis_url, database_url, namespace) as made:
        yield made


def put(key: int, balance: int = -1) -> tuple[Op, str, str, dict[str, Any]]:
    """Make the put of an account."""
    return Op.PUT, "accounts", str(key), {"id": key, "owner": "Ada", "balance": balance}


def patch(key: int) -> tuple[Op, str, str, dict[str, Any]]:
    """Make the patch of an account."""
    return Op.PATCH, "accounts", str(key), {"id": key, "owner": "Grace"}


def order(tenant: str, number: int) -> tuple[Op, str, str, dict[str, Any]]:
    """Make the put of an order."""
    return Op.PUT, "orders", f"{tenant}:{number}", {"tenant": tenant, "number": number, "total": Decimal("1.00")}


def ids(letters: Any) -> list[LetterID]:
    """Return which letters these are."""
    return [letter.letter_id for letter in letters]


def one(app: WriteBehind, letter_id: LetterID) -> DeadLetter:
    """Return a letter that is there."""
    return find(app, [letter_id])[letter_id]


def test_letters_are_listed_in_the_order_of_the_log(each_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, by partition and place, or the last ones first; those of other namespaces are not seen."""
    # The package gives its function the name of the module.
    monkeypatch.setattr(sys.modules["writebehind.recovery.dead_letters"], "PAGE_LETTERS", 3)
    app = each_shop.app
    expected = [LetterID(partition, place) for partition in (0, 2) for place in range(7)]
    for partition, place in reversed(expected):
        place_letter(app, place, put(place), partition=partition)
    with app.database.begin() as connection:
        foreign = sa.select(letters_table).limit(1)
        row = dict(connection.execute(foreign).mappings().one()) | {"namespace": "another"}
        connection.execute(sa.insert(letters_table).values(row))
    assert ids(dead_letters(app)) == expected
    assert ids(dead_letters(app, newest_first=True)) == [LetterID(n, p) for n in (0, 2) for p in reversed(range(7))]
    assert set(find(app, [*expected, LetterID(1, 0)])) == set(expected)
    assert last_places(app) == {0: 6, 2: 6}
    assert ids(dead_letters(app, LetterFilter(last={2: 1}))) == expected[7:9]


def test_a_letter_says_what_it_would_do(each_shop: Shop) -> None:
    """Keys as the application writes them, values as it gave them, in no representation."""
    app = each_shop.app
    place_letter(app, 0, put(7), partition=1)
    place_letter(app, 1, order("a:b", 3), put(8), (Op.DELETE, "accounts", "8", {"id": 8}), partition=1)
    place_letter(app, 2, (Op.INSERT, "events", "", {"kind": "login"}), partition=1)
    place_letter(app, 3, (Op.PUT, "strange", "1", {"x": Decimal(1)}), partition=1)
    damaged(app, 4, 1)
    single, group, insert, strange, broken = dead_letters(app)
    assert (single.state, single.failure, single.attempts, single.entry_id) == (LetterState.REFUSED, "poison", 1, "5-0")
    assert (single.changes[0].op, single.changes[0].key, single.changes[0].columns) == (Op.PUT, 7, ["owner", "balance"])
    assert single.changes[0].values == {"id": 7, "owner": "Ada", "balance": -1}
    assert "Ada" not in repr(single)
    assert [change.key for change in group.changes] == [("a:b", 3), 8, 8]
    assert group.records == [("orders", "a:b:3"), ("accounts", "8")]
    assert (insert.changes[0].key, insert.records) == (None, [("events", "")])
    assert (strange.changes[0].key, strange.changes[0].columns) == (None, ["x"])
    assert (broken.failure, broken.changes, broken.replayable) == ("unreadable", [], False)
    assert abs(single.dead_ms - broken.dead_ms) < 60_000


def test_filters(each_shop: Shop) -> None:
    """By table, key, error, time on the database's clock, partition and state; a group counts for each of its keys."""
    app = each_shop.app
    place_letter(app, 0, put(1), partition=0, ago_seconds=7200)
    place_letter(app, 1, patch(1), partition=0, failure="")
    place_letter(
        app, 2, order("a", 1), put(2), partition=0, failure="foreign key", error="no parent", retry_seconds=600
    )
    place_letter(app, 0, order("b", 1), partition=3, failure="foreign key", error="no parent")
    damaged(app, 1, 3)
    now = next(dead_letters(app, LetterFilter(key="2"))).dead_ms
    first, waiting, group, orphan, broken = [
        LetterID(0, 0),
        LetterID(0, 1),
        LetterID(0, 2),
        LetterID(3, 0),
        LetterID(3, 1),
    ]
    for wanted, expected in (
        (LetterFilter(), [first, waiting, group, orphan, broken]),
        (LetterFilter(tables=frozenset({"accounts"})), [first, waiting, group]),
        (LetterFilter(tables=frozenset({"orders"})), [group, orphan]),
        (LetterFilter(key="2"), [group]),
        (LetterFilter(key="1", tables=frozenset({"accounts"})), [first, waiting]),
        (LetterFilter(error="NO parent"), [group, orphan]),
        (LetterFilter(error="foreign"), [group, orphan]),
        (LetterFilter(since_ms=now - 3_600_000), [waiting, group, orphan, broken]),
        (LetterFilter(until_ms=now - 3_600_000), [first]),
        (LetterFilter(partitions=frozenset({3})), [orphan, broken]),
        (LetterFilter(states=frozenset({LetterState.WAITING})), [waiting]),
        (LetterFilter(states=frozenset({LetterState.RETRYING})), [group]),
        (LetterFilter(states=frozenset({LetterState.REFUSED})), [first, orphan, broken]),
        (LetterFilter(states=frozenset({LetterState.REFUSED, LetterState.WAITING})), [first, waiting, orphan, broken]),
    ):
        assert ids(dead_letters(app, wanted)) == expected, wanted
    told = {"": LetterCounts(refused=1), "accounts": LetterCounts(refused=1, waiting=1)}
    told["orders"] = LetterCounts(refused=1, retrying=1)
    assert counts(app) == told
    assert status(app).dead_letters == told
    assert status(app).as_json()["dead_letters"]["orders"] == {"refused": 1, "retrying": 1, "waiting": 0}


def test_a_line_of_letters(shop: Shop) -> None:
    """What shares a key is tied, also by way of a group; new rows and other partitions are not."""
    app = shop.app
    place_letter(app, 0, put(1), partition=0)
    place_letter(app, 1, put(9), partition=0)
    place_letter(app, 2, patch(1), put(2), partition=0, failure="")
    place_letter(app, 3, (Op.INSERT, "events", "", {"kind": "a"}), partition=0)
    place_letter(app, 4, patch(2), partition=0, failure="")
    place_letter(app, 5, (Op.INSERT, "events", "", {"kind": "b"}), partition=0)
    place_letter(app, 6, patch(9), partition=0, failure="")
    place_letter(app, 0, patch(1), partition=1)
    assert ids(behind(app, one(app, LetterID(0, 0)))) == [LetterID(0, 2), LetterID(0, 4)]
    assert ids(ahead(app, one(app, LetterID(0, 4)))) == [LetterID(0, 2), LetterID(0, 0)]
    assert ids(behind(app, one(app, LetterID(0, 1)))) == [LetterID(0, 6)]
    assert ids(behind(app, one(app, LetterID(0, 3)))) == []


def test_a_replay_is_an_entry_of_the_log(each_shop: Shop) -> None:
    """In the letter's partition, with the correction, and the record becomes a marker in the same step."""
    app = each_shop.app
    home = partition_of("7", PARTITIONS)
    other = (home + 1) % PARTITIONS
    app.put(accounts, {"id": 7, "owner": "Ada", "balance": 5})
    place_letter(app, 3, put(7), partition=home)
    place_letter(app, 9, put(7), partition=other)
    before = each_shop.letters()
    (receipt,) = replay(app, [one(app, LetterID(home, 3))], {"balance": 4, "owner": "Grace"})
    values = {LETTER: 3, MEANT: "0123456789a3", "balance": 4, "owner": "Grace"}
    assert each_shop.log(home)[1:] == [[(Op.REPLAY, "accounts", "7", values)]]
    assert each_shop.hash(home, "accounts", "7") == {b":state": b"marker", b":version": str(receipt.entry_id).encode()}
    assert receipt.partition == home
    with pytest.raises(ReadTimeout):
        app.get(accounts, 7)
    replay(app, [one(app, LetterID(other, 9))])
    assert each_shop.log(other) == [[(Op.REPLAY, "accounts", "7", {LETTER: 9, MEANT: "0123456789a9"})]]
    assert each_shop.hash(other, "accounts", "7") == {}
    assert each_shop.letters() == before


def test_a_group_is_replayed_with_all_its_records(shop: Shop) -> None:
    """Each of them becomes a marker; a row whose key the database makes has none."""
    app = shop.app
    number = partition_of("a", PARTITIONS)
    app.put(orders, {"tenant": "a", "number": 1, "total": 1})
    insert = (Op.INSERT, "events", "", {"kind": "login"})
    place_letter(
        app, 0, order("a", 1), insert, (Op.DELETE, "orders", "a:1", {"tenant": "a", "number": 1}), partition=number
    )
    (receipt,) = replay(app, [one(app, LetterID(number, 0))])
    values = {LETTER: 0, MEANT: "0123456789a0"}
    assert shop.log(number)[1:] == [[(Op.REPLAY, "orders", "a:1", values), (Op.REPLAY, "events", "", values)]]
    assert shop.hash(number, "orders", "a:1")[b":state"] == b"marker"
    meta = shop.client.hgetall(app.keys.metas[number])
    assert meta[b"inserted:events"] == meta[b"inserted:orders"] == str(receipt.entry_id).encode()


def test_what_cannot_be_read_is_discarded_only(shop: Shop) -> None:
    """It names no record, so nothing but the log is touched."""
    app = shop.app
    damaged(app, 5, 2)
    letter = one(app, LetterID(2, 5))
    with pytest.raises(ValidationError, match="letter 2-5 cannot be read"):
        replay(app, [letter])
    discard(app, [letter])
    assert shop.log(2) == [[(Op.DISCARD, "", "", {LETTER: 5, MEANT: "0123456789a5"})]]
    assert [name for name in shop.client.hkeys(app.keys.metas[2]) if name.startswith(b"inserted")] == []
    assert [log.unreadable for log in verify(app).logs] == [0] * PARTITIONS


def test_the_last_letters_are_discarded_first(shop: Shop) -> None:
    """Else giving up the first of a key would have the next applied; receipts come in the order asked for."""
    app = shop.app
    for place in range(5):
        place_letter(app, place, patch(1), partition=0, failure="" if place else "poison")
    given = discard(app, dead_letters(app))
    assert [values[LETTER] for ((_, _, _, values),) in shop.log(0)] == [4, 3, 2, 1, 0]
    assert [receipt.entry_id for receipt in given] == sorted((receipt.entry_id for receipt in given), reverse=True)


def test_a_decision_may_be_repeated(shop: Shop) -> None:
    """It is one more entry, which changes nothing where the letter is gone by then."""
    app = shop.app
    place_letter(app, 0, put(1), partition=0)
    letter = one(app, LetterID(0, 0))
    replay(app, [letter])
    replay(app, [letter])
    discard(app, [letter])
    discard(app, [letter])
    assert [op for ((op, _, _, _),) in shop.log(0)] == [Op.REPLAY, Op.REPLAY, Op.DISCARD, Op.DISCARD]


def test_a_killed_command_leaves_nothing_half_done(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for is in the log with its markers, the rest is not; a repetition asks for all."""
    app = shop.app
    for key in range(20):
        app.put(accounts, {"id": key})
        place_letter(app, key, put(key), partition=partition_of(str(key), PARTITIONS))
    letters = list(dead_letters(app))
    before, begun = shop.letters(), [len(shop.log(number)) for number in range(PARTITIONS)]
    append_all, calls = app._appender.append_all, 0

    def dying(given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return append_all(given)

    with monkeypatch.context() as patched:
        patched.setattr(app._appender, "append_all", dying)
        with pytest.raises(KeyboardInterrupt):
            replay(app, letters)
    asked = [entry for number in range(PARTITIONS) for entry in shop.log(number)[begun[number] :]]
    assert 0 < len(asked) < len(letters)
    places = {values[LETTER] for ((_, _, _, values),) in asked}
    states = {key: shop.hash(partition_of(str(key), PARTITIONS), "accounts", str(key))[b":state"] for key in range(20)}
    assert {key for key, state in states.items() if state == b"marker"} == places
    assert shop.letters() == before
    replay(app, letters)
    again = [entry for number in range(PARTITIONS) for entry in shop.log(number)[begun[number] :]]
    assert len(again) == len(asked) + len(letters)


def test_wrong_decisions_are_refused_before_anything_is_written(shop: Shop) -> None:
    """Each with what can be done instead."""
    app = shop.app
    place_letter(app, 0, put(1), partition=0)
    place_letter(app, 1, put(2), put(3), partition=0)
    place_letter(app, 2, (Op.DELETE, "accounts", "1", {"id": 1}), partition=0)
    place_letter(app, 3, (Op.PUT, "strange", "1", {"x": 1}), partition=0)
    place_letter(app, 4, (Op.INCREMENT, "accounts", "1", {"id": 1, "balance": -5}), partition=0)
    single, group, delete, strange, increment = dead_letters(app)
    for letters, corrections, message in (
        ([single, group], {"balance": 1}, "a correction for 2 letters"),
        ([group], {"balance": 1}, "an atomic group, which cannot be corrected"),
        ([delete], {"balance": 1}, "a delete has no values"),
        ([strange], {"x": 1}, "table strange is not declared here"),
        ([single], {"id": 2}, "belongs to the key"),
        ([single], {"balance": None}, "cannot be NULL"),
        ([increment], {"owner": "Ada"}, "cannot be incremented"),
    ):
        with pytest.raises(ValidationError, match=message):
            replay(app, letters, corrections)
    assert shop.log(0) == []
    replay(app, [increment], {"balance": -3})
    assert shop.log(0) == [[(Op.REPLAY, "accounts", "1", {LETTER: 4, MEANT: "0123456789a4", "balance": -3})]]


def test_a_correction_is_bounded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any write."""
    place_letter(shop.app, 0, put(1), partition=0)
    monkeypatch.setattr(shop.app, "settings", EngineSettings(payload_bytes_max=40))
    with pytest.raises(ValidationError, match="40 are allowed"):
        replay(shop.app, [one(shop.app, LetterID(0, 0))], {"owner": "x" * 20})
    assert shop.log(0) == []


def test_a_full_redis_refuses_a_decision(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked for then, and that is said."""
    place_letter(shop.app, 0, put(1), partition=0)
    monkeypatch.setattr(shop.app._appender, "append_all", lambda _: [RedisUnavailable("Redis refuses writes: OOM")])
    with pytest.raises(RedisUnavailable, match="OOM"):
        discard(shop.app, [one(shop.app, LetterID(0, 0))])
    assert shop.log(0) == []


def test_a_full_backlog_refuses_a_decision(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """As any write, also where the letter names no table that could have a policy."""
    table = sa.Table(
        "limited",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        info={"writebehind": {"backpressure": "block"}},
    )
    settings = EngineSettings(backlog_entries_max=1, backpressure=Backpressure.REJECT)
    app = WriteBehind(
        redis=redis_url, database=sqlite_url, tables=[table], namespace=namespace, partitions=1, settings=settings
    )
    with app:
        initialise(app, create_tables=True)
        app.put(table, {"id": 1})
        damaged(app, 0, 0)
        with pytest.raises(BacklogFull):
            discard(app, dead_letters(app))


def test_what_became_of_letters(each_shop: Shop) -> None:
    """Gone, refused again, waiting, or nobody has come to them yet."""
    app = each_shop.app
    for place, failure in enumerate(["poison", "poison", ""]):
        place_letter(app, place, put(place), partition=0, failure=failure)
    place_letter(app, 0, put(9), partition=1)
    letters = list(dead_letters(app))
    asked = dict(zip(ids(letters), replay(app, letters), strict=True))
    assert {found.fate for found in resolutions(app, asked, 0).values()} == {Fate.PENDING}
    each_shop.apply(0)
    each_shop.remove(LetterID(0, 0))
    found = resolutions(app, asked, 0)
    assert [found[letter_id].fate for letter_id in asked] == [Fate.GONE, Fate.REFUSED, Fate.WAITING, Fate.PENDING]
    assert found[LetterID(0, 1)].detail == "CHECK constraint failed: balance_positive"
    each_shop.apply(1)
    each_shop.remove(LetterID(1, 0))
    assert resolutions(app, asked, 5)[LetterID(1, 0)].fate is Fate.GONE
    assert resolutions(app, {}, 0) == {}


def test_verify_tells_dead_letters_apart(each_shop: Shop) -> None:
    """Records with letters are neither diverged nor repaired; texts that only look alike to the database are."""
    app = each_shop.app
    for number in range(3):
        app.put(accounts, {"id": number})
    for name in ("ada", "ADA"):
        app.put(names, {"name": name, "number": 1})
    for number in range(PARTITIONS):
        if each_shop.log(number):
            each_shop.apply(number)
    place_letter(app, 0, put(0))
    place_letter(app, 1, put(99), put(1), partition=partition_of("1", PARTITIONS))
    place_letter(app, 2, (Op.PUT, "names", "ada", {"name": "ada", "number": 2}))
    damaged(app, 3, partition_of("2", PARTITIONS), b"\x93\x01\x00nonsense")
    mending = Repair(app, Winner.SQL, dry_run=False)
    found = verify(app, on_judged=mending)
    judged = {verdict: count for verdict, count in found.counts.items() if count}
    assert judged == {Verdict.DEAD_LETTERED: 3, Verdict.DIVERGED: 2}
    assert {finding.key_text for finding in found.findings} == {"2", "ADA"}
    assert mending.counts[Outcome.REMOVED] == 2
    assert each_shop.hash(partition_of("0", PARTITIONS), "accounts", "0")[b":state"] == b"full"
    assert found.as_json()["counts"]["dead_lettered"] == 3
    assert verify(app).sound


def test_control_entries_are_nothing_wrong(shop: Shop) -> None:
    """Whoever compares the log with SQL takes them for no record's change, also where there is no hash."""
    app = shop.app
    place_letter(app, 0, put(1), partition=partition_of("1", PARTITIONS))
    place_letter(app, 1, (Op.PUT, "strange", "1", {"x": 1}), partition=partition_of("1", PARTITIONS))
    app.put(accounts, {"id": 1})
    replay(app, dead_letters(app))
    found = verify(app)
    assert found.sound
    assert sum(log.backlog for log in found.logs) == 3
    assert found.counts[Verdict.PENDING] == 1
    assert {(concern.partition, concern.code) for concern in survey(app)} == {
        (partition_of("1", PARTITIONS), "dead-letters")
    }
    assert "2 refused, 0 waiting" in survey(app)[0].what


def test_tables_of_an_older_release(shop: Shop) -> None:
    """The operator is told to run init, which adds what is missing."""
    letters_table.drop(shop.app.database)
    for look in (lambda: list(dead_letters(shop.app)), lambda: status(shop.app), lambda: counts(shop.app)):
        with pytest.raises(ConfigurationError, match="writebehind init"):
            look()
    assert initialise(shop.app) == ["created table writebehind_dead_letters"]
    assert list(dead_letters(shop.app)) == []
