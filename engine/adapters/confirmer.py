"""Waiting until an entry is on disk, on replicas, in SQL; and never saying so before it is."""

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import redis

from writebehind.engine.adapters.conditions import enforce
from writebehind.engine.adapters.deadline import Waiting
from writebehind.engine.adapters.facts import redis_facts
from writebehind.engine.adapters.fsync import Fsync, confirm, fsync_of
from writebehind.engine.adapters.links import Link, Links, refusal
from writebehind.engine.adapters.looks import Look, Looks
from writebehind.engine.adapters.rows import Applied, Rows
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

__all__ = ["ASK_SQL_SECONDS", "GRACE_SECONDS", "Confirmer", "Passed", "late"]

PAUSE_SECONDS = 0.001
PAUSE_SECONDS_MAX = 0.02
ASK_SQL_SECONDS = 0.5
"""How often SQL is asked for what Redis should know, and for dead letters."""

GRACE_SECONDS = 0.5
"""How much longer than asked a wait may take: for its last look at SQL, which may not answer."""

CERTAIN_AFTER_SECONDS = 2.0
"""A flusher may have read an entry before Redis lost it, and commit it yet."""


class Passed(NamedTuple):
    """How far a partition's offset has come in an epoch, and whether a dead letter may be among what it has passed."""

    last: EntryID
    letters: bool


@dataclass(slots=True)
class _Asked:
    """What SQL is asked while an entry is waited for; times by ``time.monotonic``.

    Attributes:
        again_at_seconds: when it is to be asked next.
        look: the question that is under way.
        began_at_seconds: when that was begun: it tells what SQL had then, or later.
        missed_at_seconds: since when the entry is missing from Redis.
    """

    again_at_seconds: float
    look: Look[dict[int, Applied]] | None = None
    began_at_seconds: float = 0.0
    missed_at_seconds: float | None = None


class Confirmer:
    """Confirms durability levels of one namespace; safe to share between threads.

    Args:
        links: connections to Redis.
        rows: the database.
        looks: asks it.
        keys: the namespace's key names.
        replicas: how many replicas ``REPLICATED`` means.
    """

    def __init__(self, links: Links, rows: Rows, looks: Looks, keys: Keys, replicas: int) -> None:
        self._links = links
        self._rows = rows
        self._looks = looks
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
        until_seconds: float,
        *,
        places: Sequence[EntryID] = (),
        in_doubt: bool = False,
    ) -> Waiting[bool]:
        """Wait until an entry is as durable as asked; return whether all entries of the partition before it are, too.

        SQL is looked at once more when the time is over, for ``GRACE_SECONDS``.

        Args:
            partition: the entry's partition.
            entry_id: its ID.
            identity: identity of the primary that accepted it.
            level: the level to wait for.
            until_seconds: when to give up, by ``time.monotonic``.
            places: everywhere that it stood, where it was written again: it may be a dead letter under each.
            in_doubt: whether a flusher may have passed it over, because an attempt was lost with another history.

        Raises:
            DurabilityTimeout: not in time.
            DataLossDetected: Redis lost it before it reached SQL; or, for ``PERSISTED``, it was passed over in doubt.
            PoisonEntryError: SQL refuses it.
            ConfigurationError: the servers cannot give the level.
            RedisUnavailable: Redis cannot be asked.
        """
        if level is Durability.PERSISTED:
            return (yield from self._persisted(partition, entry_id, level, until_seconds, places, in_doubt=in_doubt))
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
                    seconds=max(0.0, until_seconds - time.monotonic()),
                ):
                    return True
                moved = link.identity != identity
        except RedisUnavailable:
            moved = True
        if moved:
            # Another primary, or another history: only SQL, or the entry itself, can tell now.
            return (yield from self._persisted(partition, entry_id, level, until_seconds))
        raise late(level)

    def has_passed(self, partition: int, entry_id: EntryID) -> bool:
        """Tell whether Redis has heard that the offset has passed an entry. Does not wait."""
        watermark, _ = self._watermark(partition)
        return watermark is not None and _covers(watermark, entry_id)

    def progress(self, partition: int, entry_id: EntryID) -> Generator[float, EntryID | None, Passed]:
        """Wait until the offset has passed an entry, for all who wait for it or for a later one.

        It yields as ``Waiting`` does; who resumes it may send another entry of the same epoch to wait for instead.

        Returns:
            How far the offset has come, and whether any dead letter may be among what it has passed.

        Raises:
            DataLossDetected: Redis lost the entry before it reached SQL.
            RedisUnavailable: Redis refuses to be asked.
        """
        passed = yield from self._passing(partition, entry_id, math.inf)
        if passed.letters:
            yield from self._published(partition, passed.last)
            until_seconds = time.monotonic() + ASK_SQL_SECONDS
            try:
                # What the offset has passed by now is among them, or was decided upon since.
                letters = yield from self._looks.asking(
                    until_seconds, self._rows.has_letters, self._keys.namespace, partition
                )
            except DatabaseUnavailable:
                return passed  # nobody knows
            return Passed(passed.last, letters)
        return passed

    def _published(self, partition: int, last: EntryID) -> Waiting[None]:
        """Wait a while until Redis has heard of an offset that SQL has: its records are settled by then.

        Where a flusher has died between the two, nobody tells it for now.
        """
        until_seconds = time.monotonic() + ASK_SQL_SECONDS
        while time.monotonic() < until_seconds:
            watermark, _ = self._watermark(partition)
            if watermark is not None and watermark >= last:
                return
            yield PAUSE_SECONDS_MAX

    def _passing(
        self, partition: int, entry_id: EntryID, deadline: float, level: Durability = Durability.PERSISTED
    ) -> Generator[float, EntryID | None, Passed]:
        pause = PAUSE_SECONDS
        asked = _Asked(time.monotonic() + ASK_SQL_SECONDS)
        try:
            while True:
                watermark, letters = self._watermark(partition)
                if watermark is not None and _covers(watermark, entry_id):
                    return Passed(watermark, letters)
                now = time.monotonic()
                other = watermark is not None and watermark.epoch != entry_id.epoch
                due = other or now >= min(asked.again_at_seconds, deadline)
                if due and asked.look is None and now < deadline + GRACE_SECONDS:
                    asked.again_at_seconds = now + ASK_SQL_SECONDS
                    asked.began_at_seconds = now
                    asked.look = self._looks.begin(self._rows.applied_of, self._keys.namespace, (partition,))
                reached = self._reached(asked, partition, entry_id)
                if reached is not None:
                    return Passed(reached, letters=True)
                # While SQL does not answer, Redis may.
                if now >= deadline + (0.0 if asked.look is None else GRACE_SECONDS):
                    raise late(level)
                another = yield min(pause, max(0.0, deadline - now) or pause)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
                if another is not None and another != entry_id:
                    entry_id, asked.missed_at_seconds = another, None
        finally:
            if asked.look is not None:
                asked.look.give_up()

    def _persisted(
        self,
        partition: int,
        entry_id: EntryID,
        level: Durability,
        deadline: float,
        places: Sequence[EntryID] = (),
        *,
        in_doubt: bool = False,
    ) -> Waiting[bool]:
        passed = yield from self._passing(partition, entry_id, deadline, level)
        if not passed.letters and not in_doubt:
            return True
        # The offset has passed it: it is in its table, or among the dead letters, and no less durable there; or it was
        # passed over in doubt.
        where = places or [entry_id]
        while level is Durability.PERSISTED and (
            yield from self._is_unsettled(partition, where, deadline, in_doubt=in_doubt)
        ):
            left = deadline - time.monotonic()
            if left <= 0:
                raise late(level)
            yield min(ASK_SQL_SECONDS, left)
        return False

    def _is_unsettled(
        self, partition: int, places: Sequence[EntryID], deadline: float, *, in_doubt: bool
    ) -> Waiting[bool]:
        """Tell whether an entry that the offset has passed is a dead letter that may yet be applied by itself.

        Raises:
            DataLossDetected: it was passed over in doubt.
            PoisonEntryError: SQL refuses it.
        """
        asked, until_seconds = (self._keys.namespace, partition, places), deadline + GRACE_SECONDS
        try:
            if in_doubt and (yield from self._looks.asking(until_seconds, self._rows.in_doubt, *asked)):
                raise _unknowable(partition, places[-1])
            letter = yield from self._looks.asking(until_seconds, self._rows.letter_of, *asked)
        except DatabaseUnavailable:
            return True  # nobody knows
        if letter is not None and letter.error is not None:
            raise PoisonEntryError(
                f"the write is accepted, but SQL refuses it: dead letter {letter.name}: {letter.error}",
                "see 'writebehind dead-letters show'; later writes of its key wait behind it",
            )
        return letter is not None

    def _reached(self, asked: _Asked, partition: int, entry_id: EntryID) -> EntryID | None:
        """Return how far SQL has applied the epoch of an entry, where it says that it has applied the entry.

        Raises:
            DataLossDetected: Redis has lost the entry for certain.
        """
        if asked.look is None:
            return None
        if not asked.look.answered():
            self._looks.attend()
            return None
        look, asked.look = asked.look, None
        try:
            applied = look.result()[partition]
        except DatabaseUnavailable:
            # Nobody knows; and a flusher that has the entry in hand commits it when SQL is back.
            asked.missed_at_seconds = None
            return None
        covers = applied.covers(entry_id)
        if covers is None:
            raise _lost(partition, entry_id)
        if covers:
            return applied.reached(entry_id.epoch)
        if not self._missing(partition, entry_id):
            asked.missed_at_seconds = None
        elif asked.missed_at_seconds is None:
            asked.missed_at_seconds = time.monotonic()
        elif asked.began_at_seconds - asked.missed_at_seconds >= CERTAIN_AFTER_SECONDS:
            raise _lost(partition, entry_id)
        return None

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


def _covers(watermark: EntryID, entry_id: EntryID) -> bool:
    return watermark.epoch == entry_id.epoch and watermark >= entry_id


def late(level: Durability) -> DurabilityTimeout:
    """Return the error for a write that is not as durable as asked in time."""
    return DurabilityTimeout(
        f"the write is accepted, but not {level.name} in time",
        "check 'writebehind status'" if level is Durability.PERSISTED else "check Redis's disk and replicas",
    )


def _lost(partition: int, entry_id: EntryID) -> DataLossDetected:
    return DataLossDetected(
        f"entry {entry_id} of partition {partition} was lost by Redis before it reached SQL",
        "Redis was rolled back (a crash or failover below the durability asked for): read the record, "
        "write it again if needed",
    )


def _unknowable(partition: int, entry_id: EntryID) -> DataLossDetected:
    return DataLossDetected(
        f"entry {entry_id} of partition {partition} was passed over: Redis lost an earlier attempt of this write, and "
        "its reply was lost; SQL has some of what Redis lost then, and nobody can know whether the attempt is among it",
        "read the record: if it has not got the write, write it again",
    )
