"""What a service does all day: writes of every kind, each journaled before it is sent and after it was answered."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from writebehind.drills.journal import Acknowledged, Intent, Journal, Kind, Refused, Unknown
from writebehind.drills.tables import accounts, counters, lists, records, sets
from writebehind.engine import (
    BacklogFull,
    Batch,
    Receipt,
    RedisUnavailable,
    ValidationError,
    WriteBehind,
    WriteBehindError,
)

__all__ = ["ACCOUNTS", "BANKS", "COUNTERS", "OPENING_BALANCE", "Workload", "until_stopped"]

BANKS, ACCOUNTS, OPENING_BALANCE = 8, 5, 1_000
COUNTERS = 24
LISTS, RECORDS = 6, 12
"""Of each thread, its own: so the order of what happens to one is certain."""
REFUSALS = (RedisUnavailable, BacklogFull, ValidationError)
"""Errors that say that nothing was written."""
WEIGHTS: dict[Kind, int] = {Kind.SET: 5, Kind.LIST: 4, Kind.COUNT: 4, Kind.PUT: 5, Kind.TRANSFER: 2}
BATCH_WEIGHTS: dict[Kind, int] = {kind: weight for kind, weight in WEIGHTS.items() if kind is not Kind.TRANSFER}
THREADS_MAX = 10
NUMBERS_PER_THREAD = 10_000_000


@dataclass(slots=True)
class _Record:
    """What a thread believes of one of its records."""

    version: int = 0
    born: int = 0
    there: bool = False
    certain: bool = False


@dataclass(slots=True)
class _Planned:
    """An operation that is being sent."""

    number: int
    kind: Kind
    arguments: tuple[int, ...]
    receipt: Receipt | None = None


@dataclass(slots=True)
class _Own:
    """What only one thread writes to."""

    positions: list[int] = field(default_factory=lambda: [0] * LISTS)
    records: list[_Record] = field(default_factory=lambda: [_Record() for _ in range(RECORDS)])


class Workload:
    """One thread's part of the load.

    Args:
        app: the engine; every write waits for its durability level.
        journal: where everything is written down.
        run: number of the writer process, from 1: operations, lists and records of different ones never meet.
        thread: number of the thread, from 0.
        seed: decides what is written.
    """

    def __init__(self, app: WriteBehind, journal: Journal, *, run: int, thread: int, seed: int) -> None:
        self._app = app
        self._journal = journal
        self._chance = random.Random(f"{seed} {run} {thread}")  # noqa: S311 - a load, not a secret
        self._base = run * THREADS_MAX + thread
        self._number = self._base * NUMBERS_PER_THREAD
        self._own = _Own()

    def singles(self, stopping: threading.Event, per_second: float) -> None:
        """Write one by one until told to stop, about so many a second."""
        due = time.monotonic()
        while not stopping.is_set():
            self.write_one()
            due = self._pace(stopping, due, 1 / per_second)

    def batches(self, stopping: threading.Event, size: int, per_second: float) -> None:
        """Write batches until told to stop, about so many a second."""
        due = time.monotonic()
        while not stopping.is_set():
            self.write_batch(size)
            due = self._pace(stopping, due, 1 / per_second)

    def write_one(self) -> None:
        """Do one operation."""
        planned = self._plan(self._draw(WEIGHTS))
        self._intend([planned])
        try:
            planned.receipt = self._send(planned)
        except WriteBehindError as error:
            self._conclude([planned], error)
        else:
            self._conclude([planned], None)

    def write_batch(self, size: int) -> None:
        """Do so many operations in one batch."""
        planned = [self._plan(self._draw(BATCH_WEIGHTS)) for _ in range(size)]
        self._intend(planned)
        failed: WriteBehindError | None = None
        try:
            with self._app.batch() as batch:
                for each in planned:
                    each.receipt = _write(batch, each)
        except WriteBehindError as error:
            failed = error
        self._conclude(planned, failed)

    def _pace(self, stopping: threading.Event, due: float, interval: float) -> float:
        due += interval
        ahead = due - time.monotonic()
        if ahead > 0:
            stopping.wait(ahead)
            return due
        return time.monotonic()  # no haste to make up for an outage

    def _draw(self, weights: dict[Kind, int]) -> Kind:
        return self._chance.choices(list(weights), weights=list(weights.values()))[0]

    def _plan(self, kind: Kind) -> _Planned:
        self._number += 1
        chance = self._chance
        arguments: tuple[int, ...] = ()
        if kind is Kind.LIST:
            index = chance.randrange(LISTS)
            arguments = (self._base * LISTS + index, self._own.positions[index])
            self._own.positions[index] += 1
        elif kind is Kind.COUNT:
            arguments = (chance.randrange(COUNTERS),)
        elif kind is Kind.TRANSFER:
            source, target = chance.sample(range(ACCOUNTS), 2)
            arguments = (chance.randrange(BANKS), source, target, chance.randrange(1, 50))
        elif kind is Kind.PUT:
            kind, arguments = self._plan_record(chance.randrange(RECORDS))
        return _Planned(self._number, kind, arguments)

    def _plan_record(self, index: int) -> tuple[Kind, tuple[int, ...]]:
        record = self._own.records[index]
        key = self._base * RECORDS + index
        record.version += 1
        choice = self._chance.random()
        if not (record.there and record.certain) or choice < 0.4:  # noqa: PLR2004 - shares of put, patch and delete
            record.there = record.certain = True
            record.born = record.version
            return Kind.PUT, (key, record.version, record.born)
        if choice < 0.9:  # noqa: PLR2004 - as above
            return Kind.PATCH, (key, record.version, record.born)
        record.there = False
        return Kind.DELETE, (key, record.version)

    def _intend(self, planned: Sequence[_Planned]) -> None:
        now = time.monotonic()
        self._journal.write(*(Intent(now, each.number, each.kind, each.arguments) for each in planned))

    def _send(self, planned: _Planned) -> Receipt:
        """Write one by itself, at the engine's own level."""
        if planned.kind is not Kind.TRANSFER:
            return _write(self._app, planned)
        bank, source, target, amount = planned.arguments
        with self._app.atomic(accounts, (bank, source)) as group:
            group.increment(accounts, (bank, source), {"balance": -amount})
            group.increment(accounts, (bank, target), {"balance": amount})
            group.insert(sets, {"op": planned.number})
        return group.receipt

    def _conclude(self, planned: Sequence[_Planned], error: WriteBehindError | None) -> None:
        """Write the outcomes down, and believe them."""
        now = time.monotonic()
        lines: list[Acknowledged | Unknown | Refused] = []
        for each in planned:
            level = None if each.receipt is None else each.receipt.durability
            accepted = level is not None
            if each.receipt is not None and level is not None and level >= self._app.durability:
                entry, where = each.receipt.entry_id, each.receipt.partition
                lines.append(Acknowledged(now, each.number, where, entry.epoch, entry.sequence, level))
                continue
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, REFUSALS) and not accepted:
                lines.append(Refused(now, each.number, text))
                self._take_back(each)
            else:
                lines.append(Unknown(now, each.number, text))
                self._doubt(each)
        self._journal.write(*lines)

    def _take_back(self, planned: _Planned) -> None:
        """Use a list's position again that was never used."""
        if planned.kind is Kind.LIST:
            number, position = planned.arguments
            index = number - self._base * LISTS
            self._own.positions[index] = min(self._own.positions[index], position)
        else:
            self._doubt(planned)

    def _doubt(self, planned: _Planned) -> None:
        if planned.kind in {Kind.PUT, Kind.PATCH, Kind.DELETE}:
            self._own.records[planned.arguments[0] - self._base * RECORDS].certain = False


def _write(target: WriteBehind | Batch, planned: _Planned) -> Receipt:
    """Do what is planned, or add it to a batch."""
    kind, given = planned.kind, planned.arguments
    if kind is Kind.SET:
        return target.insert(sets, {"op": planned.number})
    if kind is Kind.LIST:
        return target.insert(lists, {"list": given[0], "position": given[1]})
    if kind is Kind.COUNT:
        return target.increment(counters, given[0], {"n": 1})
    if kind is Kind.PUT:
        return target.put(records, {"id": given[0], "version": given[1], "born": given[2]})
    if kind is Kind.PATCH:
        return target.patch(records, given[0], {"version": given[1]})
    return target.delete(records, given[0])


def until_stopped(parts: Sequence[Callable[[], None]], stopping: threading.Event) -> None:
    """Run parts of the load side by side, until told to stop; the first that fails stops the others.

    Raises:
        BaseException: what a part has failed with.
    """
    failed: list[BaseException] = []

    def guarded(part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread that waits
            failed.append(error)
            stopping.set()

    threads = [threading.Thread(target=guarded, args=(part,), name="drill-load") for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
