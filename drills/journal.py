"""The journal: what a writer meant to do, written before it does it, and what became of it.

One JSON array a line. A line is one ``write`` to the file, so a writer that is killed leaves whole lines, and an
intent without an outcome: nobody knows whether that operation took effect.
"""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from writebehind.engine.core.positions import EntryID

__all__ = ["Acknowledged", "Ended", "Intent", "Journal", "Kind", "Line", "LossReport", "Operation", "Outcome"]
__all__ += ["Refused", "Tail", "Unknown", "operations", "read"]


class Kind(Enum):
    """What an operation does; ``arguments`` of an operation are whole numbers.

    SET: insert a row that carries the operation's number. LIST: append to a list (list, position). COUNT: add 1
    to a counter (counter). PUT, PATCH: write a record (record, version, version of its put). DELETE: delete it
    (record, version). TRANSFER: one atomic group (bank, from account, to account, amount) with a row like SET's.
    """

    SET = "set"
    LIST = "list"
    COUNT = "count"
    PUT = "put"
    PATCH = "patch"
    DELETE = "delete"
    TRANSFER = "transfer"


class Outcome(Enum):
    """What the writer was told."""

    ACKNOWLEDGED = auto()
    INDETERMINATE = auto()
    REFUSED = auto()


class Intent(msgspec.Struct, array_like=True, tag="i", frozen=True):
    """An operation is about to be sent. Times are seconds on the machine's monotonic clock, in every line."""

    at: float
    op: int
    kind: Kind
    arguments: tuple[int, ...]


class Acknowledged(msgspec.Struct, array_like=True, tag="a", frozen=True):
    """An operation has a receipt of the level asked for."""

    at: float
    op: int
    partition: int
    epoch: int
    sequence: int
    level: int


class Unknown(msgspec.Struct, array_like=True, tag="u", frozen=True):
    """An operation failed, and may have taken effect."""

    at: float
    op: int
    error: str


class Refused(msgspec.Struct, array_like=True, tag="r", frozen=True):
    """An operation was refused, and has no effect."""

    at: float
    op: int
    error: str


class LossReport(msgspec.Struct, array_like=True, tag="l", frozen=True):
    """The engine has told the writer that acknowledged entries are lost."""

    at: float
    partition: int
    entries: int
    text: str


class Ended(msgspec.Struct, array_like=True, tag="e", frozen=True):
    """The writer ended as it should."""

    at: float


Line = Intent | Acknowledged | Unknown | Refused | LossReport | Ended


@dataclass(slots=True)
class Operation:
    """One operation and what became of it.

    Attributes:
        number: unique over all writers of a drill.
        kind: what it does.
        arguments: to what.
        began: when it was sent.
        ended: when the writer heard of it; None where it never did.
        outcome: what it heard; INDETERMINATE where it heard nothing.
        partition: where it was accepted.
        entry: its entry, where it was acknowledged.
        level: the durability level of the receipt.
    """

    number: int
    kind: Kind
    arguments: tuple[int, ...]
    began: float
    ended: float | None = None
    outcome: Outcome = Outcome.INDETERMINATE
    partition: int = -1
    entry: EntryID | None = None
    level: int = 0

    @property
    def acknowledged(self) -> bool:
        """Whether the writer was told that it is safe."""
        return self.outcome is Outcome.ACKNOWLEDGED


class Journal:
    """A journal being written; safe to share between threads.

    Args:
        path: the file; an existing one is continued.

    Durability: a line survives the writer's process, not the machine.
    """

    def __init__(self, path: Path) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *lines: Line) -> None:
        """Append lines, in one piece."""
        os.write(self._file, b"".join(self._encode(line) + b"\n" for line in lines))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def end(self) -> None:
        """Note that the writer ends as it should."""
        self.write(Ended(time.monotonic()))


class Tail:
    """What is appended to a journal from now on.

    Args:
        path: the journal.
    """

    def __init__(self, path: Path) -> None:
        self._decode = msgspec.json.Decoder(Line).decode
        self._path = path
        with path.open("rb") as file:
            # A line that is being written may be there in part: it is not from now on.
            before = file.read()
        self._at = before.rfind(b"\n") + 1
        self._torn = self._at < len(before)
        self._rest = b""

    def new(self) -> list[Line]:
        """Return the lines that were appended since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at += len(data)
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        lines = whole.split(b"\n")
        if newline and self._torn:
            self._torn = False
            del lines[0]
        return [self._decode(line) for line in lines if line]


def read(paths: Iterable[Path]) -> list[Line]:
    """Read journals, one after the other. A last line that is torn is left out.

    Raises:
        msgspec.MsgspecError: another line cannot be read.
    """
    decode = msgspec.json.Decoder(Line).decode
    lines: list[Line] = []
    for path in paths:
        whole, _, _torn = path.read_bytes().rpartition(b"\n")
        lines += [decode(line) for line in whole.split(b"\n") if line]
    return lines


def operations(lines: Sequence[Line]) -> list[Operation]:
    """Join intents with their outcomes, in the order of the intents.

    Raises:
        ValueError: an outcome without an intent, or two outcomes of one operation.
    """
    known: dict[int, Operation] = {}
    for line in lines:
        match line:
            case Intent(at, op, kind, arguments):
                if op in known:
                    raise ValueError(f"operation {op} is meant twice")
                known[op] = Operation(op, kind, arguments, at)
            case Acknowledged(at, op, partition, epoch, sequence, level):
                done = _finish(known, op, at, Outcome.ACKNOWLEDGED)
                done.partition, done.entry, done.level = partition, EntryID(epoch, sequence), level
            case Unknown(at, op, _):
                _finish(known, op, at, Outcome.INDETERMINATE)
            case Refused(at, op, _):
                _finish(known, op, at, Outcome.REFUSED)
            case _:
                pass
    return list(known.values())


def _finish(known: dict[int, Operation], op: int, at: float, outcome: Outcome) -> Operation:
    operation = known.get(op)
    if operation is None or operation.ended is not None:
        raise ValueError(f"the outcome of operation {op} does not follow its intent")
    operation.ended, operation.outcome = at, outcome
    return operation
