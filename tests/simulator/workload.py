"""What the application does: writes of every kind, reads, and what it is told of them."""

from collections.abc import Callable
from typing import Any

from simulator.chance import Chance
from simulator.judge import Judge
from simulator.loop import Loop, Process
from simulator.records import Write
from simulator.schema import accounts, counters, events
from simulator.trace import Trace
from writebehind.engine import (
    BacklogFull,
    ConfigurationError,
    DatabaseUnavailable,
    DataLossDetected,
    Durability,
    DurabilityTimeout,
    ReadTimeout,
    RedisUnavailable,
    ValidationError,
    WriteBehind,
    WriteOutcomeUnknown,
)
from writebehind.engine.core.partitioning import partition_of

__all__ = ["Application"]

RECORDS = {"accounts": (accounts, "balance"), "counters": (counters, "hits")}
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
        self._trace = trace
        self._receipts: list[Any] = []

    def run(self, operations: int) -> None:
        """Do so many things, one after the other."""
        for _ in range(operations):
            match self._chance.pick((3, 40, 10, 8, 22, 18)):
                case 0:
                    pass
                case 1:
                    self._write("write", self._one)
                case 2:
                    self._write("batch", self._batch)
                case 3:
                    self._write("group", self._group)
                case 4:
                    self.get(*self._record())
                case _:
                    self._loop.sleep(0.01 * 4 ** self._chance.below(5))

    # Writing

    def _record(self) -> tuple[str, int]:
        return ("accounts", "counters")[self._chance.below(2)], 1 + self._chance.below(self._keys)

    def _add(self, writer: Any, table: str, key: int, write: Write) -> None:
        """Add one write of a record."""
        declared, number = RECORDS[table]
        value = self._number()
        receipt: Any
        match self._chance.pick((40, 30, 12, 10, 8)):
            case 0:
                write.what += f" increment {table} {key} by {value};"
                receipt = writer.increment(declared, key, {number: value})
            case 1:
                row = {"id": key, number: value, "note": f"n{value}"}
                if table == "accounts":
                    row["owner"] = f"o{value}"
                write.what += f" put {table} {row};"
                receipt = writer.put(declared, row)
            case 2:
                write.what += f" patch {table} {key} note n{value};"
                receipt = writer.patch(declared, key, {"note": f"n{value}"})
            case 3:
                write.what += f" delete {table} {key};"
                receipt = writer.delete(declared, key)
            case _:
                write.what += f" insert event {value};"
                receipt = writer.insert(events, {"kind": str(value)})
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
        except (WriteOutcomeUnknown, DurabilityTimeout, DataLossDetected):
            # The latter two where the write was let through on condition that it waits for SQL.
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
        except (DurabilityTimeout, DataLossDetected, *REFUSED):
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

    # Reading

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
