"""What a record's hash says about the record.

States of a hash: ``full`` (the whole record), ``partial`` (some columns, patched while the rest was not in Redis),
``marker`` (incremented while not in Redis: only SQL will know), ``tombstone`` (deleted, the delete is not in SQL
yet). No hash: SQL has the record, if there is one.
"""

from collections.abc import Mapping
from enum import Enum, auto

from writebehind.engine.core.positions import EntryID

__all__ = ["Standing", "standing"]


class Standing(Enum):
    """Where a read finds the record."""

    WHOLE = auto()
    ABSENT = auto()
    OVERLAY = auto()
    IN_LOG = auto()
    IN_SQL = auto()


STATES = {
    b"full": Standing.WHOLE,
    b"partial": Standing.OVERLAY,
    b"marker": Standing.IN_LOG,
    b"tombstone": Standing.ABSENT,
}


def standing(fields: Mapping[bytes, bytes]) -> tuple[Standing, EntryID | None]:
    """Return where the record stands and the entry that changed it last.

    A state that this release does not know counts as ``IN_LOG``: SQL will know.
    """
    if not fields:
        return Standing.IN_SQL, None
    version = fields.get(b":version")
    state = STATES.get(fields.get(b":state", b""), Standing.IN_LOG)
    return state, EntryID.parse(version) if version else None
