"""The partitions' logs, as a flusher sees them.

The consumer group gives delivery and visibility; the offset in SQL has the authority, because the group's state
rolls back with a failover. Nothing here is trimmed above what SQL has.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from writebehind.engine.adapters.doubts import KEYS_PER_SCRIPT, Doubts, around_ends
from writebehind.engine.adapters.links import Link, Links, open_epoch, refusal
from writebehind.engine.adapters.log_replies import RawEntry, refused
from writebehind.engine.adapters.scripts import PUBLISH, SETTLE
from writebehind.engine.core.contiguity import damaged, parse_lineage
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.errors import LogDamaged, RedisUnavailable

__all__ = ["GROUP", "Acknowledgement", "Log", "LogState"]

logger = logging.getLogger(__name__)

GROUP = b"flushers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Acknowledgement:
    """What to do on a partition after a commit.

    Attributes:
        partition: its number.
        ids: the entries that were committed.
        offset: the last of them.
        whole: records put last, which may become clean now: pairs of key and committed version, one after the other.
        other: records changed otherwise, likewise.
        ttl_ms: time to live of a clean record in milliseconds, 0 for none.
        spread_ms: a record gets so much less of it at the most, for a part by chance.
        trim_below: entries below this ID may go, or None.
        flushed_rows: SQL operations to add to the partition's count.
        letters: whether the partition may have dead letters.
        late: whether SQL has taken dead letters, which lack in what was loaded before.
    """

    partition: int
    ids: Sequence[bytes]
    offset: EntryID
    whole: Sequence[tuple[str, bytes]]
    other: Sequence[tuple[str, bytes]]
    ttl_ms: int
    trim_below: EntryID | None
    flushed_rows: int
    letters: bool
    late: bool = False
    spread_ms: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LogState:
    """A log at one moment.

    Attributes:
        end: its last entry ever, also where that was trimmed; None before the first.
        delivered: the last entry that the group has delivered; None without a group.
        watermark: the offset as last published.
        lineage: its epochs.
        moved: no epoch began on this very primary yet, or the log was deleted.
        floor: the epoch that has to be compared with SQL before records of earlier ones are believed; None where that
            was done.
        judged: the epoch below which records were compared with SQL after a rollback, if they ever were.
        held: what the write script noted when it admitted no more: how few entries SQL must be without for that to end,
            and why; None where it admits.
        ghosts: entries above the end that the lineage gives their epoch; looked for where there is a floor.
        last_before: by epoch, the entry before it, where the log has it; looked for where there is a floor.
    """

    end: EntryID | None
    delivered: EntryID | None
    watermark: EntryID | None
    lineage: dict[int, EntryID | None]
    moved: bool = False
    floor: int | None = None
    judged: int | None = None
    ghosts: Sequence[RawEntry] = ()
    last_before: Mapping[int, RawEntry] = field(default_factory=dict)
    held: tuple[int, str] | None = None


class Log:
    """The logs of a namespace.

    Args:
        links: connections.
        keys: the namespace's key names.
        consumer: this flusher's name in the group.

    Attributes:
        doubts: takes out of the logs, and out of belief, what is not of their history.
    """

    def __init__(self, links: Links, keys: Keys, consumer: str) -> None:
        self._links = links
        self._keys = keys
        self._consumer = consumer.encode()
        self._identity = b""
        self.doubts = Doubts(self._link, keys)

    @contextmanager
    def _link(self) -> Iterator[Link]:
        """Lend a link to the same primary, in the same uninterrupted history, as before.

        Raises:
            RedisUnavailable: the connection failed, or is to another primary; then the next one will do.
            LogDamaged, ConfigurationError: what is asked for is refused, as ``refused`` says.
        """
        with self._links.link() as link:
            known, self._identity = self._identity, link.identity
            if known and known != link.identity:
                raise RedisUnavailable(
                    "Redis was restarted, or is another one", "its history is compared with SQL before going on"
                )
            try:
                yield link
            except redis.ResponseError as error:
                raise refused(error) from error

    def look(self, partitions: Sequence[int]) -> dict[int, LogState | LogDamaged]:
        """Return the state of some partitions' logs; in place of one that is damaged, what is the matter with it.

        Raises:
            RedisUnavailable: Redis cannot be read.
            ConfigurationError: Redis refuses for good.
        """
        logs, metas = self._keys.logs, self._keys.metas
        commands: list[tuple[Any, ...]] = []
        for number in partitions:
            commands += [
                ("XINFO", "STREAM", logs[number]),
                ("XINFO", "GROUPS", logs[number]),
                ("HGETALL", metas[number]),
            ]
        with self._link() as link:
            replies = link.pipeline(commands)
            return {
                number: self._look(link, number, *replies[3 * index : 3 * index + 3])
                for index, number in enumerate(partitions)
            }

    def states(self, partitions: Sequence[int]) -> dict[int, LogState]:
        """Return the state of some partitions' logs.

        Raises:
            RedisUnavailable: Redis cannot be read.
            LogDamaged: a log or a meta hash is not what the engine writes.
            ConfigurationError: Redis refuses for good.
        """
        states: dict[int, LogState] = {}
        for number, state in self.look(partitions).items():
            if isinstance(state, LogDamaged):
                raise state
            states[number] = state
        return states

    def _look(self, link: Link, partition: int, stream: Any, groups: Any, meta: Any) -> LogState | LogDamaged:
        try:
            return self._state(link, partition, stream, groups, meta)
        except LogDamaged as error:
            return error
        except ValueError:
            return damaged()

    def _state(self, link: Link, partition: int, stream: Any, groups: Any, meta: Any) -> LogState:
        for reply in (stream, groups):
            if isinstance(reply, redis.ResponseError) and "no such key" not in str(reply):
                raise refused(reply, self._keys.logs[partition]) from reply
        if isinstance(meta, redis.ResponseError):
            raise refused(meta, self._keys.metas[partition]) from meta
        fields = dict(zip(meta[::2], meta[1::2], strict=True))
        end = delivered = None
        if not isinstance(stream, Exception):
            end = _position(dict(zip(stream[::2], stream[1::2], strict=False))[b"last-generated-id"])
        if not isinstance(groups, Exception):
            for group in groups:
                facts = dict(zip(group[::2], group[1::2], strict=True))
                if facts[b"name"] == GROUP:
                    delivered = _position(facts[b"last-delivered-id"]) or ORIGIN
        watermark = fields.get(b"watermark")
        lineage = parse_lineage(fields)
        if end is not None and lineage and end.epoch < (newest := max(lineage)):
            # The newest epoch has no entry: what stands above its beginning came back after it was lost.
            end = lineage[newest]
        floor = fields.get(b"floor")
        ghosts, last_before = around_ends(link, self._keys.logs[partition], lineage) if floor else ([], {})
        return LogState(
            end=end,
            delivered=delivered,
            watermark=EntryID.parse(watermark) if watermark else None,
            lineage=lineage,
            moved=bool(lineage) and (fields.get(b"identity") != link.identity or isinstance(stream, Exception)),
            floor=int(floor) if floor else None,
            judged=int(fields[b"judged"]) if b"judged" in fields else None,
            ghosts=ghosts,
            last_before=last_before,
            held=_held(fields.get(b"held")),
        )

    def open_epoch(self, partition: int) -> bool:
        """Open an epoch where the primary is another one than that of the current one, or the log was deleted.

        Repeat: harmless.

        Returns:
            False where Redis is full and refuses.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        with self._link() as link:
            try:
                open_epoch(link, self._keys, partition)
            except redis.exceptions.OutOfMemoryError:
                return False
        return True

    def ensure_group(self, partition: int, position: EntryID) -> bool:
        """Make the consumer group at a position where there is none.

        Repeat: harmless.

        Returns:
            False where Redis is full and refuses to make one.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        start = "0" if position == ORIGIN else str(position)
        with self._link() as link:
            try:
                link.command("XGROUP", "CREATE", self._keys.logs[partition], GROUP, start, "MKSTREAM")
            except redis.ResponseError as error:
                if isinstance(error, redis.exceptions.OutOfMemoryError):
                    return False
                if not str(error).startswith("BUSYGROUP"):
                    raise
        return True

    def claim(self, partition: int) -> tuple[list[bytes], list[bytes]]:
        """Take over every pending entry of the partition, whoever it was delivered to.

        Only for the holder of the lease: idle time is no lock.

        Returns:
            IDs claimed, and IDs that were pending but are no longer in the log.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        claimed: list[bytes] = []
        gone: list[bytes] = []
        cursor = b"0-0"
        with self._link() as link:
            while True:
                cursor, ids, *deleted = link.command(
                    "XAUTOCLAIM", self._keys.logs[partition], GROUP, self._consumer, 0, cursor, "COUNT", 1000, "JUSTID"
                )
                claimed += ids
                if deleted:
                    gone += deleted[0]
                if cursor == b"0-0":
                    return claimed, gone

    def forget_consumers(self, partition: int) -> None:
        """Remove other consumers that have nothing pending; never one that has.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        log = self._keys.logs[partition]
        with self._link() as link:
            for consumer in link.command("XINFO", "CONSUMERS", log, GROUP):
                facts = dict(zip(consumer[::2], consumer[1::2], strict=True))
                if facts[b"name"] != self._consumer and facts[b"pending"] == 0:
                    link.command("XGROUP", "DELCONSUMER", log, GROUP, facts[b"name"])

    def read_new(self, partitions: Sequence[int], count: int, block_ms: int) -> dict[int, list[RawEntry]]:
        """Have the group deliver entries that it never delivered before.

        Args:
            partitions: whose logs to read.
            count: entries of each at the most.
            block_ms: how long to wait where there are none; 0 does not wait.

        Raises:
            RedisUnavailable: Redis cannot be reached, or a group is missing.
        """
        names = [self._keys.logs[number].encode() for number in partitions]
        block: tuple[Any, ...] = ("BLOCK", block_ms) if block_ms else ()
        with self._link() as link:
            reply = link.command(
                "XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, *block,
                "STREAMS", *names, *(b">" for _ in names),
            )  # fmt: skip
        numbers = dict(zip(names, partitions, strict=True))
        # A stream whose new entries were deleted at once is answered with none.
        return {numbers[name]: entries for name, entries in reply or () if entries}

    def read_range(self, partition: int, after: EntryID, until: EntryID | None, count: int) -> list[RawEntry]:
        """Read entries by position, whether they were delivered or not.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        first = "-" if after == ORIGIN else f"({after}"
        with self._link() as link:
            return link.command(  # type: ignore[no-any-return]
                "XRANGE", self._keys.logs[partition], first, "+" if until is None else str(until), "COUNT", count
            )

    def acknowledge(self, acknowledgements: Iterable[Acknowledgement]) -> None:
        """Acknowledge committed entries, let records become clean, publish the offset, trim.

        Durability: nothing is at stake; SQL has it all. Repeat: harmless. Crash: what is left undone, the next
        takeover does. A full Redis refuses only the publication of the offset, which readers can ask SQL for.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        commands: list[tuple[Any, ...]] = []
        for done in acknowledgements:
            log, meta = self._keys.logs[done.partition], self._keys.metas[done.partition]
            if done.ids:
                commands.append(("XACK", log, GROUP, *done.ids))
            for records, whole in ((done.whole, True), (done.other, False)):
                for start in range(0, len(records), KEYS_PER_SCRIPT):
                    names, versions = zip(*records[start : start + KEYS_PER_SCRIPT], strict=True)
                    count = len(names)
                    times = (done.ttl_ms, done.spread_ms, int(done.spread_ms * random.random()))  # noqa: S311 - spreads ends
                    how = (*times, count if whole else 0, "1" if done.late else "")
                    commands.append(("EVALSHA", SETTLE.sha, count, *names, *how, *versions))
            if done.offset != ORIGIN:
                below = "" if done.trim_below is None else str(done.trim_below)
                published = (done.offset.epoch, str(done.offset), below, done.flushed_rows, int(done.letters))
                commands.append(("EVALSHA", PUBLISH.sha, 2, log, meta, *published))
        with self._link() as link:
            replies = link.pipeline(commands)
            unknown = [
                ("EVAL", (SETTLE if command[1] == SETTLE.sha else PUBLISH).text, *command[2:])
                for command, reply in zip(commands, replies, strict=True)
                if isinstance(reply, redis.exceptions.NoScriptError)
            ]
            replies += link.pipeline(unknown)
            replies = [
                self._settle_singly(link, command) if _is_foreign(command, reply) else reply
                for command, reply in zip([*commands, *unknown], replies, strict=True)
            ]
        for reply in replies:
            if isinstance(reply, redis.ResponseError) and refusal(reply).code not in {"OOM", "NOSCRIPT"}:
                raise refused(reply) from reply

    def _settle_singly(self, link: Link, command: tuple[Any, ...]) -> int:
        """Settle records one by one, but for those whose keys hold something else: somebody else's, and left alone."""
        _, _, count, *arguments = command
        names, (ttl_ms, spread_ms, offset, whole, late, *versions) = arguments[:count], arguments[count:]
        singly = [
            ("EVAL", SETTLE.text, 1, name, ttl_ms, spread_ms, offset, int(number < whole), late, version)
            for number, (name, version) in enumerate(zip(names, versions, strict=True))
        ]
        for name, reply in zip(names, link.pipeline(singly), strict=True):
            if isinstance(reply, redis.ResponseError):
                if refusal(reply).code != "WRONGTYPE":
                    raise refused(reply) from reply
                logger.error("the key %s is not a record: find out who else writes to this namespace", name)
        return len(names)


def _is_foreign(command: tuple[Any, ...], reply: Any) -> bool:
    """Tell whether records were not settled because the key of one of them is no hash."""
    settling = command[1] in {SETTLE.sha, SETTLE.text}
    return settling and isinstance(reply, redis.ResponseError) and refusal(reply).code == "WRONGTYPE"


def _held(text: bytes | None) -> tuple[int, str] | None:
    resume, _, reason = (text or b"").decode().partition(" ")
    return (int(resume), reason) if resume.isdigit() else None


def _position(text: bytes) -> EntryID | None:
    return None if text == b"0-0" else EntryID.parse(text)
