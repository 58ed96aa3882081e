"""SQL: committed rows, transactions with row locks, and what goes wrong with them.

A session's changes are laid over the committed state and become it at the commit. The only rows that two sessions
can want at once are those of the partitions (whoever writes a user's row has locked its partition before), so these
are the only ones with locks.
"""

from collections.abc import Callable, Iterable

import sqlalchemy as sa

from simulator.constraints import Constraints, refused
from simulator.faults import Faults
from simulator.loop import Loop, Process
from simulator.sessions import Session
from simulator.tables import PartitionRow, Row, State, sql_error
from simulator.trace import Trace

__all__ = ["Database"]

LOCK_SECONDS_MAX = 3.0


class Database:
    """The server.

    Args:
        loop: the world's time.
        faults: what goes wrong at effects.
        trace: notes a line.
        partitions: how many the namespace has.
        tables: names of the users' tables.
        idle_seconds: a session that says nothing inside a transaction for so long is ended.
        constraints: what refuses rows, if anything does.

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
        constraints: Constraints | None = None,
    ) -> None:
        self.loop = loop
        self.faults = faults
        self.trace = trace
        self.idle_seconds = idle_seconds
        self.constraints = constraints
        self.state = State(
            partitions={number: PartitionRow() for number in range(partitions)},
            rows={name: {} for name in tables},
        )
        self.up = True
        self.keeps = False
        self.rollbacks = 0
        self.committed: Callable[[Session], None] = lambda _: None
        self._locks: dict[int, Session] = {}
        self._sessions: list[Session] = []
        self._earlier: list[State] = []
        self._alone: int | None = None

    def now_ms(self) -> int:
        """Return the server's clock, which is never 0."""
        return 1 + int(self.loop.now * 1000)

    def session(self, process: Process) -> Session:
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

    def lock(self, session: Session, number: int) -> None:
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

    def check_foreign_keys(self, session: Session) -> None:
        """Look whether a session has left a row without its parent.

        Raises:
            IntegrityError: it has.
            OperationalError: another transaction is about to change what that depends on.
        """
        if self.constraints is None:
            return
        orphan = self.constraints.orphan(session.rows, session.row, session.table)
        if orphan is not None:
            raise refused("23503", orphan)
        if self.constraints.deferred:
            return
        for other in list(self._sessions):
            if other.idle_until() <= self.loop.now:
                other.end()
                continue
            together = {**session.rows, **other.rows}

            def row(table: str, key: str, together: dict[tuple[str, str], Row | None] = together) -> Row | None:
                return together[table, key] if (table, key) in together else session.row(table, key)

            def rows(table: str, together: dict[tuple[str, str], Row | None] = together) -> dict[str, Row]:
                keys = {*session.table(table), *(key for name, key in together if name == table)}
                return {key: found for key in keys if (found := row(table, key)) is not None}

            if other is not session and other.rows and self.constraints.orphan(together, row, rows) is not None:
                session.end()
                raise sql_error("55P03", "lock timeout")

    def apply(self, session: Session) -> None:
        """Make a session's changes the committed state.

        Raises:
            IntegrityError: a foreign key refuses them; nothing has changed.
        """
        if self.constraints is not None and self.constraints.deferred:
            try:
                self.check_foreign_keys(session)
            except sa.exc.IntegrityError:
                session.end()
                raise
        if self.keeps:
            if session.letters and not any(session.applied.values()):
                self._alone = len(self._earlier)
            self._earlier.append(self.state.copied())
        session.lay_over(self.state)
        self.committed(session)

    def forget(self, session: Session) -> None:
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

    def commits_since_letters(self) -> int:
        """Return by how many commits to go back to undo the last one that moved letters and no offset; 0 for none."""
        return 0 if self._alone is None else len(self._earlier) - self._alone

    def roll_back_to(self, commits: int) -> int:
        """Go back by so many commits, as a restored backup does; return how many it were."""
        self.stop()
        commits = min(commits, len(self._earlier))
        if commits:
            self.state = self._earlier[-commits]
            del self._earlier[-commits:]
            self._alone = None
            self.rollbacks += 1
        return commits
