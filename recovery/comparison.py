"""Comparison: whether a record in Redis and its row in SQL agree, while both are being written.

Pure protocol; the effects are done by a shell.

Invariants:

1. Values are compared only where SQL is known to have applied the very version that the hash has, or never will, and
   only with a row that was read after that was known.
2. Nobody is blamed for a moment: a verdict against a record stands only where its hash is still the same after the row
   was read. Any write changes the hash, so nothing came in between.
3. An entry counts as lost only where it was missing from the log before SQL was asked for the last time.
4. Nobody is blamed for what SQL refused: dead letters are asked for before the row is read, so that one which is
   applied in between is found in the row.

::

    look at hashes --> ask SQL how far it is --not applied--> look for the entry --missing--> ask SQL again
        |                                                      |--there: pending      '--still not: lost
        '--applied--> ask for dead letters --some--> dead-lettered
                               '--none--> read the row, compare
                                             '--differs--> look at the hash again --the same--> the verdict stands
                                                               '--written meanwhile--> begin again, a few times
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import isclose, isnan
from typing import Any, Final

from writebehind.engine.adapters.rows import Applied
from writebehind.engine.core.columns import Column, Kind
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.reading import Standing

__all__ = [
    "Absent",
    "AskSQL",
    "Assessed",
    "Effect",
    "Judged",
    "Lettered",
    "LoadRows",
    "Look",
    "RecordKey",
    "Reply",
    "Sighting",
    "Stand",
    "Unreadable",
    "Verdict",
    "assess",
    "compare",
    "differing",
]

LOOKS_MAX: Final = 5
"""How often a record is looked at that is written all the while; then it counts as pending."""

LEASE_FIELDS: Final = frozenset({b":overlay", b":token", b":until"})
"""What readers note in a record while they load what it lacks."""

FLOAT_TOLERANCE: Final = 1e-9
"""Relative: increments of floats are exact to rounding only, in Redis one by one, in SQL added up before."""


class Verdict(Enum):
    """What a record is, compared with SQL."""

    AGREES = "agrees"
    PENDING = "pending"
    """Its last change is on its way to SQL."""
    DEAD_LETTERED = "dead_lettered"
    """SQL refused a change of it: it is kept among the dead letters, with what waits behind it."""
    SUSPECT = "suspect"
    """Older than a rollback of Redis, and different: reads ask SQL, and the next takeover removes it."""
    LEFT_OVER = "left_over"
    """It agrees, but should have been removed when SQL had it."""
    LOST = "lost"
    """Its last change will never be in SQL."""
    DIVERGED = "diverged"
    """SQL has its last change, and other values."""
    UNREADABLE = "unreadable"
    """Where a record belongs there is something that cannot be read as one."""
    FOREIGN = "foreign"
    """A key of this namespace that is not the engine's, or of a table that is not declared."""


class Stand(Enum):
    """Where the last change of a record is."""

    APPLIED = "applied"
    PENDING = "pending"
    LOST = "lost"
    MOVING = "moving"


@dataclass(frozen=True, slots=True)
class RecordKey:
    """Which record.

    Attributes:
        partition: where it is.
        table: the entity's name.
        key_text: its key.
        values: wire values of the key columns.
    """

    partition: int
    table: str
    key_text: str
    values: Mapping[str, Any] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A record's hash at one moment.

    Attributes:
        raw: its fields as they are in Redis.
        state: what the hash says about the record.
        version: the entry that changed it last, or None where it does not say, or was only loaded from SQL.
        values: user values of the declared columns that it has.
        trouble: why it cannot be read, or None.
        suspect: it is from before a rollback of Redis that nobody has compared with SQL yet.
        settled: Redis was told before that SQL has it.
    """

    raw: Mapping[bytes, bytes] = field(repr=False)
    state: Standing
    version: EntryID | None
    values: Mapping[str, Any] = field(repr=False)
    trouble: str | None = None
    suspect: bool = False
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that cannot be read, and why."""

    trouble: str


@dataclass(frozen=True, slots=True)
class Look:
    """Look at hashes. Reply: by key a ``Sighting``, or None where there is no hash."""

    keys: Sequence[RecordKey]


@dataclass(frozen=True, slots=True)
class AskSQL:
    """Ask what SQL has applied of these partitions. Reply: by partition, ``Applied``."""

    partitions: Sequence[int]


@dataclass(frozen=True, slots=True)
class Absent:
    """Look for entries, named by partition and ID, in the logs. Reply: the set of those that are not there."""

    entries: Sequence[tuple[int, EntryID]]


@dataclass(frozen=True, slots=True)
class Lettered:
    """Look for dead letters. Reply: the set of those keys that have some."""

    keys: Sequence[RecordKey]


@dataclass(frozen=True, slots=True)
class LoadRows:
    """Read rows. Reply: by key the row's user values, or ``Unreadable``; nothing for a key without a row."""

    keys: Sequence[RecordKey]


Effect = Look | AskSQL | Absent | Lettered | LoadRows
Row = Mapping[str, Any]
Reply = (
    Mapping[RecordKey, Sighting | None]
    | Mapping[int, Applied]
    | set[tuple[int, EntryID]]
    | set[RecordKey]
    | Mapping[RecordKey, Row | Unreadable]
)


@dataclass(frozen=True, slots=True)
class Assessed:
    """A record as it was seen, and where its last change is."""

    sighting: Sighting
    stand: Stand


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A record and the verdict on it.

    Attributes:
        key: which record.
        verdict: what it is.
        sighting: its hash as it was judged, or None where there is none.
        row: the row's user values, where one was read.
        columns: the columns in which they differ.
        detail: what is wrong, in words without values.
        applied: SQL has its last change, so that its hash may be removed without hiding anything on its way.
    """

    key: RecordKey
    verdict: Verdict
    sighting: Sighting | None
    row: Row | None = field(default=None, repr=False)
    columns: tuple[str, ...] = ()
    detail: str = ""
    applied: bool = True


DOUBTFUL: Final = frozenset({Verdict.DIVERGED, Verdict.LOST, Verdict.UNREADABLE, Verdict.SUSPECT})


def compare(
    keys: Iterable[RecordKey], columns: Mapping[str, Mapping[str, Column]]
) -> Generator[Effect, Any, list[Judged]]:
    """Compare records with their rows.

    Args:
        keys: the records.
        columns: by table, its columns.

    Returns:
        A verdict for each record that still has a hash.
    """
    judged: list[Judged] = []
    left = list(keys)
    for _ in range(LOOKS_MAX):
        tentative, left = yield from _judge(left, columns)
        judged += [each for each in tentative if each.verdict not in DOUBTFUL]
        doubtful = [each for each in tentative if each.verdict in DOUBTFUL]
        if doubtful:
            again: Mapping[RecordKey, Sighting | None] = yield Look([each.key for each in doubtful])
            for each in doubtful:
                now = again[each.key]
                if now is None:
                    continue
                if each.sighting is not None and _is_unchanged(each.sighting, now):
                    judged.append(each)
                else:
                    left.append(each.key)
        if not left:
            return judged
    return judged + [
        Judged(
            key=key,
            verdict=Verdict.PENDING,
            sighting=None,
            detail="it was written whenever it was looked at",
            applied=False,
        )
        for key in left
    ]


def _is_unchanged(before: Sighting, now: Sighting) -> bool:
    """Tell whether nobody has written a record meanwhile; readers come and go with their leases."""
    stand = [{name: value for name, value in each.raw.items() if name not in LEASE_FIELDS} for each in (before, now)]
    return stand[0] == stand[1] and before.trouble == now.trouble


def assess(keys: Sequence[RecordKey]) -> Generator[Effect, Any, dict[RecordKey, Assessed]]:
    """Tell where the last changes of records are.

    Returns:
        By key, for each record that has a hash. ``MOVING``: SQL applied it while it was being looked for.
    """
    seen: Mapping[RecordKey, Sighting | None] = yield Look(keys)
    sightings = {key: sighting for key, sighting in seen.items() if sighting is not None}
    partitions = sorted({key.partition for key in sightings})
    if not partitions:
        return {}
    applied: Mapping[int, Applied] = yield AskSQL(partitions)
    stands = {key: _stand(applied[key.partition], sighting.version) for key, sighting in sightings.items()}
    entries = {
        key: (key.partition, version)
        for key, stand in stands.items()
        if stand is Stand.PENDING and (version := sightings[key].version) is not None
    }
    if entries:
        absent: set[tuple[int, EntryID]] = yield Absent(sorted(set(entries.values())))
        if absent:
            later: Mapping[int, Applied] = yield AskSQL(sorted({partition for partition, _ in absent}))
            for key, entry in entries.items():
                if entry in absent:
                    lost = later[key.partition].covers(entry[1]) is not True
                    stands[key] = Stand.LOST if lost else Stand.MOVING
    return {key: Assessed(sighting, stands[key]) for key, sighting in sightings.items()}


def _stand(applied: Applied, version: EntryID | None) -> Stand:
    covered = None if version is None else applied.covers(version)
    if covered is None:
        return Stand.APPLIED if version is None else Stand.LOST
    return Stand.APPLIED if covered else Stand.PENDING


def _judge(
    keys: Sequence[RecordKey], columns: Mapping[str, Mapping[str, Column]]
) -> Generator[Effect, Any, tuple[list[Judged], list[RecordKey]]]:
    """Give tentative verdicts, and name the records that have to be looked at again."""
    assessed = yield from assess(keys)
    judged: list[Judged] = []
    to_load: list[RecordKey] = []
    for key, each in assessed.items():
        sighting, stand = each.sighting, each.stand
        if sighting.trouble is not None:
            judged.append(
                Judged(
                    key=key,
                    verdict=Verdict.UNREADABLE,
                    sighting=sighting,
                    detail=sighting.trouble,
                    applied=stand is not Stand.PENDING,
                )
            )
        elif stand is Stand.PENDING:
            judged.append(Judged(key=key, verdict=Verdict.PENDING, sighting=sighting, applied=False))
        elif stand is not Stand.MOVING:
            to_load.append(key)
    lettered: set[RecordKey] = (yield Lettered(to_load)) if to_load else set()
    held = {key for key in lettered if assessed[key].stand is not Stand.LOST}
    judged += [_held(key, assessed[key].sighting) for key in to_load if key in held]
    to_load = [key for key in to_load if key not in held]
    unread = {Standing.IN_LOG, Standing.LOADING}
    comparable = [key for key in to_load if assessed[key].sighting.state not in unread]
    rows: Mapping[RecordKey, Row | Unreadable] = (yield LoadRows(comparable)) if comparable else {}
    judged += [_verdict(key, assessed[key], rows.get(key), columns[key.table]) for key in to_load]
    return judged, [key for key, each in assessed.items() if each.stand is Stand.MOVING and not each.sighting.trouble]


def _held(key: RecordKey, sighting: Sighting) -> Judged:
    return Judged(key=key, verdict=Verdict.DEAD_LETTERED, sighting=sighting, applied=False)


def _verdict(key: RecordKey, assessed: Assessed, row: Row | Unreadable | None, columns: Mapping[str, Column]) -> Judged:
    sighting = assessed.sighting
    lost = assessed.stand is Stand.LOST
    different: tuple[str, ...] = ()
    problem = ""
    match sighting.state:
        case Standing.IN_LOG:
            problem = "an increment or insert that SQL never had" if lost else ""
        case _ if isinstance(row, Unreadable):
            problem = row.trouble
        case Standing.LOADING:
            pass
        case Standing.ABSENT:
            problem = "deleted, but SQL has the row" if row is not None else ""
        case Standing.NO_ROW:
            problem = "SQL had no such row, and has one now" if row is not None else ""
        case Standing.WHOLE if row is None:
            problem = "SQL has no such row"
        case Standing.WHOLE | Standing.OVERLAY if row is not None:
            different = differing(columns, sighting.values, row)
            problem = f"differs in {', '.join(different)}" if different else ""
        case _:
            pass
    if problem:
        verdict = Verdict.LOST if lost else Verdict.SUSPECT if sighting.suspect else Verdict.DIVERGED
    else:
        verdict = Verdict.LEFT_OVER if sighting.settled and sighting.state is not Standing.WHOLE else Verdict.AGREES
    return Judged(
        key=key,
        verdict=verdict,
        sighting=sighting,
        row=None if isinstance(row, Unreadable) else row,
        columns=different,
        detail=problem,
    )


def differing(columns: Mapping[str, Column], values: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the columns whose values differ, among those that the record has."""
    return tuple(name for name, value in values.items() if not _same(columns[name].kind, value, row[name]))


def _same(kind: Kind, first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    if kind is Kind.JSON:
        return _same_document(first, second)
    if kind is Kind.FLOAT:
        return isclose(first, second, rel_tol=FLOAT_TOLERANCE) or (isnan(first) and isnan(second))
    return bool(first == second)


def _same_document(first: Any, second: Any) -> bool:
    """Compare JSON: for Python true is 1, for JSON it is not."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same_document(item, second[name]) for name, item in first.items())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same_document, first, second))
    return bool(first == second)
