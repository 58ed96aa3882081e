"""Cache-aside: what is done for one read, and in which order.

Pure: ``fetch`` yields what it needs and is given the reply, so that a blocking and an awaiting shell share it.

1. A value is loaded by whoever holds the lease of its key; all others wait, or get an expired value where they may.
2. A value is put into Redis in the generation of leases in which its load began. Invalidation removes that with the
   value, and a new version of the cache leaves both behind: what was loaded before them is never found after them.
   Leases are numbered in their generation: a value never replaces one whose load began later. So a load that takes
   longer than its lease is not in vain.
3. A loader's exception is nobody's but its caller's: the lease is given back, and the next one tries. Where the value
   was only to be refreshed early, it is not even its caller's while the value is still fresh.
4. What a loader returned is decoded from its payload: every caller gets the same, the one who has loaded, too.

::

    Look ── hit, stale ────────────────────────────────> value
     │ ├─── busy ──> Wait ──> Look ...  (time is over: ReadTimeout)
     │ ├─── leased ─> Load ──> Fill ───────────────────> value
     │ │               └─ raises ──> Release ──────────> the loader's exception, or the value that is still fresh
     │ └─── uncached (Redis is full, or away and may be) ─> Load ──> value
     └ a payload that cannot be read: Look again, as if it were not there
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from writebehind.engine.core.cached_values import NOTHING, Codec, Unreadable
from writebehind.engine.errors import ReadTimeout, ValidationError

__all__ = [
    "CacheCounts",
    "Effect",
    "Fill",
    "Found",
    "Lease",
    "Load",
    "Look",
    "Release",
    "State",
    "Wait",
    "early_weight",
    "fetch",
    "fresh_ms",
    "pause_seconds",
]

PAUSE_SECONDS = 0.002
PAUSE_SECONDS_MAX = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheCounts:
    """What a cache has done in this process; sums over processes mean something.

    Attributes:
        hits: reads that found a fresh value at once, negative and local ones included.
        local_hits: of these, those that found it in this process.
        negative_hits: of these, those that found that there is nothing.
        misses: reads that found none at once, or were the one to refresh it early.
        loads: calls of loaders, failed ones included.
        load_errors: of these, those that raised.
        load_seconds: time spent in loaders.
        waits: reads that waited for another one's load.
        stale: reads that were given an expired value while another one loads.
        uncached: values that were loaded and not cached: Redis was full or away, or the load was overtaken by an
            invalidation, or by one that began later, after its lease had run out.
        unreadable: reads that met a payload in Redis which could not be read; these are misses.
        invalidations: calls of ``invalidate`` and ``invalidate_all``.
        evictions: values not found before their time by the process that had loaded them: evicted, or invalidated by
            another process. A process knows of the last 10,000 that it has loaded.
    """

    hits: int = 0
    local_hits: int = 0
    negative_hits: int = 0
    misses: int = 0
    loads: int = 0
    load_errors: int = 0
    load_seconds: float = 0.0
    waits: int = 0
    stale: int = 0
    uncached: int = 0
    unreadable: int = 0
    invalidations: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of hits in hits and misses; None where there were none of either."""
        looks = self.hits + self.misses
        return self.hits / looks if looks else None


class State(Enum):
    """What a look finds."""

    HIT = auto()
    STALE = auto()
    BUSY = auto()
    """Nothing, and another one loads."""
    LEASED = auto()
    """Nothing, or what is worth refreshing; the right to load is taken."""
    UNCACHED = auto()
    """Nothing, and nothing can be kept."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to load a value.

    Attributes:
        entry: name of the entry in Redis; it has the cache's version in it.
        token: what nobody else has.
        generation: what all leases of the entry share until it is invalidated.
        number: of the lease in its generation.
    """

    entry: str
    token: bytes
    generation: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Found:
    """Reply to ``Look``.

    Attributes:
        state: what there is.
        payload: the value, where there is one; under a lease it is fresh, and worth refreshing.
        lease: where it was taken.
    """

    state: State
    payload: bytes = b""
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """Look the key up, and take the lease where there is no value and nobody has it.

    Attributes:
        unreadable: why the payload found before is of no use, so that it counts as none; or empty.
    """

    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Call the loader; what it raises is raised here."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Put a value into Redis where no invalidation and no later load came first; the reply says whether it is there."""

    lease: Lease
    payload: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """Give a lease back; the reply says whether what was found under it is fresh even now.

    Attributes:
        lease: what to give back.
        failed: why a value was not refreshed early, where that is told to no caller while the value is fresh.
    """

    lease: Lease
    failed: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait a moment; the reply is False where the time to wait is over."""

    attempt: int


Effect = Look | Load | Fill | Release | Wait
Count = Callable[[str], None]
"""Adds one to a field of ``CacheCounts``."""


def fetch(codec: Codec, count: Count) -> Generator[Effect, Any, Any]:
    """Read a value, loading it where need be.

    Raises:
        ReadTimeout: another one's load took too long.
        ValidationError: what the loader returned cannot be cached.
    """
    look = Look()
    attempt = 0
    missed = unreadable = False
    while True:
        found: Found = yield look
        if found.state is State.HIT or found.state is State.STALE:
            try:
                value = codec.decode(found.payload)
            except Unreadable as error:
                if not unreadable:
                    unreadable = True
                    count("unreadable")
                look = Look(unreadable=str(error))
                continue
            _count_found(count, found, missed=missed)
            return value
        if not missed:
            missed = True
            count("misses")
        if found.state is not State.BUSY:
            return (yield from _load(codec, count, found))
        attempt += 1
        if attempt == 1:
            count("waits")
        if not (yield Wait(attempt)):
            raise ReadTimeout(
                "another caller has been loading this value for too long",
                "look at the loader; wait_seconds says how long to wait, lease_seconds how long one caller may load",
            )
        look = Look()


def _count_found(count: Count, found: Found, *, missed: bool) -> None:
    if found.state is State.STALE:
        count("stale")
    elif not missed:
        count("hits")
        if found.payload == NOTHING:
            count("negative_hits")


def _load(codec: Codec, count: Count, found: Found) -> Generator[Effect, Any, Any]:
    lease = found.lease
    try:
        value = yield Load()
        payload = codec.encode(value)
        try:
            value = codec.decode(payload)
        except Unreadable as error:
            raise ValidationError(
                f"what the loader returned cannot be read back: {error}", "it has to be of the cache's type="
            ) from error
    except GeneratorExit:
        # The read was abandoned, and nobody is left to give the lease back: it runs out.
        raise
    except BaseException as error:
        spared = _spared(codec, found, error)
        if lease is not None and (yield Release(lease, error if spared else None)) and spared:
            return spared[0]
        raise
    if lease is None or not (yield Fill(lease, payload)):
        count("uncached")
    return value


def _spared(codec: Codec, found: Found, error: BaseException) -> tuple[Any, ...]:
    """Return the value that was to be refreshed early, if there is one; nobody who is cancelled gets it."""
    if not (found.payload and isinstance(error, Exception)):
        return ()
    try:
        return (codec.decode(found.payload),)
    except Unreadable:
        return ()


def early_weight(beta: float, chance: float) -> float:
    """Return how many times the duration of the last load before its end a value is refreshed by this read.

    ``-beta * ln(chance)``: Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention",
    VLDB 2015. With 1 for beta it is the expected duration of a load; more refreshes earlier.

    Args:
        beta: 0 never refreshes early.
        chance: uniform, above 0 and at most 1.
    """
    return -beta * math.log(chance)


def fresh_ms(ttl_seconds: float, jitter: float, chance: float) -> int:
    """Return how long a value is fresh in milliseconds: never longer than its time to live.

    Args:
        ttl_seconds: time to live.
        jitter: the share of it by which values end earlier, so that what was loaded together does not end together.
        chance: uniform, from 0 to 1.
    """
    return max(1, int(1000 * ttl_seconds * (1 - jitter * chance)))


def pause_seconds(attempt: int, chance: float) -> float:
    """Return how long to wait before the next look, longer with each one, and not as long as others do.

    Args:
        attempt: number of the wait, from 1.
        chance: uniform, from 0 to 1.
    """
    return min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2.0 ** min(attempt, 10)) * (0.5 + 0.5 * chance)
