"""The log compared with SQL: what is on its way, what is missing, what nobody can read.

Invariants:

1. An entry counts as missing only where it was not in the log before SQL was asked, and SQL had not applied it then:
   a flusher that commits and trims meanwhile makes no gap.
2. Memory holds one page of entries at a time.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.log import GROUP, Log, LogState
from writebehind.engine.adapters.log_replies import RawEntry
from writebehind.engine.core.contiguity import backlog, step
from writebehind.engine.core.payload import Mutation, Op, PayloadError, decode
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.recovery.offsets import offsets
from writebehind.recovery.records import Records, refused

__all__ = ["Gap", "LogAudit", "audit"]

ABOUT_LETTERS: Final = frozenset({Op.REPLAY, Op.DISCARD})
KEEPING_NO_RECORD: Final = ABOUT_LETTERS | {Op.INSERT}
"""Operations after which there may be no hash."""

PAGE_ENTRIES: Final = 250
PAGE_PENDING: Final = 1000
NAMED_MAX: Final = 100
"""Gaps, unreadable entries and deleted records of a partition that are named; all are counted."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Entries that are neither in the log nor in SQL.

    Attributes:
        after: the last entry before them.
        before: the entry that follows; None where they are the log's last ones.
        entries: how many.
        known: False where the lineage does not connect the two, so that there may be more.
    """

    after: str
    before: str | None
    entries: int
    known: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LogAudit:
    """One partition's log compared with SQL.

    Attributes:
        partition: its number.
        backlog: entries in the log that SQL has not applied.
        lost: entries that are neither in the log nor in SQL.
        gaps: where they were.
        dangling: entries that the consumer group waits for and that are not in the log.
        group_missing: there is a log and no consumer group; the next flusher makes it anew.
        history_missing: the log has nothing of the history that SQL has applied: it was emptied, or is another Redis.
        unreadable: entries of the backlog that no flusher with these tables can read: damaged ones become dead letters,
            at others the partition halts.
        unreadable_ids: the first of them.
        orphaned: records without a hash although their last change is in the backlog: somebody deleted it, and reads
            are stale until it is flushed.
        orphans: the first of them, as table and key text.
    """

    partition: int
    backlog: int
    lost: int
    gaps: Sequence[Gap]
    dangling: int
    group_missing: bool
    history_missing: bool
    unreadable: int
    unreadable_ids: Sequence[str]
    orphaned: int
    orphans: Sequence[tuple[str, str]]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; a backlog is nothing wrong, nor is what the next takeover clears away."""
        return not (self.lost or self.group_missing or self.history_missing or self.unreadable or self.orphaned)


class _Walk:
    """A walk over one partition's backlog."""

    def __init__(self, app: WriteBehind, partition: int, only_tables: Collection[str] | None) -> None:
        self._app = app
        self._log = Log(app.links, app.keys, "verify")
        self._only_tables = only_tables
        self._number = partition
        self._lost = self._unreadable = self._orphaned = 0
        self._gaps: list[Gap] = []
        self._unreadable_ids: list[str] = []
        self._orphans: list[tuple[str, str]] = []

    def run(self) -> LogAudit:
        # SQL is asked after the log: what it has applied by then only makes the backlog smaller.
        state = self._log.states([self._number])[self._number]
        offset = offsets(self._app, [self._number])[self._number]
        position = offset.position(state.lineage)
        entries = 0
        if state.end is not None:
            for page in self._pages(state, position, state.end):
                entries += len(page)
                self._read(page)
        return LogAudit(
            partition=self._number,
            backlog=entries,
            lost=self._lost,
            gaps=self._gaps,
            dangling=0 if state.delivered is None else self._dangling(),
            group_missing=state.end is not None and state.delivered is None,
            history_missing=position == ORIGIN and offset.applied != ORIGIN,
            unreadable=self._unreadable,
            unreadable_ids=self._unreadable_ids,
            orphaned=self._orphaned,
            orphans=self._orphans,
        )

    def _pages(self, state: LogState, position: EntryID, end: EntryID) -> Iterator[Sequence[RawEntry]]:
        """Read the backlog in pieces without gaps; note the gaps between them."""
        while position < end:
            entries = self._log.read_range(self._number, position, end, PAGE_ENTRIES)
            whole, gap = self._until_gap(state, position, end, entries)
            if whole:
                yield whole
                position = EntryID.parse(whole[-1][0])
            if gap is None:
                continue
            now = offsets(self._app, [self._number])[self._number].position(state.lineage)
            if now > position:
                # Flushed and trimmed meanwhile, or stepped over, and counted, by a flusher.
                position = now
                continue
            self._lost += gap.entries
            if len(self._gaps) < NAMED_MAX:
                self._gaps.append(gap)
            if gap.before is None:
                return
            following = entries[len(whole)]
            yield [following]
            position = EntryID.parse(following[0])

    def _until_gap(
        self, state: LogState, position: EntryID, end: EntryID, entries: Sequence[RawEntry]
    ) -> tuple[Sequence[RawEntry], Gap | None]:
        for number, entry in enumerate(entries):
            found = EntryID.parse(entry[0])
            judged = step(position, found, state.lineage)
            if judged.lost or not judged.known:
                return entries[:number], Gap(str(position), str(found), judged.lost, judged.known)
            position = found
        if len(entries) < PAGE_ENTRIES and (left := backlog(position, end, state.lineage)):
            return entries, Gap(str(position), None, left, known=True)
        return entries, None

    def _read(self, page: Sequence[RawEntry]) -> None:
        latest: dict[tuple[str, str], EntryID] = {}
        for entry_id, fields in page:
            try:
                mutations = decode(fields[3])
            except (PayloadError, IndexError, TypeError):
                self._note_unreadable(entry_id)
                continue
            if self._only_tables is None and any(self._unknown(op, table) for op, table, _, _ in mutations):
                self._note_unreadable(entry_id)
                continue
            latest |= {record: EntryID.parse(entry_id) for record in _records(mutations)}
        if self._only_tables is not None:
            latest = {record: entry for record, entry in latest.items() if record[0] in self._only_tables}
        self._find_orphans(latest)

    def _unknown(self, op: int, table: str) -> bool:
        # What is about a dead letter may name no table at all.
        return op not in ABOUT_LETTERS and table not in self._app.tables

    def _note_unreadable(self, entry_id: bytes) -> None:
        self._unreadable += 1
        if len(self._unreadable_ids) < NAMED_MAX:
            self._unreadable_ids.append(entry_id.decode())

    def _find_orphans(self, latest: Mapping[tuple[str, str], EntryID]) -> None:
        """Find records that are gone although SQL does not have their last change: nothing of ours removes those."""
        if not latest:
            return
        names = [self._app.keys.record(self._number, table, key_text) for table, key_text in latest]
        with self._app.links.link() as link:
            replies: list[Any] = link.pipeline([("EXISTS", name) for name in names])
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise refused(reply) from reply
        gone = {record: entry for (record, entry), there in zip(latest.items(), replies, strict=True) if not there}
        if not gone:
            return
        applied = self._app.rows.applied_of(self._app.keys.namespace, [self._number])[self._number]
        orphans = [record for record, entry in gone.items() if applied.covers(entry) is False]
        self._orphaned += len(orphans)
        self._orphans += orphans[: NAMED_MAX - len(self._orphans)]

    def _dangling(self) -> int:
        """Count pending entries that are not in the log; acknowledging comes before trimming, so these are stuck."""
        log = self._app.keys.logs[self._number]
        records = Records(self._app)
        count = 0
        first = "-"
        with self._app.links.link() as link:
            while True:
                ids = _pending(link, log, first, "+", PAGE_PENDING)
                absent = records.absent([(self._number, EntryID.parse(entry)) for entry in ids])
                for _, entry in absent:
                    count += len(_pending(link, log, str(entry), str(entry), 1))
                if len(ids) < PAGE_PENDING:
                    return count
                first = f"({ids[-1].decode()}"


def _pending(link: Any, log: str, first: str, last: str, count: int) -> list[bytes]:
    try:
        return [row[0] for row in link.command("XPENDING", log, GROUP, first, last, count)]
    except redis.ResponseError as error:
        if str(error).startswith("NOGROUP"):
            return []
        raise refused(error) from error


def _records(mutations: Sequence[Mutation]) -> Iterator[tuple[str, str]]:
    for op, table, key_text, _ in mutations:
        if op not in KEEPING_NO_RECORD:
            yield table, key_text


def audit(app: WriteBehind, partition: int, only_tables: Collection[str] | None = None) -> LogAudit:
    """Compare one partition's log with SQL. Reads only.

    Args:
        app: the engine.
        partition: its number.
        only_tables: records of other tables are passed over, also where nobody declares them; None looks at all.

    Raises:
        RedisUnavailable, DatabaseUnavailable: a server cannot be read.
        ConfigurationError: the namespace was not initialised, or Redis refuses for good.
    """
    return _Walk(app, partition, only_tables).run()
