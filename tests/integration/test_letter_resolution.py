"""From a refused write to a decision and back: a running flusher, and an operator who decides about dead letters."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from running import flushing
from writebehind.engine import Durability, WriteBehind
from writebehind.engine.adapters.log import Log
from writebehind.engine.core.payload import LETTER, MEANT, Op, encode
from writebehind.flushers import FlusherSettings, drain, initialise
from writebehind.recovery import (
    DeadLetter,
    Fate,
    LetterFilter,
    LetterState,
    Resolution,
    Verdict,
    dead_letters,
    discard,
    replay,
    resolutions,
    verify,
)
from writebehind.recovery.dead_letters import counts

DEADLINE_SECONDS = 30.0
SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2, foreign_key_seconds=0)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(20), nullable=False, default=""),
    sa.Column("balance", sa.BigInteger, sa.CheckConstraint("balance >= 0"), nullable=False, default=0),
)
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("account", sa.ForeignKey("accounts.id"), nullable=False),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), sa.CheckConstraint("kind <> 'bad'"), nullable=False),
)


class Shop:
    """An application whose flusher runs, and its operator."""

    def __init__(self, app: WriteBehind) -> None:
        self.app = app

    def put(self, key: int, balance: int) -> None:
        """Write an account."""
        self.app.put(accounts, {"id": key, "owner": "Ada", "balance": balance})

    def flush(self) -> None:
        """Wait until the flusher has come to everything."""
        self.app.patch(accounts, 999, {"owner": "nobody"})
        for number in range(self.app.keys.partitions):
            with self.app.atomic(accounts, _key_of(self.app, number)) as group:
                group.delete(accounts, _key_of(self.app, number))
            group.receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS)

    def decide(self, decision: Any, *letters: DeadLetter, **corrections: Any) -> list[Resolution]:
        """Replay or discard letters; return what became of each."""
        more = [corrections] if corrections else []
        receipts = decision(self.app, letters, *more)
        asked = {letter.letter_id: receipt for letter, receipt in zip(letters, receipts, strict=True)}
        return list(resolutions(self.app, asked, DEADLINE_SECONDS).values())

    def letters(self, **wanted: Any) -> list[DeadLetter]:
        """Read the letters."""
        return list(dead_letters(self.app, LetterFilter(**wanted)))

    def line(self) -> list[tuple[str, str, int]]:
        """Return each letter's key, state and attempts."""
        return [(letter.changes[0].key_text, letter.state.value, letter.attempts) for letter in self.letters()]

    def balances(self) -> dict[int, int]:
        """What SQL has."""
        with self.app.database.connect() as connection:
            return {row.id: row.balance for row in connection.execute(sa.select(accounts))}

    def balance(self, key: int) -> int | None:
        """What a read gives."""
        found = self.app.get(accounts, key)
        return None if found is None else found["balance"]

    def agrees(self) -> None:
        """Records, logs and rows agree, and nothing waits for a decision."""
        found = verify(self.app)
        assert found.sound
        assert (found.counts[Verdict.DEAD_LETTERED], self.line(), counts(self.app)) == (0, [], {})


def _key_of(app: WriteBehind, partition: int) -> int:
    """Return a key of a partition that no test uses otherwise."""
    return next(key for key in range(5000, 6000) if app.atomic(accounts, key).receipt.partition == partition)


@contextlib.contextmanager
def opened(redis_url: str, database: str, namespace: str) -> Iterator[Shop]:
    """Open an application with a running flusher."""
    app = WriteBehind(
        redis=redis_url, database=database, tables=[accounts, orders, events], namespace=namespace, partitions=2
    )
    with app:
        initialise(app, create_tables=True)
        with flushing(app, SETTINGS):
            yield Shop(app)


@pytest.fixture
def each_shop(redis_url: str, database_url: str, namespace: str) -> Iterator[Shop]:
    """An application on each database in turn."""
    with opened(redis_url, database_url, namespace) as shop:
        yield shop


@pytest.fixture
def shop(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[Shop]:
    """An application on SQLite."""
    with opened(redis_url, sqlite_url, namespace) as made:
        yield made


def test_a_replay_with_a_correction_applies_the_line_in_its_order(each_shop: Shop) -> None:
    """The letter as corrected, then what waited; reads show the accepted writes before, and what SQL has after."""
    shop = each_shop
    shop.put(1, 5)
    shop.put(7, -20)
    shop.flush()
    shop.app.patch(accounts, 7, {"owner": "Grace"})
    shop.app.increment(accounts, 7, {"balance": 10})
    shop.flush()
    assert shop.line() == [("7", "refused", 1), ("7", "waiting", 0), ("7", "waiting", 0)]
    assert shop.balances() == {1: 5}
    assert shop.balance(7) == -10
    assert verify(shop.app).counts[Verdict.DEAD_LETTERED] == 1
    first, patch, increment = shop.letters()
    assert shop.decide(replay, first) == [Resolution(Fate.REFUSED, first.error)]
    assert shop.line() == [("7", "refused", 2), ("7", "waiting", 0), ("7", "waiting", 0)]
    assert shop.decide(replay, patch, increment)[0].fate is Fate.WAITING
    assert shop.decide(replay, first, balance=3) == [Resolution(Fate.GONE)]
    assert shop.balances() == {1: 5, 7: 13}
    assert shop.app.get(accounts, 7) == {"id": 7, "owner": "Grace", "balance": 13}
    shop.agrees()
    assert [found.fate for found in shop.decide(replay, first, patch, increment)] == [Fate.GONE] * 3
    assert shop.balances() == {1: 5, 7: 13}
    shop.agrees()


def test_an_increment_is_corrected_by_its_amount(each_shop: Shop) -> None:
    """And applied once, however often it is asked for."""
    shop = each_shop
    shop.put(7, 5)
    shop.flush()
    with shop.app.database.begin() as connection:
        connection.execute(sa.update(accounts).values(balance=3))
    shop.app.increment(accounts, 7, {"balance": -4})
    shop.flush()
    assert shop.line() == [("7", "refused", 1)]
    (letter,) = shop.letters()
    receipts = [replay(shop.app, [letter], {"balance": -3})[0] for _ in range(3)]
    receipts[-1].wait(Durability.PERSISTED, DEADLINE_SECONDS)
    assert shop.balances() == {7: 0}
    assert shop.balance(7) == 0
    shop.agrees()


def test_a_discard_gives_one_letter_up(each_shop: Shop) -> None:
    """What waited behind it is applied, and the record shows what SQL has."""
    shop = each_shop
    shop.put(7, 5)
    shop.flush()
    shop.app.patch(accounts, 7, {"balance": -1})
    shop.flush()
    shop.app.increment(accounts, 7, {"balance": 10})
    shop.flush()
    assert shop.balance(7) == 9
    refused, waiting = shop.letters()
    assert shop.decide(discard, refused) == [Resolution(Fate.GONE)]
    assert shop.balances() == {7: 15}
    assert shop.balance(7) == 15
    shop.agrees()
    assert [found.fate for found in shop.decide(discard, refused, waiting)] == [Fate.GONE] * 2
    assert shop.balances() == {7: 15}
    shop.agrees()


@pytest.mark.parametrize("change", ["increment", "patch"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "meanwhile"])
def test_what_was_loaded_lacks_what_waits(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, change: str, *, late: bool
) -> None:
    """A row that was loaded before SQL took a letter, and was written since, is not left as the record."""
    first, second = [key for key in range(1, 100) if shop.app.atomic(accounts, key).receipt.partition == 0][:2]
    shop.put(first, 5)
    shop.put(second, 20)
    shop.flush()
    shop.app.patch(accounts, first, {"balance": -5})
    with shop.app.atomic(accounts, first) as group:
        group.increment(accounts, first, {"balance": 1})
        group.increment(accounts, second, {"balance": 10})
    shop.flush()
    refused, waiting = shop.letters()
    assert shop.decide(replay, waiting)[0].fate is Fate.WAITING
    if change == "increment":
        assert shop.balance(second) == 20
        shop.app.increment(accounts, second, {"balance": 0})
    else:
        shop.app.patch(accounts, second, {"owner": "Grace"})
        assert shop.balance(second) == 20
    shop.flush()
    acknowledge = Log.acknowledge

    def acknowledge_later(log: Log, acknowledgements: Any) -> None:
        done = list(acknowledgements)
        if late and any(each.late for each in done):
            shop.app.increment(accounts, second, {"balance": 3})
        acknowledge(log, done)

    monkeypatch.setattr(Log, "acknowledge", acknowledge_later)
    assert shop.decide(discard, refused) == [Resolution(Fate.GONE)]
    shop.flush()
    expected = 33 if late else 30
    assert shop.balances()[second] == expected
    assert shop.balance(second) == expected
    shop.agrees()


def test_a_whole_line_is_given_up(each_shop: Shop) -> None:
    """Nothing of it is applied on the way."""
    shop = each_shop
    shop.put(7, 5)
    shop.flush()
    shop.app.patch(accounts, 7, {"balance": -1})
    shop.flush()
    for _ in range(3):
        # Together they would be accepted: what is given up must not be tried once more.
        shop.app.increment(accounts, 7, {"balance": 10})
    shop.put(8, -1)
    shop.flush()
    assert {found.fate for found in shop.decide(discard, *shop.letters(key="7"))} == {Fate.GONE}
    assert shop.app.get(accounts, 7) == {"id": 7, "owner": "Ada", "balance": 5}
    assert [key for key, _, _ in shop.line()] == ["8"]
    assert (shop.balance(7), shop.balance(8)) == (5, -1)
    shop.decide(discard, *shop.letters())
    assert shop.balance(8) is None
    shop.agrees()


def test_what_sql_takes_now_is_replayed_by_filters(each_shop: Shop) -> None:
    """A parent that was missing has come: all its children are applied at once, new rows and groups, too."""
    shop = each_shop
    for number in range(1, 6):
        shop.app.put(orders, {"id": number, "account": 77})
    shop.app.insert(events, {"kind": "bad"})
    with shop.app.atomic(accounts, 20) as group:
        group.put(accounts, {"id": 20, "owner": "Ada", "balance": -1})
        group.insert(events, {"kind": "good"})
    shop.flush()
    assert sorted(shop.line()) == [("", "refused", 1), *[(str(n), "refused", 1) for n in (1, 2, 20, 3, 4, 5)]]
    shop.put(77, 1)
    shop.flush()
    orphans = shop.letters(error="foreign key", states=frozenset({LetterState.REFUSED}))
    assert {found.fate for found in shop.decide(replay, *orphans)} == {Fate.GONE}
    (event,) = [letter for letter in shop.letters(key="") if letter.operation == "insert"]
    assert shop.decide(replay, event, kind="mended") == [Resolution(Fate.GONE)]
    (group_letter,) = shop.letters(key="20")
    assert shop.decide(replay, group_letter)[0].fate is Fate.REFUSED
    assert shop.decide(discard, group_letter) == [Resolution(Fate.GONE)]
    with shop.app.database.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(orders)).scalar_one() == 5
        assert connection.execute(sa.select(events.c.kind)).scalars().all() == ["mended"]
    assert shop.balance(20) is None
    shop.agrees()


def test_a_correction_that_is_refused_too(shop: Shop) -> None:
    """The letter stays with one attempt more and the reason; the next one may be right."""
    shop.put(7, -1)
    shop.flush()
    (letter,) = shop.letters()
    assert shop.decide(replay, letter, balance=-2)[0].fate is Fate.REFUSED
    (again,) = shop.letters()
    assert (again.letter_id, again.attempts) == (letter.letter_id, 2)
    assert shop.decide(replay, again, balance=2, owner="Grace") == [Resolution(Fate.GONE)]
    assert shop.app.get(accounts, 7) == {"id": 7, "owner": "Grace", "balance": 2}
    shop.agrees()


def test_writes_after_a_decision_come_after_it(shop: Shop) -> None:
    """A decision has its place in the order of the key, whatever is written meanwhile."""
    shop.put(7, -1)
    shop.flush()
    shop.app.increment(accounts, 7, {"balance": 10})
    shop.flush()
    (letter, _) = shop.letters()
    replay(shop.app, [letter], {"balance": 1})
    shop.app.increment(accounts, 7, {"balance": 100})
    shop.app.patch(accounts, 7, {"owner": "Grace"})
    assert shop.app.get(accounts, 7) == {"id": 7, "owner": "Grace", "balance": 111}
    shop.flush()
    assert shop.balances() == {7: 111}
    shop.agrees()


def test_a_decision_without_a_flusher(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """It waits in the log for whoever comes; a later one about the same letter finds it gone."""
    app = WriteBehind(redis=redis_url, database=sqlite_url, tables=[accounts], namespace=namespace, partitions=1)
    with app:
        initialise(app, create_tables=True)
        app.put(accounts, {"id": 7, "owner": "Ada", "balance": -1})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        (letter,) = dead_letters(app)
        receipts = [*replay(app, [letter], {"balance": 1}), *discard(app, [letter]), *replay(app, [letter])]
        asked = {letter.letter_id: receipts[0]}
        assert resolutions(app, asked, 0)[letter.letter_id].fate is Fate.PENDING
        drain(app, DEADLINE_SECONDS, dataclasses.replace(SETTINGS, batch_entries_max=1))
        assert resolutions(app, asked, 0)[letter.letter_id].fate is Fate.GONE
        assert app.get(accounts, 7) == {"id": 7, "owner": "Ada", "balance": 1}
        assert verify(app).sound


def test_a_late_request_means_no_other_letter(redis_url: str, database_url: str, namespace: str) -> None:
    """A place is used once, also where the last letter is gone and another flusher has come since."""
    app = WriteBehind(redis=redis_url, database=database_url, tables=[accounts], namespace=namespace, partitions=1)
    with app:
        initialise(app, create_tables=True)
        app.put(accounts, {"id": 7, "owner": "Ada", "balance": -1})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        (first,) = dead_letters(app)
        discard(app, [first])
        drain(app, DEADLINE_SECONDS, SETTINGS)
        app.put(accounts, {"id": 8, "owner": "Ada", "balance": -1})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        (second,) = dead_letters(app)
        assert second.letter_id > first.letter_id
        discard(app, [first])
        drain(app, DEADLINE_SECONDS, SETTINGS)
        assert [letter.letter_id for letter in dead_letters(app)] == [second.letter_id]


@pytest.mark.parametrize("op", [Op.REPLAY, Op.DISCARD])
def test_a_decision_about_another_letter_does_nothing(redis_url: str, sqlite_url: str, namespace: str, op: Op) -> None:
    """After a rollback of SQL another letter may stand in the place: it is neither tried nor given up."""
    app = WriteBehind(redis=redis_url, database=sqlite_url, tables=[accounts], namespace=namespace, partitions=1)
    with app:
        initialise(app, create_tables=True)
        app.put(accounts, {"id": 7, "owner": "Ada", "balance": -1})
        assert drain(app, DEADLINE_SECONDS, SETTINGS).backlog == 0
        (letter,) = dead_letters(app)
        decide = discard if op is Op.DISCARD else replay
        decide(app, [dataclasses.replace(letter, mutation_id="0123456789aanother")])
        assert drain(app, DEADLINE_SECONDS, SETTINGS).backlog == 0
        assert list(dead_letters(app)) == [letter]


@pytest.mark.parametrize("place", ["x", None, 1.0])
def test_a_forged_decision_is_set_aside(redis_url: str, sqlite_url: str, namespace: str, place: Any) -> None:
    """One that names no letter is a letter itself, and stops nobody."""
    app = WriteBehind(redis=redis_url, database=sqlite_url, tables=[accounts], namespace=namespace, partitions=1)
    with app:
        initialise(app, create_tables=True)
        app.put(accounts, {"id": 7, "owner": "Ada", "balance": -1})
        with app.links.link() as link:
            epoch = link.command("HGET", app.keys.metas[0], "epoch").decode()
            payload = encode(Op.DISCARD, "accounts", "7", {LETTER: place, MEANT: "0123456789a"})
            link.command("XADD", app.keys.logs[0], f"{epoch}-*", "m", "x", "p", payload)
        app.put(accounts, {"id": 8, "owner": "Ada", "balance": 1})
        assert drain(app, DEADLINE_SECONDS, SETTINGS).backlog == 0
        assert [letter.failure for letter in dead_letters(app)] == ["poison", "unreadable"]
        forged = list(dead_letters(app))[1]
        discard(app, [forged])
        assert drain(app, DEADLINE_SECONDS, SETTINGS).backlog == 0
        assert [letter.failure for letter in dead_letters(app)] == ["poison"]
