"""Waiting until an entry is on disk, on replicas, in SQL; and never saying so before it is."""

import time
from collections.abc import Sequence
from threading import Lock

import redis

from writebehind.engine.adapters.conditions import enforce
from writebehind.engine.adapters.facts import redis_facts
from writebehind.engine.adapters.fsync import Fsync, confirm, fsync_of
from writebehind.engine.adapters.links import Link, Links, refusal
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.core.contiguity import damaged, parse_lineage
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.redis_rules import replicas
from writebehind.engine.errors import (
    DatabaseUnavailable,
    DataLossDetected,
    DurabilityTimeout,
    PoisonEntryError,
    RedisUnavailable,
)

__all__ = ["Confirmer"]

PAUSE_SECONDS = 0.001
PAUSE_SECONDS_MAX = 0.02
ASK_SQL_SECONDS = 0.5
CERTAIN_AFTER_SECONDS = 2.0
"""A flusher may have read an entry before Redis lost it, and commit it yet."""


class Confirmer:
    """Confirms durability levels of one namespace; safe to share between threads.

    Args:
        links: connections to Redis.
        rows: the database.
        keys: the namespace's key names.
        replicas: how many replicas ``REPLICATED`` means.
    """

    def __init__(self, links: Links, rows: Rows, keys: Keys, replicas: int) -> None:
        self._links = links
        self._rows = rows
        self._keys = keys
        self._replicas = replicas
        self._lock = Lock()
        self._fsync: dict[bytes, Fsync] = {}
        self._given: set[Durability] = {Durability.ACCEPTED, Durability.PERSISTED}

    def renew(self) -> None:
        """Forget what another thread of the parent may hold; called in a forked child."""
        self._lock = Lock()

    def require(self, level: Durability) -> None:
        """Refuse a level that the servers cannot give; the answer is kept for each primary.

        Raises:
            ConfigurationError: they cannot, with the reason.
            RedisUnavailable: Redis cannot be asked.
        """
        if level in self._given:
            return
        with self._links.link() as link:
            self._fsync_of(link)
            if level is Durability.REPLICATED:
                self._require_replicas(link)
        self._given.add(level)

    def _require_replicas(self, link: Link) -> None:
        enforce([replicas(redis_facts(link, self._keys.shared), self._replicas)])

    def _fsync_of(self, link: Link) -> Fsync:
        with self._lock:
            fsync = self._fsync.get(link.identity)
            if fsync is None:
                fsync = fsync_of(link, self._keys.stems[0] + "fsync-test")
                self._fsync = {link.identity: fsync}
            return fsync

    def confirm(
        self,
        partition: int,
        entry_id: EntryID,
        identity: bytes,
        level: Durability,
        timeout: float,
        *,
        places: Sequence[EntryID] = (),
        in_doubt: bool = False,
    ) -> bool:
        """Wait until an entry is as durable as asked; return whether all entries of the partition before it are, too.

        Args:
            partition: the entry's partition.
            entry_id: its ID.
            identity: identity of the primary that accepted it.
            level: the level to wait for.
            timeout: seconds to wait at the most.
            places: everywhere that it stood, where it was written again: it may be a dead letter under each.
            in_doubt: whether a flusher may have passed it over, because an attempt was lost with another history.

        Raises:
            DurabilityTimeout: not in time.
            DataLossDetected: Redis lost it before it reached SQL; or, for ``PERSISTED``, it was passed over in doubt.
            PoisonEntryError: SQL refuses it.
            ConfigurationError: the servers cannot give the level.
            RedisUnavailable: Redis cannot be asked.
        """
        deadline = time.monotonic() + timeout
        if level is Durability.PERSISTED:
            return self._persisted(partition, entry_id, level, deadline, places, in_doubt=in_doubt)
        if level is Durability.ACCEPTED:
            return True
        try:
            with self._links.link() as link:
                if link.identity == identity and confirm(
                    link,
                    self._keys.metas[partition],
                    identity,
                    level,
                    fsync=self._fsync_of(link),
                    replicas=self._replicas,
                    seconds=timeout,
                ):
                    return True
                moved = link.identity != identity
        except RedisUnavailable:
            moved = True
        if moved:
            # Another primary, or another history: only SQL, or the entry itself, can tell now.
            return self._persisted(partition, entry_id, level, deadline)
        raise self._late(level)

    def _persisted(
        self,
        partition: int,
        entry_id: EntryID,
        level: Durability,
        deadline: float,
        places: Sequence[EntryID] = (),
        *,
        in_doubt: bool = False,
    ) -> bool:
        pause = PAUSE_SECONDS
        ask_sql_at = time.monotonic() + ASK_SQL_SECONDS
        ask_letters_at = 0.0
        missed_at: float | None = None
        while True:
            watermark, letters = self._watermark(partition)
            passed = watermark is not None and watermark.epoch == entry_id.epoch and watermark >= entry_id
            if passed and not letters and not in_doubt:
                return True
            now = time.monotonic()
            other = watermark is not None and watermark.epoch != entry_id.epoch
            if not passed and (other or now >= ask_sql_at or now >= deadline):
                ask_sql_at = now + ASK_SQL_SECONDS
                passed = self._applied(partition, entry_id)
                if passed or not self._missing(partition, entry_id):
                    missed_at = None
                elif missed_at is None:
                    missed_at = now
                elif now - missed_at >= CERTAIN_AFTER_SECONDS:
                    raise _lost(partition, entry_id)
            if passed and (now >= ask_letters_at or now >= deadline):
                # The offset has passed it: it is in its table, or among the dead letters, and no less durable there; or
                # it was passed over in doubt.
                where = places or [entry_id]
                if level is not Durability.PERSISTED or not self._is_unsettled(partition, where, in_doubt=in_doubt):
                    return False
                ask_letters_at = now + ASK_SQL_SECONDS
            if now >= deadline:
                raise self._late(level)
            time.sleep(min(pause, max(0.0, deadline - now)))
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    def _is_unsettled(self, partition: int, places: Sequence[EntryID], *, in_doubt: bool) -> bool:
        """Tell whether an entry that the offset has passed is a dead letter that may yet be applied by itself.

        Raises:
            DataLossDetected: it was passed over in doubt.
            PoisonEntryError: SQL refuses it.
        """
        try:
            if in_doubt and self._rows.in_doubt(self._keys.namespace, partition, places):
                raise _unknowable(partition, places[-1])
            letter = self._rows.letter_of(self._keys.namespace, partition, places)
        except DatabaseUnavailable:
            return True  # nobody knows
        if letter is not None and letter.error is not None:
            raise PoisonEntryError(
                f"the write is accepted, but SQL refuses it: dead letter {letter.name}: {letter.error}",
                "see 'writebehind dead-letters show'; later writes of its key wait behind it",
            )
        return letter is not None

    def _applied(self, partition: int, entry_id: EntryID) -> bool:
        try:
            applied = self._rows.applied(self._keys.namespace, partition, entry_id)
        except DatabaseUnavailable:
            return False
        if applied is None:
            raise _lost(partition, entry_id)
        return applied

    def _missing(self, partition: int, entry_id: EntryID) -> bool:
        """Tell whether the log's history as Redis knows it does not have the entry."""
        try:
            with self._links.link() as link:
                reply = link.command("HGETALL", self._keys.metas[partition])
        except (RedisUnavailable, redis.ResponseError):
            return False
        lineage = parse_lineage(dict(zip(reply[::2], reply[1::2], strict=True)))
        if not lineage:
            return False
        ended = [base for base in lineage.values() if base is not None and base.epoch == entry_id.epoch]
        return entry_id.epoch not in lineage or any(base < entry_id for base in ended)

    def _watermark(self, partition: int) -> tuple[EntryID | None, bool]:
        """Return the offset as published, and whether the partition may have dead letters."""
        try:
            with self._links.link() as link:
                text, letters = link.command("HMGET", self._keys.metas[partition], "watermark", "letters")
        except RedisUnavailable:
            return None, True
        except redis.ResponseError as error:
            if refusal(error).code in {"LOADING", "MASTERDOWN"}:
                return None, True
            raise RedisUnavailable(f"Redis refuses: {error}", "check the server and the user's permissions") from error
        try:
            return EntryID.parse(text) if text else None, letters != b"0"
        except ValueError:
            raise damaged() from None

    def _late(self, level: Durability) -> DurabilityTimeout:
        return DurabilityTimeout(
            f"the write is accepted, but not {level.name} in time",
            "check 'writebehind status'" if level is Durability.PERSISTED else "check Redis's disk and replicas",
        )


def _lost(partition: int, entry_id: EntryID) -> DataLossDetected:
    return DataLossDetected(
        f"entry {entry_id} of partition {partition} was lost by Redis before it reached SQL",
        "Redis was rolled back (a crash or failover below the durability asked for): write it again",
    )


def _unknowable(partition: int, entry_id: EntryID) -> DataLossDetected:
    return DataLossDetected(
        f"entry {entry_id} of partition {partition} was passed over: Redis lost an earlier attempt of this write, and "
        "its reply was lost; SQL has some of what Redis lost then, and nobody can know whether the attempt is among it",
        "read the record: if it has not got the write, write it again",
    )
