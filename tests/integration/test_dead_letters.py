"""What SQL refuses costs its own key only: real refusals on each database, in every order, with every step killed."""

import dataclasses
import itertools
import random
from collections.abc import Iterator

import pytest
import redis

from refusing import DEADLINE_SECONDS, SETTINGS, World, accounts, events, orders, until
from running import flushing
from writebehind.engine import Durability, DurabilityTimeout, PoisonEntryError
from writebehind.engine.core.payload import Op, encode
from writebehind.flushers import drain, status
from writebehind.flushers.flush import Begin
from writebehind.flushers.flusher import Effect, Flusher, Reply

TRIGGERS = {
    "sqlite": """
        CREATE TRIGGER refusing BEFORE INSERT ON accounts WHEN NEW.owner = 'refused'
        BEGIN SELECT RAISE(ABORT, 'no such owner'); END""",
    "postgresql": """
        CREATE FUNCTION refusing() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.owner = 'refused' THEN RAISE EXCEPTION 'no such owner'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER refusing BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION refusing()""",
    "mysql": """
        CREATE TRIGGER refusing BEFORE INSERT ON accounts FOR EACH ROW
        IF NEW.owner = 'refused' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no such owner'; END IF""",
}


@pytest.fixture
def world(redis_url: str, database_url: str, namespace: str) -> Iterator[World]:
    """An engine with two partitions on each database."""
    found = World(redis_url, database_url, namespace, 2)
    with found.app:
        yield found


@pytest.fixture
def small(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[World]:
    """An engine with one partition on SQLite."""
    found = World(redis_url, sqlite_url, namespace, 1)
    with found.app:
        yield found


def test_each_kind_of_refusal(world: World) -> None:
    """CHECK, UNIQUE, a trigger, a foreign key: each costs its own key, whatever stands beside it."""
    with world.app.database.begin() as connection:
        connection.exec_driver_sql(TRIGGERS[world.app.database.dialect.name.replace("mariadb", "mysql")])
    for key in range(2, 400):
        world.put(key)
    world.put(50, limited=1000)
    world.put(60, name="n61")
    world.put(700, owner="refused")
    world.app.put(orders, {"id": 1, "account": 999})
    world.app.put(orders, {"id": 2, "account": 2})
    for kind in ("good", "bad", "fine"):
        world.app.insert(events, {"kind": kind})
    world.drain()
    refused = {"50": "poison", "60": "poison", "700": "poison", "1": "foreign key", "": "poison"}
    assert dict(world.letters()) == refused
    assert {letter.key_text: letter.failure for letter in world.told} == refused
    rows = world.rows()
    assert rows.keys() == set(range(1, 400))
    assert (rows[50].limited, rows[60].name) == (0, "n60")
    assert world.rows(orders).keys() == {2}
    assert sorted(row.kind for row in world.rows(events).values()) == ["fine", "good"]


def test_what_comes_after_waits_in_order(world: World) -> None:
    """Patches and increments of the key wait, through other batches and other flushers; everybody else goes on."""
    world.put(5, limited=1000)
    world.drain()
    world.app.patch(accounts, 5, {"owner": "Grace"})
    world.app.increment(accounts, 5, {"balance": 2})
    world.put(6)
    world.drain()
    world.app.increment(accounts, 5, {"balance": 3})
    world.drain()
    assert world.letters() == [("5", "poison"), ("5", ""), ("5", ""), ("5", "")]
    assert world.balances() == {1: 1, 6: 6}
    world.resolve(Op.REPLAY, "5", limited=7)
    world.app.increment(accounts, 5, {"balance": 10})
    world.drain()
    assert world.letters() == []
    assert world.rows()[5] == (5, "Grace", 5 + 2 + 3 + 10, 7, "n5")
    assert world.app.get(accounts, 5) == {"id": 5, "owner": "Grace", "balance": 20, "limited": 7, "name": "n5"}


@pytest.mark.parametrize("by", ["put", "delete"])
def test_a_whole_write_supersedes(world: World, by: str) -> None:
    """What was refused and what waited is meaningless once the record is replaced or deleted."""
    world.put(5, limited=1000)
    world.app.increment(accounts, 5, {"balance": 1})
    world.drain()
    if by == "put":
        world.put(5, balance=50)
    else:
        world.app.delete(accounts, 5)
    world.app.increment(accounts, 5, {"balance": 1})
    world.drain()
    assert world.letters() == []
    assert world.balances() == ({1: 1, 5: 51} if by == "put" else {1: 1, 5: 1})


def test_a_superseding_write_that_is_refused_waits_like_others(small: World) -> None:
    """The line grows by it; a later good one supersedes the whole line."""
    for limited in (1000, 2000):
        small.put(5, limited=limited)
        small.app.patch(accounts, 5, {"owner": str(limited)})
        small.drain()
    assert small.letters() == [("5", "poison"), ("5", ""), ("5", "poison"), ("5", "")]
    small.put(5)
    small.drain()
    assert small.letters() == []
    assert small.balances() == {1: 1, 5: 5}


def test_receipts_of_what_sql_refuses(world: World) -> None:
    """No write is said to be in SQL that is not: neither a refused one nor one that waits, alone or in a batch."""
    with flushing(world.app, SETTINGS):
        receipt = world.app.put(accounts, {"id": 5, "limited": 1000})
        with pytest.raises(PoisonEntryError, match=r"SQL refuses it: dead letter \d+-\d+: "):
            receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS)
        with pytest.raises(PoisonEntryError):
            world.app.put(accounts, {"id": 6, "limited": 1000}, durability=Durability.PERSISTED)
        waiting = world.app.increment(accounts, 5, {"balance": 1})
        with pytest.raises(DurabilityTimeout):
            waiting.wait(Durability.PERSISTED, 0.3)
        batch = world.app.batch(durability=Durability.PERSISTED)
        good = {key: batch.put(accounts, {"id": key, "limited": 1000 if key == 33 else 0}) for key in range(20, 60)}
        with pytest.raises(PoisonEntryError):
            batch.flush()
        refused = good.pop(33)
        assert {receipt.durability for receipt in good.values()} == {Durability.PERSISTED}
        assert refused.durability is Durability.ACCEPTED
        assert world.balances().keys() == good.keys() | {1}
        world.put(5)
        world.put(33)
        for receipt in (waiting, refused):
            # Superseded: what SQL has now is what they come to.
            receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS)


def test_groups_stay_whole(world: World) -> None:
    """A group with a refused member is set aside whole, and ties its keys together; a put of one of them waits."""
    same = [key for key in range(5, 60) if _place(world, key) == _place(world, 5)][:3]
    first, second, third = same
    for key in same:
        world.put(key)
    world.drain()
    with world.app.atomic(accounts, first) as group:
        group.increment(accounts, first, {"balance": 100})
        group.patch(accounts, second, {"limited": 5000})
    world.drain()
    world.put(second, balance=1)
    world.app.increment(accounts, third, {"balance": 1})
    world.drain()
    assert world.letters() == [(str(first), "poison"), (str(second), "")]
    assert {key: world.balances()[key] for key in same} == {first: first, second: second, third: third + 1}
    world.resolve(Op.DISCARD, str(first))
    world.drain()
    assert world.letters() == []
    assert {key: world.balances()[key] for key in same} == {first: first, second: 1, third: third + 1}


def _place(world: World, key: int) -> int:
    return world.app.atomic(accounts, key).receipt.partition


def test_a_parent_that_comes_later(redis_url: str, database_url: str, namespace: str) -> None:
    """A child is tried again until its parent, in another partition, has come; nothing is told of it."""
    world = World(redis_url, database_url, namespace, 4)
    settings = dataclasses.replace(SETTINGS, foreign_key_seconds=60)
    with world.app, flushing(world.app, settings):
        child = world.app.put(orders, {"id": 1, "account": 77})
        until(lambda: world.letters() == [("1", "foreign key")])
        later = world.app.put(orders, {"id": 2, "account": 1})
        later.wait(Durability.PERSISTED, DEADLINE_SECONDS)
        world.put(77)
        child.wait(Durability.PERSISTED, DEADLINE_SECONDS)
        assert world.rows(orders).keys() == {1, 2}
    assert (world.letters(), world.told) == ([], [])


def test_a_parent_that_never_comes(small: World) -> None:
    """After the time allowed the child is a dead letter like any other, and is told of once."""
    settings = dataclasses.replace(SETTINGS, foreign_key_seconds=1.2)
    with flushing(small.app, settings):
        small.app.put(orders, {"id": 1, "account": 77})
        until(lambda: len(small.told) == 1)
    assert small.letters() == [("1", "foreign key")]
    (letter,) = small.told
    assert letter.attempts > 1
    small.put(77)
    small.resolve(Op.REPLAY, "1")
    small.drain()
    assert small.rows(orders).keys() == {1}
    assert len(small.told) == 1


def test_what_is_refused_at_the_end_of_the_transaction(redis_url: str, postgresql_url: str, namespace: str) -> None:
    """A constraint that is checked when the transaction ends is checked at once while entries are isolated."""
    world = World(redis_url, postgresql_url, namespace, 1)
    with world.app.database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE orders DROP CONSTRAINT orders_account_fkey")
        connection.exec_driver_sql(
            "ALTER TABLE orders ADD FOREIGN KEY (account) REFERENCES accounts DEFERRABLE INITIALLY DEFERRED"
        )
    with world.app:
        for key in range(5):
            world.app.put(orders, {"id": key, "account": 999 if key == 3 else 1})
        world.drain()
        assert world.letters() == [("3", "foreign key")]
        assert world.rows(orders).keys() == {0, 1, 2, 4}


def test_entries_that_cannot_be_read(small: World) -> None:
    """Forged and truncated entries are set aside as they are; a version or a table not known yet halts, and resumes."""
    small.put(2)
    with redis.Redis.from_url(small.redis_url) as client:
        log = small.app.keys.logs[0]
        epoch = client.hget(small.app.keys.metas[0], "epoch").decode()
        good = encode(Op.PUT, "accounts", "3", {"id": 3, "owner": None, "balance": 3, "limited": 0, "name": None})
        for fields in ({"m": "x", "p": good[:-3]}, {"m": "x", "p": b""}, {"x": "y"}, {"m": "x", "p": b"\xff\xfe"}):
            client.xadd(log, fields, id=f"{epoch}-*")
        client.xadd(log, {"m": "x", "p": good}, id=f"{epoch}-*")
    small.put(4)
    small.drain()
    assert [failure for _, failure in small.letters()] == ["unreadable"] * 4
    assert small.balances().keys() == {1, 2, 3, 4}
    assert [letter.table for letter in small.told] == [""] * 4


@pytest.mark.parametrize(
    "payload",
    [encode(Op.PUT, "accounts; DROP TABLE accounts", "1", {"id": 1}), b"\x95\x02\x01\xa1a\xa1b\x80"],
    ids=["table", "version"],
)
def test_what_is_not_known_yet_halts(small: World, payload: bytes) -> None:
    """It may be known to a newer flusher: the partition stops there, says so, and loses nothing."""
    small.drain()
    with redis.Redis.from_url(small.redis_url) as client:
        epoch = client.hget(small.app.keys.metas[0], "epoch").decode()
        client.xadd(small.app.keys.logs[0], {"m": "x", "p": payload}, id=f"{epoch}-*")
    small.put(4)
    last = drain(small.app, 1.5, SETTINGS)
    assert (last.backlog, len(last.halted)) == (2, 1)
    assert small.letters() == []
    assert small.balances() == {1: 1}


def test_discarding(small: World) -> None:
    """What is discarded is gone, what waited is applied, and reads show what SQL has."""
    small.put(5)
    small.drain()
    small.app.patch(accounts, 5, {"limited": 5000})
    small.app.increment(accounts, 5, {"balance": 1})
    small.app.patch(accounts, 5, {"name": "n1"})
    small.drain()
    assert small.letters() == [("5", "poison"), ("5", ""), ("5", "")]
    small.resolve(Op.DISCARD, "5")
    small.drain()
    assert small.letters() == [("5", "poison")]
    assert small.app.get(accounts, 5) == {"id": 5, "owner": "Ada", "balance": 6, "limited": 0, "name": "n5"}
    small.resolve(Op.DISCARD, "5")
    small.resolve(Op.DISCARD, "5")
    small.drain()
    assert small.letters() == []
    assert small.balances() == {1: 1, 5: 6}
    assert small.app.get(accounts, 5) == {"id": 5, "owner": "Ada", "balance": 6, "limited": 0, "name": "n5"}


class Died(BaseException):
    """The flusher is gone."""


class Mortal(Flusher):
    """A flusher that dies before or after one of the effects of an isolation."""

    dies_at = 0
    after = False
    isolating = False

    def perform(self, effect: Effect) -> Reply:
        """Do an effect, or die at it."""
        if isinstance(effect, Begin):
            self.isolating = effect.attempting
        if not self.isolating:
            return super().perform(effect)
        number, Mortal.dies_at = Mortal.dies_at, Mortal.dies_at - 1
        if number == 0 and not self.after:
            raise Died
        reply = super().perform(effect)
        if number == 0:
            raise Died
        return reply


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_step_may_be_the_last(small: World, *, after: bool) -> None:
    """Killed at any effect of an isolation, a replay and a discard: nothing is lost, doubled or reordered."""
    expected = None
    for step in itertools.count():
        key = 100 + 10 * step
        small.put(key)
        small.drain()
        small.app.increment(accounts, key, {"balance": 5})
        small.app.patch(accounts, key, {"limited": 5000})
        small.app.increment(accounts, key, {"balance": 7})
        small.put(key + 1)
        survived = _die(small, step, after=after)
        small.drain()
        assert small.letters() == [(str(key), "poison"), (str(key), "")]
        assert (small.balances()[key], small.balances()[key + 1]) == (key + 5, key + 1)
        small.resolve(Op.REPLAY, str(key), limited=1)
        survived = _die(small, step, after=after) and survived
        small.drain()
        assert small.letters() == []
        assert small.balances()[key] == key + 12
        small.app.increment(accounts, key, {"limited": 5000})
        small.app.increment(accounts, key, {"balance": 1})
        small.drain()
        small.resolve(Op.DISCARD, str(key))
        survived = _die(small, step, after=after) and survived
        small.drain()
        assert small.letters() == []
        row = small.rows()[key]
        assert (row.balance, row.limited) == (key + 13, 1)
        read = small.app.get(accounts, key)
        assert read is not None
        assert (read["balance"], read["limited"]) == (key + 13, 1)
        if survived:
            expected = step
            break
    assert expected is not None
    assert expected > 4


def _die(world: World, step: int, *, after: bool) -> bool:
    """Flush with a flusher that dies; tell whether it survived."""
    Mortal.dies_at, Mortal.after = step, after
    flusher = Mortal(world.app, SETTINGS)
    try:
        flusher.run(until=lambda: drain_is_over(world))
    except Died:
        return False
    return True


def drain_is_over(world: World) -> bool:
    """Whether nothing waits."""
    return status(world.app).backlog == 0


def test_thousands_with_some_poison(
    redis_url: str,
    database_url: str,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of many entries over many keys, exactly those that SQL refuses are set aside; every other key is exact.

    The log names the first ones, and counts the others.
    """
    monkeypatch.setattr("writebehind.flushers.apart.LINES_MAX", 5)
    world = World(redis_url, database_url, namespace, 4)
    chance = random.Random(namespace)
    poisonous = set(chance.sample(range(2, 4000), 40))
    settings = dataclasses.replace(SETTINGS, batch_entries_max=700)
    with world.app:
        with flushing(world.app, settings):
            for start in range(2, 4000, 500):
                with world.app.batch() as batch:
                    for key in range(start, min(start + 500, 4000)):
                        values = {"id": key, "owner": "x", "balance": key, "name": None}
                        batch.put(accounts, {**values, "limited": 5000 if key in poisonous else 0})
                        batch.increment(accounts, key, {"balance": 1})
            for key in range(50, 4000, 50):
                world.app.increment(accounts, key, {"balance": 1})
            world.app.put(accounts, {"id": 1, "balance": 9}).wait(Durability.PERSISTED, DEADLINE_SECONDS)
        world.drain()
        letters = world.letters()
        assert {int(key) for key, failure in letters if failure == "poison"} == poisonous
        assert {int(key) for key, _ in letters} == poisonous
        expected = {key: key + 1 + (key % 50 == 0) for key in range(2, 4000) if key not in poisonous} | {1: 9}
        assert world.balances() == expected
    said = [record.getMessage() for record in caplog.records if "DEAD LETTER" in record.getMessage()]
    named = [line for line in said if line.startswith("DEAD LETTER ")]
    counted = sum(int(line.partition(" ")[0]) for line in said if " more DEAD LETTERS; " in line)
    assert (len(named) <= 5 * 2, len(named) + counted, len(world.told)) == (True, 40, 40)


def test_a_group_whose_members_only_work_in_order(world: World) -> None:
    """One member frees the unique value that the next one takes: the group is applied, whole."""
    first, second = [key for key in range(5, 60) if _place(world, key) == _place(world, 5)][:2]
    world.put(first, name="taken")
    world.drain()
    with world.app.atomic(accounts, first) as group:
        group.delete(accounts, first)
        group.put(accounts, {"id": second, "owner": "Ada", "balance": 1, "name": "taken"})
    world.drain()
    assert world.letters() == []
    assert world.rows()[second].name == "taken"
    assert first not in world.rows()
