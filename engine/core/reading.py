"""What a record's hash says about the record, and whether it can be believed.

States of a hash: ``full`` (the whole record), ``partial`` (some columns, patched while the rest was not in Redis),
``marker`` (incremented while not in Redis: only SQL will know), ``tombstone`` (deleted, the delete is not in SQL
yet), ``loading`` (somebody has the lease for loading it), ``absent`` (SQL had no such row). No hash: SQL has the
record, if there is one.

What was written has a version, the entry that changed it last. What was only loaded from SQL has none; it has the
watermark of the moment before SQL was asked, because it may be as old as that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf

from writebehind.engine.core.contiguity import Lineage, is_ghost
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.read_effects import Applied, Wanted
from writebehind.engine.errors import ConfigurationError, ReadTimeout

__all__ = [
    "Errand",
    "Rules",
    "Sorted",
    "Standing",
    "believed",
    "floor_of",
    "foreign_record",
    "loaded_at",
    "overdue",
    "position",
    "standing",
]


@dataclass(frozen=True, slots=True)
class Rules:
    """How records are read.

    Attributes:
        stale_ms: with less than this left a record is stale.
        ahead_ms: with less than this left one caller loads it again; 0 for never.
        keeps_negative: whether it is kept that there is no row. Where it is not, who has waited for a load asks SQL for
            himself: the loads of a record that is not there would come one after the other.
    """

    stale_ms: int
    ahead_ms: int
    keeps_negative: bool


class Errand(Enum):
    """What a record that was not found needs."""

    LEASE = auto()
    DIRECT = auto()
    OVERLAY = auto()
    LOG = auto()
    """SQL has to have its last change first."""


@dataclass(slots=True)
class Sorted:
    """What one look has come to.

    Attributes:
        todo: by what they need, the records that were not found.
        again: those that were found and are to be loaded again, and whether they are stale.
        negative: how many were found not to exist.
    """

    todo: dict[Errand, list[Wanted]] = field(default_factory=dict)
    again: list[tuple[Wanted, bool]] = field(default_factory=list)
    negative: int = 0


class Standing(Enum):
    """Where a read finds the record."""

    WHOLE = auto()
    ABSENT = auto()
    OVERLAY = auto()
    IN_LOG = auto()
    IN_SQL = auto()
    LOADING = auto()
    NO_ROW = auto()


STATES = {
    b"full": Standing.WHOLE,
    b"partial": Standing.OVERLAY,
    b"marker": Standing.IN_LOG,
    b"tombstone": Standing.ABSENT,
    b"loading": Standing.LOADING,
    b"absent": Standing.NO_ROW,
}


def standing(fields: Mapping[bytes, bytes]) -> tuple[Standing, EntryID | None]:
    """Return where the record stands and the entry that changed it last; None where it was only loaded.

    A state that this release does not know counts as ``IN_LOG``: SQL will know.
    """
    if not fields:
        return Standing.IN_SQL, None
    version = fields.get(b":version")
    state = STATES.get(fields.get(b":state", b""), Standing.IN_LOG)
    return state, EntryID.parse(version) if version else None


def loaded_at(fields: Mapping[bytes, bytes]) -> EntryID | None:
    """Return the watermark under which the record was loaded; None where it was written since, or never loaded."""
    loaded = None if b":version" in fields else fields.get(b":loaded")
    return EntryID.parse(loaded) if loaded else None


def position(mark: bytes | None) -> EntryID:
    """Return a position as the meta hash has it."""
    return EntryID.parse(mark) if mark else ORIGIN


def floor_of(known: bytes | None, floor: bytes | None, identity: bytes) -> float:
    """Return the epoch below which records may be older in Redis than in SQL; 0 where none is.

    Args:
        known: the primary on which the partition's epoch began, None where none did.
        floor: the epoch whose predecessors nobody has compared with SQL, if there is one.
        identity: the primary that was asked.
    """
    if known is not None and known != identity:
        # A new history in which no epoch has begun.
        return inf
    return int(floor) if floor else 0


def believed(
    fields: Mapping[bytes, bytes], floor: float, applied: Applied | None, lineage: Lineage
) -> tuple[Standing, EntryID | None]:
    """Return where a record stands and its version, as far as its history can be believed."""
    state, version = standing(fields)
    if version is None:
        loaded = loaded_at(fields)
        if loaded is not None and loaded.epoch < floor:
            # SQL may have a later row, of which this history does not know.
            state = Standing.IN_SQL
    elif version.epoch < floor and (
        (applied is not None and applied.covers(version) is not False) or is_ghost(version, lineage)
    ):
        # SQL has this version, or a later one that Redis was rolled back to before; or it came back from there.
        state, version = Standing.IN_SQL, None
    return state, version


def foreign_record(table: str) -> ConfigurationError:
    """Return the error for what the engine cannot have written."""
    return ConfigurationError(
        f"a record of {table} in Redis, or its partition's meta hash, is not as the engine writes it",
        "another program has written to the namespace; 'writebehind verify' names the keys",
    )


def overdue(table: str, waiting: int, behind: int) -> ReadTimeout:
    """Return the error for a read whose time is over.

    Args:
        table: what was read.
        waiting: how many records it has not found.
        behind: how many of these SQL has not got yet.
    """
    if behind:
        return ReadTimeout(
            f"{behind} records of {table} depend on entries that are not in SQL yet",
            "check 'writebehind status': is a flusher running?",
        )
    return ReadTimeout(
        f"{waiting} records of {table} are being loaded by other callers, or written all the while",
        "is SQL slow? load_lease_seconds says how long one caller may load",
    )
