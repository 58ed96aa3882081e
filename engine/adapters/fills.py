"""Leases for loading records, and putting what was loaded into Redis.

Whatever fails here, the read goes on: it only keeps nothing.
"""

import logging
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import redis

from writebehind.engine.adapters.kept_names import KeptNames
from writebehind.engine.adapters.links import Link, Links, open_epoch, refusal
from writebehind.engine.adapters.read_counters import ReadCounters
from writebehind.engine.adapters.scripts import RECORD_FILL, RECORD_LEASE, RECORD_OVERLAY, RECORD_RELEASE, Script
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.read_counts import Keeping
from writebehind.engine.core.read_effects import Filling, Grant, Granted, Keep, Kept, Wanted
from writebehind.engine.errors import RedisUnavailable

__all__ = ["Fills"]

logger = logging.getLogger(__name__)

RECORDS_PER_SCRIPT = 200
WARN_SECONDS = 60.0

GRANTS = (Grant.BUSY, Grant.TAKEN, Grant.NOTHING_KEPT)
"""By the replies of ``record_lease.lua``."""

Call = tuple[Script, tuple[Any, ...], tuple[Any, ...]]
"""A script, its keys and its arguments."""
Terms = tuple[bytes, bytes]


class Fills:
    """What reads put into Redis; may be shared between threads.

    Args:
        links: connections.
        keys: the namespace's key names.
        keeping: how long what was loaded is kept.
        counters: where what was evicted is counted.
    """

    def __init__(self, links: Links, keys: Keys, keeping: Keeping, counters: ReadCounters) -> None:
        self._links = links
        self._keys = keys
        self._keeping = keeping
        self._counters = counters
        self._kept = KeptNames()
        self._warned_at = float("-inf")

    def begin(self) -> None:
        """Know nothing of what was filled; to be called in a forked child."""
        self._kept.begin()

    def lease(self, table: str, wanted: Sequence[Wanted]) -> Granted:
        """Take the leases of records, in one round trip.

        Repeat: takes nothing that is taken. Crash: what was taken runs out.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        token = secrets.token_hex(8).encode()
        grants = [Grant.NOTHING_KEPT] * len(wanted)
        terms: dict[int, Terms] = {}
        chunks = list(self._chunks(range(len(wanted)), [each.partition for each in wanted]))
        with self._links.link() as link:

            def call(partition: int, numbers: Sequence[int]) -> Call:
                names = tuple(self._name(table, wanted[number]) for number in numbers)
                seen = tuple(wanted[number].seen for number in numbers)
                return (
                    RECORD_LEASE,
                    (self._keys.metas[partition], *names),
                    (link.identity, token, self._keeping.lease_ms, *seen),
                )

            replies = _run(link, [call(*chunk) for chunk in chunks])
            for at, (partition, numbers) in enumerate(chunks):
                reply = replies[at]
                if isinstance(reply, redis.ResponseError) and refusal(reply).code == "UNOPENED":
                    reply = self._open(link, partition) or _run(link, [call(partition, numbers)])[0]
                if isinstance(reply, redis.ResponseError):
                    self._warn(reply)
                elif reply:
                    terms[partition] = (reply[0], reply[1])
                    for number, taken in zip(numbers, reply[2:], strict=True):
                        grants[number] = GRANTS[taken]
        self._count_evictions(table, wanted, grants)
        return Granted(grants, token, terms)

    def _count_evictions(self, table: str, wanted: Sequence[Wanted], grants: Sequence[Grant]) -> None:
        now = time.monotonic()
        gone = sum(
            grant is Grant.TAKEN and not each.seen and self._kept.gone(self._name(table, each), now)
            for each, grant in zip(wanted, grants, strict=True)
        )
        if gone:
            self._counters.add(table, "evictions", gone)

    def _open(self, link: Link, partition: int) -> redis.ResponseError | None:
        """Begin a partition's first epoch: what is kept under none could not be judged after a failover."""
        try:
            open_epoch(link, self._keys, partition)
        except redis.ResponseError as error:
            return error
        return None

    def keep(self, table: str, effect: Keep) -> Kept:
        """Put what was loaded into Redis, in one round trip.

        Durability: none; what Redis loses is loaded again. Repeat: fills nothing. Crash: each record is filled or not.
        """
        granted = effect.granted
        begun = time.monotonic()
        try:
            with self._links.link() as link:
                calls = [] if granted is None else self._fills(link, table, granted, effect)
                count = len(calls)
                calls += [
                    (RECORD_OVERLAY, (self._name(table, each.wanted),), (each.wanted.under, *each.texts))
                    for each in effect.overlays
                ]
                replies = _run(link, calls)
                unchanged = self._unchanged(link, table, effect.overlays, replies[count:])
        except RedisUnavailable as error:
            if effect.overlays:
                raise
            self._warn(error)
            return Kept(0, ())
        filled = 0
        for (_, names, arguments), reply in zip(calls[:count], replies, strict=False):
            if isinstance(reply, redis.ResponseError):
                self._warn(reply)
            else:
                filled += sum(reply)
                self._note(names[1:], arguments[3:], reply, begun)
        if granted is not None and any(isinstance(reply, redis.ResponseError) for reply in replies):
            # A full Redis takes nothing in, but it lets go: the next caller need not wait.
            self.release(table, granted, [each.wanted for each in (*effect.fills, *effect.overlays)])
        return Kept(filled, unchanged)

    def _note(self, names: Sequence[str], texts: Sequence[Any], reply: Sequence[int], begun: float) -> None:
        """Note what is in Redis now, and until when; the texts are those that ``record_fill.lua`` was given."""
        at = 0
        for name, filled in zip(names, reply, strict=True):
            ttl_ms, size = texts[at + 2], texts[at + 3]
            at += 4 + size
            if filled and ttl_ms:
                self._kept.note(name, begun + ttl_ms / 1000)

    def _fills(self, link: Link, table: str, granted: Granted, effect: Keep) -> list[Call]:
        calls: list[Call] = []
        for partition, fills in self._chunks(effect.fills, [each.wanted.partition for each in effect.fills]):
            names = tuple(self._name(table, each.wanted) for each in fills)
            epoch, watermark = granted.terms[partition]
            # A promoted replica still has the identity that the lease was taken under, until its first write.
            head = (link.identity + b" " + epoch, granted.token, watermark)
            arguments = tuple(text for each in fills for text in self._fill(each, negative=effect.negative))
            calls.append((RECORD_FILL, (self._keys.metas[partition], *names), (*head, *arguments)))
        return calls

    def _unchanged(self, link: Link, table: str, overlays: Sequence[Filling], replies: Sequence[Any]) -> list[bool]:
        refused = [each for each, reply in zip(overlays, replies, strict=True) if isinstance(reply, redis.RedisError)]
        names = [self._name(table, each.wanted) for each in refused]
        found = link.pipeline([("HMGET", name, ":version", ":loaded") for name in names])
        seen = {
            name: None if isinstance(reply, redis.RedisError) else reply[0] or reply[1]
            for name, reply in zip(names, found, strict=True)
        }
        return [
            seen[self._name(table, each.wanted)] == each.wanted.under
            if isinstance(reply, redis.RedisError)
            else bool(reply)
            for each, reply in zip(overlays, replies, strict=True)
        ]

    def release(self, table: str, granted: Granted, wanted: Sequence[Wanted]) -> None:
        """Give leases back; where Redis is away they run out. Repeat: harmless."""
        calls: list[Call] = [
            (RECORD_RELEASE, tuple(self._name(table, each) for each in chunk), (granted.token,))
            for _, chunk in self._chunks(wanted, [each.partition for each in wanted])
        ]
        try:
            with self._links.link() as link:
                replies = _run(link, calls)
        except RedisUnavailable as error:
            self._warn(error)
            return
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                self._warn(reply)

    def _fill(self, filling: Filling, *, negative: bool) -> tuple[Any, ...]:
        chance = random.random()  # noqa: S311 - spreads what ends together
        ttl_ms = 0
        if filling.texts:
            ttl_ms = self._keeping.record_ms(chance)
        elif negative:
            ttl_ms = self._keeping.negative_ms(chance)
        return (filling.wanted.version, filling.wanted.state, ttl_ms, len(filling.texts), *filling.texts)

    def _name(self, table: str, wanted: Wanted) -> str:
        return self._keys.record(wanted.partition, table, wanted.key_text)

    def _chunks(self, items: Sequence[Any], partitions: Sequence[int]) -> Iterator[tuple[int, list[Any]]]:
        """Group by partition, a bounded number at once."""
        pairs = sorted(zip(partitions, range(len(items)), strict=True))
        for partition, group in groupby(pairs, key=lambda pair: pair[0]):
            numbers = [number for _, number in group]
            for start in range(0, len(numbers), RECORDS_PER_SCRIPT):
                yield partition, [items[number] for number in numbers[start : start + RECORDS_PER_SCRIPT]]

    def _warn(self, error: Exception) -> None:
        """Say it now and then: what fails for one record tends to fail for many."""
        now = time.monotonic()
        if now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            logger.warning("records that were read are not kept in Redis: %s", error)


def _run(link: Link, calls: Sequence[Call]) -> list[Any]:
    """Run scripts in one round trip, and those that the server does not know once more by their texts."""
    replies = (
        link.pipeline([("EVALSHA", script.sha, len(keys), *keys, *arguments) for script, keys, arguments in calls])
        if calls
        else []
    )
    unknown = [number for number, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
    if unknown:
        again = [
            ("EVAL", script.text, len(keys), *keys, *arguments)
            for script, keys, arguments in (calls[number] for number in unknown)
        ]
        for number, reply in zip(unknown, link.pipeline(again), strict=True):
            replies[number] = reply
    return replies
