"""A dead letter, and which ones an operator means.

Pure. Row values are in no ``repr``; they are shown only to who asks for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from writebehind.engine.core.payload import Op
from writebehind.engine.errors import ValidationError
from writebehind.recovery.plain import plain

__all__ = ["DeadLetter", "LetterChange", "LetterCounts", "LetterFilter", "LetterID", "LetterState"]

UNREADABLE: Final = "unreadable"
"""The failure of an entry that nobody could make sense of."""


class LetterState(Enum):
    """What a letter waits for."""

    REFUSED = "refused"
    """SQL refused it: it waits for an operator."""
    RETRYING = "retrying"
    """SQL refused it for want of another row: a flusher tries it again by itself for a while."""
    WAITING = "waiting"
    """Nothing is wrong with it: it waits for an earlier one of its key."""


class LetterID(NamedTuple):
    """Which letter; as text ``<partition>-<place>``."""

    partition: int
    place: int

    @classmethod
    def parse(cls, text: str) -> "LetterID":
        """Read a letter's ID.

        Raises:
            ValidationError: it is none.
        """
        partition, _, place = text.partition("-")
        if not (partition.isdecimal() and place.isdecimal()):
            raise ValidationError(
                f"{text!r} is no letter", "name it as 'writebehind dead-letters list' does: PARTITION-PLACE, as in 3-17"
            )
        return cls(int(partition), int(place))

    def __str__(self) -> str:
        return f"{self.partition}-{self.place}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LetterChange:
    """One change that a letter holds; an atomic group holds several.

    Attributes:
        op: what it does.
        table: the entity's name.
        key_text: the record's key; empty where the database makes it.
        key: user values of the key: a scalar, a tuple, or None where the table is not declared here or has no key yet.
        columns: the columns that it says something about, beside the key's.
        values: user values by column where the table is declared here, else wire values.
    """

    op: Op
    table: str
    key_text: str
    key: Any
    columns: Sequence[str]
    values: Mapping[str, Any] = field(repr=False)

    def as_json(self, *, with_values: bool) -> dict[str, Any]:
        """Return everything as plain values, row values only where they are asked for."""
        key = [plain(part) for part in self.key] if isinstance(self.key, tuple) else plain(self.key)
        told: dict[str, Any] = {
            "operation": self.op.name.lower(),
            "table": self.table,
            "key_text": self.key_text,
            "key": key,
            "columns": list(self.columns),
        }
        if with_values:
            told["values"] = {name: plain(value) for name, value in self.values.items()}
        return told


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A letter.

    Attributes:
        letter_id: which one.
        state: what it waits for.
        failure: ``poison``, ``foreign key``, ``unreadable``, or empty for a waiting one.
        error: what SQL said, without values.
        attempts: how often it was tried.
        entry_id: its entry in the log.
        mutation_id: the ID that its writer gave it.
        made_ms: when it was written, in milliseconds since 1970 on the writer's clock; 0 for unknown.
        dead_ms: when it was set aside, on the database's clock.
        retry_until_ms: until then a flusher tries it again by itself, on the database's clock; 0 for not at all.
        changes: what it would do, in order; none where it cannot be read.
    """

    letter_id: LetterID
    state: LetterState
    failure: str
    error: str
    attempts: int
    entry_id: str
    mutation_id: str
    made_ms: int
    dead_ms: int
    retry_until_ms: int
    changes: Sequence[LetterChange]

    @property
    def records(self) -> list[tuple[str, str]]:
        """Table and key text of each record that it would change, each once; the key is empty where SQL makes it."""
        return list(dict.fromkeys((change.table, change.key_text) for change in self.changes))

    @property
    def operation(self) -> str:
        """What it would do, in a word or three."""
        if not self.changes:
            return UNREADABLE
        if len(self.changes) > 1:
            return f"group of {len(self.changes)}"
        return self.changes[0].op.name.lower()

    @property
    def subject(self) -> str:
        """Which record it is about, in words."""
        if not self.changes:
            return "unknown record"
        table, key_text = self.records[0]
        more = f" and {len(self.records) - 1} more" if len(self.records) > 1 else ""
        return f"{table} {key_text or '(new row)'}{more}"

    @property
    def replayable(self) -> bool:
        """Whether it can be replayed; what cannot be read can only be discarded."""
        return bool(self.changes) and self.failure != UNREADABLE

    def as_json(self, *, with_values: bool = False) -> dict[str, Any]:
        """Return everything as plain values, row values only where they are asked for."""
        return {
            "letter": str(self.letter_id),
            "partition": self.letter_id.partition,
            "place": self.letter_id.place,
            "state": self.state.value,
            "failure": self.failure,
            "error": self.error,
            "attempts": self.attempts,
            "operation": self.operation,
            "entry_id": self.entry_id,
            "mutation_id": self.mutation_id,
            "made_ms": self.made_ms,
            "dead_ms": self.dead_ms,
            "retry_until_ms": self.retry_until_ms,
            "changes": [change.as_json(with_values=with_values) for change in self.changes],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class LetterFilter:
    """Which letters to look at; None stands for any.

    Attributes:
        tables: names of tables that it changes one of; one that cannot be read changes none.
        key: the text of a key that it changes, as in Redis.
        error: words in its failure or its error, in any case.
        since_ms: set aside at this time or later, in milliseconds since 1970 on the database's clock.
        until_ms: set aside before this time.
        partitions: numbers.
        states: what it waits for.
        last: by partition, the greatest place; letters that came later are passed over, and partitions not named.
    """

    tables: frozenset[str] | None = None
    key: str | None = None
    error: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    partitions: frozenset[int] | None = None
    states: frozenset[LetterState] | None = None
    last: Mapping[int, int] | None = None

    def admits(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is one of these, as far as SQL was not asked so already."""
        if self.states is not None and letter.state not in self.states:
            return False
        if self.tables is not None and not any(change.table in self.tables for change in letter.changes):
            return False
        if self.key is not None and not any(change.key_text == self.key for change in letter.changes):
            return False
        said = f"{letter.failure} {letter.error}".casefold()
        return self.error is None or self.error.casefold() in said


@dataclass(frozen=True, kw_only=True, slots=True)
class LetterCounts:
    """How many letters of a table there are, by state."""

    refused: int = 0
    retrying: int = 0
    waiting: int = 0

    def __str__(self) -> str:
        retrying = f", {self.retrying} retrying" if self.retrying else ""
        return f"{self.refused} refused{retrying}, {self.waiting} waiting"
