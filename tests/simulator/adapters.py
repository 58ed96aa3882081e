"""The product's doors to SQL, as models: leases and reads; ``transaction`` has the flush.

They take the places of ``flushers.leases.Leases`` and ``engine.adapters.rows.Rows`` and do what their statements do,
one effect for each statement that locks or writes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from simulator.database import Database
from simulator.loop import Process
from simulator.sessions import Session
from simulator.tables import PartitionRow, Row
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.rows import Applied, LetterState, Rows
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import DatabaseUnavailable
from writebehind.flushers.leases import RENEWAL_SHARE, Lease, Leases
from writebehind.flushers.letters import Letters

__all__ = ["Engine", "ModelLeases", "ModelRows", "flusher_engine", "next_token"]


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

    @contextmanager
    def connect(self) -> Iterator[Session]:
        """Lend a session."""
        session = self.session()
        try:
            yield session
        finally:
            session.leave()

    def dispose(self, *, close: bool = True) -> None:
        """Close its connections."""


def flusher_engine(engine: Engine, _ttl_seconds: float, _holder: str) -> Engine:
    """Stand for ``flushers.sessions.flusher_engine``."""
    return engine


class ModelLeases(Leases):
    """Stands for ``Leases``."""

    def __init__(self, engine: Any, _namespace: str, holder: str, ttl_seconds: float, letters: Letters) -> None:
        self._model: Engine = engine
        self._engine = engine
        self._letters = letters
        self._name = holder
        self._ttl_seconds = ttl_seconds
        self._renewed_at = 0.0

    def _change(self, session: Session, number: int, **values: Any) -> None:
        row = session.partition(number)
        for name, value in values.items():
            setattr(row, name, value)

    def tend(self, served: Collection[int], *, member: bool) -> int:
        """Renew."""
        session = self._model.session()
        state, now = session.database.state, session.database.loop.now

        def renew() -> int:
            self._extend(session, served)
            if member:
                state.flushers[self._name] = session.database.loop.now + self._ttl_seconds
            for name in [name for name, until in state.flushers.items() if until < now - 10 * self._ttl_seconds]:
                del state.flushers[name]
            return sum(until >= now for until in state.flushers.values())

        members: int = session.statement(f"renew {sorted(served)}", renew)
        session.commit()
        return members

    def held(self) -> dict[int, tuple[int, EntryID, int]]:
        """Return what is held."""
        session = self._model.session()

        def select() -> dict[int, tuple[int, EntryID, int]]:
            return {
                number: (row.token, EntryID(row.epoch, row.sequence), row.letters)
                for number, row in session.database.state.partitions.items()
                if row.holder == self._name
            }

        found: dict[int, tuple[int, EntryID, int]] = session.statement("held", select)
        session.leave()
        return found

    def holds(self, number: int, token: int, offset: EntryID) -> bool:
        """Tell whether a partition is still ours."""
        return self.held().get(number, ())[:2] == (token, offset)

    def registered(self) -> int:
        """Return how many partitions there are."""
        return len(self._model.database.state.partitions)

    def take(self, wanted: int, *, avoid: Collection[int] = (), among: Collection[int] | None = None) -> list[Lease]:
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
                if among is None or number in among
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
                        letters=row.letters,
                        previous=None if previous == self._name else previous,
                    )
                )
            return leases

        taken: list[Lease] = session.statement(f"take {wanted}", select)
        session.commit()
        return [lease for lease in map(self._with_letters, taken) if lease is not None]

    def _renew(self) -> None:
        """Renew, where a while has passed."""
        now = self._model.database.loop.now
        if now - self._renewed_at >= RENEWAL_SHARE * self._ttl_seconds:
            self._renewed_at = now
            session = self._model.session()
            mine = [number for number, row in session.database.state.partitions.items() if row.holder == self._name]
            session.statement(f"renew {mine}", lambda: self._extend(session, mine))
            session.commit()

    def _extend(self, session: Session, numbers: Iterable[int]) -> None:
        for number in sorted(numbers):
            if session.database.state.partitions[number].holder == self._name:
                session.database.lock(session, number)
                if session.partition(number).holder == self._name:
                    self._change(session, number, lease_until=session.database.loop.now + self._ttl_seconds)

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


class ModelRows(Rows):
    """Stands for ``Rows``."""

    def __init__(self, engine: Any, _load_seconds_max: float = 0) -> None:
        self._model: Engine = engine

    def load(self, declared: DeclaredTable, keys: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Load rows."""
        name = declared.entity.name

        def select(session: Session) -> dict[str, Row]:
            rows = {key: session.row(name, key) for key in keys}
            return {key: declared.plan.values_to_user(row) for key, row in rows.items() if row is not None}

        found: dict[str, Row] = self._select(f"load {name} {list(keys)}", select)
        return found

    def letter_of(self, namespace: str, partition: int, places: Sequence[EntryID]) -> LetterState | None:
        """Look whether an entry is a letter."""
        del namespace

        def select(session: Session) -> LetterState | None:
            for (number, place), row in session.database.state.letters.items():
                if number == partition and row["entry_id"] in map(str, places):
                    final = bool(row["failure"]) and not row["retry_until_ms"]
                    return LetterState(f"{partition}-{place}", row["error"] if final else None)
            return None

        found: LetterState | None = self._select(f"letter of {places[-1]}", select)
        return found

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

    def in_doubt(self, namespace: str, partition: int, places: Sequence[EntryID]) -> bool:
        """Look whether one of some entries was passed over in doubt."""
        del namespace

        def select(session: Session) -> bool:
            return any((partition, *place) in session.database.state.in_doubt for place in places)

        found: bool = self._select(f"in doubt: {[str(place) for place in places]}", select)
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
