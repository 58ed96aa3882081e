"""SQL: committed rows, transactions with row locks, and what goes wrong with them.

A session's changes are laid over the committed state and become it at the commit. The only rows that two sessions
can want at once are those of the partitions (whoever writes a user's row has locked its partition before), so these
are the only ones with locks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sqlalchemy as sa

from simulator.faults import Fault, Faults
from simulator.loop import Loop, Process
from simulator.trace import Trace

__all__ = ["Database", "DriverError", "PartitionRow", "Session", "State", "sql_error"]

Row: TypeAlias = dict[str, Any]

BEFORE = (Fault.UNSENT, Fault.STALL, Fault.KILL_BEFORE, Fault.FREEZE_BEFORE, Fault.DEADLOCK, Fault.TIMEOUT)
AFTER = (Fault.UNANSWERED, Fault.KILL_AFTER, Fault.FREEZE_AFTER)
LATE_SECONDS = 1.5
LOCK_SECONDS_MAX = 3.0
LOST = None
"""SQLSTATE of a lost connection: there is none."""


class DriverError(Exception):
    """What a driver raises.

    Attributes:
        sqlstate: the SQLSTATE, None for a connection that ended.
    """

    def __init__(self, sqlstate: str | None, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def sql_error(sqlstate: str | None, text: str) -> sa.exc.OperationalError:
    """Return an error as SQLAlchemy raises it."""
    return sa.exc.OperationalError(
        "statement", {}, DriverError(sqlstate, text), connection_invalidated=sqlstate is None
    )


@dataclass
class PartitionRow:
    """A row of ``writebehind_partitions``."""

    token: int = 0
    epoch: int = 0
    sequence: int = -1
    holder: str | None = None
    lease_until: float = 0.0
    lost_entries: int = 0
    missing_rows: int = 0
    halted: str | None = None


@dataclass
class State:
    """Everything that is committed.

    Attributes:
        partitions: offsets and leases.
        epochs: by partition and epoch, the last applied sequence and the epoch that followed.
        rewritten: by partition, epoch and sequence, lost entries that were applied in another place.
        flushers: until when each counts as alive.
        rows: users' rows by table and key text.
        appended: rows whose key the database made.
        applied: by partition, the entries applied, in the order of their commits.
    """

    partitions: dict[int, PartitionRow] = field(default_factory=dict)
    epochs: dict[tuple[int, int], tuple[int, int, str]] = field(default_factory=dict)
    rewritten: dict[tuple[int, int, int], None] = field(default_factory=dict)
    flushers: dict[str, float] = field(default_factory=dict)
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    appended: list[tuple[str, Row]] = field(default_factory=list)
    applied: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def copied(self) -> "State":
        """Return a state that later commits leave alone: rows are replaced, never changed."""
        return State(
            partitions=dict(self.partitions),
            epochs=dict(self.epochs),
            rewritten=dict(self.rewritten),
            flushers=dict(self.flushers),
            rows={name: dict(rows) for name, rows in self.rows.items()},
            appended=list(self.appended),
            applied={number: list(ids) for number, ids in self.applied.items()},
        )


class Database:
    """The server.

    Args:
        loop: the world's time.
        faults: what goes wrong at effects.
        trace: notes a line.
        partitions: how many the namespace has.
        tables: names of the users' tables.
        idle_seconds: a session that says nothing inside a transaction for so long is ended.

    Attributes:
        state: what is committed.
        up: whether the server runs.
        committed: called after each commit.
        keeps: whether older states are kept, to be rolled back to.
    """

    def __init__(
        self,
        loop: Loop,
        faults: Faults,
        trace: Trace,
        *,
        partitions: int,
        tables: Iterable[str],
        idle_seconds: float,
    ) -> None:
        self.loop = loop
        self.faults = faults
        self.trace = trace
        self.idle_seconds = idle_seconds
        self.state = State(
            partitions={number: PartitionRow() for number in range(partitions)},
            rows={name: {} for name in tables},
            applied={number: [] for number in range(partitions)},
        )
        self.up = True
        self.keeps = False
        self.rollbacks = 0
        self.committed: Callable[[Session], None] = lambda _: None
        self._locks: dict[int, Session] = {}
        self._sessions: list[Session] = []
        self._earlier: list[State] = []

    def session(self, process: Process) -> "Session":
        """Begin a transaction on a connection of its own.

        Raises:
            OperationalError: the server does not answer.
        """
        self.loop.effect()
        if not self.up:
            raise sql_error("57P03", "the database system is starting up")
        session = Session(self, process)
        self._sessions.append(session)
        process.at_death.append(session.end)
        return session

    def lock(self, session: "Session", number: int) -> None:
        """Wait for a partition's row."""
        loop = self.loop
        until = loop.now + LOCK_SECONDS_MAX
        while self.locked(number, session):
            holder = self._locks[number]
            wait = min(until, holder.idle_until()) - loop.now
            if wait <= 0:
                if loop.now >= until:
                    session.end()
                    raise sql_error("55P03", "lock timeout")
                holder.end()
                continue
            loop.wait_for(lambda: not self.locked(number, session) or not session.open, wait)
            session.check()
        self._locks[number] = session
        session.locked.add(number)

    def locked(self, number: int, session: "Session | None" = None) -> bool:
        """Tell whether another session has a partition's row."""
        holder = self._locks.get(number)
        if holder is None or holder is session:
            return False
        if holder.idle_until() <= self.loop.now:
            holder.end()
            return False
        return True

    def apply(self, session: "Session") -> None:
        """Make a session's changes the committed state."""
        if self.keeps:
            self._earlier.append(self.state.copied())
        session.lay_over(self.state)
        self.committed(session)

    def forget(self, session: "Session") -> None:
        """Free what a session has locked."""
        for number in session.locked:
            if self._locks.get(number) is session:
                del self._locks[number]
        session.locked.clear()
        if session in self._sessions:
            self._sessions.remove(session)

    def stop(self) -> None:
        """End the server: what is not committed is gone."""
        self.up = False
        for session in list(self._sessions):
            session.end()

    def start(self) -> None:
        """Start it again."""
        self.up = True

    def roll_back_to(self, commits: int) -> int:
        """Go back by so many commits, as a restored backup does; return how many it were."""
        self.stop()
        commits = min(commits, len(self._earlier))
        if commits:
            self.state = self._earlier[-commits]
            del self._earlier[-commits:]
            self.rollbacks += 1
        return commits


class Session:
    """A connection with its transaction.

    Attributes:
        open: whether the transaction can go on.
        locked: partitions whose rows it has locked.
        partitions, rows, appended, epochs, rewritten, applied: what it changes.
        notes: whatever the transaction's owner wants to tell the judge.
    """

    def __init__(self, database: Database, process: Process) -> None:
        self.database = database
        self.process = process
        self.open = True
        self.locked: set[int] = set()
        self.partitions: dict[int, PartitionRow] = {}
        self.rows: dict[tuple[str, str], Row | None] = {}
        self.appended: list[tuple[str, Row]] = []
        self.epochs: dict[tuple[int, int], tuple[int, int, str]] = {}
        self.rewritten: dict[tuple[int, int, int], None] = {}
        self.applied: dict[int, list[tuple[int, int]]] = {}
        self.notes: dict[str, Any] = {}
        self._spoke_at = database.loop.now
        self._busy = 0
        self._left = False

    def partition(self, number: int) -> PartitionRow:
        """Return a partition's row, to be changed; the session must have it locked."""
        row = self.partitions.get(number)
        if row is None:
            row = self.partitions[number] = PartitionRow(**vars(self.database.state.partitions[number]))
        return row

    def row(self, table: str, key: str) -> Row | None:
        """Return a user's row as this session sees it."""
        if (table, key) in self.rows:
            return self.rows[table, key]
        return self.database.state.rows[table].get(key)

    def lay_over(self, state: State) -> None:
        """Make the changes."""
        state.partitions.update(self.partitions)
        state.epochs.update(self.epochs)
        state.rewritten.update(self.rewritten)
        state.appended += self.appended
        for (table, key), row in self.rows.items():
            if row is None:
                state.rows[table].pop(key, None)
            else:
                state.rows[table][key] = row
        for number, ids in self.applied.items():
            state.applied[number] += ids

    def idle_until(self) -> float:
        """Return when the server ends the session because it says nothing."""
        return float("inf") if self._busy else self._spoke_at + self.database.idle_seconds

    def check(self) -> None:
        """Find out whether the server has ended the session.

        Raises:
            OperationalError: it has.
        """
        if self.open and self.idle_until() <= self.database.loop.now:
            self.end()
        if not self.open:
            raise sql_error(LOST, "the connection has ended")

    def statement(self, what: str, do: Callable[[], Any]) -> Any:
        """Execute a statement, or something else.

        Raises:
            OperationalError: something else.
        """
        database = self.database
        fault = self._before(what, BEFORE + AFTER)
        self._busy += 1
        try:
            reply = do()
        finally:
            self._busy -= 1
            self._spoke_at = database.loop.now
        self._after(fault)
        if database.trace.on:
            note = database.trace.routine if what.startswith(("renew", "held", "note")) else database.trace
            note(f"{self.process.name} -> sql: {what} => {reply}")
        return reply

    def commit(self) -> None:
        """Commit.

        Raises:
            OperationalError: nobody knows.
        """
        database, loop = self.database, self.database.loop
        fault = self._before("COMMIT", (*BEFORE[:-1], *AFTER, Fault.LATE))
        if fault is Fault.LATE:
            self._busy += 1
            self._left = True
            loop.spawn(Process("network"), "late", self._commit_late)
            raise sql_error(LOST, "the connection timed out")
        self._commit()
        self._after(fault)
        if database.trace.on:
            note = database.trace if self.applied else database.trace.routine
            note(f"{self.process.name} -> sql: COMMIT")

    def _commit(self) -> None:
        self.database.apply(self)
        self.end()

    def _commit_late(self) -> None:
        self.database.loop.sleep(LATE_SECONDS)
        if self.open:
            self.database.trace(f"{self.process.name} -> sql, late: COMMIT")
            self._commit()

    def end(self) -> None:
        """Roll back what is not committed. Repeat: harmless."""
        self.open = False
        self.database.forget(self)

    def leave(self) -> None:
        """End it from the client's side, which the server learns at once unless the commit is still on its way."""
        if self.process.alive and not self._left:
            self.end()

    def _before(self, what: str, possible: tuple[Fault, ...]) -> Fault:
        database, loop, process = self.database, self.database.loop, self.process
        loop.effect()
        self.check()
        self._spoke_at = loop.now
        fault = database.faults.at(possible)
        if fault is not Fault.NONE:
            database.trace(f"FAULT {process.name}: {what}: {fault.value}")
        match fault:
            case Fault.UNSENT:
                self.end()
                raise sql_error(LOST, "the connection was reset")
            case Fault.DEADLOCK:
                self.end()
                raise sql_error("40P01", "deadlock detected")
            case Fault.TIMEOUT:
                self.end()
                raise sql_error("57014", "canceling statement due to statement timeout")
            case Fault.STALL:
                self._busy += 1
                loop.sleep(database.faults.seconds())
                self._busy -= 1
                self.check()
            case Fault.KILL_BEFORE:
                self.end()
                loop.kill(process)
            case Fault.FREEZE_BEFORE:
                self._freeze()
            case _:
                pass
        return fault

    def _after(self, fault: Fault) -> None:
        match fault:
            case Fault.UNANSWERED:
                self.end()
                raise sql_error(LOST, "the connection was reset by the peer")
            case Fault.KILL_AFTER:
                self.end()
                self.database.loop.kill(self.process)
            case Fault.FREEZE_AFTER:
                self._freeze()
            case _:
                pass

    def _freeze(self) -> None:
        loop = self.database.loop
        self.process.frozen_until = loop.now + self.database.faults.seconds()
        loop.effect()
        self.check()
