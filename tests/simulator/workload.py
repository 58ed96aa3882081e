"""What the application does: writes of every kind, reads, and what it is told of them."""

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from simulator.chance import Chance
from simulator.constraints import BAD
from simulator.judge import Judge
from simulator.letters import seen
from simulator.loop import Loop, Process
from simulator.records import Write
from simulator.schema import accounts, counters, events, orders
from simulator.trace import Trace
from writebehind.engine import (
    BacklogFull,
    ConfigurationError,
    DatabaseUnavailable,
    DataLossDetected,
    Durability,
    DurabilityTimeout,
    PoisonEntryError,
    ReadTimeout,
    RedisUnavailable,
    ValidationError,
    WriteBehind,
    WriteOutcomeUnknown,
)
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.payload import Op
from writebehind.recovery.dead_letters import _letter as letter_of
from writebehind.recovery.letters import DeadLetter, LetterState
from writebehind.recovery.resolving import discard, replay

__all__ = ["Application"]

RECORDS = {"accounts": (accounts, "balance"), "counters": (counters, "hits"), "orders": (orders, "amount")}
BAD_SHARE = 0.15
BAD_HITS = 600_000
"""Twice this is more than a counter may have."""
REFUSED = (RedisUnavailable, BacklogFull, ValidationError, ConfigurationError)
PASSING = (ReadTimeout, RedisUnavailable, DatabaseUnavailable)


class Application:
    """One writing process.

    Args:
        app: its engine.
        process: where it runs.
        loop: the world's time.
        chance: decides what it does.
        judge: is told.
        keys: how many records of each table there are.
        levels: durability levels that it may ask for.
        numbers: gives a number that was never given.
        refuses: whether SQL refuses rows, some of which are to be written, and letters to be resolved.
        reads_several: whether it reads several records at once, too.
        trace: notes a line.
    """

    def __init__(
        self,
        app: WriteBehind,
        process: Process,
        loop: Loop,
        chance: Chance,
        judge: Judge,
        *,
        keys: int,
        levels: list[Durability],
        numbers: Callable[[], int],
        refuses: bool,
        reads_several: bool,
        trace: Trace,
    ) -> None:
        self._app = app
        self._process = process
        self._loop = loop
        self._chance = chance
        self._judge = judge
        self._keys = keys
        self._levels = levels
        self._number = numbers
        self._refuses = refuses
        self._several_share = 0.2 if reads_several else 0.0
        self._trace = trace
        self._receipts: list[Any] = []

    def run(self, operations: int) -> None:
        """Do so many things, one after the other."""
        for _ in range(operations):
            match self._chance.pick((3, 40, 10, 8, 22, 18, 10 if self._refuses else 0)):
                case 0:
                    pass
                case 1:
                    self._write("write", self._one)
                case 2:
                    self._write("batch", self._batch)
                case 3:
                    self._write("group", self._group)
                case 4:
                    self._read()
                case 6:
                    self._resolve_one()
                case _:
                    self._loop.sleep(0.01 * 4 ** self._chance.below(5))

    # Writing

    def _record(self) -> tuple[str, int]:
        tables = ("accounts", "counters", "orders") if self._refuses else ("accounts", "counters")
        return tables[self._chance.below(len(tables))], 1 + self._chance.below(self._keys)

    def _is_bad(self) -> bool:
        return self._refuses and self._chance.happens(BAD_SHARE)

    def _add(self, writer: Any, table: str, key: int, write: Write) -> None:
        """Add one write of a record."""
        declared, number = RECORDS[table]
        value = self._number()
        note = f"{BAD if self._is_bad() else 'n'}{value}"
        receipt: Any
        match self._chance.pick((40, 30, 12, 10, 8)):
            case 0:
                if table == "counters" and note.startswith(BAD):
                    value += BAD_HITS
                write.what += f" increment {table} {key} by {value};"
                receipt = writer.increment(declared, key, {number: value})
            case 1:
                row = {"id": key, number: value, "note": note}
                if table == "accounts":
                    row["owner"] = f"o{value}"
                elif table == "orders":
                    row["account"] = 1 + self._chance.below(self._keys)
                write.what += f" put {table} {row};"
                receipt = writer.put(declared, row)
            case 2:
                values: dict[str, Any] = {"note": note}
                if table == "orders" and self._chance.happens(0.5):
                    values = {"account": 1 + self._chance.below(self._keys)}
                write.what += f" patch {table} {key} {values};"
                receipt = writer.patch(declared, key, values)
            case 3:
                write.what += f" delete {table} {key};"
                receipt = writer.delete(declared, key)
            case _:
                write.what += f" insert event {note};"
                receipt = writer.insert(events, {"kind": note})
        if receipt is not None:
            self._receipts.append(receipt)

    def _one(self, write: Write) -> None:
        self._add(self._app, *self._record(), write)

    def _batch(self, write: Write) -> None:
        with self._app.batch() as batch:
            for _ in range(self._chance.up_to(1, 5)):
                self._add(batch, *self._record(), write)

    def _group(self, write: Write) -> None:
        table, key = self._record()
        home = self._partition(key)
        near = [each for each in range(1, self._keys + 1) if self._partition(each) == home]
        with self._app.atomic(RECORDS[table][0], key) as group:
            self._receipts.append(group.receipt)
            for _ in range(self._chance.up_to(1, 3)):
                self._add(group, table, key, write)
                table, key = self._record()[0], near[self._chance.below(len(near))]

    def _partition(self, key: int) -> int:
        return partition_of(str(key), self._app.keys.partitions)

    def _write(self, what: str, do: Callable[[Write], None]) -> None:
        task = self._loop.running()
        write = Write(f"{self._process.name}: {what}", self._process, task.notes.setdefault("calls", []))
        self._judge.writes.append(write)
        self._receipts = []
        level = self._levels[self._chance.below(len(self._levels))]
        try:
            do(write)
            write.outcome = "accepted"
        except (WriteOutcomeUnknown, DurabilityTimeout, DataLossDetected, PoisonEntryError):
            # All but the first where the write was let through on condition that it waits for SQL.
            write.outcome = "unknown"
        except REFUSED as error:
            write.outcome = "refused"
            write.what += f" [{type(error).__name__}]"
        finally:
            task.notes["calls"] = []
        receipts = [receipt for receipt in self._receipts if receipt.durability is not None]
        write.accepted = [(each.mutation_id, each.partition, tuple(each.entry_id)) for each in receipts]
        self._trace(f"{write.what}: {write.outcome} {[str(each.entry_id) for each in receipts]}")
        if write.outcome == "accepted" and level is not Durability.ACCEPTED:
            self._wait(write, level)

    def _wait(self, write: Write, level: Durability) -> None:
        try:
            for receipt in self._receipts:
                receipt.wait(level, 3.0)
        except (DurabilityTimeout, DataLossDetected, PoisonEntryError, *REFUSED):
            return
        write.level = level
        if level is Durability.PERSISTED:
            for _, partition, entry in write.accepted:
                self._judge.promised(partition, entry)

    def increment(self, table: str, key: int) -> bool:
        """Add to a record; tell whether that was not refused for the backlog."""
        declared, number = RECORDS[table]

        def add(write: Write) -> None:
            value = self._number()
            write.what += f" increment {table} {key} by {value};"
            self._receipts.append(self._app.increment(declared, key, {number: value}))

        self._write("write", add)
        return BacklogFull.__name__ not in self._judge.writes[-1].what

    # Resolving

    def _letters(self) -> list[DeadLetter]:
        """Look which letters there are; none where SQL does not answer."""
        database: Any = self._app.database

        def select() -> list[DeadLetter]:
            state, now_ms = database.database.state, database.database.now_ms()
            return [letter_of(self._app, seen({**row, "now_ms": now_ms})) for _, row in sorted(state.letters.items())]

        try:
            with database.connect() as session:
                found: list[DeadLetter] = session.statement("list letters", select)
        except sa.exc.SQLAlchemyError:
            return []
        return found

    def _resolve_one(self) -> None:
        letters = self._letters()
        if letters:
            self._resolve(letters[self._chance.below(len(letters))], self._chance.below(3))

    def resolve_all(self, *, given_up: bool) -> None:
        """Decide about every letter that SQL has refused.

        Args:
            given_up: discard them all.
        """
        letters = [letter for letter in self._letters() if letter.state is not LetterState.WAITING]
        for letter in reversed(letters):
            self._resolve(letter, 2 if given_up else self._chance.below(3))

    def _resolve(self, letter: DeadLetter, decision: int) -> None:
        """Replay a letter, correct it, or discard it."""

        def ask(write: Write) -> None:
            write.meant = letter.mutation_id
            corrections = self._corrections(letter) if decision == 1 else {}
            write.what += f" {letter.letter_id} {corrections or ('', '', 'is discarded')[decision]};"
            if decision == 2:
                self._receipts += discard(self._app, [letter])
            else:
                self._receipts += replay(self._app, [letter], corrections)

        self._write("resolve", ask)

    def _corrections(self, letter: DeadLetter) -> dict[str, Any]:
        if len(letter.changes) != 1:
            return {}
        (change,) = letter.changes
        value = self._number()
        match change.op:
            case Op.PUT | Op.PATCH if change.table == "orders" and self._chance.happens(0.5):
                return {"account": 1 + self._chance.below(self._keys), "note": f"c{value}"}
            case Op.PUT | Op.PATCH:
                return {"note": f"c{value}"}
            case Op.INCREMENT:
                return {RECORDS[change.table][1]: value}
            case Op.INSERT:
                return {"kind": f"c{value}"}
            case _:
                return {}

    # Reading

    def run_reading(self, operations: int) -> None:
        """Read so many times."""
        for _ in range(operations):
            self._read()
            self._loop.sleep(0.01 * 4 ** self._chance.below(5))

    def _read(self) -> None:
        table, key = self._record()
        if self._chance.happens(self._several_share):
            self._get_many(table, range(1, self._keys + 1))
        else:
            self.get(table, key)

    def _get_many(self, table: str, keys: Sequence[int]) -> None:
        """Read records at once."""
        watches = {key: self._judge.watch(table, str(key), self._partition(key)) for key in keys}
        try:
            found = self._app.get_many(RECORDS[table][0], keys)
        except PASSING:
            return
        else:
            for key, watch in watches.items():
                self._judge.read(watch, found[key])
        finally:
            for watch in watches.values():
                self._judge.forget(watch)

    def get(self, table: str, key: int) -> bool:
        """Read a record; tell whether that worked."""
        watch = self._judge.watch(table, str(key), self._partition(key))
        try:
            found = self._app.get(RECORDS[table][0], key)
        except PASSING:
            return False
        else:
            self._judge.read(watch, found)
            return True
        finally:
            self._judge.forget(watch)
