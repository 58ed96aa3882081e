"""Reading rows and offsets from SQL."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from writebehind.engine.adapters.control_tables import (
    control,
    dead_letters,
    epochs,
    flushers,
    losses,
    namespaces,
    now_ms,
    partitions,
)
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.limiting import Limited
from writebehind.engine.adapters.sql_reasons import sql_reason
from writebehind.engine.config import NamespaceSettings
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.printable import printable
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable

__all__ = ["Applied", "Rows", "Serving", "UnreadableRow", "inserted_loss"]

logger = logging.getLogger(__name__)

KEYS_PER_QUERY = 500
LOAD_SECONDS_MAX = 10.0

UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, sa.exc.DataError)
"""What SQLAlchemy and drivers raise for a value that is not of its column's type. Their words quote it."""

RECORDS_NAMED = 100
NAME_SHOWN = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What SQL has applied of a partition.

    Attributes:
        offset: the last entry applied.
        ended: by earlier epoch, the sequence of the last entry applied of it.
    """

    offset: EntryID
    ended: Mapping[int, int]

    def covers(self, entry_id: EntryID) -> bool | None:
        """Tell whether an entry was applied: by its very epoch, never by comparing IDs across epochs.

        Returns:
            None where the entry's epoch is over and ended below the entry, so that it will never be applied.
        """
        if entry_id.epoch == self.offset.epoch:
            return entry_id.sequence <= self.offset.sequence
        sequence = self.ended.get(entry_id.epoch)
        if sequence is None:
            return False
        return True if entry_id.sequence <= sequence else None

    def reached(self, epoch: int) -> EntryID | None:
        """Return the last entry of an epoch that was applied; None where nothing is known of the epoch."""
        if epoch == self.offset.epoch:
            return self.offset
        sequence = self.ended.get(epoch)
        return None if sequence is None else EntryID(epoch, sequence)


class LetterState(NamedTuple):
    """A dead letter: what the commands call it, and why SQL refuses it; None where it waits, or is tried again."""

    name: str
    error: str | None


class Serving(NamedTuple):
    """Who flushes a partition: whether anybody does, or is about to; and why it is halted, where it is."""

    served: bool
    halted: str | None


class UnreadableRow(ConfigurationError):
    """A row has a value that is not of its column's type; the message names table and column, and no value."""


class Rows:
    """Reads from the database; opens a connection for each call.

    Args:
        engine: the SQLAlchemy engine.
        load_seconds_max: how long a query may take, for records, offsets, letters, losses or leases, where the server
            can be told so (see ``adapters.limiting``).
    """

    def __init__(self, engine: sa.Engine, load_seconds_max: float = LOAD_SECONDS_MAX) -> None:
        self._engine = engine
        self._limited = Limited(engine, load_seconds_max)

    def load(self, declared: DeclaredTable, keys: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Load the rows that exist among the given keys.

        Args:
            declared: the table.
            keys: by key text, the key columns' wire values.

        Returns:
            By key text, the row's user values.

        Raises:
            DatabaseUnavailable: the database cannot be read, or not in time.
            UnreadableRow: another program has stored what is not of its column's type.
        """
        columns = [declared.table.c[column.name] for column in declared.entity.key]
        rows: dict[str, dict[str, Any]] = {}
        wanted = list(keys.values())
        try:
            with self._limited.connect() as connection:
                for start in range(0, len(wanted), KEYS_PER_QUERY):
                    bound = [
                        tuple(_bind(declared, column.name, values[column.name]) for column in declared.entity.key)
                        for values in wanted[start : start + KEYS_PER_QUERY]
                    ]
                    query = sa.select(declared.table).where(_among(columns, bound))
                    rows |= _fetched(self._limited, connection, declared, query)
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailable(
                f"{declared.entity.name} cannot be read from SQL: {sql_reason(error)}", "check the database"
            ) from error
        return rows

    def letter_of(self, namespace: str, partition: int, places: Sequence[EntryID]) -> LetterState | None:
        """Return the dead letter that an entry is under one of the places where it stood, or None.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        known = dead_letters.c
        query = sa.select(known.place, known.failure, known.error, known.retry_until_ms).where(
            known.namespace == namespace, known.partition == partition, known.entry_id.in_(map(str, places))
        )
        try:
            with self._limited.connect() as connection:
                row = connection.execute(query).first()
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailable(
                f"dead letters cannot be read from SQL: {sql_reason(error)}", "check the database"
            ) from error
        if row is None:
            return None
        refused = bool(row.failure) and not row.retry_until_ms
        return LetterState(f"{partition}-{row.place}", row.error if refused else None)

    def has_letters(self, namespace: str, partition: int) -> bool:
        """Tell whether a partition has dead letters, or entries that wait behind one.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        known = dead_letters.c
        query = sa.select(known.place).where(known.namespace == namespace, known.partition == partition).limit(1)
        try:
            with self._limited.connect() as connection:
                return connection.execute(query).first() is not None
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailable(
                f"dead letters cannot be read from SQL: {sql_reason(error)}", "check the database"
            ) from error

    def applied_of(self, namespace: str, numbers: Sequence[int]) -> dict[int, Applied]:
        """Return what SQL has applied of some partitions.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        current = sa.select(partitions.c.partition, partitions.c.epoch, partitions.c.sequence).where(
            partitions.c.namespace == namespace, partitions.c.partition.in_(numbers)
        )
        ended = sa.select(epochs.c.partition, epochs.c.epoch, epochs.c.sequence).where(
            epochs.c.namespace == namespace, epochs.c.partition.in_(numbers)
        )
        try:
            with self._limited.connect() as connection:
                # The offset first: an epoch that ends between the two is then found among the ended ones, too.
                offsets = {row.partition: row for row in connection.execute(current)}
                found: dict[int, dict[int, int]] = {number: {} for number in numbers}
                for row in connection.execute(ended):
                    found[row.partition][row.epoch] = row.sequence
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailable(
                f"the offset cannot be read from SQL: {sql_reason(error)}",
                "run 'writebehind init', check the database",
            ) from error
        return {
            number: Applied(
                offset=EntryID(offsets[number].epoch, offsets[number].sequence) if number in offsets else ORIGIN,
                ended=found[number],
            )
            for number in numbers
        }

    def serving(self, namespace: str, numbers: Collection[int]) -> dict[int, Serving]:
        """Tell who flushes some partitions; one that SQL does not know is not in the answer.

        A flusher that is alive takes what is free by itself.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        alive = sa.select(sa.func.count()).where(
            flushers.c.namespace == namespace, flushers.c.seen_until_ms >= now_ms()
        )
        held = sa.and_(partitions.c.holder.is_not(None), partitions.c.lease_until_ms >= now_ms())
        query = sa.select(partitions.c.partition, partitions.c.halted, sa.case((held, 1), else_=0).label("held")).where(
            partitions.c.namespace == namespace, partitions.c.partition.in_(sorted(numbers))
        )
        try:
            with self._limited.connect() as connection:
                members = connection.execute(alive).scalar_one()
                return {
                    row.partition: Serving(bool(members or row.held), row.halted) for row in connection.execute(query)
                }
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailable(
                f"the leases cannot be read from SQL: {sql_reason(error)}",
                "run 'writebehind init', check the database",
            ) from error

    def note_loss(self, namespace: str, loss: DataLoss, reporter: str) -> None:
        """Record what Redis has lost, for ``status``. A database that is away is only logged: the loss was told."""
        try:
            with self._engine.begin() as connection:
                connection.execute(inserted_loss(namespace, loss, reporter))
        except sa.exc.SQLAlchemyError as error:
            logger.warning("the loss cannot be recorded in SQL: %s", sql_reason(error))

    def in_doubt(self, namespace: str, partition: int, places: Sequence[EntryID]) -> bool:
        """Tell whether a flusher has passed one of some entries over in doubt.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        known = losses.c
        query = sa.select(known.first_id, known.last_id).where(
            known.namespace == namespace, known.partition == partition, known.in_doubt > 0
        )
        try:
            with self._limited.connect() as connection:
                runs = [(EntryID.parse(row.first_id), EntryID.parse(row.last_id)) for row in connection.execute(query)]
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseUnavailable(
                f"losses cannot be read from SQL: {sql_reason(error)}", "check the database"
            ) from error
        # Those of one run are of one epoch.
        return any(
            first.epoch == place.epoch and first.sequence <= place.sequence <= last.sequence
            for first, last in runs
            for place in places
        )

    def check(self, settings: NamespaceSettings) -> None:
        """Compare the namespace's settings with what SQL has; where SQL cannot be asked, that is logged.

        Raises:
            ConfigurationError: they differ.
        """
        try:
            with self._engine.connect() as connection:
                if not sa.inspect(connection).has_table(namespaces.name):
                    return
                found = connection.execute(
                    sa.select(namespaces.c.partitions).where(namespaces.c.namespace == settings.namespace)
                ).scalar_one_or_none()
        except sa.exc.SQLAlchemyError as error:
            # asyncpg's refusals of a connection are of no narrower class.
            logger.warning("the namespace's settings cannot be compared with SQL's: %s", sql_reason(error))
            return
        if found is not None and found != settings.partitions:
            raise different(settings, found, "SQL")


def inserted_loss(namespace: str, loss: DataLoss, reporter: str) -> sa.Insert:
    """Return the statement that records a loss, to be executed once."""
    return sa.insert(losses).values(
        namespace=namespace,
        partition=loss.partition,
        first_id=loss.first_id,
        reporter=reporter,
        last_id=loss.last_id,
        entries=loss.lost,
        rewritten=loss.rewritten,
        in_doubt=loss.in_doubt,
        from_ms=loss.from_ms,
        until_ms=loss.until_ms,
        found_ms=now_ms(),
        records=", ".join(_plain(f"{table} {key}".strip()) for table, key in loss.keys[:RECORDS_NAMED]),
    )


def _plain(name: str) -> str:
    """Return a record's name as text that a column of any character set takes, whatever a forged entry calls it."""
    return printable(name[:NAME_SHOWN]).encode("ascii", "backslashreplace").decode("ascii")


def different(settings: NamespaceSettings, found: object, where: str) -> ConfigurationError:
    """Return the error for a namespace that was made with other settings."""
    return ConfigurationError(
        f"namespace {settings.namespace} has {found} partitions in {where}, not {settings.partitions}",
        f"give partitions={found}; the number is fixed for the lifetime of a namespace",
    )


def create_control_tables(engine: sa.Engine) -> None:
    """Create the engine's own tables where they do not exist. Repeat: harmless."""
    control.create_all(engine)


def _among(columns: Sequence[sa.Column[Any]], keys: Sequence[tuple[Any, ...]]) -> sa.ColumnElement[bool]:
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    return sa.or_(*(sa.and_(*(column == part for column, part in zip(columns, key, strict=True))) for key in keys))


def _fetched(
    limited: Limited, connection: sa.Connection, declared: DeclaredTable, query: sa.Select[Any]
) -> dict[str, dict[str, Any]]:
    """Return rows as user values, by key text."""
    table, names = declared.table, [column.name for column in declared.entity.columns]
    rows: dict[str, dict[str, Any]] = {}
    try:
        for row in connection.execute(query).mappings():
            values = {name: _from_row(declared, name, row[table.c[name]]) for name in names}
            rows[declared.plan.key_text(values)] = values
    except UNREADABLE:
        limited.begin_again(connection)
        raise _unreadable(connection, declared, query) from None
    return rows


def _unreadable(connection: sa.Connection, declared: DeclaredTable, query: sa.Select[Any]) -> UnreadableRow:
    """Find the column that cannot be read."""
    name = declared.entity.name
    for column in declared.entity.columns:
        try:
            for (value,) in connection.execute(query.with_only_columns(declared.table.c[column.name])):
                _from_row(declared, column.name, value)
        except UNREADABLE:
            name, kind = f"{name}.{column.name}", f" of kind {column.kind.value}"
            break
    else:
        kind = " of its column's kind"
    return UnreadableRow(
        f"{name}: a value in SQL is not{kind}", "another program has stored it: mend it there, or declare what is there"
    )


def _bind(declared: DeclaredTable, name: str, value: Any) -> Any:
    convert = declared.to_bind.get(name)
    return value if convert is None or value is None else convert(value)


def _from_row(declared: DeclaredTable, name: str, value: Any) -> Any:
    convert = declared.from_row.get(name)
    return value if convert is None or value is None else convert(value)
