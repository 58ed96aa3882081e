"""The flush protocol's effects on SQL."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from writebehind.engine.adapters.control_tables import epochs, now_ms, partitions, rewritten
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.rows import inserted_loss
from writebehind.engine.core.coalescing import Changes
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import ConfigurationError
from writebehind.flushers.batch import Batch, Crossing, Segment
from writebehind.flushers.bulk import bulk_path
from writebehind.flushers.bulk.order import in_foreign_key_order
from writebehind.flushers.drift import drift_of
from writebehind.flushers.flush import Fenced
from writebehind.flushers.letters import Letters
from writebehind.flushers.losses import losses_of
from writebehind.flushers.quarantine import Key, Quarantine
from writebehind.flushers.sifting import Outcome
from writebehind.flushers.suspect import Suspect

__all__ = ["Transaction"]

SAVEPOINT = "writebehind_attempt"


class Transaction:
    """One connection's transactions, one after the other. Not for sharing between threads.

    Args:
        engine: the database.
        namespace: the namespace's name.
        tables: the declared tables by name.
        lease_ttl_seconds: how far a flush extends its leases.
        holder: the flusher, for the record of losses.
        letters: the dead letters.

    Attributes:
        committing: whether COMMIT has been sent for the last one: its outcome is unknown if the connection breaks.
    """

    def __init__(
        self,
        engine: sa.Engine,
        namespace: str,
        tables: Mapping[str, DeclaredTable],
        lease_ttl_seconds: float,
        *,
        holder: str,
        letters: Letters,
    ) -> None:
        self._letters = letters
        self._engine = engine
        self._holder = holder
        self._namespace = namespace
        self._order = in_foreign_key_order(list(tables.values()))
        self._path = bulk_path(engine)
        self._ttl_ms = int(lease_ttl_seconds * 1000)
        self._connection: sa.Connection | None = None
        self._fences: dict[int, sa.Update] = {}
        self._partition = -1
        self._checks_attempts = False
        self._ended = False
        self._savepoint = False
        self.committing = False

    @property
    def ended(self) -> bool:
        """Whether the database has ended the open transaction together with the attempt that failed."""
        return self._ended

    @property
    def connection(self) -> sa.Connection:
        """The open transaction's connection.

        Raises:
            RuntimeError: none is open.
        """
        if self._connection is None:
            raise RuntimeError("no transaction is open")
        return self._connection

    def begin(self, *, attempting: bool = False) -> None:
        """Open a transaction.

        Args:
            attempting: have constraints that are checked by the commit checked by each attempt, where the database can.
        """
        self.committing = False
        self._connection = self._engine.connect()
        self._connection.begin()
        self._checks_attempts = attempting and self._engine.dialect.name == "postgresql"
        self._ended = self._savepoint = False

    def fence(self, segments: Sequence[Segment], letters: Mapping[int, int]) -> Fenced:
        """Move the offsets if they and the tokens are as expected; lock their rows in any case.

        Args:
            segments: from where to where.
            letters: by partition, where its dead letters stand; see ``Cursor``.

        Durability: with the commit. Repeat: answers ALREADY once it was committed. Crash: rolled back.
        """
        connection = self.connection
        self._partition = segments[0].partition
        parameters = {"namespace_is": self._namespace, "ttl_ms": self._ttl_ms}
        for number, segment in enumerate(segments):
            parameters[f"partition_{number}"] = segment.partition
            parameters[f"token_{number}"] = segment.token
            parameters[f"start_epoch_{number}"], parameters[f"start_sequence_{number}"] = segment.start
            parameters[f"end_epoch_{number}"], parameters[f"end_sequence_{number}"] = segment.end
            parameters[f"letters_{number}"] = letters[segment.partition]
        moved = connection.execute(self._fence(len(segments)), parameters)
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

    def _fence(self, count: int) -> sa.Update:
        """Return the statement that moves so many offsets; SQLAlchemy takes 3 ms to make and compile it anew."""
        statement = self._fences.get(count)
        if statement is None:
            statement = self._fences[count] = _moving(count)
        return statement

    def _note(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            for crossing in segment.crossings:
                self._note_crossing(segment.partition, crossing)
            if segment.rewritten:
                key = {"namespace": self._namespace, "partition": segment.partition}
                self.connection.execute(
                    sa.insert(rewritten).values(applied_ms=now_ms()),
                    [{**key, "epoch": each.epoch, "sequence": each.sequence} for each in segment.rewritten],
                )
            for loss in losses_of(segment):
                self._note_loss(loss)

    def _note_loss(self, loss: DataLoss) -> None:
        here = sa.and_(partitions.c.namespace == self._namespace, partitions.c.partition == loss.partition)
        counted = sa.update(partitions).where(here).values(lost_entries=partitions.c.lost_entries + loss.lost)
        self.connection.execute(counted)
        self.connection.execute(inserted_loss(self._namespace, loss, self._holder))

    def _note_crossing(self, partition: int, crossing: Crossing) -> None:
        ended = {
            "sequence": crossing.applied.sequence,
            "successor": crossing.successor,
            "successor_base": str(crossing.base or ""),
        }
        key = {"namespace": self._namespace, "partition": partition, "epoch": crossing.applied.epoch}
        # An epoch ends twice where two primaries took turns.
        again = sa.and_(*(epochs.c[name] == value for name, value in key.items()))
        if self.connection.execute(sa.update(epochs).where(again).values(**ended)).rowcount == 0:
            self.connection.execute(sa.insert(epochs).values(**key, **ended))

    def write(self, batch: Batch) -> dict[Key, Exception]:
        """Write the rows, set aside what waits behind dead letters, and remove those that are superseded.

        Returns:
            The keys whose rows were not written, because constraints refuse them.

        Durability: with the commit. Repeat: must not be, inside one transaction. Crash: rolled back.
        """
        self._savepoint = False
        self._write(batch.changes)
        for segment in batch.segments:
            if segment.parked or segment.superseded:
                self._letters.park(self.connection, segment.partition, segment.parked)
                self._letters.remove(self.connection, segment.partition, segment.superseded)
                self._move_letters(segment)
        return _refused(batch.changes)

    def attempt(self, changes: Sequence[Changes]) -> None:
        """Write changes one after the other in a savepoint; roll back to it where one fails, and raise.

        Where the error has ended the whole transaction, ``ended`` says so, and it can only be rolled back.

        Durability, Crash: as ``write``. Repeat: after it has failed only.
        """
        if not self._savepoint:
            self.connection.exec_driver_sql(f"SAVEPOINT {SAVEPOINT}")
        # It outlives a return to it, which saves a round trip for each entry that is refused.
        self._savepoint = True
        try:
            for each in changes:
                self._write_all(each)
            if self._checks_attempts:
                # Deferred again for the next attempt, whose rows may need one another.
                self.connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
                self.connection.exec_driver_sql("SET CONSTRAINTS ALL DEFERRED")
        except Exception:
            try:
                self.connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            except sa.exc.SQLAlchemyError:
                # A deadlock, or ON CONFLICT ROLLBACK: the savepoint is gone, and why it is gone is what matters.
                self._ended = True
            raise
        self._savepoint = False
        self.connection.exec_driver_sql(f"RELEASE SAVEPOINT {SAVEPOINT}")

    def drift(self, names: Collection[str], error: Exception) -> ConfigurationError | None:
        """Tell whether SQL has refused rows of some tables because one of these has changed; see ``drift_of``."""
        declared = [each for each in self._order if each.entity.name in names]
        found = (drift_of(self.connection, each, error) for each in declared)
        return next((changed for changed in found if changed is not None), None)

    def letters(self, partition: int, places: Collection[int]) -> list[Suspect]:
        """Read dead letters as they are in the open transaction."""
        return self._letters.read(self.connection, partition, places)

    def record(self, segment: Segment, outcome: Outcome, retried: Quarantine) -> None:
        """Make, change and delete dead letters. Durability, Repeat, Crash: as ``write``."""
        self._savepoint = False  # the next one has to lie behind what is written here
        self._letters.record(self.connection, segment.partition, outcome, retried)
        if outcome.moves_letters:
            self._move_letters(segment)

    def _move_letters(self, segment: Segment) -> None:
        """Note that the letters are others now.

        A request that comes late finds no other letter in the place of the one it means; and a flusher whose letters
        are not those of SQL any more, because it was rolled back, is fenced.
        """
        here = {"namespace_is": self._namespace, "partition_is": segment.partition}
        self.connection.execute(_MOVING_LETTERS, {**here, "letters_are": segment.places.stop})

    def _write_all(self, changes: Changes) -> None:
        """Write rows; raise where a constraint refuses one."""
        self._write(changes)
        for error in _refused(changes).values():
            raise error

    def _write(self, changes: Changes) -> None:
        """Write rows: tables in foreign-key order, deletes in reverse."""
        connection = self.connection
        missing = 0
        present = [declared for declared in self._order if changes.tables.get(declared.entity.name)]
        for declared in present:
            missing += self._path.apply(connection, declared, changes.tables[declared.entity.name])
        for declared in reversed(present):
            self._path.delete(connection, declared, changes.tables[declared.entity.name])
        if missing:
            connection.execute(
                sa.update(partitions)
                .where(partitions.c.namespace == self._namespace, partitions.c.partition == self._partition)
                .values(missing_rows=partitions.c.missing_rows + missing)
            )

    def commit(self) -> None:
        """Commit, and give the connection back."""
        connection = self.connection
        self.committing = True
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


def _refused(changes: Changes) -> dict[Key, Exception]:
    return {(name, key): error for name, table in changes.tables.items() for key, error in table.refused.items()}


_MOVING_LETTERS = (
    sa.update(partitions)
    .where(
        partitions.c.namespace == sa.bindparam("namespace_is"), partitions.c.partition == sa.bindparam("partition_is")
    )
    .values(letters=sa.bindparam("letters_are"))
)


def _moving(count: int) -> sa.Update:
    known = partitions.c
    here = [known.partition == _number(f"partition_{number}") for number in range(count)]

    def ends(name: str) -> sa.ColumnElement[Any]:
        whens = [(each, _number(f"end_{name}_{number}")) for number, each in enumerate(here)]
        return whens[0][1] if count == 1 else sa.case(*whens)

    expected = [
        sa.and_(
            each,
            known.token == _number(f"token_{number}"),
            known.epoch == _number(f"start_epoch_{number}"),
            known.sequence == _number(f"start_sequence_{number}"),
            known.letters == _number(f"letters_{number}"),
        )
        for number, each in enumerate(here)
    ]
    return (
        sa.update(partitions)
        .where(known.namespace == sa.bindparam("namespace_is"), sa.or_(*expected))
        .values(epoch=ends("epoch"), sequence=ends("sequence"), lease_until_ms=now_ms() + _number("ttl_ms"))
    )


def _number(name: str) -> sa.BindParameter[int]:
    return sa.bindparam(name, type_=sa.BigInteger())
