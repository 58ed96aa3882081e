"""Settlement: after a commit, Redis learns of it, in a thread of its own."""

import logging
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from writebehind.engine.adapters.log import Acknowledgement, Log
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.read_counts import Keeping
from writebehind.engine.errors import LogDamaged, RedisUnavailable
from writebehind.flushers.batch import Batch
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.holdings import Holdings

__all__ = ["Settlement"]

logger = logging.getLogger(__name__)

UNDER_WAY_MAX = 4
"""Acknowledgements that may wait for Redis before committing waits for them too."""


class Settlement:
    """Acknowledges committed batches in their order.

    Args:
        holdings: the partitions served.
        log: the logs.
        keys: the namespace's key names.
        keeping: how long a clean record stays in Redis; None for ever.
        retention_seconds: how long flushed entries stay in the log.

    Attributes:
        short_of_memory: Redis has no room for what is flushed already; it is trimmed at once.
    """

    def __init__(
        self, holdings: Holdings, log: Log, keys: Keys, keeping: Keeping | None, retention_seconds: float
    ) -> None:
        self._holdings = holdings
        self._log = log
        self._keys = keys
        self._ttl_ms = self._spread_ms = 0
        if keeping is not None:
            self._ttl_ms = keeping.record_ms(0.0)
            self._spread_ms = self._ttl_ms - keeping.record_ms(1.0)
        self._retention_seconds = retention_seconds
        self.short_of_memory = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writebehind-settle")
        self._under_way: list[Future[None]] = []

    def submit(self, batch: Batch, lettered: Collection[int] = (), *, late: bool = False) -> None:
        """Have a committed batch acknowledged.

        Args:
            batch: it.
            lettered: partitions that may have dead letters although their cursors know of none yet.
            late: SQL has taken dead letters, so that no record that was loaded meanwhile is whole.
        """
        now = time.monotonic()
        todo = []
        for number, segment in enumerate(batch.segments):
            cursor = self._holdings.cursors.get(segment.partition)
            whole, other = self._settled(batch, segment.partition, late=late)
            todo.append(
                Acknowledgement(
                    partition=segment.partition,
                    ids=segment.ids,
                    # Where only letters were tried again, the log is where it was.
                    offset=segment.end if cursor is None or segment.end != segment.start else cursor.base,
                    whole=whole,
                    other=other,
                    ttl_ms=self._ttl_ms,
                    spread_ms=max(1, self._spread_ms),
                    trim_below=self._trim_point(cursor, now) if cursor else None,
                    # Rows are counted for the batch as a whole.
                    flushed_rows=0 if number else len(batch.changes),
                    letters=cursor is None or bool(cursor.quarantine or segment.parked) or cursor.number in lettered,
                    late=late,
                )
            )
        self._submit(todo)

    def trim(self) -> None:
        """Trim logs whose flushed entries are past the retention although nothing new is flushed.

        And publish offsets that Redis tells otherwise: else a writer would be held for a backlog that is gone, and as
        nobody writes, nothing would be committed that tells it.
        """
        now = time.monotonic()
        todo = []
        for cursor in self._holdings.cursors.values():
            point = None if cursor.stale else self._trim_point(cursor, now)
            if cursor.stale or not (point or cursor.unpublished):
                continue
            cursor.unpublished = False
            todo.append(
                Acknowledgement(
                    partition=cursor.number,
                    ids=(),
                    offset=cursor.base,
                    whole=(),
                    other=(),
                    ttl_ms=0,
                    trim_below=point,
                    flushed_rows=0,
                    letters=bool(cursor.quarantine),
                )
            )
        if todo:
            self._submit(todo)

    def _trim_point(self, cursor: Cursor, now: float) -> EntryID | None:
        return cursor.trim_point(now, 0.0 if self.short_of_memory else self._retention_seconds)

    def _submit(self, todo: Sequence[Acknowledgement]) -> None:
        self._under_way.append(self._thread.submit(self._log.acknowledge, todo))

    def _settled(
        self, batch: Batch, partition: int, *, late: bool
    ) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
        stem = self._keys.stems[partition]
        whole: list[tuple[str, bytes]] = []
        other: list[tuple[str, bytes]] = []
        for name, table in batch.changes.tables.items():
            prefix = f"{stem}{name}:"
            puts, touched = table.puts, table.touched
            versions = table.versions.get(partition, {})
            if not (table.touched or table.inserts or late):
                whole += zip(map(prefix.__add__, versions), versions.values(), strict=True)
                continue
            for key, version in versions.items():
                (other if late or key not in puts or key in touched else whole).append((prefix + key, version))
        # Without a time to live a whole record stays as it is; but what was loaded before this commit goes.
        return (whole, other) if self._ttl_ms else ([], [*whole, *other])

    def collect(self, *, everything: bool) -> None:
        """Find out what became of acknowledgements; where one has failed, every partition is taken over anew.

        Args:
            everything: wait for all that is under way; otherwise only keep the queue short.

        Raises:
            ConfigurationError: Redis refuses whatever the partition.
        """
        while self._under_way and (everything or self._under_way[0].done() or len(self._under_way) > UNDER_WAY_MAX):
            future = self._under_way.pop(0)
            try:
                future.result()
            except (RedisUnavailable, LogDamaged) as error:
                logger.warning("acknowledging: %s", error)
                self._holdings.distrust()

    def close(self) -> None:
        """Wait for what is under way and end the thread."""
        self._thread.shutdown()
