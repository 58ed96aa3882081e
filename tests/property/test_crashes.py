"""Whatever is written and whoever is killed when, reads and SQL say what a dict says.

``HYPOTHESIS_PROFILE=long`` runs many more and longer examples.
"""

import contextlib
import copy
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import pytest
import redis
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import servers
from flights import Flight
from simulator.schema import accounts, counters, events
from writebehind.engine import EngineSettings, LeaseLost, ReadTimeout, RedisUnavailable, WriteBehind
from writebehind.engine.adapters.control_tables import flushers, partitions
from writebehind.engine.adapters.log import Acknowledgement, Log
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.positions import ORIGIN
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import Flusher, FlusherSettings, initialise, status
from writebehind.flushers.batch import Batch
from writebehind.flushers.flusher import Effect
from writebehind.flushers.flusher import Reply as FlushReply
from writebehind.recovery import reclaim, takeover

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

PARTITIONS = 2
KEYS = (1, 2)
RETAINING = FlusherSettings(linger_seconds=0, lease_ttl_seconds=5)
TRIMMING = replace(RETAINING, retention_seconds=0)
ROUNDS_MAX = 40
"""Reads that give nothing before an example counts as stuck."""

COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
    "phases": [Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
}
BOUNDS = {
    "short": settings(max_examples=30, stateful_step_count=30, **COMMON),
    "long": settings(max_examples=1000, stateful_step_count=60, **COMMON),
}

RECORDS = {"accounts": accounts, "counters": counters}
NUMBERS = {"accounts": "balance", "counters": "hits"}

Row = dict[str, Any]
Reply = TypeVar("Reply")


class Op(Enum):
    """What is written."""

    PUT = "put"
    PATCH = "patch"
    INCREMENT = "increment"
    INSERT = "insert"
    DELETE = "delete"
    APPEND = "append"


@dataclass(frozen=True)
class Write:
    """One write: of a record, or with APPEND of a row whose key the database makes."""

    op: Op
    table: str
    key: int
    text: str
    number: int

    @property
    def partition(self) -> int | None:
        """Where its entry goes; None where any partition will do."""
        return None if self.op is Op.APPEND else partition_of(str(self.key), PARTITIONS)

    @property
    def row(self) -> Row:
        """The whole record that a put or an insert gives."""
        return {"id": self.key, NUMBERS[self.table]: self.number, "note": None} | (
            {"owner": self.text} if self.table == "accounts" else {}
        )

    def send(self, writer: Any) -> None:
        """Give it to an engine, a batch or a group."""
        table = RECORDS[self.table]
        match self.op:
            case Op.PUT:
                writer.put(table, self.row)
            case Op.PATCH:
                writer.patch(table, self.key, {"note": self.text})
            case Op.INCREMENT:
                writer.increment(table, self.key, {NUMBERS[self.table]: self.number})
            case Op.INSERT:
                writer.insert(table, self.row)
            case Op.DELETE:
                writer.delete(table, self.key)
            case Op.APPEND:
                writer.insert(events, {"kind": self.text})


class Model:
    """What the rows are, as plain Python has it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, Row]] = {name: {} for name in RECORDS}
        self.kinds: Counter[str] = Counter()

    def apply(self, write: Write) -> None:
        """Do what a write means."""
        rows = self.rows[write.table]
        row = rows.get(write.key)
        number = NUMBERS[write.table]
        if write.op is Op.APPEND:
            self.kinds[write.text] += 1
        elif write.op in {Op.PUT, Op.INSERT}:
            rows[write.key] = write.row
        elif write.op is Op.DELETE:
            rows.pop(write.key, None)
        elif write.op is Op.PATCH:
            if row is not None:
                row["note"] = write.text
        elif row is not None:
            row[number] += write.number
        elif write.table == "counters":  # an account has an owner, whom an increment does not know
            rows[write.key] = {"id": write.key, number: write.number, "note": None}

    def possible(self, write: Write) -> bool:
        """Tell whether a write is the application's to make: only an absent row can be inserted."""
        return write.op is not Op.INSERT or write.key not in self.rows[write.table]


class Killed(BaseException):
    """The flusher's process is no more."""


class Unanswered(RedisUnavailable):
    """A server has done what it was asked for, and its reply is lost."""


class Moment(Enum):
    """When, relative to an effect, a flusher is killed."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"
    UNANSWERED = "not at all, but it does not hear that the effect has happened"


class Fuse:
    """Kills a flusher at the n-th effect of its protocols after it was set."""

    def __init__(self) -> None:
        self._left = 0
        self._moment = Moment.BEFORE

    def set(self, effects: int, moment: Moment) -> None:
        """Kill at the effect of this number, from 1."""
        self._left, self._moment = effects, moment

    def guard(self, perform: Callable[[bool], Reply]) -> Reply:
        """Do an effect; at the last one die before or after it, or lose its answer.

        Args:
            perform: does it, or where told so only its first part.
        """
        self._left -= 1
        if self._left == 0 and self._moment is Moment.BEFORE:
            raise Killed
        reply = perform(self._left == 0 and self._moment is Moment.DURING)
        if self._left == 0:
            raise Unanswered("no answer") if self._moment is Moment.UNANSWERED else Killed
        return reply


class Mortal(Flusher):
    """A flusher driven step by step in the test's thread, which can be killed at any effect."""

    def __init__(self, app: WriteBehind, settings: FlusherSettings) -> None:
        super().__init__(app, settings)
        without_fsync(self._engine)
        self._retrying = self._retrying.copy(sleep=lambda _: None)
        self.fuse = Fuse()
        self.ahead: Batch | None = None

    def perform(self, effect: Effect) -> FlushReply:
        """Do an effect of the flush protocol, or die; an acknowledgement is waited for."""

        def perform(cut: bool) -> FlushReply:  # noqa: FBT001 - called by the fuse
            with mock.patch.object(self._log, "acknowledge", self._half) if cut else contextlib.nullcontext():
                reply = super(Mortal, self).perform(effect)
                self._settlement.collect(everything=True)
            return reply

        return self.fuse.guard(perform)

    def _half(self, done: Sequence[Acknowledgement]) -> None:
        """Acknowledge without anything that comes after XACK."""
        Log.acknowledge(
            self._log,
            [replace(each, whole=(), other=(), offset=ORIGIN, trim_below=None, flushed_rows=0) for each in done],
        )

    def read(self, entries_max: int) -> Batch | None:
        """Tend the leases, take over what is new, and read a batch."""
        self._tend_now()
        return self._read_on(entries_max)

    def _read_on(self, entries_max: int) -> Batch | None:
        return self._intake.read(list(self.holdings.cursors.values()), entries_max, 0)

    def _tend_now(self) -> None:
        done = reclaim.perform

        def perform(log: Log, partition: int, effect: takeover.Effect) -> takeover.Reply:
            return self.fuse.guard(lambda _: done(log, partition, effect))

        with mock.patch.object(reclaim, "perform", perform):
            self.holdings._tended_at = float("-inf")
            self._tend()

    def flush(self, entries_max: int, *, read_ahead: bool) -> bool:
        """Read and commit a batch, where wanted with the next one read before; tell whether there was one."""
        try:
            batch = self.ahead or self.read(entries_max)
            self.ahead = None
            if batch is None:
                return False
            if read_ahead:
                self.ahead = self._read_on(entries_max)
        except RedisUnavailable:
            self.give_up_reading()
            return True
        try:
            self._retrying(self._attempt, batch)
        except LeaseLost as error:
            self.give_up_reading()
            self.holdings.drop(batch, error)
        except Exception:  # noqa: BLE001 - as a flusher does
            self.give_up_reading()
        else:
            self.holdings.note(batch)
        return True

    def give_up_reading(self) -> None:
        """Throw away what was read: Redis has failed."""
        self.ahead = None
        for cursor in self.holdings.cursors.values():
            cursor.rewind()
            cursor.stale = True

    def die(self) -> None:
        """Leave everything as a killed process does."""
        self._settlement.close()
        self._reading.shutdown()
        if self._transaction._connection is not None:
            self._transaction._connection.invalidate()
            self._transaction._connection.close()
        self._links.close()
        self._engine.dispose()


texts = st.sampled_from(["a", "b", ""])
records = st.builds(
    Write,
    st.sampled_from([op for op in Op if op is not Op.APPEND]),
    st.sampled_from(sorted(RECORDS)),
    st.sampled_from(KEYS),
    texts,
    st.integers(-9, 9),
)
appends = st.builds(Write, st.just(Op.APPEND), st.just("accounts"), st.just(1), texts, st.just(0))
writes = records | records | records | appends
moments = st.sampled_from(Moment)


class Crashes(RuleBasedStateMachine):
    """Two writers, flushers that die, a Redis that is killed and comes back, and a dict.

    Args:
        server: a Redis that loses nothing when it is killed.
        directory: where databases go.
    """

    def __init__(self, server: EmbeddedRedis, directory: Path) -> None:
        super().__init__()
        self.server = server
        self.model = Model()
        self.namespace = f"c{secrets.token_hex(6)}"
        self.path = directory / f"{self.namespace}.sqlite"
        self.client = redis.Redis.from_url(server.url)
        self.apps = [self._app(), self._app()]
        self.settings = RETAINING
        self.marks: list[tuple[int, int]] = []
        self.flusher: Mortal | None = None
        self.zombies: list[Mortal] = []
        self.flights: list[Flight] = []
        initialise(self.apps[0], create_tables=True)

    def _app(self) -> WriteBehind:
        return WriteBehind(
            redis=self.server.url,
            database=without_fsync(sa.create_engine(f"sqlite:///{self.path}")),
            tables=[accounts, counters, events],
            namespace=self.namespace,
            partitions=PARTITIONS,
            settings=EngineSettings(read_timeout_seconds=0.005, refresh_ahead_share=0.9),
        )

    @initialize(trims=st.booleans())
    def begin(self, trims: bool) -> None:  # noqa: FBT001
        """Choose whether flushed entries stay in the log for a while, as they should, or go at once."""
        self.settings = TRIMMING if trims else RETAINING

    # Writing

    @rule(write=writes, writer=st.integers(0, 1), lost=st.booleans())
    def write(self, write: Write, writer: int, lost: bool) -> None:  # noqa: FBT001
        """Write; sometimes the reply is lost, and the engine has to find out."""
        if self.model.possible(write):
            if lost:
                self._lose_a_reply(writer)
            self._mark(writer)
            write.send(self.apps[writer])
            self._apply(write)
            with contextlib.suppress(ReadTimeout):
                self._check(write.table, write.key, self.apps[1 - writer])

    @rule(listed=st.lists(writes, min_size=2, max_size=8), writer=st.integers(0, 1), lost=st.booleans())
    def batch(self, listed: list[Write], writer: int, lost: bool) -> None:  # noqa: FBT001
        """Write many in one round trip."""
        if lost:
            self._lose_a_reply(writer)
        self._mark(writer)
        with self.apps[writer].batch() as batch:
            for write in listed:
                if self.model.possible(write):
                    write.send(batch)
                    self._apply(write)

    @rule(listed=st.lists(writes, min_size=2, max_size=5), writer=st.integers(0, 1), keep=st.booleans())
    def group(self, listed: list[Write], writer: int, keep: bool) -> None:  # noqa: FBT001
        """Write all or nothing; where the block fails, nothing."""
        home = next((write for write in listed if write.partition is not None), None)
        if home is None:
            return
        trial = copy.deepcopy(self.model)
        touched: set[tuple[str, int]] = set()
        self._mark(writer)
        with contextlib.suppress(Abandoned), self.apps[writer].atomic(RECORDS[home.table], home.key) as group:
            for write in listed:
                again = write.op is Op.INSERT and (write.table, write.key) in touched
                if write.partition in {None, home.partition} and trial.possible(write) and not again:
                    write.send(group)
                    trial.apply(write)
                    touched.add((write.table, write.key))
            if not keep:
                raise Abandoned
            self.model = trial
        self._note()

    def _apply(self, write: Write) -> None:
        self.model.apply(write)
        self._note()

    def _note(self) -> None:
        for flight in self.flights:
            flight.note(self.model.rows[flight.table].get(flight.key))

    def _lose_a_reply(self, writer: int) -> None:
        # Where what was just flushed is trimmed at once, a retry cannot know, and says so.
        if self.settings is RETAINING:
            lose_a_reply(self.apps[writer])

    # Reading

    @rule(table=st.sampled_from(sorted(RECORDS)), key=st.sampled_from(KEYS), reader=st.integers(0, 1))
    def get(self, table: str, key: int, reader: int) -> None:
        """Read what was written, at once or, where it depends on the flusher, after it has worked."""
        try:
            self._check(table, key, self.apps[reader])
        except ReadTimeout:
            self.flush_everything()
            self._check(table, key, self.apps[reader])

    def _check(self, table: str, key: int, reader: WriteBehind) -> None:
        try:
            found = reader.get(RECORDS[table], key)
        except ReadTimeout:
            if not any(flight.key == key for flight in self.flights):
                raise
            self.land()
            found = reader.get(RECORDS[table], key)
        assert found == self.model.rows[table].get(key)

    @rule(table=st.sampled_from(sorted(RECORDS)), key=st.sampled_from(KEYS), steps=st.integers(0, 4))
    def take_off(self, table: str, key: int, steps: int) -> None:
        """Begin a read of a record, and leave it under way."""
        flight = Flight(self.apps[1], RECORDS[table], key, self.model.rows[table].get(key))
        self.flights.append(flight)
        for _ in range(steps):
            if flight in self.flights:
                self._step(flight)

    @precondition(lambda self: self.flights)
    @rule(number=st.integers(0, 9), steps=st.integers(1, 3))
    def fly(self, number: int, steps: int) -> None:
        """Let a read go on."""
        flight = self.flights[number % len(self.flights)]
        for _ in range(steps):
            if flight in self.flights:
                self._step(flight)

    @precondition(lambda self: self.flights)
    @rule(number=st.integers(0, 9))
    def crash_reading(self, number: int) -> None:
        """Kill who reads; the lease that it may have runs out."""
        self.flights.pop(number % len(self.flights))
        self.evict()

    def _step(self, flight: Flight) -> None:
        if not flight.step():
            self.flights.remove(flight)

    def land(self) -> None:
        """Let all reads go on until they end, or wait for the flusher."""
        for _ in range(ROUNDS_MAX):
            for flight in list(self.flights):
                self._step(flight)

    @rule()
    def evict(self) -> None:
        """Remove what has a time to live, as its end would: later writes find their records cold."""
        for name in self.client.scan_iter(f"wb:{{{self.namespace}:*", count=10_000):
            if self.client.ttl(name) >= 0:
                self.client.unlink(name)

    # Flushing and dying

    @rule(entries_max=st.integers(1, 6), read_ahead=st.booleans())
    def flush(self, entries_max: int, read_ahead: bool) -> None:  # noqa: FBT001
        """Flush a bit."""
        self._living().flush(entries_max, read_ahead=read_ahead)

    @rule(
        listed=st.lists(writes, max_size=4),
        effects=st.integers(1, 12),
        moment=moments,
        entries_max=st.integers(1, 6),
        read_ahead=st.booleans(),
    )
    def crash(
        self,
        listed: list[Write],
        effects: int,
        moment: Moment,
        entries_max: int,
        read_ahead: bool,  # noqa: FBT001
    ) -> None:
        """Flush until an effect of the flush or of the takeover before it kills the flusher."""
        self.batch(listed, 0, lost=False)
        flusher = self._living()
        flusher.fuse.set(effects, moment)
        with contextlib.suppress(Killed):
            while flusher.flush(entries_max, read_ahead=read_ahead):
                pass
        self.flusher = None
        flusher.die()

    @rule(effects=st.integers(1, 5), moment=moments)
    def crash_in_takeover(self, effects: int, moment: Moment) -> None:
        """Kill a flusher and then its successor while that takes over."""
        if self.flusher is not None:
            self.flusher.die()
            self.flusher = None
        self.crash([], effects, moment, 1, read_ahead=False)

    @precondition(lambda self: self.flusher is not None)
    @rule(entries_max=st.integers(1, 6))
    def freeze(self, entries_max: int) -> None:
        """Freeze a flusher that has read a batch for longer than its lease."""
        flusher = self._living()
        try:
            flusher.ahead = flusher.ahead or flusher.read(entries_max)
        except RedisUnavailable:
            flusher.give_up_reading()
        self.zombies.append(flusher)
        self.flusher = None

    @precondition(lambda self: self.zombies)
    @rule(number=st.integers(0, 9))
    def thaw(self, number: int) -> None:
        """Let a frozen one go on with its batch, and then die."""
        zombie = self.zombies.pop(number % len(self.zombies))
        if zombie.ahead is not None:
            zombie.flush(1, read_ahead=False)
        zombie.die()

    @rule()
    def restart_redis(self) -> None:
        """Kill Redis and start it on its data: connections end, an epoch begins."""
        self.server.kill()
        self.server.start()
        self.marks.clear()
        for app in self.apps:
            app.links.drop_idle()  # a read over a connection that has ended says so and is not repeated

    @precondition(lambda self: self.marks)
    @rule(back=st.integers(1, 4))
    def roll_back_redis(self, back: int) -> None:
        """Kill Redis and start it on an older state; the writer of all that is lost still runs."""
        writer = self.marks[-1][1]
        since = [size for size, who in self.marks[-back:] if who == writer]
        if len(since) < min(back, len(self.marks)):
            return
        self.server.kill()
        with appended(self.server).open("r+b") as file:
            file.truncate(since[0])
        self.server.start()
        self.marks.clear()
        for flight in self.flights:
            flight.void = True
        for app in self.apps:
            app.links.drop_idle()
        self.apps[writer]._rewriter.look()

    def _mark(self, writer: int) -> None:
        """Note how much Redis has in its file before a write, and whose it is."""
        self.marks.append((appended(self.server).stat().st_size, writer))

    def _living(self) -> Mortal:
        if self.flusher is None:
            self._let_leases_expire()
            self.flusher = Mortal(self.apps[0], self.settings)
        return self.flusher

    def _let_leases_expire(self) -> None:
        with self.apps[0].database.begin() as connection:
            connection.execute(sa.update(partitions).values(lease_until_ms=0))
            connection.execute(sa.update(flushers).values(seen_until_ms=0))

    def flush_everything(self) -> None:
        """Flush until nothing is left."""
        for _ in range(ROUNDS_MAX):
            while self._living().flush(1000, read_ahead=False):
                pass
            now = status(self.apps[0])
            assert (now.lost_entries, now.halted) == (0, [])
            stale = any(cursor.stale for cursor in self._living().holdings.cursors.values())
            if now.backlog == 0 and not stale:
                return
        raise AssertionError(f"stuck with {status(self.apps[0])}")

    # Judging

    def teardown(self) -> None:
        """Drain, and compare."""
        try:
            self.flush_everything()
            self.land()
            assert self.flights == []
            self._compare()
        finally:
            for flusher in [*self.zombies, *([self.flusher] if self.flusher else [])]:
                flusher.die()
            for app in self.apps:
                app.close()
                app.database.dispose()
            self.client.close()

    def _compare(self) -> None:
        for name, table in RECORDS.items():
            assert {row["id"]: dict(row) for row in self._select(table)} == self.model.rows[name]
            assert self.apps[0].get_many(table, KEYS) == {key: self.model.rows[name].get(key) for key in KEYS}
        assert Counter(row["kind"] for row in self._select(events)) == self.model.kinds
        for log in self.apps[0].keys.logs:
            if self.client.exists(log):
                assert self.client.xpending(log, "flushers")["pending"] == 0

    def _select(self, table: sa.Table) -> Sequence[Mapping[Any, Any]]:
        with self.apps[0].database.connect() as connection:
            return connection.execute(sa.select(table)).mappings().all()


class Abandoned(Exception):
    """The block of an atomic group fails."""


def appended(server: EmbeddedRedis) -> Path:
    """Return the file that a server appends its writes to."""
    (newest,) = server.directory.glob("data/appendonlydir/*.incr.aof")
    return newest


def without_fsync(engine: sa.Engine) -> sa.Engine:
    """Have SQLite leave its pages to the operating system, which is not killed here."""
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    return engine


def lose_a_reply(app: WriteBehind) -> None:
    """Let the next call of an engine be executed and its connection end before the reply."""
    app.start()
    link = app.links.take()
    receive = link.receive

    def lossy(*arguments: Any, **options: Any) -> Any:
        receive(*arguments, **options)
        raise redis.ConnectionError("the reply was lost")

    link.receive = lossy
    app.links.give(link)


@pytest.mark.timeout(3600)
def test_crashes(own_redis: "OwnRedisFactory", tmp_path: Path) -> None:
    """Reads and SQL equal a dict, whatever was written and whoever was killed."""
    # Without fsync each write is with the operating system before its reply; with everysec not always.
    server = own_redis({"appendfsync": "no"}, binary=servers.newest_redis_binary())
    assert isinstance(server, EmbeddedRedis)
    machine: Any = lambda: Crashes(server, tmp_path)  # noqa: E731 - typed as a class, but only called
    run_state_machine_as_test(machine, settings=bounds())


def bounds() -> settings:
    """How much to try."""
    return BOUNDS["long" if os.environ.get("HYPOTHESIS_PROFILE") == "long" else "short"]
