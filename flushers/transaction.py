"""The flush protocol's effects on SQL."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from writebehind.engine.adapters.control_tables import epochs, now_ms, partitions
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.bulk import bulk_path
from writebehind.flushers.bulk.order import in_foreign_key_order
from writebehind.flushers.flush import Fenced

__all__ = ["Transaction"]


class Transaction:
    """One connection's transactions, one after the other. Not for sharing between threads.

    Args:
        engine: the database.
        namespace: the namespace's name.
        tables: the declared tables by name.
        lease_ttl_seconds: how far a flush extends its leases.
    """

    def __init__(
        self, engine: sa.Engine, namespace: str, tables: Mapping[str, DeclaredTable], lease_ttl_seconds: float
    ) -> None:
        self._engine = engine
        self._namespace = namespace
        self._order = in_foreign_key_order(list(tables.values()))
        self._path = bulk_path(engine)
        self._ttl_ms = int(lease_ttl_seconds * 1000)
        self._connection: sa.Connection | None = None

    @property
    def connection(self) -> sa.Connection:
        """The open transaction's connection.

        Raises:
            RuntimeError: none is open.
        """
        if self._connection is None:
            raise RuntimeError("no transaction is open")
        return self._connection

    def begin(self) -> None:
        """Open a transaction."""
        self._connection = self._engine.connect()
        self._connection.begin()

    def fence(self, segments: Sequence[Segment]) -> Fenced:
        """Move the offsets if they and the tokens are as expected; lock their rows in any case.

        Durability: with the commit. Repeat: answers ALREADY once it was committed. Crash: rolled back.
        """
        connection = self.connection
        moved = connection.execute(
            sa.update(partitions)
            .where(
                partitions.c.namespace == self._namespace,
                sa.or_(
                    *(
                        sa.and_(
                            partitions.c.partition == segment.partition,
                            partitions.c.token == segment.token,
                            partitions.c.epoch == segment.start.epoch,
                            partitions.c.sequence == segment.start.sequence,
                        )
                        for segment in segments
                    )
                ),
            )
            .values(
                epoch=_per_partition({segment.partition: segment.end.epoch for segment in segments}),
                sequence=_per_partition({segment.partition: segment.end.sequence for segment in segments}),
                lease_until_ms=now_ms() + self._ttl_ms,
            )
        )
        if moved.rowcount == len(segments):
            self._note(segments)
            return Fenced.MOVED
        numbers = [segment.partition for segment in segments]
        rows = connection.execute(
            sa.select(partitions)
            .where(partitions.c.namespace == self._namespace, partitions.c.partition.in_(numbers))
            .with_for_update()
        ).all()
        found = {row.partition: (row.token, row.epoch, row.sequence) for row in rows}
        already = all(
            moved.rowcount == 0 and found.get(segment.partition) == (segment.token, *segment.end)
            for segment in segments
        )
        return Fenced.ALREADY if already else Fenced.LOST

    def _note(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            here = sa.and_(partitions.c.namespace == self._namespace, partitions.c.partition == segment.partition)
            for crossing in segment.crossings:
                self.connection.execute(
                    sa.insert(epochs).values(
                        namespace=self._namespace,
                        partition=segment.partition,
                        epoch=crossing.applied.epoch,
                        sequence=crossing.applied.sequence,
                        successor=crossing.successor,
                        successor_base=str(crossing.base or ""),
                    )
                )
            if segment.lost:
                self.connection.execute(
                    sa.update(partitions).where(here).values(lost_entries=partitions.c.lost_entries + segment.lost)
                )

    def write(self, batch: Batch) -> None:
        """Write the rows: tables in foreign-key order, deletes in reverse.

        Durability: with the commit. Repeat: must not be, inside one transaction. Crash: rolled back.
        """
        connection = self.connection
        missing = 0
        present = [declared for declared in self._order if batch.changes.tables.get(declared.entity.name)]
        for declared in present:
            missing += self._path.apply(connection, declared, batch.changes.tables[declared.entity.name])
        for declared in reversed(present):
            self._path.delete(connection, declared, batch.changes.tables[declared.entity.name])
        if missing:
            first = batch.segments[0].partition
            connection.execute(
                sa.update(partitions)
                .where(partitions.c.namespace == self._namespace, partitions.c.partition == first)
                .values(missing_rows=partitions.c.missing_rows + missing)
            )

    def commit(self) -> None:
        """Commit, and give the connection back."""
        connection = self.connection
        connection.commit()
        self._connection = None
        connection.close()

    def roll_back(self) -> None:
        """Roll back whatever is open, also on a broken connection. Repeat: harmless."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.rollback()
                connection.close()
            except sa.exc.DBAPIError:
                # A connection that cannot even roll back is thrown away; its server rolls back by itself.
                connection.invalidate()
                connection.close()


def _per_partition(values: Mapping[int, int]) -> sa.ColumnElement[Any]:
    if len(values) == 1:
        return sa.literal(next(iter(values.values())), sa.BigInteger())
    return sa.case(
        *((partitions.c.partition == number, sa.literal(value, sa.BigInteger())) for number, value in values.items())
    )
