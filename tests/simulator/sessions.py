"""Connections to SQL, each with its transaction, and what goes wrong at their statements."""

import contextlib
import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from simulator.faults import Fault
from simulator.loop import Process
from simulator.tables import LOST, PartitionRow, Row, State, sql_error

if TYPE_CHECKING:
    from simulator.database import Database

__all__ = ["Session"]

BEFORE = (Fault.UNSENT, Fault.STALL, Fault.KILL_BEFORE, Fault.FREEZE_BEFORE, Fault.DEADLOCK, Fault.TIMEOUT)
AFTER = (Fault.UNANSWERED, Fault.KILL_AFTER, Fault.FREEZE_AFTER)
LATE_SECONDS = 1.5


class Session:
    """A connection with its transaction.

    Attributes:
        open: whether the transaction can go on.
        locked: partitions whose rows it has locked.
        partitions, rows, appended, epochs, rewritten, letters, in_doubt: what it changes.
        applied: by partition, the entries that the offset moves over.
        notes: whatever the transaction's owner wants to tell the judge.
    """

    def __init__(self, database: "Database", process: Process) -> None:
        self.database = database
        self.process = process
        self.open = True
        self.locked: set[int] = set()
        self.partitions: dict[int, PartitionRow] = {}
        self.rows: dict[tuple[str, str], Row | None] = {}
        self.appended: list[tuple[str, Row]] = []
        self.epochs: dict[tuple[int, int], tuple[int, int, str]] = {}
        self.rewritten: dict[tuple[int, int, int], None] = {}
        self.in_doubt: dict[tuple[int, int, int], None] = {}
        self.letters: dict[tuple[int, int], Row | None] = {}
        self.applied: dict[int, list[tuple[int, int]]] = {}
        self.notes: dict[str, Any] = {}
        self._spoke_at = database.loop.now
        self._busy = 0
        self._left = False
        self._savepoint: tuple[Any, ...] | None = None

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

    def table(self, name: str) -> dict[str, Row]:
        """Return a table's rows as this session sees them."""
        keys = {*self.database.state.rows[name], *(key for table, key in self.rows if table == name)}
        return {key: row for key in sorted(keys) if (row := self.row(name, key)) is not None}

    def letters_of(self, partition: int) -> dict[int, Row]:
        """Return a partition's dead letters as this session sees them, in their order."""
        found: dict[tuple[int, int], Row | None] = {**self.database.state.letters, **self.letters}
        ordered = sorted(place for (number, place), letter in found.items() if number == partition and letter)
        return {place: letter for place in ordered if (letter := found[partition, place])}

    def exec_driver_sql(self, statement: str) -> None:
        """Set a savepoint, return to it, or keep what was done since.

        Raises:
            OperationalError: the transaction has ended.
        """
        if statement.startswith("SAVEPOINT "):
            self._savepoint = self._changes()
        elif statement.startswith("ROLLBACK TO SAVEPOINT "):
            self.statement("ROLLBACK TO savepoint", self._undo)
        else:
            self._savepoint = None

    def _changes(self) -> tuple[Any, ...]:
        changed = (self.partitions, self.rows, self.appended, self.epochs, self.rewritten, self.in_doubt, self.letters)
        return copy.deepcopy(changed)

    def _undo(self) -> None:
        if self._savepoint is None:
            raise sql_error("3B001", "the savepoint does not exist")
        kept = copy.deepcopy(self._savepoint)
        (self.partitions, self.rows, self.appended, self.epochs, self.rewritten, self.in_doubt, self.letters) = kept

    def lay_over(self, state: State) -> None:
        """Make the changes."""
        state.partitions.update(self.partitions)
        state.epochs.update(self.epochs)
        state.rewritten.update(self.rewritten)
        state.in_doubt.update(self.in_doubt)
        state.appended += self.appended
        for (table, key), row in self.rows.items():
            if row is None:
                state.rows[table].pop(key, None)
            else:
                state.rows[table][key] = row
        for at, letter in self.letters.items():
            if letter is None:
                state.letters.pop(at, None)
            else:
                state.letters[at] = letter

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
            with contextlib.suppress(sa.exc.IntegrityError):  # nobody hears of it
                self._commit()

    def end(self) -> None:
        """Roll back what is not committed. Repeat: harmless."""
        self.open = False
        self.database.forget(self)

    def leave(self) -> None:
        """End it from the client's side, which the server learns at once unless the commit is still on its way."""
        if self.process.alive and not self._left:
            self.end()

    rollback = close = leave

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
