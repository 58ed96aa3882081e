"""Dead letters: writes that SQL refused, and later writes of the same keys, which wait behind them in order.

A letter is a row of ``writebehind_dead_letters``. A flusher makes it in the transaction in which the offset passes its
entry, and only flushers change or remove it; this module reads.

::

    retrying --a parent row has come--> applied            waiting --the one before it is gone--> applied, or refused
        '--time is up--> refused --replay--> applied, or refused with one attempt more
                            '--discard--> gone for good

Invariants:

1. Letters of a partition are named in the order of their places, which is the log's order.
2. Memory holds one page of letters at a time, however many there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import dead_letters as letters_table
from writebehind.engine.adapters.control_tables import now_ms
from writebehind.engine.core.payload import Op, PayloadError, decode
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable
from writebehind.recovery.letters import (
    DeadLetter,
    LetterChange,
    LetterCounts,
    LetterFilter,
    LetterID,
    LetterState,
)

__all__ = ["ahead", "behind", "counts", "counts_by_partition", "dead_letters", "find", "last_places"]

PAGE_LETTERS: Final = 100
"""Letters that are read at once; a payload may take 256 KiB, so this bounds the memory."""


def dead_letters(
    app: WriteBehind, wanted: LetterFilter | None = None, *, newest_first: bool = False
) -> Iterator[DeadLetter]:
    """Name letters: partition by partition, each in the log's order.

    Beside flushers, a letter that comes or goes meanwhile may be named or not.

    Args:
        app: the engine whose namespace to look at.
        wanted: which ones; None for all.
        newest_first: the last ones of each partition first.

    Raises:
        DatabaseUnavailable: the database cannot be read.
        ConfigurationError: the namespace was not initialised.
    """
    wanted = wanted or LetterFilter()
    for partition in _partitions(app, wanted):
        for letter in _walk(app, partition, wanted, newest_first=newest_first):
            if wanted.admits(letter):
                yield letter


def find(app: WriteBehind, ids: Sequence[LetterID]) -> dict[LetterID, DeadLetter]:
    """Return those of some letters that are there; raises as ``dead_letters``."""
    found: dict[LetterID, DeadLetter] = {}
    known = letters_table.c
    for partition, group in groupby(sorted(set(ids)), key=lambda letter_id: letter_id.partition):
        places = [letter_id.place for letter_id in group]
        for start in range(0, len(places), PAGE_LETTERS):
            page = known.place.in_(places[start : start + PAGE_LETTERS])
            for letter in _read(app, known.partition == partition, page, newest_first=False):
                found[letter.letter_id] = letter
    return found


def behind(app: WriteBehind, letter: DeadLetter) -> Iterator[DeadLetter]:
    """Name the later letters of the same keys, and of keys that these tie to them; raises as ``dead_letters``."""
    return _chained(app, letter, newest_first=False)


def ahead(app: WriteBehind, letter: DeadLetter) -> Iterator[DeadLetter]:
    """Name the earlier letters that a letter waits for, the nearest first; raises as ``dead_letters``."""
    return _chained(app, letter, newest_first=True)


def _chained(app: WriteBehind, letter: DeadLetter, *, newest_first: bool) -> Iterator[DeadLetter]:
    tied = {record for record in letter.records if record[1]}
    if not tied:
        return
    partition, place = letter.letter_id
    for other in _walk(app, partition, LetterFilter(), newest_first=newest_first, beyond=place):
        if not tied.isdisjoint(other.records):
            tied |= {record for record in other.records if record[1]}
            yield other


def counts(app: WriteBehind) -> dict[str, LetterCounts]:
    """Return how many letters there are by table, named by their first change; empty for those that cannot be read.

    Raises:
        DatabaseUnavailable: the database cannot be read.
        ConfigurationError: the namespace was not initialised.
    """
    return _counts(app, letters_table.c.table_name)


def counts_by_partition(app: WriteBehind) -> dict[int, LetterCounts]:
    """Return how many letters there are by partition; raises as ``counts``."""
    return _counts(app, letters_table.c.partition)


def _counts(app: WriteBehind, column: sa.Column[Any]) -> dict[Any, LetterCounts]:
    known = letters_table.c
    state = sa.case(
        (known.failure == "", LetterState.WAITING.value),
        (known.retry_until_ms > now_ms(), LetterState.RETRYING.value),
        else_=LetterState.REFUSED.value,
    ).label("state")
    each = sa.select(column.label("part"), state).where(known.namespace == app.keys.namespace).subquery()
    statement = sa.select(each.c.part, each.c.state, sa.func.count()).group_by(each.c.part, each.c.state)
    found: dict[Any, dict[str, int]] = {}
    with _connection(app) as connection:
        for part, name, count in connection.execute(statement):
            found.setdefault(part, {})[name] = count
    return {part: LetterCounts(**found[part]) for part in sorted(found)}


def last_places(app: WriteBehind) -> dict[int, int]:
    """Return the greatest place by partition; raises as ``dead_letters``."""
    known = letters_table.c
    greatest = sa.select(known.partition, sa.func.max(known.place)).where(known.namespace == app.keys.namespace)
    with _connection(app) as connection:
        rows = connection.execute(greatest.group_by(known.partition)).all()
    return {partition: place for partition, place in rows}  # noqa: C416 - dict() takes no rows for pairs


def _partitions(app: WriteBehind, wanted: LetterFilter) -> list[int]:
    statement = sa.select(letters_table.c.partition).where(letters_table.c.namespace == app.keys.namespace).distinct()
    with _connection(app) as connection:
        found = set(connection.execute(statement).scalars())
    for only in (wanted.partitions, wanted.last):
        if only is not None:
            found &= set(only)
    return sorted(found)


def _walk(
    app: WriteBehind, partition: int, wanted: LetterFilter, *, newest_first: bool, beyond: int | None = None
) -> Iterator[DeadLetter]:
    """Read the letters of one partition page by page, from beyond a place on."""
    known = letters_table.c
    conditions = [known.partition == partition, *_conditions(wanted)]
    if wanted.last is not None:
        conditions.append(known.place <= wanted.last[partition])
    while True:
        here = []
        if beyond is not None:
            here.append(known.place < beyond if newest_first else known.place > beyond)
        page = _read(app, *conditions, *here, newest_first=newest_first)
        yield from page
        if len(page) < PAGE_LETTERS:
            return
        beyond = page[-1].letter_id.place


def _conditions(wanted: LetterFilter) -> list[sa.ColumnElement[bool]]:
    """Return what SQL can be asked in all dialects alike; ``LetterFilter.admits`` judges the rest."""
    known = letters_table.c
    found: list[sa.ColumnElement[bool]] = []
    if wanted.since_ms is not None:
        found.append(known.dead_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        found.append(known.dead_ms < wanted.until_ms)
    if wanted.states is not None and LetterState.WAITING not in wanted.states:
        found.append(known.failure != "")
    if wanted.states == frozenset({LetterState.WAITING}):
        found.append(known.failure == "")
    return found


def _read(app: WriteBehind, *conditions: sa.ColumnElement[bool], newest_first: bool) -> list[DeadLetter]:
    known = letters_table.c
    statement = (
        sa.select(letters_table, now_ms().label("now_ms"))
        .where(known.namespace == app.keys.namespace, *conditions)
        .order_by(known.place.desc() if newest_first else known.place)
        .limit(PAGE_LETTERS)
    )
    with _connection(app) as connection:
        return [_letter(app, row) for row in connection.execute(statement)]


def _letter(app: WriteBehind, row: sa.Row[Any]) -> DeadLetter:
    state = LetterState.WAITING
    if row.failure:
        state = LetterState.RETRYING if row.retry_until_ms > row.now_ms else LetterState.REFUSED
    try:
        changes = [_change(app, *mutation) for mutation in decode(row.payload)]
    except PayloadError:
        # Its failure says so, or it is of another release: it is shown without its content.
        changes = []
    return DeadLetter(
        letter_id=LetterID(row.partition, row.place),
        state=state,
        failure=row.failure,
        error=row.error,
        attempts=row.attempts,
        entry_id=row.entry_id,
        mutation_id=row.mutation_id,
        made_ms=row.made_ms,
        dead_ms=row.dead_ms,
        retry_until_ms=row.retry_until_ms,
        changes=changes,
    )


def _change(app: WriteBehind, op: int, table: str, key_text: str, values: Mapping[str, Any]) -> LetterChange:
    declared = app.tables.get(table)
    key: Any = None
    if declared is not None:
        try:
            values = declared.plan.values_to_user(values)
        except (ValueError, TypeError, LookupError, ArithmeticError):
            # Its writer knew other columns, or it was forged: it is shown as it stands in the log.
            values = dict(values)
        names = [column.name for column in declared.entity.key]
        if key_text and values.keys() >= set(names):
            parts = tuple(values[name] for name in names)
            key = parts if len(parts) > 1 else parts[0]
        columns = [name for name in values if name not in names]
    else:
        columns = list(values)
    return LetterChange(op=Op(op), table=table, key_text=key_text, key=key, columns=columns, values=values)


@contextmanager
def _connection(app: WriteBehind) -> Iterator[sa.Connection]:
    """Lend a connection; translate what the database says."""
    try:
        with app.database.connect() as connection:
            yield connection
    except sa.exc.SQLAlchemyError as error:
        if not _initialised(app):
            raise ConfigurationError(
                f"the table {letters_table.name} does not exist", "run 'writebehind init'; it is safe to repeat"
            ) from error
        raise DatabaseUnavailable(
            f"the dead letters cannot be read: {type(error).__name__}", "check the database"
        ) from error


def _initialised(app: WriteBehind) -> bool:
    try:
        return sa.inspect(app.database).has_table(letters_table.name)
    except sa.exc.SQLAlchemyError:
        return True
