"""Dead letters in SQL: what a flusher writes there inside its transaction, and reads when it takes a partition over."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from writebehind.engine.adapters.control_tables import dead_letters, now_ms
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.mutation_ids import made_ms
from writebehind.flushers.failures import Failure, classify, describe
from writebehind.flushers.quarantine import Quarantine
from writebehind.flushers.sifting import Outcome
from writebehind.flushers.suspect import Suspect

__all__ = ["FOREIGN_KEY", "Letters", "failure_of", "told"]

PLACES_PER_STATEMENT = 500
LETTERS_PER_PAGE = 2_000
UNREADABLE_BYTES_MAX = 65_536
TABLE_NAME_MAX = 255
FOREIGN_KEY = "foreign key"
NAMES = {Failure.POISON: "poison", Failure.FOREIGN_KEY: FOREIGN_KEY}
CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
NUL = {0: "\\x00"}


class Letters:
    """The dead letters of one namespace, for the holder of a partition's lease.

    Args:
        namespace: its name.
        foreign_key_seconds: how long an entry whose parent is missing is tried again.
        tables: the declared tables by name.
    """

    def __init__(self, namespace: str, foreign_key_seconds: float, tables: Mapping[str, DeclaredTable]) -> None:
        self._namespace = namespace
        self._whole = {
            name: frozenset(column.name for column in declared.entity.columns) for name, declared in tables.items()
        }
        self._foreign_key_ms = int(foreign_key_seconds * 1000)

    def load(self, connection: sa.Connection, partition: int, between: Callable[[], None]) -> Quarantine:
        """Return a partition's letters, read page by page, each in a transaction of its own.

        Only what is read while the lease is valid counts: look at it afterwards.

        Args:
            connection: to read with.
            partition: its number.
            between: called after each page, to renew leases.
        """
        now = time.monotonic()
        quarantine = Quarantine(whole=self._whole)
        waiting: set[int] = set()
        for page in self._pages(connection, partition):
            for place, payload, failure, left_ms in page:
                suspect = Suspect(b"", "", payload, place)
                until = (None, 0.0) if left_ms is None else (now, now + left_ms / 1000)
                quarantine.add(place, suspect.as_letter(*until))
                if not failure:
                    waiting.add(place)
            between()
        for place in waiting.intersection(quarantine.leading()):
            # What it waited for is gone without it, by hand, say.
            quarantine.postpone(place, now)
        return quarantine

    def read(self, connection: sa.Connection, partition: int, places: Collection[int]) -> list[Suspect]:
        """Return letters as entries to be tried, in their order."""
        return [
            Suspect(
                row.entry_id.encode(),
                row.mutation_id,
                row.payload,
                row.place,
                letter=True,
                attempts=row.attempts,
                failure=row.failure,
            )
            for row in self._at(connection, partition, sorted(places))
        ]

    def made(self, connection: sa.Connection, partition: int, places: Collection[int]) -> list[DeadLetter]:
        """Return the letters of some places that nobody tries again by himself, as services are told of them."""
        if not places:
            return []
        wanted = frozenset(places)
        return [
            DeadLetter(
                partition=partition,
                place=row.place,
                entry_id=row.entry_id,
                table=row.table_name,
                key_text=row.record_key,
                failure=row.failure,
                error=row.error,
                attempts=row.attempts,
            )
            for row in self._given_up(connection, partition, min(wanted), max(wanted))
            if row.place in wanted
        ]

    def record(self, connection: sa.Connection, partition: int, outcome: Outcome, retried: Quarantine) -> None:
        """Make, change and delete letters, as entries were refused, parked and applied.

        Args:
            connection: with the flush's transaction.
            partition: whose.
            outcome: what became of the entries.
            retried: the letters as they were, which tell how long one is tried again.
        """
        refused = [(suspect, error) for suspect, error in outcome.refused if not suspect.letter]
        rows = [self._row(*each) for each in refused]
        for retrying in (False, True):
            some = [row for row in rows if (row["failure"] == FOREIGN_KEY) is retrying]
            self._insert(connection, partition, some, retrying=retrying)
        self.park(connection, partition, [suspect for suspect in outcome.parked if not suspect.letter])
        now = time.monotonic()
        for suspect, error in outcome.refused:
            if suspect.letter:
                over = now >= retried.letters[suspect.place].retry_until
                self._refuse_again(connection, partition, suspect, error, over=over)
        self.remove(connection, partition, outcome.gone)

    def park(self, connection: sa.Connection, partition: int, suspects: Iterable[Suspect]) -> None:
        """Make letters of entries that wait."""
        self._insert(connection, partition, [self._row(suspect, None) for suspect in suspects], retrying=False)

    def remove(self, connection: sa.Connection, partition: int, places: Iterable[int]) -> None:
        """Delete letters. Repeat: harmless."""
        ordered = sorted(places)
        for start in range(0, len(ordered), PLACES_PER_STATEMENT):
            some = dead_letters.c.place.in_(ordered[start : start + PLACES_PER_STATEMENT])
            connection.execute(sa.delete(dead_letters).where(self._here(partition), some))

    def _pages(self, connection: sa.Connection, partition: int) -> Iterator[Sequence[Any]]:
        """Read place, payload, failure and the milliseconds left for retrying of all letters, in their order."""
        known = dead_letters.c
        left = sa.case((known.retry_until_ms > 0, known.retry_until_ms - now_ms()), else_=None)
        page = (
            sa.select(known.place, known.payload, known.failure, left.label("left_ms"))
            .where(self._here(partition), known.place > sa.bindparam("after", type_=sa.BigInteger()))
            .order_by(known.place)
            .limit(LETTERS_PER_PAGE)
        )
        after = -1
        while rows := connection.execute(page, {"after": after}).all():
            connection.rollback()
            yield rows
            after = rows[-1].place

    def _at(self, connection: sa.Connection, partition: int, places: Sequence[int]) -> list[Any]:
        """Read the letters of these places, in their order."""
        known = dead_letters.c
        found: list[Any] = []
        for start in range(0, len(places), PLACES_PER_STATEMENT):
            some = known.place.in_(places[start : start + PLACES_PER_STATEMENT])
            found += connection.execute(
                sa.select(dead_letters).where(self._here(partition), some).order_by(known.place)
            ).all()
        return found

    def _given_up(self, connection: sa.Connection, partition: int, first: int, last: int) -> Sequence[Any]:
        """Read the letters from one place to another that were refused, and that nobody tries again by himself."""
        known = dead_letters.c
        some = sa.and_(known.place.between(first, last), known.retry_until_ms == 0, known.failure != "")
        told = (known.entry_id, known.table_name, known.record_key, known.failure, known.error, known.attempts)
        query = sa.select(known.place, *told).where(self._here(partition), some).order_by(known.place)
        return connection.execute(query).all()

    def _insert(
        self, connection: sa.Connection, partition: int, rows: Sequence[dict[str, Any]], *, retrying: bool
    ) -> None:
        if rows:
            until = now_ms() + self._foreign_key_ms if retrying else sa.literal(0)
            own = {"namespace": self._namespace, "partition": partition}
            statement = sa.insert(dead_letters).values(dead_ms=now_ms(), retry_until_ms=until)
            connection.execute(statement, [{**own, **row} for row in rows])

    def _row(self, suspect: Suspect, error: Exception | None) -> dict[str, Any]:
        # Whatever a forged entry consists of, SQL has to take it.
        table, key = _first(suspect)
        payload = suspect.payload if suspect.mutations is not None else suspect.payload[:UNREADABLE_BYTES_MAX]
        return {
            "place": suspect.place,
            "entry_id": suspect.entry_id.decode(errors="replace").translate(CONTROL_CHARACTERS)[:48],
            "mutation_id": suspect.mutation_id.translate(CONTROL_CHARACTERS)[:128],
            "table_name": table.translate(NUL)[:TABLE_NAME_MAX],
            "record_key": key.translate(NUL),
            "payload": payload,
            "failure": "" if error is None else failure_of(suspect, error),
            "error": "" if error is None else describe(error).translate(CONTROL_CHARACTERS),
            "attempts": 0 if error is None else 1,
            "made_ms": made_ms(suspect.mutation_id),
        }

    def _refuse_again(
        self, connection: sa.Connection, partition: int, suspect: Suspect, error: Exception, *, over: bool
    ) -> None:
        known = dead_letters.c
        failure = failure_of(suspect, error)
        text = describe(error).translate(CONTROL_CHARACTERS)
        values: dict[str, Any] = {"failure": failure, "error": text, "attempts": known.attempts + 1}
        if failure == FOREIGN_KEY != suspect.failure:
            values["retry_until_ms"] = now_ms() + self._foreign_key_ms
        elif over or failure != FOREIGN_KEY:
            values["retry_until_ms"] = 0
        connection.execute(
            sa.update(dead_letters).where(self._here(partition), known.place == suspect.place).values(**values)
        )

    def _here(self, partition: int) -> sa.ColumnElement[bool]:
        return sa.and_(dead_letters.c.namespace == self._namespace, dead_letters.c.partition == partition)


def told(partition: int, suspect: Suspect, error: Exception) -> DeadLetter:
    """Return what services are told of a refused entry."""
    table, key = _first(suspect)
    return DeadLetter(
        partition=partition,
        place=suspect.place,
        entry_id=suspect.entry_id.decode(errors="replace"),
        table=table,
        key_text=key,
        failure=failure_of(suspect, error),
        error=describe(error),
        attempts=suspect.attempts + 1,
    )


def failure_of(suspect: Suspect, error: Exception) -> str:
    """Name the kind of a refusal."""
    if suspect.mutations is None:
        return "unreadable"
    # A letter that could not even be tried stays what it was.
    return NAMES.get(classify(error, committing=False), suspect.failure or "poison")


def _first(suspect: Suspect) -> tuple[str, str]:
    return (suspect.mutations[0][1], suspect.mutations[0][2]) if suspect.mutations else ("", "")
