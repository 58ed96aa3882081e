"""What a read through Redis asks of its shell, and what it is told; see ``core.read_through``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from writebehind.engine.core.positions import ORIGIN, EntryID

__all__ = [
    "Applied",
    "AskLineage",
    "AskSQL",
    "Effect",
    "Filling",
    "Grant",
    "Granted",
    "Keep",
    "Kept",
    "Lease",
    "Load",
    "Look",
    "Release",
    "Row",
    "Sights",
    "Wait",
    "Wanted",
]

Row = dict[str, Any]


class Applied(Protocol):
    """What SQL has applied of a partition."""

    def covers(self, entry_id: EntryID) -> bool | None:
        """Tell whether an entry was applied; None where it never will be."""


@dataclass(slots=True)
class Wanted:
    """One record being read.

    Attributes:
        key: the caller's key.
        key_text: the same as text.
        partition: where it is.
        key_values: its wire values.
        seen: what was seen of it, as ``record_lease.lua`` takes it.
        version: the entry that changed it last, as Redis has it.
        overlay: what Redis has of a partial record, or of one that lacks a column.
        inserted: the last insert into its table before the first look; None before that.
        required: the last entry that may have changed it before the first look.
        needed: the entry that SQL must have for it to be loaded.
        ripe: SQL has ``required``, so that its row is what the record was when the read began, or later.
        waited: it has been waited for.
        queued: another caller loaded it, and was waited for.
        state: ``loading``, or ``full`` where it is only to be loaded again.
    """

    key: Any
    key_text: str
    partition: int
    key_values: Mapping[str, Any] = field(repr=False)
    seen: bytes = b""
    version: bytes = b""
    overlay: Row = field(default_factory=dict, repr=False)
    inserted: EntryID | None = None
    required: EntryID = ORIGIN
    needed: EntryID = ORIGIN
    ripe: bool = False
    waited: bool = False
    queued: bool = False
    state: bytes = b"loading"

    @property
    def under(self) -> bytes:
        """What was seen of a record that lacks columns, as ``record_overlay.lua`` takes it."""
        return self.seen[1:].partition(b" ")[0]


@dataclass(frozen=True, slots=True)
class Look:
    """Look at hashes and then at their partitions' marks, in one round trip. Reply: ``Sights``."""

    wanted: Sequence[Wanted]


@dataclass(frozen=True, slots=True)
class Sights:
    """What Redis has.

    Attributes:
        identity: the primary that was asked.
        hashes: each record's hash, names and values in turn.
        left_ms: how long each record is there for, negative for ever; empty where that does not matter.
        marks: by partition ``watermark``, ``inserted:<table>``, ``identity`` and ``floor``.
    """

    identity: bytes
    hashes: Sequence[Sequence[bytes]]
    left_ms: Sequence[int]
    marks: Mapping[int, Sequence[bytes | None]]


@dataclass(frozen=True, slots=True)
class AskSQL:
    """Ask what SQL has applied of partitions. Reply: ``Applied`` by partition."""

    partitions: Sequence[int]


@dataclass(frozen=True, slots=True)
class AskLineage:
    """Ask for the lineages of partitions' logs. Reply: ``Lineage`` by partition."""

    partitions: Sequence[int]


class Grant(Enum):
    """What became of the request for a lease."""

    TAKEN = auto()
    BUSY = auto()
    """It is somebody else's, or the record is not what it was."""
    NOTHING_KEPT = auto()
    """Nothing may or can be kept in Redis."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Reply to ``Lease``.

    Attributes:
        grants: for each record.
        token: what nobody else has.
        terms: by partition the epoch and the watermark under which its leases were taken.
    """

    grants: Sequence[Grant]
    token: bytes
    terms: Mapping[int, tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Lease:
    """Take the leases of records. Reply: ``Granted``."""

    wanted: Sequence[Wanted]


@dataclass(frozen=True, slots=True)
class Load:
    """Read rows from SQL. Reply: by key text the row's user values; nothing where there is no row."""

    wanted: Sequence[Wanted]


@dataclass(frozen=True, slots=True)
class Filling:
    """A record to be filled: its names and texts in turn; none where there is no row."""

    wanted: Wanted
    texts: Sequence[Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keep:
    """Put what was loaded into Redis.

    Attributes:
        granted: the leases.
        fills: under leases.
        negative: whether it is kept that there is no row.
        overlays: under what Redis has of them.
    """

    granted: Granted | None
    fills: Sequence[Filling]
    negative: bool
    overlays: Sequence[Filling]


@dataclass(frozen=True, slots=True)
class Kept:
    """Reply to ``Keep``.

    Attributes:
        filled: how many fills were not discarded.
        unchanged: for each overlay whether its record is what it was.
    """

    filled: int
    unchanged: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Release:
    """Give leases back."""

    granted: Granted
    wanted: Sequence[Wanted]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait a moment. Reply: the seconds since the read began; None where the time is over."""

    attempt: int


Effect = Look | AskSQL | AskLineage | Lease | Load | Keep | Release | Wait
