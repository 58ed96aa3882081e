"""Leases of caches on a real Redis: expired values, loaders that fail or take too long, callers that go away.

That time has passed is said to Redis: it keeps the times by which values expire and leases run out.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from writebehind.engine import Cache, ReadTimeout, WriteBehind

DEADLINE_SECONDS = 20.0

Caches = Callable[..., Cache]


@pytest.fixture
def caches(redis_url: str, namespace: str) -> Iterator[Caches]:
    """A factory of caches of one name, each of an engine of its own, like a process."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Cache:
            engine = WriteBehind(redis=redis_url, database="sqlite://", tables=[], namespace=namespace)
            stack.callback(engine.close)
            return engine.cache("profile", **{"ttl_seconds": 600, "jitter": 0, "wait_seconds": 0} | settings)

        yield make


class Entry:
    """What Redis has of the only key that was read."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self._pattern = f"wb:{{{namespace}/*"

    def names(self) -> list[bytes]:
        """All that Redis has."""
        return list(self._client.scan_iter(self._pattern, count=1000))

    @property
    def name(self) -> bytes:
        """Its name."""
        (name,) = self.names()
        return name

    @property
    def left_ms(self) -> int:
        """How long it is kept."""
        return int(self._client.pttl(self.name))

    def remove(self) -> None:
        """Have it evicted."""
        self._client.delete(self.name)

    def set(self, field: str, value: bytes | str | int) -> None:
        """Overwrite a field."""
        self._client.hset(self.name, field, value)

    def expire(self, since_ms: int = 1) -> None:
        """Have the value expired since some time."""
        seconds, microseconds = self._client.time()
        self.set("until", seconds * 1000 + microseconds // 1000 - since_ms)

    def end_lease(self) -> None:
        """Have its lease run out."""
        self.set("lease", 1)


@pytest.fixture
def entry(redis_url: str, namespace: str) -> Iterator[Entry]:
    """The entry in Redis."""
    with redis.Redis.from_url(redis_url) as client:
        yield Entry(client, namespace)


class Slow:
    """A load under way in a thread, that lasts until it is told to end."""

    def __init__(self, pool: ThreadPoolExecutor, cache: Cache, value: str | None) -> None:
        begun = threading.Event()
        self._go_on = threading.Event()

        def load() -> object:
            begun.set()
            assert self._go_on.wait(DEADLINE_SECONDS)
            return fail() if value is None else value

        self._read = pool.submit(cache.get_or_load, "k", load)
        assert begun.wait(DEADLINE_SECONDS)

    def bring(self) -> object:
        """Have it end; return what its caller gets."""
        self._go_on.set()
        return self._read.result(DEADLINE_SECONDS)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for loads under way."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def fail() -> object:
    """Fail to load; or nobody is to load."""
    raise ZeroDivisionError


def interrupt() -> object:
    """Be told to end."""
    raise KeyboardInterrupt


def test_an_expired_value_is_given_for_stale_seconds_and_no_longer(caches: Caches, entry: Entry) -> None:
    """However often loaders take its lease meanwhile, and give it back."""
    cache, other = (caches(stale_seconds=60, lease_seconds=600) for _ in range(2))
    assert cache.get_or_load("k", lambda: "old") == "old"

    def load_and_look(expected: str | None) -> Callable[[], object]:
        def load() -> object:
            if expected is None:
                with pytest.raises(ReadTimeout):
                    other.get_or_load("k", fail)
            else:
                assert other.get_or_load("k", fail) == expected
            return fail()

        return load

    for since_ms, expected in ((1, "old"), (59_000, "old"), (60_001, None), (500_000, None)):
        entry.expire(since_ms)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                cache.get_or_load("k", load_and_look(expected))
    assert other.counts.stale == 4


@pytest.mark.usefixtures("even_chance")
def test_an_early_refresh_that_fails(caches: Caches, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody hears of it while the value is fresh, but the log and the counters; the next one tries again."""
    eager = caches(early_refresh=1e9)
    assert eager.get_or_load("k", lambda: 1) == 1
    with caplog.at_level(logging.WARNING):
        assert [eager.get_or_load("k", fail) for _ in range(3)] == [1, 1, 1]
    assert (eager.counts.loads, eager.counts.load_errors, eager.counts.waits) == (4, 3, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "cache profile: an early refresh has failed: ZeroDivisionError"
    ]
    with pytest.raises(KeyboardInterrupt):
        eager.get_or_load("k", interrupt)
    assert eager.get_or_load("k", lambda: 2) == 2
    assert eager.get_or_load("nothing", lambda: None) is None
    assert eager.get_or_load("nothing", fail) is None


@pytest.mark.usefixtures("even_chance")
def test_a_refresh_that_fails_once_the_value_has_expired(caches: Caches, entry: Entry) -> None:
    """It is its caller's error."""
    eager = caches(early_refresh=1e9, stale_seconds=60)
    assert eager.get_or_load("k", lambda: 1) == 1
    entry.expire()
    with pytest.raises(ZeroDivisionError):
        eager.get_or_load("k", fail)


@pytest.mark.parametrize("awaited", [False, True], ids=["thread", "task"])
@pytest.mark.usefixtures("even_chance")
def test_a_refresh_that_fails_after_the_value_has_expired(
    *, caches: Caches, caplog: pytest.LogCaptureFixture, awaited: bool
) -> None:
    """What was fresh when its load began is not given any more."""
    eager = caches(early_refresh=1e9, ttl_seconds=0.2, stale_seconds=60)
    assert eager.get_or_load("k", lambda: 1) == 1
    expired = time.monotonic() + 0.2

    def outlast() -> object:
        while time.monotonic() < expired:
            time.sleep(0.01)
        return fail()

    async def outlast_awaited() -> object:
        return outlast()

    def refresh() -> object:
        return asyncio.run(eager.get_or_await("k", outlast_awaited)) if awaited else eager.get_or_load("k", outlast)

    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
        refresh()
    assert not caplog.records
    assert eager.get_or_load("k", lambda: 2) == 2  # the lease was given back


@pytest.mark.parametrize("awaited", [False, True], ids=["thread", "task"])
@pytest.mark.usefixtures("even_chance")
def test_a_refresh_that_fails_in_time(*, caches: Caches, awaited: bool) -> None:
    """Threads and tasks get what is there."""
    eager = caches(early_refresh=1e9)
    assert eager.get_or_load("k", lambda: 1) == 1

    async def fail_awaited() -> object:
        return fail()

    assert (asyncio.run(eager.get_or_await("k", fail_awaited)) if awaited else eager.get_or_load("k", fail)) == 1


def test_loads_that_take_longer_than_their_lease(caches: Caches, pool: ThreadPoolExecutor) -> None:
    """What the first one brings is cached for all, and what a later one brings replaces it."""
    cache = caches(lease_seconds=0.05, wait_seconds=DEADLINE_SECONDS)
    loads = [Slow(pool, cache, value) for value in ("first", "second", "third")]
    assert loads[0].bring() == "first"
    assert cache.get_or_load("k", fail) == "first"
    assert loads[2].bring() == "third"
    assert cache.get_or_load("k", fail) == "third"
    assert loads[1].bring() == "second"
    assert cache.get_or_load("k", fail) == "third", "a value has replaced one whose load began later"
    assert (cache.counts.loads, cache.counts.uncached) == (3, 1)


@pytest.mark.parametrize("gone", ["invalidated", "evicted"])
def test_nothing_loaded_before_an_invalidation_is_kept(
    caches: Caches, entry: Entry, pool: ThreadPoolExecutor, gone: str
) -> None:
    """Whichever lease it had, and also where a load of after it is under way."""
    cache = caches()
    loads = [Slow(pool, cache, "first")]
    entry.end_lease()
    loads.append(Slow(pool, cache, "second"))
    cache.invalidate("k") if gone == "invalidated" else entry.remove()
    later = Slow(pool, cache, "later")
    assert [load.bring() for load in loads] == ["first", "second"]
    with pytest.raises(ReadTimeout):
        cache.get_or_load("k", fail)
    assert later.bring() == "later"
    assert cache.get_or_load("k", fail) == "later"
    assert cache.counts.uncached == 2


def test_a_lease_outlasts_what_an_earlier_load_brings(caches: Caches, entry: Entry, pool: ThreadPoolExecutor) -> None:
    """No third one loads beside it, although that value has expired."""
    cache = caches(ttl_seconds=0.001)
    first = Slow(pool, cache, "first")
    entry.end_lease()
    second = Slow(pool, cache, None)
    assert first.bring() == "first"
    entry.expire()
    with pytest.raises(ReadTimeout):
        cache.get_or_load("k", fail)
    with pytest.raises(ZeroDivisionError):
        second.bring()
    assert cache.get_or_load("k", lambda: "third") == "third"


def test_an_entry_ends_soon_after_its_loads(caches: Caches, entry: Entry, pool: ThreadPoolExecutor) -> None:
    """It waits for ten times the lease, no longer, and as long as a value lives once that is there."""
    cache = caches(lease_seconds=10, ttl_seconds=3)
    load = Slow(pool, cache, "value")
    assert 50_000 < entry.left_ms <= 100_000
    load.bring()
    assert 0 < entry.left_ms <= 3_000
    cache.invalidate("k")
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load("k", fail)
    assert entry.names() == []


@pytest.mark.parametrize("field", ["until", "cost", "lease", "leases", "filled", "generation", "token"])
@pytest.mark.parametrize("foreign", [b"x", b"", b"-1", b"inf", b"9" * 400])
def test_what_another_program_has_written(caches: Caches, entry: Entry, field: str, foreign: bytes) -> None:
    """It counts as not there: the value is loaded anew, and cached."""
    cache = caches()
    assert cache.get_or_load("k", lambda: 1) == 1
    entry.expire()
    entry.set("token", "token")
    entry.end_lease()
    entry.set(field, foreign)
    assert cache.get_or_load("k", lambda: 2) == 2
    if field in {"until", "cost"}:
        entry.set(field, foreign)
        assert cache.get_or_load("k", lambda: 3) == 3
    assert cache.get_or_load("k", fail) in {2, 3}
