"""Writing lost entries of one partition again, in their order, unless others have overwritten them since."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import redis

from writebehind.engine.adapters.links import Link, refusal
from writebehind.engine.adapters.scripts import REWRITE
from writebehind.engine.core.composing import pieces
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.origin import Origin
from writebehind.engine.core.payload import Mutation, PayloadError, decode
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.retention import Single, commutes
from writebehind.engine.errors import RedisUnavailable

__all__ = ["Rewriting"]

PAGE = 1000
SEQUENCE_MAX = 2**52
SECONDS_MAX = 10.0
"""How long entries are tried while others keep writing their records."""

ENTRIES_PER_SCRIPT = 100
BYTES_PER_SCRIPT = 1024 * 1024
"""So little that Redis is not busy for long."""

TRIES_TOGETHER = 3

ENTRY_FIELDS = 4
"""Names and values of an ordinary entry; one that was written again names its original, too."""


class Rewriting:
    """Writing lost entries of one partition again.

    Args:
        link: a connection to the primary.
        keys: the namespace's key names.
        partition: the partition.
        new: the epochs that this engine did not know: what stands in them was written since.
        columns: by table, the names of its key's columns.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        partition: int,
        *,
        new: Collection[int],
        columns: Mapping[str, frozenset[str]],
    ) -> None:
        self._link = link
        self._keys = keys
        self._partition = partition
        self._columns = columns
        self._new = new
        self._read_to = EntryID(min(new, default=1) - 1, SEQUENCE_MAX)
        self._trimmed = False
        self._mine: dict[str, str] = {}
        self._my_ids: set[EntryID] = set()
        self._since: dict[str, list[tuple[EntryID | None, Mutation]]] = {}
        self._originals: dict[EntryID, EntryID] = {}

    def rewrite(self, singles: Sequence[Single]) -> list[EntryID | None]:
        """Append entries again, in their order; return each one's ID, or None where others have overwritten it since.

        Raises:
            RedisUnavailable: others keep writing a record, so that it could not be done in time.
            redis.RedisError: Redis refuses, or the connection failed.
        """
        cuts = pieces((single.payload for single in singles), ENTRIES_PER_SCRIPT, BYTES_PER_SCRIPT)
        return [entry_id for cut in cuts for entry_id in self._rewrite(singles[cut])]

    def _rewrite(self, singles: Sequence[Single]) -> list[EntryID | None]:
        """Append a few entries again by one script."""
        records = list(dict.fromkeys(record for single in singles for record in single.records))
        deadline = time.monotonic() + SECONDS_MAX
        tries = 0
        while time.monotonic() < deadline:
            if tries == TRIES_TOGETHER and len(singles) > 1:
                # Somebody writes one of the records: it must not keep the others from being written.
                return [found for single in singles for found in self._rewrite([single])]
            tries += 1
            versions = dict(zip(records, self._versions(records), strict=True))
            touched = {record for record in records if not self._untouched(record, versions[record])}
            if touched:
                self._read_on()
            found = self._settled(singles, touched, versions)
            todo = [single for single in singles if single.entry_id not in found]
            try:
                if todo:
                    found.update(self._append(todo, versions))
            except redis.ResponseError as error:
                if refusal(error).code != "CHANGED":
                    raise
            else:
                return [found[single.entry_id] for single in singles]
        raise RedisUnavailable(
            f"lost writes of partition {self._partition} could not be written again: others keep writing their records",
            "they are kept, and tried again",
        )

    def _settled(
        self, singles: Sequence[Single], touched: Collection[str], versions: Mapping[str, str]
    ) -> dict[EntryID, EntryID | None]:
        """Return where entries stand that are not to be appended: they were already, or others overwrote them."""
        found: dict[EntryID, EntryID | None] = {}
        for single in singles:
            if all(record not in touched for record in single.records):
                continue
            unseen = self._trimmed and not all(versions[record] for record in single.records)
            # Appended at an earlier try whose reply was lost: there it stands.
            if single.original in self._originals or unseen or not self._commutes(single):
                found[single.entry_id] = self._originals.get(single.original)
        return found

    def _append(self, singles: Sequence[Single], versions: Mapping[str, str]) -> dict[EntryID, EntryID | None]:
        names = list(dict.fromkeys(record for single in singles for record in single.records))
        keys = [self._keys.logs[self._partition], self._keys.metas[self._partition], *names]
        arguments = self._arguments(singles, {name: versions[name] for name in names})
        last = EntryID.parse(self._link.script(REWRITE, keys, arguments))
        found: dict[EntryID, EntryID | None] = {}
        for number, single in enumerate(singles, last.sequence - len(singles) + 1):
            entry_id = EntryID(last.epoch, number)
            found[single.entry_id] = entry_id
            self._mine.update(dict.fromkeys(single.records, str(entry_id)))
            self._my_ids.add(entry_id)
        return found

    def _versions(self, records: Sequence[str]) -> list[str]:
        replies = self._link.pipeline([("HGET", record, ":version") for record in records]) if records else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return [reply.decode() if reply else "" for reply in replies]

    def _untouched(self, record: str, version: str) -> bool:
        """Tell whether nobody has written a record since; one that is not there may have been flushed meanwhile."""
        if self._mine.get(record) == version:
            return True
        return bool(version) and EntryID.parse(version).epoch not in self._new

    def _commutes(self, single: Single) -> bool:
        for mutation in decode(single.payload):
            _, table, key, _ = mutation
            # What was written again by another writer, and stood before this one, comes before it as it should.
            since = [
                other
                for original, other in self._since.get(self._keys.record(self._partition, table, key), ())
                if original is None or original > single.original
            ]
            if key and not commutes(mutation, since, self._columns.get(table, frozenset())):
                return False
        return True

    def _read_on(self) -> None:
        """Read what was appended to the new history since the last look, and note whether some of it is trimmed."""
        log = self._keys.logs[self._partition]
        info = self._link.command("XINFO", "STREAM", log)
        last = EntryID.parse(dict(zip(info[::2], info[1::2], strict=False))[b"last-generated-id"])
        while True:
            entries = self._link.command("XRANGE", log, f"({self._read_to}", "+", "COUNT", PAGE)
            for raw_id, fields in entries:
                entry_id = EntryID.parse(raw_id)
                follows = entry_id.epoch == self._read_to.epoch and entry_id.sequence == self._read_to.sequence + 1
                self._trimmed = self._trimmed or not (follows or entry_id.sequence == 0)
                self._read_to = entry_id
                self._note(entry_id, fields)
            if len(entries) < PAGE:
                break
        if last > self._read_to:
            self._trimmed = True
            self._read_to = last

    def _note(self, entry_id: EntryID, fields: list[bytes]) -> None:
        try:
            original = Origin.parse(fields[5]).original if len(fields) > ENTRY_FIELDS else None
            mutations = decode(fields[3])
        except (PayloadError, ValueError, IndexError):
            # What cannot be read is none of ours.
            return
        if original is not None:
            self._originals[original] = entry_id
        if entry_id in self._my_ids:
            return
        for mutation in mutations:
            record = self._keys.record(self._partition, mutation[1], mutation[2])
            self._since.setdefault(record, []).append((original, mutation))

    def _arguments(self, singles: Sequence[Single], versions: Mapping[str, str]) -> list[Any]:
        places = {name: 3 + number for number, name in enumerate(versions)}
        read_to = "" if all(versions.values()) else str(self._read_to)
        arguments: list[Any] = [self._link.identity, read_to, len(singles), *versions.values()]
        for single in singles:
            origin = Origin(single.original, single.doubts)
            arguments += (str(origin), single.mutation_id, single.payload, len(single.operations))
            records = iter(single.records)
            for op, given in single.operations:
                arguments += (op, given[0] if op in {"a", "n"} else "", 0 if op == "a" else places[next(records)])
        return arguments
