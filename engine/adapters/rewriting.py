"""Writing lost entries of one partition again, in their order, unless others have overwritten them since."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import redis

from writebehind.engine.adapters.links import Link, refusal
from writebehind.engine.adapters.scripts import REWRITE
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.payload import Mutation, PayloadError, decode
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.retention import Single, commutes
from writebehind.engine.errors import RedisUnavailable

__all__ = ["Rewriting"]

PAGE = 1000
SEQUENCE_MAX = 2**52
SECONDS_MAX = 10.0
"""How long one entry is tried while others keep writing its record."""

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

    def rewrite(self, single: Single) -> EntryID | None:
        """Append one entry again; return its ID, or None where others have overwritten it since.

        Raises:
            RedisUnavailable: others keep writing the record, so that it could not be done in time.
            redis.RedisError: Redis refuses, or the connection failed.
        """
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            versions = self._versions(single.records)
            if not all(self._untouched(*each) for each in zip(single.records, versions, strict=True)):
                self._read_on()
                if single.original in self._originals:
                    # Appended at an earlier try, whose reply was lost.
                    return self._originals[single.original]
                unseen = self._trimmed and not all(versions)
                if unseen or not self._commutes(single):
                    return None
            try:
                entry_id: bytes = self._link.script(REWRITE, self._keys_of(single), self._arguments(single, versions))
            except redis.ResponseError as error:
                if refusal(error).code != "CHANGED":
                    raise
                continue
            self._mine.update(dict.fromkeys(single.records, entry_id.decode()))
            self._my_ids.add(EntryID.parse(entry_id))
            return EntryID.parse(entry_id)
        raise RedisUnavailable(
            f"a lost write of partition {self._partition} could not be written again: others keep writing its record",
            "it is kept, and tried again",
        )

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
        original = None
        if len(fields) > ENTRY_FIELDS and not fields[5].endswith(b"?"):
            original = EntryID.parse(fields[5])
            self._originals[original] = entry_id
        if entry_id in self._my_ids:
            return
        try:
            mutations = decode(fields[3])
        except (PayloadError, IndexError):
            # What cannot be read is none of ours.
            return
        for mutation in mutations:
            record = self._keys.record(self._partition, mutation[1], mutation[2])
            self._since.setdefault(record, []).append((original, mutation))

    def _keys_of(self, single: Single) -> list[str]:
        return [self._keys.logs[self._partition], self._keys.metas[self._partition], *single.records]

    def _arguments(self, single: Single, versions: list[str]) -> list[Any]:
        operations = [
            part for op, arguments in single.operations for part in (op, arguments[0] if op in {"a", "n"} else "")
        ]
        # A record that is not there: nothing may be appended between the look at the log and the script.
        read_to = "" if all(versions) else str(self._read_to)
        head = [self._link.identity, str(single.original), single.mutation_id, single.payload, len(single.operations)]
        return [*head, read_to, *versions, *operations]
