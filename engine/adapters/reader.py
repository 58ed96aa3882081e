"""Reads that see every accepted write, whether it is in Redis, on its way to SQL, or in SQL.

The shell of ``core.read_through``. It holds neither a connection nor a lease while it waits, so a read that is given up
there leaves nothing behind.
"""

import random
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, assert_never

import redis

from writebehind.engine.adapters.deadline import Waiting, wait_out
from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.fills import Fills
from writebehind.engine.adapters.links import Links, refusal
from writebehind.engine.adapters.read_counters import ReadCounters
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.config import EngineSettings
from writebehind.engine.core.caching import pause_seconds
from writebehind.engine.core.contiguity import Lineage, parse_lineage
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.read_counts import Keeping
from writebehind.engine.core.read_effects import (
    AskLineage,
    AskSQL,
    Effect,
    Keep,
    Lease,
    Load,
    Look,
    Release,
    Sights,
    Wait,
)
from writebehind.engine.core.read_through import read_through
from writebehind.engine.core.reading import Rules, foreign_record
from writebehind.engine.errors import RedisUnavailable

__all__ = ["Reader", "keeping_of"]

RENEWED_TTL_SECONDS = 3600.0
"""How long a record that was loaded stays where written ones stay for ever: what others do in SQL shows in the end."""


Need = Look | AskSQL | AskLineage | Lease | Load | Keep | Release
"""What a read needs of a server."""
Row = dict[str, Any]
Records = dict[Any, Row | None]


class Reader:
    """Reads records of one namespace.

    Args:
        links: connections to Redis.
        rows: the database.
        keys: the namespace's key names.
        settings: how long to wait, and how long what was loaded is kept.
        counters: where reads are counted.
        meet: called with a primary and a partition before it is read there: a new history gets first what this engine
            has written to the old one.
    """

    def __init__(
        self,
        links: Links,
        rows: Rows,
        keys: Keys,
        settings: EngineSettings,
        *,
        counters: ReadCounters,
        meet: Callable[[bytes, int], None],
    ) -> None:
        self._links = links
        self._meet = meet
        self._rows = rows
        self._keys = keys
        self._timeout_seconds = settings.read_timeout_seconds
        keeping = keeping_of(settings)
        self._fills = Fills(links, keys, keeping, counters)
        self._counters = counters
        ahead_ms = int(keeping.ttl_ms * settings.refresh_ahead_share)
        self._stale_ms = keeping.stale_ms
        self._ahead_ms = keeping.stale_ms + ahead_ms
        self._keeps_negative = keeping.negative_ttl_ms > 0

    def renew(self) -> None:
        """Begin anew in a forked child: locks that other threads of its parent had are nobody's."""
        self._fills.begin()

    def read(self, declared: DeclaredTable, keys: Sequence[Any]) -> Records:
        """Read records by key.

        Args:
            declared: the table.
            keys: scalars, or tuples for a composite key.

        Returns:
            For each key the record's user values, or None where there is none.

        Raises:
            ReadTimeout: a record depends on entries that were not flushed in time, or on another caller's load.
            RedisUnavailable, DatabaseUnavailable: a server cannot be read.
            ConfigurationError: another program has written what is to be read.
            ValidationError: a key does not fit the table.
        """
        return wait_out(self.reading(declared, keys))

    def read_one(self, declared: DeclaredTable, key: Any) -> Row | None:
        """Read one record, the faster way where it is whole in Redis; see ``read``."""
        return wait_out(self.reading_one(declared, key))

    def reading(self, declared: DeclaredTable, keys: Sequence[Any]) -> Waiting[Records]:
        """Do what ``read`` does, for who waits in another way than in a thread."""
        return self._drive(declared, keys, None)

    def reading_one(self, declared: DeclaredTable, key: Any) -> Waiting[Row | None]:
        """Do what ``read_one`` does, likewise."""
        plan = declared.plan
        if self._ahead_ms:
            return (yield from self._drive(declared, [key], None))[key]
        key_text, spread, _ = plan.key_only(key)
        partition = partition_of(spread, self._keys.partitions)
        name = plan.name
        with self._links.link() as link:
            identity = link.identity
            self._meet(identity, partition)
            hashed, marks = link.pipeline(
                (
                    ("HGETALL", self._keys.record(partition, name, key_text)),
                    ("HMGET", self._keys.metas[partition], "watermark", f"inserted:{name}", "identity", "floor"),
                )
            )
        for reply in (hashed, marks):
            if isinstance(reply, redis.ResponseError):
                raise _refused(declared, reply) from reply
        fields = dict(zip(hashed[::2], hashed[1::2], strict=True))
        if fields.get(b":state") == b"full" and marks[2] == identity and marks[3] is None:
            record = plan.decode_hash(fields)
            if record is not None:
                self._counters.add(name, "hits", 1)
                return record
        return (yield from self._drive(declared, [key], Sights(identity, [hashed], (), {partition: marks})))[key]

    def _drive(self, declared: DeclaredTable, keys: Sequence[Any], sights: Sights | None) -> Waiting[Records]:
        """Read; what was seen at a first look is not looked at again."""
        begun = time.monotonic()
        steps = self._steps(declared, keys)
        try:
            effect = next(steps)
            if sights is not None:
                effect = steps.send(sights)
            while True:
                if isinstance(effect, Wait):
                    effect = steps.send((yield from self._waited(effect, begun)))
                    continue
                try:
                    answer = self._perform(declared, effect)
                except BaseException as error:  # noqa: BLE001 - the protocol gives leases back and raises it again
                    effect = steps.throw(error)
                else:
                    effect = steps.send(answer)
        except StopIteration as done:
            found: Records = done.value
            return found

    def _steps(self, declared: DeclaredTable, keys: Sequence[Any]) -> Generator[Effect, Any, Records]:
        table = declared.entity.name

        def count(name: str, amount: int) -> None:
            self._counters.add(table, name, amount)

        # A row whose key the database has made may come from any partition: nothing tells that it was inserted.
        keeps_negative = self._keeps_negative and not declared.plan.database_makes_keys
        rules = Rules(self._stale_ms, self._ahead_ms, keeps_negative)
        return read_through(declared.plan, keys, self._keys.partitions, rules, count)

    def _perform(self, declared: DeclaredTable, effect: Need) -> Any:
        table = declared.entity.name
        answer: Any = None
        match effect:
            case Look():
                answer = self._look(declared, effect)
            case AskSQL(partitions):
                answer = self._rows.applied_of(self._keys.namespace, partitions)
            case AskLineage(partitions):
                answer = self._lineages(partitions)
            case Lease(wanted):
                answer = self._fills.lease(table, wanted)
            case Load():
                answer = self._load(declared, effect)
            case Keep():
                answer = self._fills.keep(table, effect)
            case Release(granted, wanted):
                self._fills.release(table, granted, wanted)
            case _:
                assert_never(effect)
        return answer

    def _look(self, declared: DeclaredTable, effect: Look) -> Sights:
        name, wanted = declared.entity.name, effect.wanted
        partitions = sorted({each.partition for each in wanted})
        names = [self._keys.record(each.partition, name, each.key_text) for each in wanted]
        commands: list[tuple[Any, ...]] = [("HGETALL", record) for record in names]
        # After the hashes: a watermark read later covers all the more, and so does the mark of inserts.
        commands += [
            ("HMGET", self._keys.metas[number], "watermark", f"inserted:{name}", "identity", "floor")
            for number in partitions
        ]
        if self._ahead_ms:
            commands += [("PTTL", record) for record in names]
        with self._links.link() as link:
            identity = link.identity
            for number in partitions:
                self._meet(identity, number)
            replies = link.pipeline(commands)
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise _refused(declared, reply) from reply
        count, middle = len(names), len(names) + len(partitions)
        marks = dict(zip(partitions, replies[count:middle], strict=True))
        return Sights(identity, replies[:count], replies[middle:], marks)

    def _lineages(self, partitions: Sequence[int]) -> dict[int, Lineage]:
        with self._links.link() as link:
            metas = link.pipeline([("HGETALL", self._keys.metas[number]) for number in partitions])
        return {
            number: parse_lineage(dict(zip(meta[::2], meta[1::2], strict=True)))
            for number, meta in zip(partitions, metas, strict=True)
        }

    def _load(self, declared: DeclaredTable, effect: Load) -> dict[str, dict[str, Any]]:
        name = declared.entity.name
        self._counters.add(name, "loads", len(effect.wanted))
        begun = time.monotonic()
        try:
            return self._rows.load(declared, {each.key_text: each.key_values for each in effect.wanted})
        finally:
            self._counters.add(name, "load_ms", round(1000 * (time.monotonic() - begun)))

    def _waited(self, effect: Wait, begun: float) -> Waiting[float | None]:
        """Wait a moment; return the seconds since the read began, or None where its time is over."""
        if time.monotonic() - begun > self._timeout_seconds:
            return None
        yield pause_seconds(effect.attempt, random.random())  # noqa: S311 - spreads looks
        return time.monotonic() - begun


def keeping_of(settings: EngineSettings) -> Keeping:
    """Return how long records are kept by an engine's settings."""
    ttl_seconds = RENEWED_TTL_SECONDS if settings.record_ttl_seconds is None else settings.record_ttl_seconds
    return Keeping(
        lease_ms=_ms(settings.load_lease_seconds),
        ttl_ms=_ms(ttl_seconds),
        stale_ms=int(1000 * settings.stale_seconds),
        negative_ttl_ms=0 if settings.negative_ttl_seconds is None else _ms(settings.negative_ttl_seconds),
        jitter=settings.ttl_jitter_share,
    )


def _ms(seconds: float) -> int:
    return max(1, int(1000 * seconds))


def _refused(declared: DeclaredTable, error: redis.ResponseError) -> Exception:
    refused = refusal(error)
    if refused.code == "WRONGTYPE":
        return foreign_record(declared.entity.name)
    return RedisUnavailable(f"Redis refuses: {refused.code} {refused.text}", "check the server and the permissions")
