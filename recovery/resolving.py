"""Replay and discard: what an operator decides about dead letters, told to the flusher through the log.

Each letter gets one control entry in its own partition, appended by the ordinary write script. So the decision has a
place in the order of its keys, and the flusher carries it out there, once: rows, letters and offset change in one
transaction. The same script call turns the hashes of the letter's records into markers: reads wait for the flusher, and
then ask SQL.

Invariants:

1. Nothing but the log and the markers is changed here: letters are the flusher's.
2. A control entry and its markers are there together or not at all.
3. A control entry about a letter that is gone does nothing, also where another one stands in its place since SQL was
   rolled back; so both commands may be repeated and killed at any moment.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from writebehind.engine import Durability, WriteBehind
from writebehind.engine.core.composing import Draft, Entry
from writebehind.engine.core.payload import LETTER, MEANT, Op, encode, encode_group
from writebehind.engine.errors import DataLossDetected, DurabilityTimeout, ValidationError
from writebehind.engine.receipts import Receipt
from writebehind.recovery.corrections import validate
from writebehind.recovery.dead_letters import find
from writebehind.recovery.letters import DeadLetter, LetterID, LetterState

__all__ = ["Fate", "Resolution", "discard", "replay", "resolutions"]


class Fate(Enum):
    """What became of a letter."""

    GONE = "gone"
    """It is no letter any more: applied after a replay, given up after a discard, or superseded before."""
    REFUSED = "refused"
    """SQL refused it once more."""
    WAITING = "waiting"
    """It waits for an earlier one of its key, which was refused."""
    PENDING = "pending"
    """No flusher has come to it yet."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of a letter.

    Attributes:
        fate: what.
        detail: why, where it is not gone.
    """

    fate: Fate
    detail: str = ""


def replay(
    app: WriteBehind, letters: Iterable[DeadLetter], corrections: Mapping[str, Any] | None = None
) -> list[Receipt]:
    """Have letters applied, each with those that wait behind it, in their order.

    Args:
        app: the engine.
        letters: which ones; a waiting one takes those with it that it waits for.
        corrections: user values by column that replace the letter's, amounts where it increments; for one letter only.

    Returns:
        A receipt for each letter; when it is PERSISTED the flusher has tried.

    Durability: on return the requests are in the log of the primary. Repeat: a letter that is gone by then is not
    touched; one that was refused again is tried again. Crash: each letter is asked for or not; ask again.

    Raises:
        ValidationError: a letter cannot be read, or the corrections do not fit; nothing was written.
        RedisUnavailable: Redis refuses or cannot be reached; some may have been asked for.
        WriteOutcomeUnknown: a reply was lost; ask again.
    """
    chosen = list(letters)
    if corrections and len(chosen) != 1:
        raise ValidationError(f"a correction for {len(chosen)} letters", "correct one letter at a time")
    for letter in chosen:
        if not letter.replayable:
            raise ValidationError(
                f"letter {letter.letter_id} cannot be read and so not be replayed", "it can only be discarded"
            )
    wire = _corrections(app, chosen[0], corrections) if corrections else {}
    return _append(app, [_entry(app, Op.REPLAY, letter, wire) for letter in chosen])


def discard(app: WriteBehind, letters: Iterable[DeadLetter]) -> list[Receipt]:
    """Have letters given up for good; those that wait for nothing more then are applied, and reads ask SQL again.

    The last ones of a partition are asked for first: else giving up the first would apply the next.

    Args:
        app: the engine.
        letters: which ones.

    Returns:
        A receipt for each letter, in the order given; when it is PERSISTED the letter is gone.

    Durability, Repeat, Crash: as ``replay``.

    Raises:
        RedisUnavailable: Redis refuses or cannot be reached; some may have been asked for.
        WriteOutcomeUnknown: a reply was lost; ask again.
    """
    chosen = list(letters)
    order = sorted(range(len(chosen)), key=lambda number: chosen[number].letter_id, reverse=True)
    receipts = _append(app, [_entry(app, Op.DISCARD, chosen[number], {}) for number in order])
    by_number = dict(zip(order, receipts, strict=True))
    return [by_number[number] for number in range(len(chosen))]


def resolutions(app: WriteBehind, asked: Mapping[LetterID, Receipt], timeout: float) -> dict[LetterID, Resolution]:
    """Wait until flushers have come to requests, and tell what became of the letters.

    Args:
        app: the engine.
        asked: by letter, the receipt of the request.
        timeout: seconds to wait at the most, for all of them together.

    Durability: reads only. Repeat: harmless.

    Raises:
        RedisUnavailable, DatabaseUnavailable: a server cannot be read.
    """
    deadline = time.monotonic() + timeout
    late: dict[tuple[int, bytes], str] = {}
    # What one primary accepted last covers what it accepted before in the partition.
    lasts: dict[tuple[int, bytes], Receipt] = {}
    for receipt in sorted(asked.values(), key=lambda receipt: receipt.entry_id):
        lasts[receipt.partition, receipt.identity] = receipt
    for part, last in lasts.items():
        try:
            last.wait(Durability.PERSISTED, max(0.0, deadline - time.monotonic()))
        except DurabilityTimeout:
            late[part] = "no flusher has come to it yet"
        except DataLossDetected:
            late[part] = "Redis has lost the request: ask again"
    left = find(app, list(asked))
    found: dict[LetterID, Resolution] = {}
    for letter_id, receipt in asked.items():
        trouble = late.get((receipt.partition, receipt.identity))
        letter = left.get(letter_id)
        if trouble is not None:
            found[letter_id] = Resolution(Fate.PENDING, trouble)
        elif letter is None:
            found[letter_id] = Resolution(Fate.GONE)
        elif letter.state is LetterState.WAITING:
            found[letter_id] = Resolution(Fate.WAITING, "an earlier write of its key was refused")
        else:
            found[letter_id] = Resolution(Fate.REFUSED, letter.error)
    return found


def _corrections(app: WriteBehind, letter: DeadLetter, corrections: Mapping[str, Any]) -> dict[str, Any]:
    if len(letter.changes) > 1:
        raise ValidationError(
            f"letter {letter.letter_id} is an atomic group, which cannot be corrected",
            "mend what SQL refuses and replay it as it is, or discard it and write its records again",
        )
    (change,) = letter.changes
    declared = app.tables.get(change.table)
    if declared is None:
        raise ValidationError(
            f"table {change.table} is not declared here, so a correction cannot be checked", "add it to tables=[...]"
        )
    return validate(declared.plan, change.op, corrections)


def _entry(app: WriteBehind, op: Op, letter: DeadLetter, corrections: Mapping[str, Any]) -> Entry:
    partition, place = letter.letter_id
    values = {LETTER: place, MEANT: letter.mutation_id, **corrections}
    members = [(op, table, key_text, values) for table, key_text in letter.records]
    # What cannot be read names no record: only the letter itself can be asked for.
    payload = encode_group(members) if len(members) > 1 else encode(*(members or [(op, "", "", values)])[0])
    if len(payload) > app.settings.payload_bytes_max:
        raise ValidationError(
            f"the correction takes {len(payload)} bytes and {app.settings.payload_bytes_max} are allowed",
            "store large values elsewhere, or raise payload_bytes_max; nothing was written",
        )
    return Entry(
        partition,
        payload,
        [app.keys.record(partition, table, key_text) for table, key_text in letter.records if key_text],
        [part for table, key_text in letter.records for part in ("n" if key_text else "a", 1, table)],
        len(members),
        (op, "", "", {}),
    )


def _append(app: WriteBehind, entries: Sequence[Entry]) -> list[Receipt]:
    settings = app.settings
    drafts: dict[int, list[Draft]] = {}
    receipts: dict[int, list[Receipt]] = {}
    given: list[Receipt] = []
    for entry in entries:
        listed = drafts.setdefault(entry.partition, [])
        if not (listed and listed[-1].has_room(entry, settings.call_entries_max, settings.call_bytes_max)):
            listed.append(Draft(entry.partition))
        listed[-1].add(entry)
        given.append(Receipt(app, entry.partition))
        receipts.setdefault(entry.partition, []).append(given[-1])
    app.append_many(drafts, receipts, Durability.ACCEPTED)
    return given
