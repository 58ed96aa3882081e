"""Writing again what Redis has lost: the engine's own accepted writes, when the history begins anew below them.

So the window of loss is zero as long as either Redis or the writing service survives, within what is kept.
"""

import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from threading import Event, Lock

import redis

from writebehind.engine.adapters.asking import Asking
from writebehind.engine.adapters.links import Link, Links, open_epoch, refusal
from writebehind.engine.adapters.looks import Look, Looks
from writebehind.engine.adapters.rewriting import Rewriting
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.core.appending import Call
from writebehind.engine.core.contiguity import Lineage, end_of, parse_lineage
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.mutation_ids import made_ms
from writebehind.engine.core.payload import decode
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.retention import Accepted, DataLoss, Ring, Single, is_lost
from writebehind.engine.errors import DatabaseUnavailable, LogDamaged

__all__ = ["Rewriter"]

logger = logging.getLogger(__name__)

MOVED_MAX = 200_000
"""Entries written again whose old place is remembered, for receipts that are waited for."""


class Rewriter:
    """Keeps accepted writes of one engine and writes them again; safe to share between threads.

    Args:
        links: connections to Redis.
        rows: the database.
        looks: asks it.
        keys: the namespace's key names.
        ring: what is kept.
        columns: by table, the names of its key's columns.
        on_loss: told of each partition in which Redis has lost own writes.

    Attributes:
        histories: by partition, the primary on which this engine knows its history to be whole, and with it what the
            write script is told: the primary and the epoch.
        wake: set when there is something for ``tell``.
        moved: for an entry that was written again, its partition and ID with where it stands now.
    """

    def __init__(
        self,
        links: Links,
        rows: Rows,
        looks: Looks,
        keys: Keys,
        ring: Ring,
        *,
        columns: Mapping[str, frozenset[str]],
        on_loss: Callable[[DataLoss], None],
    ) -> None:
        self._links = links
        self._rows = rows
        self._looks = looks
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
        self._asking = Asking(self._rows, self._looks, self._keys.namespace)
        self._untold: deque[DataLoss] = deque()
        self._telling: Look[None] | None = None
        self.wake = Event()
        self._uncounted: set[int] = set()
        self._damaged: set[int] = set()
        self._vanished: dict[tuple[int, int], EntryID | None] = {}
        self.histories: dict[int, tuple[bytes, bytes]] = {}
        self._reporter = f"writer {socket.gethostname()[:80]}:{os.getpid()}:{secrets.token_hex(3)}"
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
        known = self.histories.get(call.partition)
        if known is not None and not known[1].endswith(b" " + last.partition(b"-")[0]):
            # Another thread has met a new history before this call was kept: look again.
            self.histories.pop(call.partition, None)

    def meet(self, identity: bytes, partition: int) -> None:
        """See to it that a new history has this engine's earlier writes, of all partitions, before it gets more.

        Args:
            identity: the primary that a connection leads to.
            partition: the partition that is to be written or read.

        Raises:
            RedisUnavailable, redis.ResponseError: it could not be done now.
            LogDamaged: this partition's log or meta hash is; what is the matter with another one's is only logged.
        """
        known = self.histories.get(partition)
        if known is None or known[0] != identity:
            with self._lock:
                partitions = self._ring.partitions()
            self.reconcile(partition)
            for other in partitions - {partition}:
                if self.histories.get(other, (b"",))[0] != identity:
                    self._reconcile_if_fit(other)

    def meet_known(self, identity: bytes, partition: int) -> None:
        """As ``meet``, for a partition that this engine has written to; a refusal is left to the next write.

        Raises:
            RedisUnavailable: it could not be done now.
        """
        known = self.histories.get(partition)
        if known is not None and known[0] != identity:
            try:
                self.meet(identity, partition)
            except redis.ResponseError as error:
                logger.warning("writing again what Redis has lost: %s", error)

    def look(self) -> None:
        """Compare the primary with what is known of each partition of which something is kept.

        Raises:
            RedisUnavailable: Redis cannot be reached.
            redis.ResponseError: Redis refuses.
        """
        with self._lock:
            partitions = sorted(self._ring.partitions())
        if partitions:
            with self._links.link() as link:
                identity = link.identity
                epochs = link.pipeline([("HGET", self._keys.metas[number], "epoch") for number in partitions])
            for number, epoch in zip(partitions, epochs, strict=True):
                known = self.histories.get(number, (b"", b""))
                now = (identity, b"%b %b" % (identity, epoch if isinstance(epoch, bytes) else b""))
                # SQL is asked before anything is held that writes may wait for.
                if known != now or (number in self._uncounted and self._asking.answers(number)):
                    self._reconcile_if_fit(number)
        # Only now: while Redis is away nothing grows too old.
        with self._lock:
            self._ring.expire(time.monotonic())

    def reconcile(self, partition: int) -> None:
        """Open an epoch where that is needed, and write again what the history is without.

        Durability: what is written again is accepted, no more. Repeat: harmless. Crash: what was not written again is
        lost with this process. Reported: ``DataLoss``.

        Raises:
            RedisUnavailable: Redis cannot be reached; what was not written again stays kept.
            redis.ResponseError: Redis refuses; likewise.
            LogDamaged: the meta hash is not what the engine writes; likewise.
        """
        with self._reconciling, self._links.link() as link:
            epoch = open_epoch(link, self._keys, partition)
            lineage = self._lineage(link, partition)
            loss = self._compare(link, partition, lineage)
            self._turn(partition, lineage)
            self.histories[partition] = (link.identity, b"%b %b" % (link.identity, epoch))
        if loss is not None:
            self._report(loss)

    def _reconcile_if_fit(self, partition: int) -> None:
        """Reconcile a partition; where another program has damaged it, say so once, and leave it to its own writes."""
        try:
            self.reconcile(partition)
        except (LogDamaged, redis.ResponseError) as error:
            if isinstance(error, redis.ResponseError) and refusal(error).code != "WRONGTYPE":
                raise
            if partition not in self._damaged:
                self._damaged.add(partition)
                logger.warning("partition %d: what Redis has lost of it cannot be written again: %s", partition, error)
        else:
            self._damaged.discard(partition)

    def _lineage(self, link: Link, partition: int) -> Lineage:
        reply = link.command("HGETALL", self._keys.metas[partition])
        return parse_lineage(dict(zip(reply[::2], reply[1::2], strict=True)))

    def _compare(self, link: Link, partition: int, lineage: Lineage) -> DataLoss | None:
        with self._lock:
            accepted = self._ring.of(partition)
            dropped = [EntryID.parse(last) for last in self._ring.dropped.get(partition, {}).values()]
        gone = [each for each in accepted if is_lost(EntryID.parse(each.last), lineage)]
        lost = sorted((single for each in gone for single in each.singles()), key=lambda single: single.entry_id)
        lost = [single for single in lost if is_lost(single.entry_id, lineage)]
        beyond = [each for each in dropped if is_lost(each, lineage)]
        unretained, before = 0, None
        said = partition in self._uncounted
        self._uncounted.discard(partition)
        if beyond:
            try:
                unretained, before = self._unretained(partition, beyond, lineage)
            except DatabaseUnavailable as error:
                self._leave_uncounted(partition, max(beyond), error, said=said)
                beyond = []
        if not lost and not unretained:
            return None
        new = lineage.keys() - self._lineages.get(partition, {}).keys()
        work = Rewriting(link, self._keys, partition, new=new, columns=self._columns)
        kept: list[Accepted] = []
        superseded: list[Single] = []
        for single, entry_id in zip(lost, work.rewrite(lost), strict=True):
            if entry_id is None:
                superseded.append(single)
                continue
            kept.append(_again(partition, single, entry_id))
            for known in {single.entry_id, single.original}:
                self.moved[partition, known] = (entry_id, link.identity)
        passed = len(superseded)
        superseded = self._not_in_sql(partition, superseded)
        for oldest in list(self.moved)[: max(0, len(self.moved) - MOVED_MAX)]:
            del self.moved[oldest]
        with self._lock:
            replaced = {id(each) for each in gone}
            self._ring.remove(lambda each: id(each) in replaced)
            for each in kept:
                self._ring.add(each)
            for last in beyond:
                self._ring.cut(partition, last.epoch, end_of(last.epoch, lineage) if last.epoch in lineage else None)
        first = lost[0].entry_id if lost else before
        return DataLoss(
            partition=partition,
            first_id=str(before or first),
            last_id=str(lost[-1].entry_id if lost else max(beyond)),
            entries=len(lost),
            rewritten=len(kept),
            applied=passed - len(superseded),
            superseded=len(superseded),
            unretained=unretained,
            from_ms=made_ms(lost[0].mutation_id) if lost else 0,
            until_ms=made_ms(lost[-1].mutation_id) if lost else 0,
            keys=sorted({(table, key) for single in superseded for _, table, key, _ in decode(single.payload)}),
        )

    def _leave_uncounted(self, partition: int, last: EntryID, error: DatabaseUnavailable, *, said: bool) -> None:
        """Note that only SQL can tell what is lost, to be asked again at the next look; say so once."""
        self._uncounted.add(partition)
        if not said:
            logger.error(
                "partition %d: Redis lost accepted entries up to %s that are not kept any more; SQL cannot be asked "
                "now which of them it has (%s), and is asked again", partition, last, error.message,
            )  # fmt: skip

    def _not_in_sql(self, partition: int, singles: list[Single]) -> list[Single]:
        """Return the entries that SQL has not applied, neither where they stood last nor where they stood first."""
        if not singles:
            return singles
        try:
            applied = self._asking.applied(partition)
        except DatabaseUnavailable:
            return singles
        return [each for each in singles if not (applied.covers(each.entry_id) or applied.covers(each.original))]

    def _unretained(self, partition: int, beyond: list[EntryID], lineage: Lineage) -> tuple[int, EntryID | None]:
        """Count what was lost and is not kept any more, and name the first of it.

        Args:
            partition: its number.
            beyond: of each epoch, the last entry that was lost and is not kept.
            lineage: the new history's.

        Raises:
            DatabaseUnavailable: SQL cannot be asked what it has.
        """
        applied = self._asking.applied(partition)
        count, first = 0, None
        for last in sorted(beyond, reverse=True):
            end = end_of(last.epoch, lineage) if last.epoch in lineage else None
            known = end.sequence if end is not None and end.epoch == last.epoch else -1
            here = applied.offset.epoch == last.epoch
            known = max(known, applied.offset.sequence if here else applied.ended.get(last.epoch, -1))
            if last.sequence > known:
                count += last.sequence - known
                first = EntryID(last.epoch, known + 1)
        return count, first

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

    def doubt(self, partition: int, history: bytes) -> EntryID | None:
        """Return the first entry that was lost with an earlier history, or None where that one goes on.

        Args:
            partition: its number.
            history: what the write script was told when an attempt was lost.
        """
        known = self.histories.get(partition)
        epoch = int(history.rpartition(b" ")[2])
        if known is None or known[1] == history or not epoch:
            return None
        lineage = self._lineages.get(partition, {})
        end = end_of(epoch, lineage) if epoch in lineage else None
        return EntryID(epoch, end.sequence + 1 if end is not None and end.epoch == epoch else 0)

    def in_sql(self, partition: int, entry_id: EntryID) -> bool:
        """Tell whether SQL is known to have an entry; a database that is away tells nothing."""
        try:
            return self._asking.applied(partition).covers(entry_id) is True
        except DatabaseUnavailable:
            return False

    def _report(self, loss: DataLoss) -> None:
        log = logger.error if loss.lost else logger.warning
        log(
            "%spartition %d: Redis lost accepted entries %s to %s: %d of this process, of which %d are written again "
            "and %d not, because others have written the records since; SQL has %d of these; %d more were not kept",
            "DATA LOSS: " if loss.lost else "", loss.partition, loss.first_id, loss.last_id, loss.entries,
            loss.rewritten, loss.superseded + loss.applied, loss.applied, loss.unretained,
        )  # fmt: skip
        self._untold.append(loss)
        self.wake.set()
        self._on_loss(loss)

    def tell(self, seconds: float = 0.0) -> None:
        """Have recorded in SQL what was lost, one loss after another, each once; what is left is for the next call.

        Args:
            seconds: how long to wait for the database at the most.
        """
        until = time.monotonic() + seconds
        while self._telling is not None or self._untold:
            if self._telling is None:
                asked = self._keys.namespace, self._untold.popleft(), self._reporter
                self._telling = self._looks.begin(self._rows.note_loss, *asked)
            if not self._telling.answered(max(0.0, until - time.monotonic())):
                self._looks.attend()
                return
            told, self._telling = self._telling, None
            try:
                told.result()
            except DatabaseUnavailable as error:
                logger.warning("the loss cannot be recorded in SQL: %s", error.message)

    def whereabouts(self, partition: int, entry_id: EntryID) -> list[tuple[EntryID, bytes]]:
        """Return where an entry was written again, and on which primary: each time, the last one being where it is."""
        found: list[tuple[EntryID, bytes]] = []
        while (further := self.moved.get((partition, entry_id))) is not None:
            found.append(further)
            entry_id = further[0]
        return found


def _again(partition: int, single: Single, entry_id: EntryID) -> Accepted:
    operations = [part for op, arguments in single.operations for part in (op, len(arguments), *arguments)]
    arguments = [1, 0, single.payload, len(single.operations), *operations]
    call = Call(
        partition,
        single.mutation_id,
        1,
        list(single.records),
        arguments,
        len(single.payload),
        doubts=single.doubts,
    )
    return Accepted(call, str(entry_id).encode(), time.monotonic(), single.original)
