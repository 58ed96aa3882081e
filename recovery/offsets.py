"""Where SQL stands in each partition, with the order in which epochs followed each other there."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import epochs, partitions
from writebehind.engine.adapters.sql_reasons import sql_reason
from writebehind.engine.core.contiguity import Lineage, begin
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable

__all__ = ["Offset", "offsets"]


@dataclass(frozen=True, slots=True)
class Offset:
    """Where SQL stands in one partition.

    Attributes:
        applied: the last entry applied.
        earlier: by epoch, the last entry applied of the epoch before it.
    """

    applied: EntryID
    earlier: Mapping[int, EntryID]

    def position(self, lineage: Lineage) -> EntryID:
        """Return the same place in a log's own history."""
        return begin(self.applied, self.earlier, lineage)


def offsets(app: WriteBehind, numbers: Collection[int]) -> dict[int, Offset]:
    """Read where SQL stands in some partitions.

    Raises:
        ConfigurationError: the namespace is not initialised in SQL.
        DatabaseUnavailable: the database cannot be read.
    """
    namespace = app.keys.namespace
    try:
        with app.database.connect() as connection:
            rows = connection.execute(
                sa.select(partitions.c.partition, partitions.c.epoch, partitions.c.sequence).where(
                    partitions.c.namespace == namespace, partitions.c.partition.in_(numbers)
                )
            ).all()
            ended = connection.execute(
                sa.select(epochs).where(epochs.c.namespace == namespace, epochs.c.partition.in_(numbers))
            ).all()
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(
            f"the offsets cannot be read from SQL: {sql_reason(error)}",
            "check the database; was 'writebehind init' run?",
        ) from error
    if len(rows) != len(numbers):
        raise ConfigurationError(
            f"namespace {namespace} has {len(rows)} of these {len(numbers)} partitions in SQL", "run 'writebehind init'"
        )
    earlier: dict[int, dict[int, EntryID]] = {number: {} for number in numbers}
    for row in ended:
        earlier[row.partition][row.successor] = EntryID(row.epoch, row.sequence)
    return {row.partition: Offset(EntryID(row.epoch, row.sequence), earlier[row.partition]) for row in rows}
