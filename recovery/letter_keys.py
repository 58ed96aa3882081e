"""Which records have dead letters: asked by the comparison of records with rows."""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters
from writebehind.engine.core.payload import PayloadError, decode
from writebehind.engine.errors import DatabaseUnavailable
from writebehind.recovery.comparison import RecordKey

__all__ = ["lettered"]

GROUP_HEAD: Final = b"\x93\x01\x00"
"""How the payload of an atomic group begins; the letter's own columns name its first change only."""


def lettered(app: WriteBehind, keys: Sequence[RecordKey]) -> set[RecordKey]:
    """Return those of some records that a dead letter would change.

    Memory holds one atomic group at a time.

    Raises:
        DatabaseUnavailable: the database cannot be read.
    """
    wanted = {(key.partition, key.table, key.key_text): key for key in keys}
    known = dead_letters.c
    here = (
        known.namespace == app.keys.namespace,
        known.partition.in_(sorted({key.partition for key in keys})),
    )
    single = sa.select(known.partition, known.table_name, known.record_key).where(
        *here, known.record_key.in_([key.key_text for key in keys])
    )
    groups = sa.select(known.partition, known.payload).where(
        *here, sa.func.substr(known.payload, 1, len(GROUP_HEAD)) == sa.literal(GROUP_HEAD, sa.LargeBinary())
    )
    found: set[RecordKey] = set()
    try:
        with app.database.connect() as connection:
            # The database may compare texts more loosely than the engine does.
            for name in connection.execute(single):
                found |= {wanted[tuple(name)]} if tuple(name) in wanted else set()
            for partition, payload in connection.execution_options(yield_per=1).execute(groups):
                for table, key_text in _records(payload):
                    if (partition, table, key_text) in wanted:
                        found.add(wanted[partition, table, key_text])
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(
            f"the dead letters cannot be read: {type(error).__name__}", "run 'writebehind init', check the database"
        ) from error
    return found


def _records(payload: bytes) -> list[tuple[str, str]]:
    try:
        return [(table, key_text) for _, table, key_text, _ in decode(payload)]
    except PayloadError:
        # It names no record: it is shown among the dead letters.
        return []
