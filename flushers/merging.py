"""Merging: from entries as Redis sends them to changes, or to suspects that are tried apart.

Invariants:

1. An entry that SQL has already under another ID, or may have, nobody can know, is passed over; it is settled, and
   changes nothing.
2. An entry whose key has a dead letter is parked behind it, or supersedes it; nothing of it is merged otherwise.
3. What cannot be read or merged is named, with how much before it can be.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial

import msgspec

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.log_replies import RawEntry
from writebehind.engine.core.coalescing import Changes, TableChanges
from writebehind.engine.core.origin import Origin
from writebehind.engine.core.payload import Mutation, decode, keys_in
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import ConfigurationError, WriteBehindError
from writebehind.flushers.batch import Batch
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.quarantine import Key
from writebehind.flushers.sifting import Refusal
from writebehind.flushers.suspect import Suspect

__all__ = ["EntryFailed", "Merger", "Taken", "refusals"]

ENTRY_FIELDS = 4
"""Names and values of an ordinary entry; one that was written again names its original, too."""


class Elsewhere(Enum):
    """How SQL has an entry's effect by another entry."""

    SURELY = auto()
    PERHAPS = auto()


class EntryFailed(Exception):
    """An entry cannot be read or merged.

    Attributes:
        partition: where it is.
        entry_id: which it is.
        readable: how many entries from the cursor on come before it.
        error: what is wrong with it.
    """

    def __init__(self, partition: int, entry_id: str, readable: int, error: WriteBehindError) -> None:
        super().__init__(partition, entry_id, readable, error)
        self.partition = partition
        self.entry_id = entry_id
        self.readable = readable
        self.error = error


@dataclass(slots=True)
class Taken:
    """What was found while entries were merged.

    Attributes:
        first_place: that the first of them would get as a dead letter.
        mutations_max: once they have so many no further one is merged.
        payload_bytes: of all of them; 0 where not all were merged.
        passed_over, in_doubt, originals, parked, superseded: see ``Segment``.
    """

    first_place: int
    mutations_max: int = sys.maxsize
    payload_bytes: int = 0
    passed_over: int = 0
    in_doubt: list[Suspect] = field(default_factory=list)
    originals: list[EntryID] = field(default_factory=list)
    parked: list[Suspect] = field(default_factory=list)
    superseded: list[int] = field(default_factory=list)


class Merger:
    """Merges entries of any partition. It remembers nothing of them.

    Args:
        tables: the declared tables by name.
    """

    def __init__(self, tables: Mapping[str, DeclaredTable]) -> None:
        self._makers: dict[str, Callable[[], TableChanges]] = {
            name: partial(
                TableChanges,
                tuple(column.name for column in declared.entity.key),
                declared.plan.adders,
                declared.plan.default_row,
                delta_adders=declared.plan.delta_adders,
                columns=declared.plan.columns.keys(),
            )
            for name, declared in tables.items()
        }

    def merged(self, suspects: Sequence[Suspect]) -> list[Changes]:
        """Merge entries, in as few steps as possible, to be written without being settled.

        Raises:
            ConfigurationError: a table is not declared, or an operation is unknown.
            PoisonEntryError, ValidationError: an entry contradicts itself or the one before it.
        """
        steps = [self.blank()]
        for suspect in suspects:
            try:
                if not steps[-1].merge(decode(suspect.payload), suspect.entry_id):
                    steps.append(self.blank())
                    steps[-1].merge(decode(suspect.payload), suspect.entry_id)
            except KeyError as error:
                raise _undeclared(error) from error
            except ValueError as error:
                raise ConfigurationError(f"an entry cannot be applied: {error}", "upgrade the flushers") from error
        return steps

    def stepwise(self, suspect: Suspect) -> list[Changes]:
        """Return an entry's mutations as a step each."""
        steps = []
        for member in decode(suspect.payload):
            steps.append(self.blank())
            steps[-1].merge([member], suspect.entry_id)
        return steps

    def blank(self, partition: int = 0) -> Changes:
        """Return changes that hold nothing; what is passed over in them is settled in the partition."""
        changes = Changes(self._makers)
        changes.enter(partition)
        return changes

    def pass_over(self, changes: Changes, partition: int, suspect: Suspect) -> None:
        """Have the records of an entry settled that changes nothing more in SQL, whether or not it is declared."""
        for _, name, key, _ in suspect.mutations or ():
            if name not in self._makers and name not in changes.tables:
                changes.tables[name] = TableChanges((), {}, lambda *_: None)
                changes.tables[name].enter(partition)
            if key:
                changes.table(name).pass_over(key, suspect.entry_id)
        changes.entries += 1

    def merge(self, cursor: Cursor, entries: Sequence[RawEntry], changes: Changes, taken: Taken) -> int:
        """Merge entries until one has to begin a new batch, or there are mutations enough.

        Returns:
            How many were merged or passed over; one at least, where it need not begin a new batch.

        Passed over is what SQL has already under another ID: an entry that was written again although SQL had the
        original, or an original that comes back although it was written again. And what SQL may have: an entry of a
        write of which an attempt was lost with a history that SQL has some of.

        Raises:
            EntryFailed: an entry cannot be read or merged.
        """
        merge = changes.merge
        changes.enter(cursor.number)
        size = 0
        number = 0
        enough = changes.mutations + taken.mutations_max
        rewritten, held_back = bool(cursor.rewritten), bool(cursor.ahead)
        try:
            for number, (entry_id, fields) in enumerate(entries):
                if number and changes.mutations >= enough:
                    return number
                payload = fields[3]
                size += len(payload)
                members = decode(payload)
                if rewritten or len(fields) > ENTRY_FIELDS or (held_back and cursor.ahead.holds(members)):
                    place = taken.first_place + number
                    merged = self._merge_checked(cursor, entries[number], members, changes, taken, place=place)
                else:
                    merged = merge(members, entry_id)
                if not merged:
                    return number
        except (WriteBehindError, IndexError, KeyError, TypeError, ValueError) as error:
            failure = _failure(error)
        else:
            taken.payload_bytes = size
            return len(entries)
        raise EntryFailed(cursor.number, entries[number][0].decode(), number, failure)

    def _merge_checked(
        self, cursor: Cursor, entry: RawEntry, members: list[Mutation], changes: Changes, taken: Taken, *, place: int
    ) -> bool:
        """Merge an entry that SQL may have already, or that may have to wait; False where it begins a new batch."""
        entry_id, fields = entry
        again = len(fields) > ENTRY_FIELDS
        if (again or cursor.rewritten) and (elsewhere := _elsewhere(cursor, entry_id, fields)):
            changes.pass_over(members, entry_id)
            _note(cursor, suspect_of(entry, place), elsewhere, fields, taken)
            return True
        ahead = cursor.ahead
        held = bool(ahead) and ahead.holds(members)
        superseded = ahead.superseded_by(members) if held else ()
        if held and not superseded:
            _park(cursor, suspect_of(entry, place), taken)
            changes.entries += 1
        elif not changes.merge(members, entry_id):
            return False
        if superseded:
            taken.superseded += superseded
            ahead.remove(superseded)
        if again:
            _take_place(cursor, fields, taken)
        return True

    def gather(
        self, cursor: Cursor, entries: Sequence[RawEntry], changes: Changes, taken: Taken, suspects: list[Suspect]
    ) -> int:
        """Take entries as they are; return how many. What SQL has under another ID is passed over, as in a merge."""
        for number, (entry_id, fields) in enumerate(entries):
            place = taken.first_place + number
            again = len(fields) > ENTRY_FIELDS
            try:
                suspect = suspect_of(entries[number], place)
                elsewhere = _elsewhere(cursor, entry_id, fields) if again or cursor.rewritten else None
            except (IndexError, ValueError):
                # Not an entry of this product: what it consists of is kept for whoever looks.
                suspect = Suspect(entry_id, "", msgspec.msgpack.encode(fields), place)
                again, elsewhere = False, None
            if elsewhere is not None:
                self.pass_over(changes, cursor.number, suspect)
                _note(cursor, suspect, elsewhere, fields, taken)
                continue
            if suspect.control is not None and number:
                return number
            suspects.append(suspect)
            if again:
                _take_place(cursor, fields, taken)
            if suspect.control is not None:
                return number + 1
        return len(entries)


def suspect_of(entry: RawEntry, place: int) -> Suspect:
    """Return an entry of the log as one that is tried apart."""
    entry_id, fields = entry
    return Suspect(entry_id, fields[1].decode(errors="replace"), fields[3], place)


def _park(cursor: Cursor, suspect: Suspect, taken: Taken) -> None:
    if suspect.control is not None:
        raise ValueError("it is about a dead letter, and comes alone")
    cursor.ahead.add(suspect.place, suspect.as_letter())
    taken.parked.append(suspect)


def refusals(batch: Batch, refused: Mapping[Key, Exception]) -> list[Refusal]:
    """Return the entries of keys whose rows were not written, and let the others be settled without them.

    Raises:
        PoisonEntryError: they are tied to others, so that the whole batch has to be isolated.
    """
    found: list[Refusal] = []
    for segment in batch.segments if refused else ():
        lines: dict[Key, list[Suspect]] = {}
        for first_place, entries in segment.pieces:
            for number, entry in enumerate(entries):
                members = keys_in(entry[1][3])
                keys = [key for key in members if key in refused]
                if keys and (len(members) > 1 or segment.superseded or segment.rewritten or segment.passed_over):
                    raise refused[keys[0]]
                for key in keys:
                    lines.setdefault(key, []).append(suspect_of(entry, first_place + number))
        if lines:
            found.append(Refusal(segment, lines))
        for table, key_text in lines:
            batch.changes.tables[table].versions[segment.partition].pop(key_text, None)
    for key in refused.keys() - {key for refusal in found for key in refusal.lines}:
        # Not to be found again by its key: nothing of it may be passed over.
        raise refused[key]
    return found


def _failure(error: Exception) -> WriteBehindError:
    if isinstance(error, WriteBehindError):
        return error
    if isinstance(error, KeyError):
        return _undeclared(error)
    return ConfigurationError(
        f"it is not an entry of this product: {type(error).__name__}", "find out who else writes to this stream"
    )


def _undeclared(error: KeyError) -> ConfigurationError:
    return ConfigurationError(f"table {error} is not declared here", "add it to tables=[...] of the flusher")


def _elsewhere(cursor: Cursor, entry_id: bytes, fields: Sequence[bytes]) -> Elsewhere | None:
    """Tell how SQL has an entry's effect by another entry; None where it has not."""
    origin = Origin.parse(fields[5]) if len(fields) > ENTRY_FIELDS else Origin()
    if EntryID.parse(entry_id) in cursor.rewritten or (origin.original is not None and cursor.has(origin.original)):
        return Elsewhere.SURELY
    return Elsewhere.PERHAPS if any(map(cursor.reaches, origin.doubts)) else None


def _note(cursor: Cursor, suspect: Suspect, elsewhere: Elsewhere, fields: Sequence[bytes], taken: Taken) -> None:
    """Note that an entry is passed over, and that it is to be told where nobody can know whether SQL has it."""
    taken.passed_over += 1
    if elsewhere is Elsewhere.PERHAPS:
        taken.in_doubt.append(suspect)
        _take_place(cursor, fields, taken)


def _take_place(cursor: Cursor, fields: Sequence[bytes], taken: Taken) -> None:
    """Note that an entry that was written again stands for its original: that one is not to be applied any more."""
    original = Origin.parse(fields[5]).original
    if original is not None:
        taken.originals.append(original)
        cursor.rewriting.add(original)
