"""The engine writes again what Redis has lost: the window is zero while the service lives, and nothing is doubled."""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import servers
from running import flushing
from writebehind.drills.proxy import Mishap, Proxy
from writebehind.engine import (
    Backpressure,
    DatabaseUnavailable,
    DataLoss,
    DataLossDetected,
    Durability,
    EngineSettings,
    PoisonEntryError,
    WriteBehind,
    WriteOutcomeUnknown,
)
from writebehind.engine.adapters.control_tables import losses, rewritten
from writebehind.engine.adapters.rewriting import Rewriting
from writebehind.engine.adapters.scripts import APPEND
from writebehind.engine.core.payload import Op, encode
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import FlusherSettings, drain, initialise, status
from writebehind.flushers.leases import REWRITTEN_MS_MAX

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 15.0
UNREACHABLE = "postgresql+psycopg://nobody@127.0.0.1:1/none"
SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(20)),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
    sa.CheckConstraint("balance > -1000"),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)


class World:
    """A Redis that can lose its tail, and engines of one partition."""

    def __init__(self, server: EmbeddedRedis, database: str, namespace: str) -> None:
        self.server = server
        self.database = database
        self.namespace = namespace
        self.losses: list[DataLoss] = []
        self.app = self.engine()
        initialise(self.app, create_tables=True)

    def engine(self, **settings: Any) -> WriteBehind:
        """Make an engine that keeps what it accepts."""
        return WriteBehind(
            redis=self.server.url,
            database=self.database,
            tables=[accounts, events],
            namespace=self.namespace,
            partitions=1,
            settings=EngineSettings(redis_timeout_seconds=2, write_timeout_seconds=5, **settings),
            on_data_loss=self.losses.append,
        )

    @property
    def size(self) -> int:
        """How long the server's file is: what to cut it to."""
        return self._file().stat().st_size

    def _file(self) -> Path:
        (newest,) = self.server.directory.glob("data/appendonlydir/*.incr.aof")
        return newest

    def crash(self, size: int) -> None:
        """Kill the server, cut its file to a size, and start it again."""
        self.server.kill()
        with self._file().open("r+b") as file:
            file.truncate(size)
        self.server.start()

    def drain(self) -> None:
        """Flush everything; status says what was lost, no more and no less."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        last = drain(self.app, DEADLINE_SECONDS, SETTINGS)
        while len(last.losses) < len(self.losses) and time.monotonic() < deadline:
            time.sleep(0.01)
            last = status(self.app)
        assert (last.backlog, last.halted) == (0, [])
        assert last.lost_entries == sum(loss.lost for loss in self.losses)
        assert sum(loss.rewritten for loss in last.losses) == sum(loss.rewritten for loss in self.losses)

    def rows(self) -> dict[int, tuple[str | None, int]]:
        """What SQL has of the accounts."""
        with self.app.database.connect() as connection:
            return {row.id: (row.owner, row.balance) for row in connection.execute(sa.select(accounts))}

    def kinds(self) -> list[str]:
        """What SQL has of the events."""
        with self.app.database.connect() as connection:
            return sorted(connection.execute(sa.select(events.c.kind)).scalars())


@pytest.fixture
def world(own_redis: "OwnRedisFactory", sqlite_url: str, namespace: str) -> Iterator[World]:
    """A world whose Redis has each write in its file at once."""
    server = own_redis({"appendfsync": "no"}, binary=servers.newest_redis_binary())
    assert isinstance(server, EmbeddedRedis)
    made = World(server, sqlite_url, namespace)
    yield made
    made.app.close()


def spend(app: WriteBehind) -> None:
    """Write something of every kind."""
    app.put(accounts, {"id": 1, "owner": "Ada", "balance": 100})
    app.increment(accounts, 1, {"balance": 5})
    app.patch(accounts, 1, {"owner": "Grace"})
    app.put(accounts, {"id": 2, "owner": "Bob", "balance": 7})
    app.delete(accounts, 2)
    app.insert(events, {"kind": "a"})
    with app.batch() as batch:
        batch.increment(accounts, 1, {"balance": 1})
        batch.insert(events, {"kind": "b"})
    with app.atomic(accounts, 1) as group:
        group.increment(accounts, 1, {"balance": 1})
        group.insert(events, {"kind": "c"})
    app.insert(accounts, {"id": 3, "owner": "Cy", "balance": 1})


SPENT = {1: ("Grace", 107), 3: ("Cy", 1)}


@pytest.mark.parametrize("applied", [0, 1, 5, 10])
@pytest.mark.parametrize("found_by", ["write", "watch", "receipt", "batch"])
def test_a_lost_tail_is_written_again(world: World, applied: int, found_by: str) -> None:
    """Of what Redis lost SQL has nothing, some, or all: each write takes effect once, whoever notices first."""
    world.app.put(accounts, {"id": 9, "owner": "first", "balance": 0})
    world.drain()
    size = world.size
    spend(world.app)
    if applied:
        # So many entries are in SQL, and Redis is rolled back to before all of them.
        drain_some(world, applied)
    receipt = world.app.increment(accounts, 9, {"balance": 1})
    world.crash(size)
    if found_by == "write":
        world.app.increment(accounts, 9, {"balance": 10})
    elif found_by == "batch":
        with world.app.batch() as batch:
            batch.increment(accounts, 9, {"balance": 10})
    elif found_by == "watch":
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not world.losses and time.monotonic() < deadline:
            time.sleep(0.01)
    else:
        world.app.links.drop_idle()
        with pytest.raises(Exception, match="accepted, but not PERSISTED"):
            receipt.wait(Durability.PERSISTED, 4)
    (loss,) = world.losses
    assert (loss.entries, loss.rewritten, loss.lost, loss.keys) == (11, 11, 0, [])
    world.drain()
    assert world.rows() == SPENT | {9: ("first", 11 if found_by in {"write", "batch"} else 1)}
    assert world.kinds() == ["a", "b", "c"]
    assert world.app.get_many(accounts, [1, 2, 3]) == {
        1: {"id": 1, "owner": "Grace", "balance": 107},
        2: None,
        3: {"id": 3, "owner": "Cy", "balance": 1},
    }
    receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS)
    assert receipt.durability is Durability.PERSISTED


def drain_some(world: World, entries: int) -> None:
    """Flush so many entries and leave the rest."""
    from writebehind.flushers import Flusher  # noqa: PLC0415

    flusher = Flusher(world.app, FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, batch_entries_max=entries))
    flusher.run(until=lambda: flusher.tally.entries >= entries)


def test_lost_twice(world: World) -> None:
    """What was written again and lost again is written again again, once in effect."""
    world.app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
    world.drain()
    size = world.size
    world.app.increment(accounts, 1, {"balance": 1})
    world.crash(size)
    world.app.increment(accounts, 1, {"balance": 10})
    world.crash(size)
    world.app.increment(accounts, 1, {"balance": 100})
    assert [(loss.entries, loss.rewritten) for loss in world.losses] == [(1, 1), (2, 2)]
    world.drain()
    assert world.rows() == {1: ("Ada", 111)}


@pytest.mark.parametrize("origin", ["junk?", "junk", "5-0 4-0"])
def test_a_forged_origin_in_the_new_history(world: World, monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    """A writer that looks through the new history passes over what another program has put there."""
    world.app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
    world.drain()
    size = world.size
    monkeypatch.setattr("writebehind.engine.adapters.rewriter.Rewriter.look", lambda _: None)
    world.app.increment(accounts, 1, {"balance": 1})
    world.crash(size)
    with contextlib.closing(world.engine()) as other:
        other.increment(accounts, 1, {"balance": 100})
        payload = encode(Op.PUT, "accounts", "2", {"id": 2, "owner": "x", "balance": 0})
        with other.links.link() as link:
            epoch = link.command("HGET", other.keys.metas[0], "epoch").decode()
            link.command("XADD", other.keys.logs[0], f"{epoch}-*", "m", "0" * 22, "p", payload, "o", origin)
    world.app.increment(accounts, 1, {"balance": 10})
    world.drain()
    assert world.rows() == {1: ("Ada", 111)}


def test_written_again_flushed_and_lost_again(world: World) -> None:
    """An entry that SQL applied where it was written again is not applied a second time from a third place."""
    world.app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
    world.drain()
    size = world.size
    world.app.increment(accounts, 1, {"balance": 1})
    world.crash(size)
    world.app.increment(accounts, 1, {"balance": 10})
    world.drain()
    with world.app.database.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(rewritten)).scalar_one() == 1
    world.crash(size)
    world.app.increment(accounts, 1, {"balance": 100})
    world.drain()
    assert world.rows() == {1: ("Ada", 111)}
    assert world.app.get(accounts, 1) == {"id": 1, "owner": "Ada", "balance": 111}


def test_a_dead_letter_that_redis_lost(world: World) -> None:
    """What SQL has refused, and Redis lost, is not applied where it is written again, and its receipt says so."""
    world.app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
    world.drain()
    size = world.size
    receipt = world.app.put(accounts, {"id": 1, "owner": "Eve", "balance": -2000})
    world.drain()
    world.crash(size)
    world.app.insert(events, {"kind": "wakes it"})
    assert [loss.rewritten for loss in world.losses] == [1]
    world.drain()
    with pytest.raises(PoisonEntryError):
        receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS)
    assert world.rows() == {1: ("Ada", 0)}


def test_what_was_written_again_is_forgotten_in_the_end(world: World) -> None:
    """The record of entries applied elsewhere is kept for days, not for ever."""
    world.app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
    size = world.size
    for _ in range(2):
        world.app.increment(accounts, 1, {"balance": 1})
        world.crash(size)
        world.app.increment(accounts, 1, {"balance": 10})
        world.drain()
        size = world.size
    count = sa.select(sa.func.count()).select_from(rewritten)
    with world.app.database.begin() as connection:
        assert connection.execute(count).scalar_one() == 2
        oldest = sa.select(sa.func.min(rewritten.c.epoch)).scalar_subquery()
        old = rewritten.c.applied_ms - REWRITTEN_MS_MAX
        aged = connection.execute(sa.update(rewritten).where(rewritten.c.epoch == oldest).values(applied_ms=old))
        assert aged.rowcount == 1
    world.app.increment(accounts, 1, {"balance": 100})
    world.drain()
    with world.app.database.connect() as connection:
        assert connection.execute(count).scalar_one() == 1
    assert world.rows() == {1: ("Ada", 122)}


def test_epochs_that_end_inside_a_batch(world: World) -> None:
    """After something was written again, a batch over several restarts is applied whole."""
    world.app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
    world.drain()
    size = world.size
    world.app.increment(accounts, 1, {"balance": 1})
    world.crash(size)
    world.app.increment(accounts, 1, {"balance": 10})
    world.drain()
    for amount in (100, 1000, 10000):
        world.app.increment(accounts, 1, {"balance": amount})
        world.crash(world.size)
        world.app.increment(accounts, 1, {"balance": amount})
    world.drain()
    assert world.rows() == {1: ("Ada", 22211)}


@pytest.mark.parametrize(
    ("lost", "since", "expected", "superseded"),
    [
        ("put", "put", ("new", 2), 1),
        ("put", "increment", ("old", 12), 1),
        ("put", "delete", None, 1),
        ("increment", "increment", ("old", 13), 0),
        ("increment", "put", ("new", 2), 1),
        ("increment", "patch", ("new", 11), 0),
        ("patch", "increment", ("lost", 12), 0),
        ("patch", "patch", ("new", 10), 1),
        ("delete", "put", ("new", 2), 1),
    ],
)
def test_what_others_have_written_since_stays(  # noqa: PLR0917
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
    since: str,
    expected: tuple[str, int] | None,
    superseded: int,
) -> None:
    """A lost write does not overtake a later one of another process; what gives the same in any order is kept."""
    world.app.put(accounts, {"id": 1, "owner": "old", "balance": 10})
    world.drain()
    size = world.size
    with contextlib.closing(world.engine()) as other:
        writes: dict[str, Callable[..., Any]] = {
            "put": lambda app, owner, balance: app.put(accounts, {"id": 1, "owner": owner, "balance": balance}),
            "increment": lambda app, _, balance: app.increment(accounts, 1, {"balance": balance}),
            "patch": lambda app, owner, _: app.patch(accounts, 1, {"owner": owner}),
            "delete": lambda app, *_: app.delete(accounts, 1),
        }
        # The one that loses does nothing meanwhile, and its thread does not look.
        world.app.start()
        monkeypatch.setattr(world.app._rewriter, "look", lambda: None)
        writes[lost](world.app, "lost", 1)
        world.crash(size)
        writes[since](other, "new", 2)
        world.app.insert(events, {"kind": "wakes it"})
        (loss,) = world.losses
        assert (loss.entries, loss.rewritten, loss.superseded) == (1, 1 - superseded, superseded)
        assert list(loss.keys) == ([("accounts", "1")] if superseded else [])
        world.drain()
        if (lost, since) == ("put", "increment"):
            expected = ("old", 12)
        assert world.rows() == ({} if expected is None else {1: expected})
        got = other.get(accounts, 1)
        assert (None if got is None else (got["owner"], got["balance"])) == expected


def test_the_order_among_writers_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes wrote one after the other is written again so, if the first one is first again."""
    world.app.put(accounts, {"id": 1, "owner": "old", "balance": 10})
    world.drain()
    size = world.size
    with contextlib.closing(world.engine(retained_seconds=60)) as other:
        other.start()
        for app in (world.app, other):
            monkeypatch.setattr(app._rewriter, "look", lambda: None)
        world.app.put(accounts, {"id": 1, "owner": "new", "balance": 100})
        other.increment(accounts, 1, {"balance": 5})
        world.crash(size)
        world.app.insert(events, {"kind": "first"})
        other.insert(events, {"kind": "second"})
        assert [(loss.entries, loss.rewritten) for loss in world.losses] == [(1, 1), (1, 1)]
        world.drain()
        assert world.rows() == {1: ("new", 105)}


@contextlib.contextmanager
def through_proxy(world: World, database: str, **settings: Any) -> Iterator[tuple[Proxy, WriteBehind]]:
    """Make an engine of the world's that reaches Redis through a proxy."""
    with Proxy(int(world.server.url.rpartition(":")[2].partition("/")[0])) as proxy:
        through = WriteBehind(
            redis=f"redis://127.0.0.1:{proxy.port}/0",
            database=database,
            tables=[accounts, events],
            namespace=world.namespace,
            partitions=1,
            settings=EngineSettings(redis_timeout_seconds=2, **settings),
        )
        with contextlib.closing(through):
            yield proxy, through


def test_a_lost_reply_and_a_lost_tail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that SQL may have, and Redis has not, is not made again: its outcome is unknown, and said to be."""
    with through_proxy(world, world.database, write_timeout_seconds=10) as (proxy, through):
        through.insert(events, {"kind": "warm"})
        world.drain()
        size = world.size

        def lose_the_tail(attempt: int, left_seconds: float) -> None:
            monkeypatch.undo()
            world.drain()
            assert "once" in world.kinds()
            world.crash(size)

        monkeypatch.setattr("writebehind.engine.adapters.attempts.pause", lose_the_tail)
        proxy.inject(Mishap.CUT_AFTER, APPEND.sha)
        with pytest.raises(WriteOutcomeUnknown):
            through.insert(events, {"kind": "once"})
        world.app.links.drop_idle()
        world.drain()
        assert world.kinds() == ["once", "warm"]


def test_a_lost_reply_a_lost_tail_and_no_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to be found in a new history says nothing of the old one: it is not said that nothing was written."""
    with through_proxy(
        world, UNREACHABLE, write_timeout_seconds=10, backlog_entries_max=2, backpressure=Backpressure.REJECT
    ) as (proxy, through):
        through.insert(events, {"kind": "warm"})
        world.drain()
        size = world.size

        def lose_the_tail(attempt: int, left_seconds: float) -> None:
            monkeypatch.undo()
            world.drain()
            assert "once" in world.kinds()
            world.crash(size)
            for _ in range(2):
                world.app.insert(events, {"kind": "other"})

        monkeypatch.setattr("writebehind.engine.adapters.attempts.pause", lose_the_tail)
        proxy.inject(Mishap.CUT_AFTER, APPEND.sha)
        with pytest.raises(WriteOutcomeUnknown):
            through.insert(events, {"kind": "once"})
        world.drain()
        assert world.kinds() == ["once", "other", "other", "warm"]


def test_a_lost_reply_a_lost_tail_and_a_range(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry in doubt is not refused for what another writer has put in the new history: SQL has the attempt."""
    with through_proxy(world, UNREACHABLE, write_timeout_seconds=60) as (proxy, through):
        through.put(accounts, {"id": 1, "owner": "x", "balance": 10})
        world.drain()
        size = world.size

        def lose_the_tail(attempt: int, left_seconds: float) -> None:
            monkeypatch.undo()
            world.drain()
            assert world.rows()[1] == ("x", 15)
            world.crash(size)
            world.app.put(accounts, {"id": 1, "owner": "y", "balance": 2**31 - 1})

        monkeypatch.setattr("writebehind.engine.adapters.attempts.pause", lose_the_tail)
        proxy.inject(Mishap.CUT_AFTER, APPEND.sha)
        receipt = through.increment(accounts, 1, {"balance": 5})
        world.drain()
        assert world.rows()[1] == ("y", 2**31 - 1)
        with world.app.database.connect() as connection:
            told = connection.execute(sa.select(losses.c.first_id, losses.c.entries)).all()
        assert (str(receipt.entry_id), 1) in [tuple(row) for row in told]


def test_others_that_flushed_and_are_forgotten_by_redis_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that somebody has deleted since, and whose tombstone is flushed, does not come back."""
    world.app.put(accounts, {"id": 1, "owner": "old", "balance": 10})
    world.drain()
    size = world.size
    monkeypatch.setattr("writebehind.engine.adapters.rewriter.Rewriter.look", lambda _: None)
    with contextlib.closing(world.engine()) as other:
        other.start()
        world.app.put(accounts, {"id": 1, "owner": "lost", "balance": 1})
        world.crash(size)
        other.delete(accounts, 1)
        drain(other, DEADLINE_SECONDS, SETTINGS)
        world.app.insert(events, {"kind": "wakes it"})
        (loss,) = world.losses
        assert (loss.rewritten, loss.superseded) == (0, 1)
        world.drain()
        assert world.rows() == {}


def test_what_is_not_kept_is_counted(world: World) -> None:
    """Beyond its bounds the engine cannot write again, and says how many entries that costs."""
    world.app.close()
    with contextlib.closing(world.engine(retained_bytes_max=0)) as app:
        app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        size = world.size
        receipt = app.increment(accounts, 1, {"balance": 1})
        app.increment(accounts, 1, {"balance": 1})
        world.crash(size)
        app.increment(accounts, 1, {"balance": 10})
        (loss,) = world.losses
        assert (loss.entries, loss.rewritten, loss.unretained, loss.lost) == (0, 0, 2, 2)
        assert loss.first_id == str(receipt.entry_id)
        drain(app, DEADLINE_SECONDS, SETTINGS)
        with pytest.raises(DataLossDetected):
            receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS)
        assert world.rows() == {1: ("Ada", 10)}


@pytest.mark.parametrize("away", [False, True], ids=["SQL answers", "SQL is away at first"])
def test_what_is_not_kept_is_counted_at_each_loss(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    away: bool,  # noqa: FBT001
) -> None:
    """Where Redis is rolled back again, further, what the first loss has left of the epoch is counted, and no more."""
    world.app.close()
    with contextlib.closing(world.engine(retained_bytes_max=0)) as app:
        app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        sizes, receipts = [], []
        for _ in range(5):
            sizes.append(world.size)
            receipts.append(app.increment(accounts, 1, {"balance": 1}))

        def unavailable(*_: object) -> None:
            raise DatabaseUnavailable("the database is away")

        world.crash(sizes[3])
        with monkeypatch.context() as patch:
            if away:
                patch.setattr(app.rows, "applied_of", unavailable)
            app.increment(accounts, 1, {"balance": 10})
            assert [loss.unretained for loss in world.losses] == ([] if away else [2])
            world.crash(sizes[1])
        app.increment(accounts, 1, {"balance": 100})
        assert [loss.unretained for loss in world.losses] == ([5] if away else [2, 3])
        assert world.losses[-1].first_id == str(receipts[1].entry_id)
        world.crash(sizes[1])
        app.increment(accounts, 1, {"balance": 1000})
        told = [loss.unretained for loss in world.losses]
        drain(app, DEADLINE_SECONDS, SETTINGS)
        assert (told[-1], world.rows()) == (1, {1: ("Ada", 1001)})


def test_nothing_is_lost_where_redis_has_everything(world: World) -> None:
    """A restart without loss opens an epoch and writes nothing again."""
    spend(world.app)
    world.crash(world.size)
    world.app.increment(accounts, 1, {"balance": 1})
    assert world.losses == []
    world.drain()
    assert world.rows() == {1: ("Grace", 108), 3: ("Cy", 1)}


def test_many_are_written_again_beside_busy_writers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that write, also the same records, neither hold it up nor get lost, while a flusher works."""
    monkeypatch.setattr("writebehind.engine.adapters.rewriter.Rewriter.look", lambda _: None)
    stopping = threading.Event()
    sums: Counter[int] = Counter()
    with contextlib.closing(world.engine()) as other, flushing(world.app, SETTINGS):
        other.start()

        def write() -> None:
            for number in itertools.count():
                if stopping.is_set():
                    return
                key = (1, 2, 1000 + number % 50)[number % 3]
                other.increment(accounts, key, {"balance": 1})
                sums[key] += 1

        for number in range(1, 301):
            world.app.put(accounts, {"id": number, "owner": "mine", "balance": 0})
        for number in range(50):
            other.put(accounts, {"id": 1000 + number, "owner": "other", "balance": 0})
        thread = threading.Thread(target=write)
        thread.start()
        try:
            for number in range(3, 301):
                world.app.increment(accounts, number, {"balance": 1})
            with redis.Redis.from_url(world.server.url) as client:
                client.flushall()
            world.app.increment(accounts, 3, {"balance": 1})
        finally:
            stopping.set()
            thread.join()
    world.app.insert(events, {"kind": "wakes it"})
    drain(world.app, DEADLINE_SECONDS, SETTINGS)
    expected = {number: 1 + (number == 3) for number in range(3, 301)} | dict(sums)
    assert {key: balance for key, (_, balance) in world.rows().items()} == expected


def test_an_insert_between_the_look_and_the_script(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An insert leaves no record in Redis: a lost write of its key is not put over it."""
    monkeypatch.setattr("writebehind.engine.adapters.rewriter.Rewriter.look", lambda _: None)
    arguments = Rewriting._arguments
    with contextlib.closing(world.engine()) as other:
        other.start()
        for key in (1, 2):
            world.app.put(accounts, {"id": key, "owner": "lost", "balance": key})
        with redis.Redis.from_url(world.server.url) as client:
            client.flushall()
        other.insert(events, {"kind": "opens the epoch"})
        inserted: list[int] = []

        def between(self: Rewriting, *given: Any) -> list[Any]:
            made = arguments(self, *given)
            if not inserted:
                inserted.append(1)
                other.insert(accounts, {"id": 1, "owner": "new", "balance": 100})
            return made

        monkeypatch.setattr(Rewriting, "_arguments", between)
        world.app.insert(events, {"kind": "wakes it"})
        (loss,) = world.losses
        assert (loss.entries, loss.rewritten, loss.superseded) == (2, 1, 1)
        drain(world.app, DEADLINE_SECONDS, SETTINGS)
        assert world.rows() == {1: ("new", 100), 2: ("lost", 2)}


@pytest.mark.parametrize("drained", [False, True])
def test_an_emptied_redis_is_filled_again(world: World, *, drained: bool) -> None:
    """FLUSHALL under a living service: what it keeps is written again, and what SQL has stays applied once."""
    spend(world.app)
    if drained:
        world.drain()
        world.app.increment(accounts, 1, {"balance": 1})
    with redis.Redis.from_url(world.server.url) as client:
        client.flushall()
    world.app.increment(accounts, 1, {"balance": 10})
    drain(world.app, DEADLINE_SECONDS, SETTINGS)
    assert world.rows() == {1: ("Grace", 118 if drained else 117), 3: ("Cy", 1)}
    assert world.kinds() == ["a", "b", "c"]


def test_a_silent_database_is_asked_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that needs SQL's word for each of many partitions waits for one answer, and is asked again later."""
    world.app.close()
    silent, asked, partitions = threading.Event(), list[Any](), 8
    monkeypatch.setattr("writebehind.engine.adapters.asking.ASK_SECONDS_MAX", 0.2)
    monkeypatch.setattr("writebehind.engine.adapters.asking.SILENT_SECONDS", 3600.0)
    engine = WriteBehind(
        redis=world.server.url, database=world.database, tables=[accounts], namespace=f"{world.namespace}m",
        partitions=partitions, settings=EngineSettings(retained_bytes_max=0), on_data_loss=world.losses.append,
    )  # fmt: skip

    def silence(_namespace: str, numbers: Any) -> None:
        asked.append(numbers)
        silent.wait(DEADLINE_SECONDS)

    with contextlib.closing(engine) as app:
        initialise(app, create_tables=True)
        for key in range(100):
            app.put(accounts, {"id": key})
        with monkeypatch.context() as patch, redis.Redis.from_url(world.server.url) as client:
            patch.setattr(app._rewriter, "look", lambda: None)
            patch.setattr(app.rows, "applied_of", silence)
            client.flushall()
            world.server.kill()
            world.server.start()
            app.put(accounts, {"id": 1})
            assert len(asked) == 1
            assert len(app._rewriter._uncounted) == partitions
            assert world.losses == []
            silent.set()
        app._rewriter._asking._silent_until = 0.0
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(world.losses) < partitions and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sum(loss.unretained for loss in world.losses) == 100


def test_a_loss_is_noted_while_redis_is_watched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that hangs keeps nobody from looking at Redis, and has each loss once when it answers again."""
    app, hanging, noting, looks = world.app.start(), threading.Event(), list[str](), list[float]()
    note_loss, look = app.rows.note_loss, app._memory.look

    def hang(namespace: str, loss: DataLoss, reporter: str) -> None:
        noting.append(loss.first_id)
        assert hanging.wait(DEADLINE_SECONDS)
        note_loss(namespace, loss, reporter)

    def looked() -> None:
        looks.append(time.monotonic())
        look()

    monkeypatch.setattr(app.rows, "note_loss", hang)
    monkeypatch.setattr(app._memory, "look", looked)
    for number in (1, 2):
        app._rewriter._report(DataLoss(partition=0, first_id=f"{number}-0", last_id=f"{number}-0", superseded=1))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not noting and time.monotonic() < deadline:
        time.sleep(0.01)
    before = len(looks)
    while len(looks) < before + 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(looks) >= before + 5
    assert noting == ["1-0"]
    hanging.set()
    app.close()
    assert noting == ["1-0", "2-0"]
    with contextlib.closing(world.engine()) as other:
        assert sorted(loss.first_id for loss in status(other).losses) == noting


def test_what_is_not_kept_is_counted_once_sql_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While SQL is away nobody knows what is lost: nothing is said of it, and it is counted when SQL is back."""
    world.app.close()
    with contextlib.closing(world.engine(retained_bytes_max=0)) as app:
        app.put(accounts, {"id": 1, "owner": "Ada", "balance": 0})
        drain(app, DEADLINE_SECONDS, SETTINGS)
        size = world.size
        app.increment(accounts, 1, {"balance": 1})
        world.crash(size)
        asked = threading.Event()

        def away(*_: object) -> None:
            asked.set()
            raise DatabaseUnavailable("the database is away")

        with monkeypatch.context() as patch:
            patch.setattr(app.rows, "applied_of", away)
            app.increment(accounts, 1, {"balance": 10})
            assert asked.is_set()
            assert world.losses == []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not world.losses and time.monotonic() < deadline:
            time.sleep(0.01)
        (loss,) = world.losses
        assert (loss.entries, loss.unretained, loss.lost) == (0, 1, 1)
        drain(app, DEADLINE_SECONDS, SETTINGS)
        assert world.rows() == {1: ("Ada", 10)}
