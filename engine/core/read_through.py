"""Reading records through Redis: what is done for one read, and in which order.

Pure: ``read_through`` yields what it needs and is given the reply, so that a blocking and an awaiting shell share it.

1. What was accepted is seen: a record that was written, and is not whole in Redis, is awaited until SQL has it. What is
   accepted while a read waits is not awaited: SQL's row is then as new as the read has to be.
2. What Redis does not have of a record is loaded by whoever holds its lease; all others wait. Any write cancels the
   lease, so what was loaded before it is never put over it.
3. What SQL had before an insert whose key the database makes does not tell that there is no such row after it.
4. Where nothing can be kept (Redis is full, or its history is new and nobody has compared it with SQL), every read asks
   SQL for itself.
5. A record that is there is given although it is due to be loaded again, but by the one caller who loads it; by
   that one, too, where SQL is away or its row cannot be read.

::

    Look ─ whole, tombstone, no row ──────────────────────────────────> found
      │ ├─ nothing, marker that SQL has ─> Lease ── taken ──> Load ──> Keep ──> found
      │ │                                    ├───── nothing can be kept ─> Load ──> found
      │ │                                    └───── somebody else's ─> Wait ─> Look ...
      │ ├─ partial, or lacks a column ─> Lease ── somebody else's ─> Wait ─> Look ...
      │ │                                  └───── taken, or SQL had no row ─> Load ──> Keep ── unchanged ──> found
      │ │   ┌──────────────────────────────── written meanwhile ───────────────────────┘
      │ │   ├─ SQL has what it was when the read began ─> found
      │ │   └─ it has not ─> Wait ─> Look ...
      │ ├─ marker or partial, written since the read began, and SQL has what it was then ─> Load ──> found
      │ └─ marker, or insert, that SQL has not ─> Wait ─> Look ...     (time is over: ReadTimeout)
      └─ from before a rollback of Redis ─> AskSQL ─> as above
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from writebehind.engine.core.contiguity import Lineage
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.read_effects import (
    Applied,
    AskLineage,
    AskSQL,
    Effect,
    Filling,
    Grant,
    Granted,
    Keep,
    Kept,
    Lease,
    Load,
    Look,
    Release,
    Row,
    Sights,
    Wait,
    Wanted,
)
from writebehind.engine.core.reading import (
    Errand,
    Rules,
    Sorted,
    Standing,
    believed,
    floor_of,
    foreign_record,
    loaded_at,
    overdue,
    position,
    standing,
)
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable, ValidationError

__all__ = ["read_through"]

ASK_SQL_AFTER_SECONDS = 0.5
"""After this long the watermark is doubted: a full Redis refuses to be told of it."""

Count = Callable[[str, int], None]
"""Adds to a field of ``ReadCounts``."""


def read_through(
    plan: RecordPlan, keys: Sequence[Any], partitions: int, rules: Rules, count: Count
) -> Generator[Effect, Any, dict[Any, Row | None]]:
    """Read records by key.

    Args:
        plan: of their table.
        keys: scalars, or tuples for a composite key.
        partitions: how many the namespace has.
        rules: how they are read.
        count: where it is counted.

    Raises:
        ReadTimeout: a record depends on entries that were not flushed, or on a load that did not end, in time.
        DatabaseUnavailable: SQL cannot be asked.
        ConfigurationError: what is in Redis is none of the engine's, or a row is not of its columns' types.
        ValidationError: a key does not fit the table.
    """
    return (yield from _Read(plan, keys, partitions, rules, count).run())


class _Read:
    """One read under way."""

    def __init__(self, plan: RecordPlan, keys: Sequence[Any], partitions: int, rules: Rules, count: Count) -> None:
        self._plan = plan
        self._rules = rules
        self._count = count
        try:
            self._found: dict[Any, Row | None] = dict.fromkeys(keys)
        except TypeError:
            raise ValidationError(
                f"a key of {plan.name} is of a type that no key is of", "pass scalars, or tuples of them"
            ) from None
        self._identity: bytes | None = None
        self._waiting: list[Wanted] = []
        for key in self._found:
            key_text, spread, values = plan.key_only(key)
            self._waiting.append(Wanted(key, key_text, partition_of(spread, partitions), values))

    def run(self) -> Generator[Effect, Any, dict[Any, Row | None]]:
        attempt = 0
        elapsed = 0.0
        while self._waiting:
            try:
                found = yield from self._look()
            except ValueError:
                raise foreign_record(self._plan.name) from None
            if not attempt:
                self._count_look(found)
            if not (found.todo or found.again):
                break
            behind = found.todo.pop(Errand.LOG, [])
            if behind and elapsed > ASK_SQL_AFTER_SECONDS:
                behind = yield from self._doubt(behind, found)
            self._waiting = [*behind, *(yield from self._load(found))]
            if self._waiting:
                attempt += 1
                self._note_waits()
                waited: float | None = yield Wait(attempt)
                if waited is None:
                    raise overdue(self._plan.name, len(self._waiting), len(behind))
                elapsed = waited
        return self._found

    def _look(self) -> Generator[Effect, Any, Sorted]:
        """Look once; tell what is still needed, and what was found and is to be loaded again."""
        sights: Sights = yield Look(self._waiting)
        if sights.identity != self._identity:
            # Another history: what was required of the one before says nothing in it.
            self._identity = sights.identity
            for wanted in self._waiting:
                wanted.inserted = None
        floors = {
            number: floor_of(known, floor, sights.identity) for number, (_, _, known, floor) in sights.marks.items()
        }
        hashes = [dict(zip(reply[::2], reply[1::2], strict=True)) for reply in sights.hashes]
        applied: Mapping[int, Applied] = {}
        lineages: Mapping[int, Lineage] = {}
        if any(floors.values()):
            unjudged = {
                wanted.partition
                for wanted, fields in zip(self._waiting, hashes, strict=True)
                if (version := standing(fields)[1]) is not None and version.epoch < floors[wanted.partition]
            }
            if unjudged:
                applied = yield AskSQL(sorted(unjudged))
                lineages = yield AskLineage(sorted(unjudged))
        found = Sorted()
        for number, (wanted, fields) in enumerate(zip(self._waiting, hashes, strict=True)):
            place = wanted.partition
            belief = believed(fields, floors[place], applied.get(place), lineages.get(place, {}))
            errand = self._judge(wanted, fields, sights.marks[place], belief, floors[place])
            if errand is not None:
                found.todo.setdefault(errand, []).append(wanted)
            elif self._found[wanted.key] is None:
                found.negative += 1
            elif self._rules.ahead_ms and 0 <= sights.left_ms[number] < self._rules.ahead_ms:
                # It may have been partial at the look before.
                wanted.version, wanted.overlay = fields.get(b":version", b""), {}
                wanted.seen, wanted.state = b"f" + wanted.version, b"full"
                found.again.append((wanted, sights.left_ms[number] < self._rules.stale_ms))
        return found

    def _count_look(self, found: Sorted) -> None:
        misses = sum(map(len, found.todo.values()))
        counted = {"hits": len(self._waiting) - misses, "negative_hits": found.negative, "misses": misses}
        for name, amount in counted.items():
            if amount:
                self._count(name, amount)

    def _judge(
        self,
        wanted: Wanted,
        fields: Mapping[bytes, bytes],
        marks: Sequence[bytes | None],
        belief: tuple[Standing, EntryID | None],
        floor: float,
    ) -> Errand | None:
        """Tell what a record needs; None where it was found."""
        state, version = belief
        applied, inserted = position(marks[0]), position(marks[1])
        if wanted.inserted is None:
            wanted.inserted, wanted.required = inserted, max(version or ORIGIN, inserted)
        if self._shows(wanted, state, fields, wanted.inserted):
            return None
        wanted.version = wanted.seen = fields.get(b":version", b"")
        wanted.overlay = {}
        wanted.state = b"loading"
        wanted.ripe = wanted.required <= applied
        if state is Standing.OVERLAY:
            if wanted.ripe and (version or ORIGIN) > wanted.required:
                # There may be no end to it, and nobody keeps a lease for what is written all the while.
                return Errand.DIRECT
            self._note_overlay(wanted, fields)
        # A partial record has all that was done since the rest was in SQL.
        last = wanted.inserted if version is None or state is Standing.OVERLAY else max(version, wanted.inserted)
        wanted.needed = min(last, wanted.required)
        if last > applied:
            return Errand.DIRECT if wanted.ripe else Errand.LOG
        if state is Standing.OVERLAY:
            return Errand.OVERLAY
        queues_up = wanted.queued and not (fields or self._rules.keeps_negative)
        return Errand.DIRECT if floor or queues_up else self._errand(wanted, state, fields)

    def _errand(self, wanted: Wanted, state: Standing, fields: Mapping[bytes, bytes]) -> Errand:
        """Tell how a record is loaded whose history is not in doubt, and note what was seen of it."""
        if not fields or state is Standing.LOADING:
            wanted.seen, wanted.version = b"", b""
            return Errand.LEASE
        if state is Standing.NO_ROW:
            wanted.seen = b"a" + fields.get(b":loaded", b"")
            return Errand.LEASE
        if fields.get(b":state") == b"marker" and wanted.version:
            wanted.seen, wanted.version = b"m" + wanted.version, b""
            return Errand.LEASE
        if state is Standing.WHOLE:
            # It lacks a column: another release, which did not know it, has written or loaded it.
            self._note_overlay(wanted, fields)
            return Errand.OVERLAY
        # A state of another release.
        return Errand.DIRECT

    def _note_overlay(self, wanted: Wanted, fields: Mapping[bytes, bytes]) -> None:
        """Note what there is of a record that lacks columns, and one that it lacks."""
        wanted.overlay = self._plan.decode_fields(fields)
        lacked = next((name for name in self._plan.codecs if name not in wanted.overlay), "")
        wanted.seen = b"o" + (wanted.version or fields.get(b":loaded", b"")) + b" " + lacked.encode()

    def _shows(self, wanted: Wanted, state: Standing, fields: Mapping[bytes, bytes], inserted: EntryID) -> bool:
        """Find a record, where its hash tells what it is."""
        record: Row | None = None
        if state is Standing.WHOLE:
            record = self._plan.decode_hash(fields)
            known = record is not None
        elif state is Standing.NO_ROW:
            known = inserted <= (loaded_at(fields) or ORIGIN)
        else:
            known = state is Standing.ABSENT
        if known:
            self._found[wanted.key] = record
        return known

    def _doubt(self, behind: Sequence[Wanted], found: Sorted) -> Generator[Effect, Any, list[Wanted]]:
        """Ask SQL itself how far it is; return what has to wait still."""
        applied: Mapping[int, Applied] = yield AskSQL(sorted({wanted.partition for wanted in behind}))
        still = []
        for wanted in behind:
            there = applied[wanted.partition]
            if there.covers(wanted.needed) is False:
                still.append(wanted)
            else:
                wanted.ripe = there.covers(wanted.required) is not False
                errand = Errand.OVERLAY if wanted.overlay else Errand.DIRECT
                found.todo.setdefault(errand, []).append(wanted)
        return still

    def _load(self, found: Sorted) -> Generator[Effect, Any, list[Wanted]]:
        """Load what can be loaded; return what has to be looked at again."""
        overlaid, asked = found.todo.get(Errand.OVERLAY, []), found.todo.get(Errand.LEASE, [])
        direct = list(found.todo.get(Errand.DIRECT, ()))
        wishes = [*asked, *overlaid, *(wanted for wanted, _ in found.again)]
        granted: Granted | None = (yield Lease(wishes)) if wishes else None
        grants = () if granted is None else granted.grants
        alone, laid = _by_grant(asked, grants), _by_grant(overlaid, grants[len(asked) :])
        renewed = self._renewed(found, grants[len(asked) + len(overlaid) :])
        for wanted in alone[Grant.BUSY]:
            wanted.queued = True
        direct += alone[Grant.NOTHING_KEPT]
        taken, busy = alone[Grant.TAKEN], [*alone[Grant.BUSY], *laid[Grant.BUSY]]
        # That nothing is kept of a row does not keep anybody from laying it under a record.
        under = [*laid[Grant.TAKEN], *laid[Grant.NOTHING_KEPT]]
        needed = [*taken, *direct, *under]
        if needed:
            rows = yield from self._ask(granted, [*taken, *laid[Grant.TAKEN]], needed)
            busy += yield from self._keep(granted, rows, taken, direct, under)
        if renewed:
            yield from self._renew(granted, renewed)
        return busy

    def _ask(
        self, granted: Granted | None, taken: Sequence[Wanted], needed: Sequence[Wanted]
    ) -> Generator[Effect, Any, Mapping[str, Row]]:
        """Load what is needed, or give the leases back."""
        try:
            rows: Mapping[str, Row] = yield Load(needed)
        except GeneratorExit:
            # The read was abandoned, and nobody is left to give the leases back: they run out.
            raise
        except BaseException:
            if granted is not None and taken:
                yield Release(granted, taken)
            raise
        return rows

    def _renew(self, granted: Granted | None, renewed: Sequence[Wanted]) -> Generator[Effect, Any, None]:
        """Load again what was found."""
        try:
            rows: Mapping[str, Row] = yield Load(renewed)
        except (DatabaseUnavailable, ConfigurationError):
            # What there is will do. The leases run out: until then nobody asks SQL again.
            self._count("stale", len(renewed))
        else:
            yield from self._keep(granted, rows, renewed, (), ())

    def _renewed(self, found: Sorted, grants: Sequence[Grant]) -> list[Wanted]:
        """Return what this caller loads again; what is stale and others load is counted."""
        stale = sum(old and grant is not Grant.TAKEN for (_, old), grant in zip(found.again, grants, strict=True))
        if stale:
            self._count("stale", stale)
        return [wanted for (wanted, _), grant in zip(found.again, grants, strict=True) if grant is Grant.TAKEN]

    def _keep(
        self,
        granted: Granted | None,
        rows: Mapping[str, Row],
        leased: Sequence[Wanted],
        direct: Sequence[Wanted],
        overlaid: Sequence[Wanted],
    ) -> Generator[Effect, Any, list[Wanted]]:
        """Keep what was loaded, and find it; return the partial records that were written meanwhile."""
        fills, useless = [], []
        for wanted in leased:
            row = rows.get(wanted.key_text)
            try:
                fills.append(Filling(wanted, () if row is None else self._texts(row)))
            except ValidationError:
                # Another program has stored what the column does not hold by its declaration.
                useless.append(wanted)
        unders = [Filling(wanted, self._under(wanted, rows.get(wanted.key_text))) for wanted in overlaid]
        if granted is not None and useless:
            yield Release(granted, useless)
        kept = Kept(0, ())
        if fills or unders:
            kept = yield Keep(granted, fills, self._rules.keeps_negative, unders)
        not_kept = len(leased) - kept.filled + len(direct)
        if not_kept:
            self._count("not_kept", not_kept)
        for wanted in (*leased, *direct, *overlaid):
            row = rows.get(wanted.key_text)
            self._found[wanted.key] = None if row is None else {**row, **wanted.overlay}
        again = []
        for wanted, same in zip(overlaid, kept.unchanged, strict=True):
            if same:
                continue
            # An overlay lies over the row that it was made for: over a later one it might show what never was.
            if wanted.ripe:
                self._found[wanted.key] = rows.get(wanted.key_text)
            else:
                again.append(wanted)
        return again

    def _texts(self, row: Row) -> list[Any]:
        texts: list[Any] = []
        for name, codec in self._plan.codecs.items():
            texts += (name, codec.encode_text(codec.accept(row[name])))
        return texts

    def _under(self, wanted: Wanted, row: Row | None) -> list[Any]:
        """Return the texts of the columns that an overlay lacks; none where there is no row, or it cannot be kept."""
        if row is None:
            return []
        try:
            texts = self._texts(row)
        except ValidationError:
            return []
        return [
            text for at in range(0, len(texts), 2) if texts[at] not in wanted.overlay for text in texts[at : at + 2]
        ]

    def _note_waits(self) -> None:
        new = [wanted for wanted in self._waiting if not wanted.waited]
        for wanted in new:
            wanted.waited = True
        if new:
            self._count("waits", len(new))


def _by_grant(wanted: Sequence[Wanted], grants: Sequence[Grant]) -> dict[Grant, list[Wanted]]:
    """Return records by what became of the requests for their leases; the grants may go on with those of others."""
    found: dict[Grant, list[Wanted]] = {grant: [] for grant in Grant}
    for each, grant in zip(wanted, grants, strict=False):
        found[grant].append(each)
    return found
