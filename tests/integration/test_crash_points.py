"""A flusher may die right before and right after every effect: another one takes over, and SQL comes out exact."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, TypeVar

import pytest
import redis
import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import flushers, partitions
from writebehind.engine.adapters.log import GROUP, Log
from writebehind.flushers import Flusher, FlusherSettings, initialise, status
from writebehind.flushers.flush import Acknowledge, Begin, Commit, Fence, Write
from writebehind.flushers.flusher import Effect as FlushEffect
from writebehind.flushers.flusher import Reply as FlushReply
from writebehind.recovery import reclaim
from writebehind.recovery.takeover import Effect as TakeoverEffect
from writebehind.recovery.takeover import Reply

Reply_ = TypeVar("Reply_")

SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, batch_entries_max=14, retention_seconds=0)
POINTS_MAX = 200
RECORDS = 6

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(20), nullable=False, default="nobody"),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)


class Side(Enum):
    """Whether the flusher dies before the effect or after it."""

    BEFORE = auto()
    AFTER = auto()


class Killed(BaseException):
    """The flusher is dead."""


def die() -> None:
    """Die as if killed, but leave the process alive."""
    raise Killed


def kill_process() -> None:
    """Die."""
    os.kill(os.getpid(), signal.SIGKILL)


class Crash:
    """Counts the effects of both protocols, and lets the flusher die at one of them.

    Args:
        point: the number of the effect, from 1.
        side: whether it still happens.
        end: how to die.
        only: count these effects only, all where empty.
    """

    def __init__(
        self, point: int, side: Side, end: Callable[[], None] = die, only: tuple[type[object], ...] = ()
    ) -> None:
        self.count = 0
        self.happened = False
        self._point = point
        self._side = side
        self._end = end
        self._only = only

    def around(self, effect: object, work: Callable[[], Reply_], finished: Callable[[], None]) -> Reply_:
        """Do an effect, or die at it; ``finished`` waits until it has happened."""
        self.count += not self._only or isinstance(effect, self._only)
        due = self.count == self._point and not self.happened and (not self._only or isinstance(effect, self._only))
        if due and self._side is Side.BEFORE:
            self.happened = True
            self._end()
        reply = work()
        if due:
            finished()
            self.happened = True
            self._end()
        return reply


class Mortal(Flusher):
    """A flusher that leaves everything as it is when it dies: leases, pending entries, open transactions."""

    def __init__(self, app: WriteBehind, crash: Crash, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(app, SETTINGS)
        self._crash = crash
        perform = reclaim.perform

        def performed(log: Log, partition: int, effect: TakeoverEffect) -> Reply:
            return crash.around(effect, lambda: perform(log, partition, effect), lambda: None)

        self._patch = monkeypatch
        self._patched = performed

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Flush until dead, or until there is nothing more to do."""
        with self._patch.context() as patch:
            patch.setattr(reclaim, "perform", self._patched)
            super().run(until)

    def perform(self, effect: FlushEffect) -> FlushReply:
        """Do one effect of the flush protocol, or die at it."""
        try:
            return self._crash.around(effect, lambda: super(Mortal, self).perform(effect), self._acknowledged)
        except Killed:
            # The server sees the connection of a killed process break.
            if self._transaction._connection is not None:
                self._transaction._connection.invalidate()
            raise

    def _acknowledged(self) -> None:
        self._settlement.collect(everything=True)

    def _end(self) -> None:
        if not self._crash.happened:
            super()._end()
            return
        self._reading.shutdown()
        self._settlement.close()
        self._transaction.roll_back()
        self._links.close()
        self._engine.dispose()


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


class World:
    """One namespace with a workload in its log, and the model of what SQL must hold in the end."""

    def __init__(self, redis_url: str, database: str, namespace: str, seed: int = 1) -> None:
        self.app = WriteBehind(
            redis=redis_url, database=database, tables=[accounts, events], namespace=namespace, partitions=2
        )
        initialise(self.app, create_tables=True)
        with self.app.database.begin() as connection:
            connection.execute(sa.delete(accounts))
            connection.execute(sa.delete(events))
        self.rows: dict[int, tuple[str, int]] = {}
        self.kinds: list[str] = []
        chance = random.Random(seed)
        with self.app.batch() as batch:
            for number in range(48):
                self._write(batch, chance, number)
        for number in range(4):
            key = number
            with self.app.atomic(accounts, key) as group:
                group.put(accounts, {"id": key, "owner": "group", "balance": 1})
                group.increment(accounts, key, {"balance": 10})
                group.insert(events, {"kind": f"group {number}"})
            self.rows[key] = ("group", 11)
            self.kinds.append(f"group {number}")
            self._write(self.app, chance, 100 + number)

    def _write(self, target: Any, chance: random.Random, number: int) -> None:
        key = chance.randrange(RECORDS)
        row = self.rows.get(key)
        match chance.choice(["put", "patch", "increment", "increment", "delete", "insert"]):
            case "put":
                target.put(accounts, {"id": key, "owner": f"put {number}", "balance": number})
                self.rows[key] = (f"put {number}", number)
            case "patch":
                target.patch(accounts, key, {"owner": f"patch {number}"})
                if row is not None:
                    self.rows[key] = (f"patch {number}", row[1])
            case "increment":
                target.increment(accounts, key, {"balance": number})
                self.rows[key] = (row[0], row[1] + number) if row else ("nobody", number)
            case "delete":
                target.delete(accounts, key)
                self.rows.pop(key, None)
            case _:
                target.insert(events, {"kind": f"event {number}"})
                self.kinds.append(f"event {number}")

    def drained(self) -> bool:
        """Tell whether SQL has it all."""
        return status(self.app).backlog == 0

    def expire_leases(self) -> None:
        """Let the leases of the dead run out now."""
        namespace = self.app.keys.namespace
        with self.app.database.begin() as connection:
            connection.execute(
                sa.update(partitions).where(partitions.c.namespace == namespace).values(lease_until_ms=0)
            )
            connection.execute(sa.update(flushers).where(flushers.c.namespace == namespace).values(seen_until_ms=0))

    def crash(self, crash: Crash, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Let a flusher run until it dies; return False where it lived to see everything flushed."""
        try:
            Mortal(self.app, crash, monkeypatch).run(until=self.drained)
        except Killed:
            self.expire_leases()
            return True
        return False

    def crash_in_a_process(self, crash: Crash, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Let a flusher in a child process run until SIGKILL; return False where it lived."""
        self.app.links.drop_idle()
        self.app.database.dispose()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                Mortal(self.app, crash, monkeypatch).run(until=self.drained)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in {0, -signal.SIGKILL}
        self.expire_leases()
        return code != 0

    def check(self, client: Any) -> None:
        """Let a sound flusher finish, and compare SQL, offsets and groups with the model."""
        Flusher(self.app, SETTINGS).run(until=self.drained)
        with self.app.database.connect() as connection:
            rows = {row.id: (row.owner, row.balance) for row in connection.execute(sa.select(accounts))}
            kinds = sorted(connection.execute(sa.select(events.c.kind)).scalars())
        assert rows == self.rows
        assert kinds == sorted(self.kinds)
        found = status(self.app)
        assert (found.backlog, found.lost_entries, found.halted) == (0, 0, [])
        for row in found.partitions:
            assert row.offset == row.end
            assert client.xpending(self.app.keys.logs[row.partition], GROUP)["pending"] == 0
            assert client.hget(self.app.keys.metas[row.partition], "watermark").decode() == row.offset
        assert {
            key: record and (record["owner"], record["balance"])
            for key, record in self.app.get_many(accounts, range(RECORDS)).items()
        } == {key: self.rows.get(key) for key in range(RECORDS)}
        self.app.close()


def enumerate_crashes(
    redis_url: str,
    database: str,
    namespace: str,
    client: Any,
    crash: Callable[[World, int, Side], bool],
    *,
    step: int = 1,
) -> int:
    """Die at every effect, or every so many; return how many effects there are."""
    for point in range(1, POINTS_MAX, step):
        survived = False
        for side in Side:
            world = World(redis_url, database, f"{namespace}{point}{side.name}", seed=point)
            survived = not crash(world, point, side)
            world.check(client)
        if survived:
            return point
    raise AssertionError("the flusher never got through")


def test_every_effect_is_a_crash_point(
    redis_url: str, sqlite_url: str, namespace: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All effects of takeover and flush, before and after, on SQLite."""

    def crash(world: World, point: int, side: Side) -> bool:
        return world.crash(Crash(point, side), monkeypatch)

    assert enumerate_crashes(redis_url, sqlite_url, namespace, client, crash) > 20


def test_every_effect_is_a_crash_point_of_two_flushers(
    redis_url: str, sqlite_url: str, namespace: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor dies at the same place in its turn, and its successor too."""

    def crash(world: World, point: int, side: Side) -> bool:
        crashed = world.crash(Crash(point, side), monkeypatch)
        for _ in range(2):
            world.crash(Crash(point, side), monkeypatch)
        return crashed

    assert enumerate_crashes(redis_url, sqlite_url, namespace, client, crash, step=3) > 20


def test_every_effect_survives_sigkill(
    redis_url: str, sqlite_url: str, namespace: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a process that kills itself, on SQLite."""

    def crash(world: World, point: int, side: Side) -> bool:
        return world.crash_in_a_process(Crash(point, side, kill_process), monkeypatch)

    assert enumerate_crashes(redis_url, sqlite_url, namespace, client, crash) > 20


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("effect", [Begin, Fence, Write, Commit, Acknowledge])
@pytest.mark.parametrize("really", [False, True], ids=["abandoned", "SIGKILL"])
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_servers_forget_the_dead(
    *,
    request: pytest.FixtureRequest,
    redis_url: str,
    namespace: str,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    effect: type[FlushEffect],
    side: Side,
    really: bool,
) -> None:
    """Each effect of the flush protocol on PostgreSQL and MariaDB, in an early batch and in a later one."""
    url = request.getfixturevalue(f"{database}_url")
    for point in (3,) if really else (1, 3):
        world = World(redis_url, url, f"{namespace}{point}", seed=point)
        if really:
            assert world.crash_in_a_process(Crash(point, side, kill_process, (effect,)), monkeypatch)
        else:
            assert world.crash(Crash(point, side, only=(effect,)), monkeypatch)
        world.check(client)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("point", range(1, 9))
def test_takeover_may_die_again_and_again(
    *,
    redis_url: str,
    sqlite_url: str,
    namespace: str,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    point: int,
    side: Side,
) -> None:
    """Five flushers in a row die at the same effect of the takeover, after one that died with entries delivered."""
    world = World(redis_url, sqlite_url, namespace, seed=point)
    assert world.crash(Crash(2, Side.BEFORE, only=(Commit,)), monkeypatch)
    for _ in range(5):
        world.crash(Crash(point, side), monkeypatch)
    world.check(client)


def test_a_takeover_after_a_commit_that_was_not_acknowledged(
    redis_url: str, database_url: str, namespace: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that SQL has and the group still counts as pending are acknowledged, not applied again."""
    world = World(redis_url, database_url, namespace)
    assert world.crash(Crash(1, Side.AFTER, only=(Commit,)), monkeypatch)
    pending = sum(client.xpending(log, GROUP)["pending"] for log in world.app.keys.logs)
    assert pending >= SETTINGS.batch_entries_max
    world.check(client)
