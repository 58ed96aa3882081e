"""The product's doors to SQL, as models: leases, the flush transaction, reads.

They take the places of ``flushers.leases.Leases``, ``flushers.transaction.Transaction`` and
``engine.adapters.rows.Rows`` and do what their statements do, one effect for each statement that locks or writes.
"""

from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from simulator.database import Database, PartitionRow, Row, Session
from simulator.loop import Process
from simulator.naive import default_row
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.rows import Applied, Rows
from writebehind.engine.core.coalescing import Changes, TableChanges
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import DatabaseUnavailable
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.flush import Fenced
from writebehind.flushers.leases import Lease, Leases
from writebehind.flushers.letters import Letters
from writebehind.flushers.quarantine import Key, Quarantine
from writebehind.flushers.sifting import Outcome
from writebehind.flushers.suspect import Suspect

__all__ = ["Engine", "ModelLeases", "ModelRows", "ModelTransaction", "flusher_engine"]


class Engine:
    """What the product takes for SQLAlchemy's engine.

    Args:
        database: where it leads.
        process: whose it is.
    """

    dialect = SimpleNamespace(name="postgresql")

    def __init__(self, database: Database, process: Process) -> None:
        self.database = database
        self.process = process

    def session(self) -> Session:
        """Connect and begin."""
        return self.database.session(self.process)

    def dispose(self, *, close: bool = True) -> None:
        """Close its connections."""


def flusher_engine(engine: Engine, _ttl_seconds: float, _holder: str) -> Engine:
    """Stand for ``flushers.sessions.flusher_engine``."""
    return engine


class ModelLeases(Leases):
    """Stands for ``Leases``."""

    def __init__(self, engine: Any, _namespace: str, holder: str, ttl_seconds: float, _letters: Letters) -> None:
        self._model: Engine = engine
        self._name = holder
        self._ttl_seconds = ttl_seconds

    def _change(self, session: Session, number: int, **values: Any) -> None:
        row = session.partition(number)
        for name, value in values.items():
            setattr(row, name, value)

    def tend(self, served: Collection[int], *, member: bool) -> int:
        """Renew."""
        session = self._model.session()
        state, now = session.database.state, session.database.loop.now

        def renew() -> int:
            for number in sorted(served):
                if state.partitions[number].holder == self._name:
                    session.database.lock(session, number)
                    if session.partition(number).holder == self._name:
                        self._change(session, number, lease_until=session.database.loop.now + self._ttl_seconds)
            if member:
                state.flushers[self._name] = session.database.loop.now + self._ttl_seconds
            for name in [name for name, until in state.flushers.items() if until < now - 10 * self._ttl_seconds]:
                del state.flushers[name]
            return sum(until >= now for until in state.flushers.values())

        members: int = session.statement(f"renew {sorted(served)}", renew)
        session.commit()
        return members

    def held(self) -> dict[int, tuple[int, EntryID, int]]:
        """Return what is held; there are no dead letters here."""
        session = self._model.session()

        def select() -> dict[int, tuple[int, EntryID, int]]:
            return {
                number: (row.token, EntryID(row.epoch, row.sequence), 0)
                for number, row in session.database.state.partitions.items()
                if row.holder == self._name
            }

        found: dict[int, tuple[int, EntryID, int]] = session.statement("held", select)
        session.leave()
        return found

    def holds(self, number: int, token: int, offset: EntryID) -> bool:
        """Tell whether a partition is still ours."""
        return self.held().get(number) == (token, offset, 0)

    def registered(self) -> int:
        """Return how many partitions there are."""
        return len(self._model.database.state.partitions)

    def take(self, wanted: int, *, avoid: Collection[int] = ()) -> list[Lease]:
        """Take what is free."""
        if wanted <= 0:
            return []
        session = self._model.session()
        database = session.database

        def free(row: PartitionRow) -> bool:
            return row.holder is None or row.lease_until < database.loop.now or row.holder == self._name

        def select() -> list[Lease]:
            found = [
                number
                for number, row in sorted(database.state.partitions.items())
                if free(row) and not database.locked(number, session) and number not in avoid
            ]
            leases = []
            for number in found[:wanted]:
                database.lock(session, number)
                row = session.partition(number)
                previous = row.holder
                self._change(
                    session,
                    number,
                    holder=self._name,
                    token=next_token(database, number, row),
                    lease_until=database.loop.now + self._ttl_seconds,
                    halted=None,
                )
                leases.append(
                    Lease(
                        partition=number,
                        token=row.token,
                        offset=EntryID(row.epoch, row.sequence),
                        earlier={
                            successor: EntryID(epoch, sequence)
                            for (partition, epoch), (sequence, successor, _) in database.state.epochs.items()
                            if partition == number
                        },
                        rewritten=[
                            EntryID(epoch, sequence)
                            for partition, epoch, sequence in database.state.rewritten
                            if partition == number
                        ],
                        previous=None if previous == self._name else previous,
                    )
                )
            return leases

        taken: list[Lease] = session.statement(f"take {wanted}", select)
        session.commit()
        return taken

    def made(self, number: int, places: Collection[int]) -> list[DeadLetter]:
        """Return no dead letters: there are none."""
        del number, places
        return []

    def release(self, held: Mapping[int, int]) -> None:
        """Hand back."""
        session = self._model.session()

        def update() -> None:
            for number, token in held.items():
                session.database.lock(session, number)
                row = session.partition(number)
                if row.holder == self._name and row.token == token:
                    self._change(session, number, holder=None, lease_until=0.0)

        session.statement(f"release {sorted(held)}", update)
        session.commit()

    def resign(self) -> None:
        """Leave."""
        session = self._model.session()
        session.statement("resign", lambda: session.database.state.flushers.pop(self._name, None))
        session.commit()

    def note_halt(self, number: int, token: int, reason: str | None) -> None:
        """Note why."""
        session = self._model.session()

        def update() -> None:
            session.database.lock(session, number)
            row = session.partition(number)
            if row.holder == self._name and row.token == token:
                self._change(session, number, halted=reason)

        session.statement(f"halted {number}: {reason}", update)
        session.commit()


def next_token(_database: Database, _number: int, row: PartitionRow) -> int:
    """Mint a fencing token."""
    return row.token + 1


class ModelTransaction:
    """Stands for ``Transaction``."""

    ended = False
    committing = False

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
        del holder, letters
        self._engine: Engine = engine
        self._tables = tables
        self._ttl_seconds = lease_ttl_seconds
        self._session: Session | None = None
        self._segments: Sequence[Segment] = ()

    @property
    def session(self) -> Session:
        """The open transaction."""
        if self._session is None:
            raise RuntimeError("no transaction is open")
        return self._session

    def begin(self, *, attempting: bool = False) -> None:
        """Begin; nothing is deferred here."""
        del attempting
        self.committing = False
        self._session = self._engine.session()

    def fence(self, segments: Sequence[Segment], letters: Mapping[int, int]) -> Fenced:
        """Move the offsets; there are no dead letters here."""
        del letters
        session = self.session
        self._segments = segments
        ours = [f"{each.partition}: {each.token} {each.start} -> {each.end}" for each in segments]
        moved: int = session.statement(f"fence {ours}", lambda: self._move(session, segments))
        if moved == len(segments):
            session.statement("note", lambda: self._note(session, segments))
            return Fenced.MOVED
        found: Fenced = session.statement("look", lambda: self._look(session, segments, moved))
        return found

    def _move(self, session: Session, segments: Sequence[Segment]) -> int:
        moved = 0
        for segment in sorted(segments, key=lambda each: each.partition):
            session.database.lock(session, segment.partition)
            row = session.partition(segment.partition)
            if (row.token, row.epoch, row.sequence) == (segment.token, *segment.start):
                row.epoch, row.sequence = segment.end
                row.lease_until = session.database.loop.now + self._ttl_seconds
                moved += 1
        return moved

    def _note(self, session: Session, segments: Sequence[Segment]) -> None:
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
                    raise sa.exc.IntegrityError("INSERT", {}, _unique())
                session.rewritten[key] = None
            session.partition(segment.partition).lost_entries += segment.lost

    def _look(self, session: Session, segments: Sequence[Segment], moved: int) -> Fenced:
        for segment in sorted(segments, key=lambda each: each.partition):
            session.database.lock(session, segment.partition)
        rows = [session.partition(segment.partition) for segment in segments]
        already = all(
            moved == 0 and (row.token, row.epoch, row.sequence) == (segment.token, *segment.end)
            for row, segment in zip(rows, segments, strict=True)
        )
        return Fenced.ALREADY if already else Fenced.LOST

    def write(self, batch: Batch) -> dict[Key, Exception]:
        """Write the rows; no constraint refuses one."""
        session = self.session
        session.notes["batch"] = batch
        for segment in batch.segments:
            session.applied[segment.partition] = [EntryID.parse(entry) for entry in segment.ids]

        def write() -> int:
            missing = 0
            for name, changes in batch.changes.tables.items():
                missing += apply_changes(session, name, changes, self._tables[name])
            return missing

        missing: int = session.statement(f"write {len(batch.changes)} rows", write)
        if missing:
            session.partition(batch.segments[0].partition).missing_rows += missing
        return {}

    def attempt(self, steps: Sequence[Changes]) -> None:
        """Write rows in a savepoint."""
        session = self.session
        session.notes["batch"] = Batch(segments=self._segments, changes=steps[0])
        for segment in self._segments:
            session.applied[segment.partition] = [EntryID.parse(entry) for entry in segment.ids]
        kept, appended = dict(session.rows), len(session.appended)

        def write() -> None:
            for step in steps:
                for name, changes in step.tables.items():
                    apply_changes(session, name, changes, self._tables[name])

        try:
            session.statement("attempt", write)
        except sa.exc.IntegrityError:
            session.rows.clear()
            session.rows.update(kept)
            del session.appended[appended:]
            raise

    def letters(self, partition: int, places: Collection[int]) -> list[Suspect]:
        """There are none here."""
        del partition, places
        return []

    def record(self, _partition: int, outcome: Outcome, _retried: Quarantine) -> None:
        """Nothing is ever refused here."""
        if outcome.refused or outcome.parked:
            raise AssertionError(f"refused: {outcome}")

    def commit(self) -> None:
        """Commit."""
        session = self.session
        self.committing = True
        session.commit()
        self._session = None

    def roll_back(self) -> None:
        """Roll back."""
        session, self._session = self._session, None
        if session is not None:
            session.leave()


def apply_changes(session: Session, name: str, changes: TableChanges, declared: DeclaredTable) -> int:
    """Do what a bulk path does; return how many patches found no row.

    Raises:
        IntegrityError: a row to be inserted is there.
    """
    columns = declared.plan.columns.keys()
    rows = session.rows
    missing = 0
    session.appended += [(name, dict(row)) for row in changes.appended]
    for key, row in changes.inserts.items():
        if session.row(name, key) is not None:
            raise sa.exc.IntegrityError("INSERT", {}, _unique())
        rows[name, key] = default_row(declared, row)
    for key, row in changes.puts.items():
        rows[name, key] = {**(session.row(name, key) or dict.fromkeys(columns)), **row}
    for key, update in changes.updates.items():
        found = session.row(name, key)
        if found is None:
            if update.missing is None:
                missing += 1
            else:
                rows[name, key] = dict(update.missing)
            continue
        rows[name, key] = {**found, **update.sets, **_sums(found, update.increments)}
    for key in changes.deletes:
        rows[name, key] = None
    return missing


def _sums(row: Row, increments: Mapping[str, Any]) -> Row:
    return {name: (row[name] or 0) + amount for name, amount in increments.items()}


def _unique() -> Exception:
    error = Exception("duplicate key value violates unique constraint")
    error.sqlstate = "23505"  # type: ignore[attr-defined]
    return error


class ModelRows(Rows):
    """Stands for ``Rows``."""

    def __init__(self, engine: Any) -> None:
        self._model: Engine = engine

    def load(self, declared: DeclaredTable, keys: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Load rows."""
        name = declared.entity.name

        def select(session: Session) -> dict[str, Row]:
            rows = {key: session.row(name, key) for key in keys}
            return {key: declared.plan.values_to_user(row) for key, row in rows.items() if row is not None}

        found: dict[str, Row] = self._select(f"load {name} {list(keys)}", select)
        return found

    def letter_of(self, namespace: str, partition: int, entry_id: EntryID) -> None:
        """There are no dead letters here."""

    def applied_of(self, namespace: str, numbers: Sequence[int]) -> dict[int, Applied]:
        """Read offsets."""
        del namespace

        def select(session: Session) -> dict[int, Applied]:
            state = session.database.state
            return {
                number: Applied(
                    offset=EntryID(state.partitions[number].epoch, state.partitions[number].sequence),
                    ended={epoch: row[0] for (partition, epoch), row in state.epochs.items() if partition == number},
                )
                for number in numbers
            }

        found: dict[int, Applied] = self._select(f"applied of {list(numbers)}", select)
        return found

    def note_loss(self, namespace: str, loss: DataLoss, reporter: str) -> None:
        """Note a loss, which whoever reports it tells the application, too."""
        del namespace
        try:
            session = self._model.session()
            session.statement(f"loss by {reporter.rpartition(' ')[0]}: {loss}", lambda: None)
            session.commit()
        except sa.exc.SQLAlchemyError:
            return

    def _select(self, what: str, select: Any) -> Any:
        try:
            session = self._model.session()
            found = session.statement(what, lambda: select(session))
            session.leave()
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailable("the database cannot be read", "check it") from error
        return found

    def check(self, settings: Any) -> None:
        """Compare nothing."""
