"""What the judge keeps: entries, writes, reads, and what must not have been."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from simulator.loop import Process, Stop
from simulator.redis_keyspace import StreamID
from writebehind.engine import Durability

__all__ = ["Entry", "Place", "Violation", "Watch", "Write"]

Place: TypeAlias = tuple[int, StreamID]
"""A partition and an entry ID: names an entry for ever."""


class Violation(Stop):
    """Something that must not be.

    Attributes:
        rule: the invariant, in a word.
        text: what was seen.
    """

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(rule, text)
        self.rule = rule
        self.text = text

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass(slots=True)
class Entry:
    """An entry that a Redis once accepted.

    Attributes:
        mutation: its mutation ID.
        payload: what it does.
        original: the entry that it repeats, where it was written again.
        doubts: where attempts were lost with their histories, an entry of each that was lost with it: if SQL has one of
            these, it may have the attempt, and the entry is passed over, which is told.
        lost: what took it from Redis, if something did.
    """

    mutation: str
    payload: bytes
    original: StreamID | None
    doubts: Sequence[StreamID]
    lost: str | None = None


@dataclass(slots=True, eq=False)
class Write:
    """A call of the application, which may be of several entries.

    Attributes:
        what: for the trace.
        process: whose it is.
        calls: the call IDs that it used.
        accepted: mutation ID, partition and entry of what it got a receipt for.
        level: what was promised of them.
        meant: where it is about a dead letter, that one's mutation ID.
        outcome: ``pending``, ``accepted``, ``refused``, ``unknown``.
    """

    what: str
    process: Process
    calls: list[str]
    accepted: list[tuple[str, int, StreamID]] = field(default_factory=list)
    level: Durability = Durability.ACCEPTED
    meant: str | None = None
    outcome: str = "pending"


@dataclass(slots=True, eq=False)
class Watch:
    """A read that is under way.

    Attributes:
        partition, table, key: what is read.
        possible: what it may return.
        void: something happened through which nothing is promised.
    """

    partition: int
    table: str
    key: str
    possible: list[dict[str, Any] | None]
    void: bool = False
