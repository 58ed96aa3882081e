"""Writing again what Redis has lost: the engine's own accepted writes, when the history begins anew below them.

So the window of loss is zero as long as either Redis or the writing service survives, within what is kept.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from threading import Event, Lock

import redis

from writebehind.engine.adapters.links import Link, Links, open_epoch, refusal
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.adapters.scripts import REWRITE
from writebehind.engine.core.appending import Call
from writebehind.engine.core.contiguity import Lineage, end_of, parse_lineage
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.payload import Mutation, PayloadError, decode
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.retention import Accepted, DataLoss, Ring, Single, commutes, is_lost
from writebehind.engine.errors import DatabaseUnavailable

__all__ = ["Rewriter"]

logger = logging.getLogger(__name__)

PAGE = 1000
MOVED_MAX = 200_000
"""Entries written again whose old place is remembered, for receipts that are waited for."""

TRIES = 20
"""How often a record may be written by others while its lost write is being written again."""


class Rewriter:
    """Keeps accepted writes of one engine and writes them again; safe to share between threads.

    Args:
        links: connections to Redis.
        rows: the database.
        keys: the namespace's key names.
        ring: what is kept.
        columns: by table, the names of its key's columns.
        on_loss: told of each partition in which Redis has lost own writes.

    Attributes:
        identities: by partition, the primary on which this engine knows its history to be whole.
        wake: set when there is something for ``tell``.
        moved: for an entry that was written again, its partition and ID with where it stands now.
    """

    def __init__(
        self,
        links: Links,
        rows: Rows,
        keys: Keys,
        ring: Ring,
        *,
        columns: Mapping[str, frozenset[str]],
        on_loss: Callable[[DataLoss], None],
    ) -> None:
        self._links = links
        self._rows = rows
        self._keys = keys
        self._columns = columns
        self._on_loss = on_loss
        self.renew(ring)

    def renew(self, ring: Ring) -> None:
        """Begin with nothing kept; called in a forked child, too, whose parent keeps what it wrote."""
        self._ring = ring
        self._lock = Lock()
        self._reconciling = Lock()
        self._lineages: dict[int, Lineage] = {}
        self._untold: deque[DataLoss] = deque()
        self.wake = Event()
        self._vanished: dict[tuple[int, int], EntryID | None] = {}
        self.identities: dict[int, bytes] = {}
        self.moved: dict[tuple[int, EntryID], tuple[EntryID, bytes]] = {}

    def keep(self, call: Call, last: bytes, at: float) -> None:
        """Keep an accepted call.

        Args:
            call: what was sent.
            last: the ID of its last entry.
            at: now, on the monotonic clock.
        """
        with self._lock:
            self._ring.add(Accepted(call, last, at))

    def look(self) -> None:
        """Compare the primary with what is known of each partition of which something is kept.

        Raises:
            RedisUnavailable: Redis cannot be reached.
            redis.ResponseError: Redis refuses.
        """
        with self._lock:
            self._ring.expire(time.monotonic())
            partitions = self._ring.partitions()
        if partitions:
            with self._links.link() as link:
                identity = link.identity
            for partition in partitions:
                if self.identities.get(partition) != identity:
                    self.reconcile(partition)

    def reconcile(self, partition: int) -> None:
        """Open an epoch where that is needed, and write again what the history is without.

        Durability: what is written again is accepted, no more. Repeat: harmless. Crash: what was not written again is
        lost with this process. Reported: ``DataLoss``.

        Raises:
            RedisUnavailable: Redis cannot be reached; what was not written again stays kept.
            redis.ResponseError: Redis refuses; likewise.
        """
        with self._reconciling, self._links.link() as link:
            open_epoch(link, self._keys, partition)
            lineage = self._lineage(link, partition)
            loss = self._compare(link, partition, lineage)
            self._turn(partition, lineage)
            self.identities[partition] = link.identity
        if loss is not None:
            self._report(loss)

    def _lineage(self, link: Link, partition: int) -> Lineage:
        reply = link.command("HGETALL", self._keys.metas[partition])
        return parse_lineage(dict(zip(reply[::2], reply[1::2], strict=True)))

    def _compare(self, link: Link, partition: int, lineage: Lineage) -> DataLoss | None:
        with self._lock:
            accepted = self._ring.of(partition)
            dropped = self._ring.dropped.get(partition)
        gone = [each for each in accepted if is_lost(EntryID.parse(each.last), lineage)]
        lost = sorted((single for each in gone for single in each.singles()), key=lambda single: single.entry_id)
        lost = [single for single in lost if is_lost(single.entry_id, lineage)]
        unretained, before = self._unretained(partition, dropped, lineage) if dropped else (0, None)
        if not lost and not unretained:
            return None
        new = lineage.keys() - self._lineages.get(partition, {}).keys()
        work = _Work(link, self._keys, partition, new=new, columns=self._columns)
        kept: list[Accepted] = []
        superseded: list[Single] = []
        for single in lost:
            entry_id = work.rewrite(single)
            if entry_id is None:
                superseded.append(single)
                continue
            kept.append(_again(partition, single, entry_id))
            for known in {single.entry_id, single.original}:
                self.moved[partition, known] = (entry_id, link.identity)
        for oldest in list(self.moved)[: max(0, len(self.moved) - MOVED_MAX)]:
            del self.moved[oldest]
        with self._lock:
            replaced = {id(each) for each in gone}
            self._ring.remove(lambda each: id(each) in replaced)
            for each in kept:
                self._ring.add(each)
            self._ring.dropped.pop(partition, None)
        first = lost[0].entry_id if lost else before
        return DataLoss(
            partition=partition,
            first_id=str(before or first),
            last_id=str(lost[-1].entry_id if lost else EntryID.parse(dropped or b"0-0")),
            entries=len(lost),
            rewritten=len(kept),
            superseded=len(superseded),
            unretained=unretained,
            from_ms=_made_ms(lost[0]) if lost else 0,
            until_ms=_made_ms(lost[-1]) if lost else 0,
            keys=sorted({(table, key) for single in superseded for _, table, key, _ in decode(single.payload)}),
        )

    def _unretained(self, partition: int, dropped: bytes, lineage: Lineage) -> tuple[int, EntryID | None]:
        """Count what was lost and is not kept any more: down to the end of its epoch, or to what SQL has."""
        last = EntryID.parse(dropped)
        if not is_lost(last, lineage):
            return 0, None
        end = end_of(last.epoch, lineage) if last.epoch in lineage else None
        known = end.sequence if end is not None and end.epoch == last.epoch else -1
        try:
            applied = self._rows.applied_of(self._keys.namespace, [partition])[partition]
        except DatabaseUnavailable:
            applied = None
        if applied is not None:
            in_sql = (
                applied.offset.sequence if applied.offset.epoch == last.epoch else applied.ended.get(last.epoch, -1)
            )
            known = max(known, in_sql)
        return max(0, last.sequence - known), EntryID(last.epoch, known + 1) if last.sequence > known else None

    def _turn(self, partition: int, lineage: Lineage) -> None:
        """Remember the new history, and where it leaves the one known before."""
        before = self._lineages.get(partition, {}).keys()
        new = lineage.keys() - before
        for epoch in before - lineage.keys():
            self._vanished[partition, epoch] = lineage[min(new)] if new else None
        self._lineages[partition] = lineage

    def anchor(self, partition: int, anchor: bytes) -> bytes:
        """Return where a retry has to begin to search, in place of an entry that this history may be without.

        Args:
            partition: its number.
            anchor: an entry that stood in the log before the first attempt, or ``0-0``.
        """
        lineage = self._lineages.get(partition, {})
        known = EntryID.parse(anchor) if anchor != b"0-0" else None
        while known is not None and is_lost(known, lineage):
            vanished = self._vanished.get((partition, known.epoch))
            known = end_of(known.epoch, lineage) if known.epoch in lineage else vanished
            if known == ORIGIN:
                known = None
        return b"0-0" if known is None else str(known).encode()

    def _report(self, loss: DataLoss) -> None:
        log = logger.error if loss.lost else logger.warning
        log(
            "%spartition %d: Redis lost accepted entries %s to %s: %d of this process, of which %d were written again "
            "and %d had been overwritten since; %d more were not kept",
            "DATA LOSS: " if loss.lost else "", loss.partition, loss.first_id, loss.last_id, loss.entries,
            loss.rewritten, loss.superseded, loss.unretained,
        )  # fmt: skip
        self._untold.append(loss)
        self.wake.set()
        self._on_loss(loss)

    def tell(self) -> None:
        """Record in SQL what was lost; not on the way of a write, because the database may be slow to answer."""
        while self._untold:
            loss = self._untold.popleft()
            self._rows.note_loss(self._keys.namespace, loss, f"writer {socket.gethostname()[:80]}:{os.getpid()}")

    def whereabouts(self, partition: int, entry_id: EntryID) -> tuple[EntryID, bytes] | None:
        """Return where an entry stands now and on which primary, if it was written again."""
        found = self.moved.get((partition, entry_id))
        while found is not None and (further := self.moved.get((partition, found[0]))) is not None:
            found = further
        return found


class _Work:
    """Writing lost entries of one partition again, in their order."""

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
        self._read_to = f"{min(new, default=0)}-0"
        self._first = True
        self._mine: dict[str, str] = {}
        self._since: dict[str, list[tuple[EntryID | None, Mutation]]] = {}
        self._originals: dict[EntryID, EntryID] = {}

    def rewrite(self, single: Single) -> EntryID | None:
        """Append one entry again; return its ID, or None where others have overwritten it since."""
        for _ in range(TRIES):
            versions = [self._version(record) for record in single.records]
            if not all(self._untouched(*each) for each in zip(single.records, versions, strict=True)):
                self._read_on()
                if single.original in self._originals:
                    # Appended at an earlier try, whose reply was lost.
                    return self._originals[single.original]
                if not self._commutes(single):
                    return None
            try:
                entry_id: bytes = self._link.script(REWRITE, self._keys_of(single), self._arguments(single, versions))
            except redis.ResponseError as error:
                if refusal(error).code != "CHANGED":
                    raise
                continue
            self._mine.update(dict.fromkeys(single.records, entry_id.decode()))
            return EntryID.parse(entry_id)
        return None

    def _version(self, record: str) -> str:
        reply = self._link.command("HGET", record, ":version")
        return reply.decode() if reply else ""

    def _untouched(self, record: str, version: str) -> bool:
        return not version or self._mine.get(record) == version or EntryID.parse(version).epoch not in self._new

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
        """Read what was appended to the new history since the last look."""
        log = self._keys.logs[self._partition]
        while True:
            first = self._read_to if self._first else f"({self._read_to}"
            entries = self._link.command("XRANGE", log, first, "+", "COUNT", PAGE)
            for entry_id, fields in entries:
                self._first = False
                self._read_to = entry_id.decode()
                self._note(EntryID.parse(entry_id), fields)
            if len(entries) < PAGE:
                return

    def _note(self, entry_id: EntryID, fields: list[bytes]) -> None:
        original = None
        if len(fields) > 4:  # noqa: PLR2004 - an entry that was written again names its original
            original = EntryID.parse(fields[5])
            self._originals[original] = entry_id
        if str(entry_id) in self._mine.values():
            return
        try:
            mutations = decode(fields[3])
        except (PayloadError, IndexError):
            return
        for mutation in mutations:
            record = self._keys.record(self._partition, mutation[1], mutation[2])
            self._since.setdefault(record, []).append((original, mutation))

    def _keys_of(self, single: Single) -> list[str]:
        return [self._keys.logs[self._partition], self._keys.metas[self._partition], *single.records]

    def _arguments(self, single: Single, versions: list[str]) -> list[object]:
        operations = [
            part for op, arguments in single.operations for part in (op, arguments[0] if op in {"a", "n"} else "")
        ]
        head = [self._link.identity, str(single.original), single.mutation_id, single.payload, len(single.operations)]
        return [*head, *versions, *operations]


def _again(partition: int, single: Single, entry_id: EntryID) -> Accepted:
    operations = [part for op, arguments in single.operations for part in (op, len(arguments), *arguments)]
    arguments = [1, 0, single.payload, len(single.operations), *operations]
    call = Call(partition, single.mutation_id, 1, list(single.records), arguments, len(single.payload))
    return Accepted(call, str(entry_id).encode(), time.monotonic(), single.original)


def _made_ms(single: Single) -> int:
    return int(single.mutation_id[:11], 16)
