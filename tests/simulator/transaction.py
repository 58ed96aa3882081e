"""The flush transaction in the model of SQL, in the place of ``flushers.transaction.Transaction``.

What the product does with batches, attempts and letters is its own code; the model does what the statements do.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from simulator.adapters import Engine
from simulator.constraints import refused
from simulator.naive import default_row
from simulator.sessions import Session
from simulator.tables import Row
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.coalescing import Changes, TableChanges
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import PoisonEntryError
from writebehind.flushers.batch import Segment
from writebehind.flushers.bulk.order import in_foreign_key_order
from writebehind.flushers.flush import Fenced
from writebehind.flushers.letters import Letters
from writebehind.flushers.losses import losses_of
from writebehind.flushers.transaction import Transaction

__all__ = ["ModelTransaction", "apply_changes", "delete"]


class ModelTransaction(Transaction):
    """Stands for ``Transaction``."""

    def __init__(
        self,
        engine: Any,
        _namespace: str,
        tables: Mapping[str, DeclaredTable],
        lease_ttl_seconds: float,
        *,
        holder: str,
        letters: Letters,
    ) -> None:
        del holder
        self._model: Engine = engine
        self._letters = letters
        self._order = in_foreign_key_order(list(tables.values()))
        self._ttl_seconds = lease_ttl_seconds
        self._connection: Any = None
        self._partition = -1
        self._checks_attempts = self._ended = self._savepoint = self.committing = False

    @property
    def session(self) -> Session:
        """The open transaction."""
        session: Any = self.connection
        return session  # type: ignore[no-any-return]

    def begin(self, *, attempting: bool = False) -> None:
        """Begin; nothing is deferred but to the commit."""
        del attempting
        self._connection = self._model.session()
        self._ended = self._savepoint = self.committing = False

    def fence(self, segments: Sequence[Segment], letters: Mapping[int, int]) -> Fenced:
        """Move the offsets."""
        session = self.session
        self._partition = segments[0].partition
        session.notes["segments"] = segments
        ours = [f"{each.partition}: {each.token} {each.start} -> {each.end}" for each in segments]
        moved: int = session.statement(f"fence {ours}", lambda: self._move(session, segments, letters))
        if moved == len(segments):
            session.statement("note", lambda: self._note_in(session, segments))
            for segment in segments:
                session.applied[segment.partition] = [EntryID.parse(entry) for entry in segment.ids]
            return Fenced.MOVED
        found: Fenced = session.statement("look", lambda: self._look(session, segments, moved))
        return found

    def _move(self, session: Session, segments: Sequence[Segment], letters: Mapping[int, int]) -> int:
        moved = 0
        for segment in sorted(segments, key=lambda each: each.partition):
            session.database.lock(session, segment.partition)
            row = session.partition(segment.partition)
            stands = (row.token, row.epoch, row.sequence, row.letters)
            if stands == (segment.token, *segment.start, letters[segment.partition]):
                row.epoch, row.sequence = segment.end
                row.lease_until = session.database.loop.now + self._ttl_seconds
                moved += 1
        return moved

    def _note_in(self, session: Session, segments: Sequence[Segment]) -> None:
        for segment in segments:
            for crossing in segment.crossings:
                applied = crossing.applied
                session.epochs[segment.partition, applied.epoch] = (
                    applied.sequence,
                    crossing.successor,
                    str(crossing.base or ""),
                )
            for original in segment.rewritten:
                key = (segment.partition, *original)
                if key in session.rewritten or key in session.database.state.rewritten:
                    raise refused("23505", "duplicate key value violates unique constraint")
                session.rewritten[key] = None
            for loss in losses_of(segment):
                self._note_loss_in(session, loss)

    @staticmethod
    def _note_loss_in(session: Session, loss: DataLoss) -> None:
        session.partition(loss.partition).lost_entries += loss.lost
        if loss.in_doubt:
            first = EntryID.parse(loss.first_id)
            for sequence in range(first.sequence, EntryID.parse(loss.last_id).sequence + 1):
                session.in_doubt[loss.partition, first.epoch, sequence] = None

    def _look(self, session: Session, segments: Sequence[Segment], moved: int) -> Fenced:
        for segment in sorted(segments, key=lambda each: each.partition):
            session.database.lock(session, segment.partition)
        rows = [session.partition(segment.partition) for segment in segments]
        already = all(
            moved == 0 and (row.token, row.epoch, row.sequence) == (segment.token, *segment.end)
            for row, segment in zip(rows, segments, strict=True)
        )
        return Fenced.ALREADY if already else Fenced.LOST

    def drift(self, _names: Collection[str], _error: Exception) -> None:
        """Tables do not change here."""

    def _move_letters(self, segment: Segment) -> None:
        session = self.session

        def update() -> None:
            session.partition(segment.partition).letters = segment.places.stop

        session.statement(f"letters of {segment.partition} stand at {segment.places.stop}", update)

    def _write(self, changes: Changes) -> None:
        session = self.session

        def write() -> int:
            present = [each for each in self._order if changes.tables.get(each.entity.name)]
            missing = sum(apply_changes(session, each, changes.tables[each.entity.name]) for each in present)
            for each in reversed(present):
                delete(session, each, changes.tables[each.entity.name])
            if not (session.database.constraints and session.database.constraints.deferred):
                session.database.check_foreign_keys(session)
            return missing

        missing: int = session.statement(f"write {len(changes)} rows", write)
        if missing:
            session.partition(self._partition).missing_rows += missing


def apply_changes(session: Session, declared: DeclaredTable, changes: TableChanges) -> int:
    """Do what a bulk path does before it deletes; return how many patches found no row.

    Raises:
        IntegrityError: a row to be inserted is there, or a constraint refuses one.
    """
    name, columns = declared.entity.name, declared.plan.columns.keys()
    constraints = session.database.constraints
    rows = session.rows
    missing = 0
    changes.refused.clear()
    for appended in changes.appended:
        session.appended.append((name, _checked(session, name, dict(appended))))
    for key, row in changes.inserts.items():
        if session.row(name, key) is not None:
            raise refused("23505", "duplicate key value violates unique constraint")
        rows[name, key] = _checked(session, name, default_row(declared, row))
    for key, row in changes.puts.items():
        whole = {**(session.row(name, key) or dict.fromkeys(columns)), **row}
        if constraints is not None and constraints.asked_first and constraints.check(name, whole):
            changes.refused[key] = PoisonEntryError(f"{constraints.check(name, whole)} refuses it")
            continue
        rows[name, key] = _checked(session, name, whole)
    for key, update in changes.updates.items():
        found = session.row(name, key)
        if found is None:
            if update.missing is None:
                missing += 1
            else:
                rows[name, key] = _checked(session, name, default_row(declared, update.missing))
            continue
        rows[name, key] = _checked(session, name, {**found, **update.sets, **_sums(found, update.increments)})
    return missing


def delete(session: Session, declared: DeclaredTable, changes: TableChanges) -> None:
    """Do what a bulk path does last."""
    for key in changes.deletes:
        session.rows[declared.entity.name, key] = None


def _checked(session: Session, name: str, row: Row) -> Row:
    constraints = session.database.constraints
    violated = constraints.check(name, row) if constraints is not None else None
    if violated is not None:
        raise refused("23514", violated)
    return row


def _sums(row: Row, increments: Mapping[str, Any]) -> Row:
    return {name: (row[name] or 0) + amount for name, amount in increments.items()}
