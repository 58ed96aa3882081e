"""Copies of cached values in a process: they count only while it hears what is announced."""

import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from writebehind.drills.proxy import Proxy
from writebehind.engine import Cache, EngineSettings, WriteBehind
from writebehind.engine.adapters.local_cache import VALID_SECONDS

DEADLINE_SECONDS = 20.0


@contextlib.contextmanager
def cache_at(url: str, namespace: str, *, timeout_seconds: float = 1.0, **tuning: Any) -> Iterator[Cache]:
    """Make a cache with copies, of an engine of its own, that hears announcements."""
    engine = WriteBehind(
        redis=url,
        database="sqlite://",
        tables=[],
        namespace=namespace,
        settings=EngineSettings(redis_timeout_seconds=timeout_seconds),
    )
    try:
        cache = engine.cache("profile", **{"ttl_seconds": 60, "local_entries_max": 100, **tuning})
        listening(cache)
        yield cache
    finally:
        engine.close()


def listening(cache: Cache) -> None:
    """Wait until copies count."""
    cache.get_or_load("nothing", lambda: None)
    eventually(lambda: cache._local is not None and cache._local.listening)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def copies(cache: Cache) -> int:
    """Count what is kept in the process."""
    assert cache._local is not None
    return len(cache._local)


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client."""
    with redis.Redis.from_url(redis_url) as made:
        yield made


def kill_listeners(client: Any, namespace: str) -> None:
    """Have Redis end all subscriptions, among them one of this namespace."""
    channel = f"wb:{{{namespace}}}:cache:profile"
    assert client.pubsub_numsub(channel)[0][1] >= 1
    for each in client.client_list(_type="pubsub"):
        client.client_kill_filter(_id=each["id"])


def test_a_copy_is_found_without_redis(redis_url: str, namespace: str, client: Any) -> None:
    """A second read asks nobody, and gives a value of its own."""
    with cache_at(redis_url, namespace) as cache:
        assert cache.get_or_load("k", lambda: [1]) == [1]
        (entry,) = [name for name in client.scan_iter(f"wb:{{{namespace}/*") if name.endswith(b'"k"')]
        client.hset(entry, "value", b"j[2]")
        first = cache.get_or_load("k", lambda: [3])
        first.append("changed")
        assert cache.get_or_load("k", lambda: [3]) == [1]
        cache.get_or_load("none", lambda: None)
        assert cache.get_or_load("none", lambda: 1) is None
        assert (cache.counts.local_hits, cache.counts.hits, cache.counts.negative_hits) == (3, 3, 1)


def test_what_another_process_invalidates_is_dropped(redis_url: str, namespace: str) -> None:
    """One key, or all; here at once, there in a moment."""
    with cache_at(redis_url, namespace) as one, cache_at(redis_url, namespace) as other:
        calls: list[Callable[[], None]] = [lambda: one.invalidate("k"), one.invalidate_all]
        for invalidate in calls:
            for cache in (one, other):
                cache.get_or_load("k", lambda: "old")
                cache.get_or_load("j", lambda: "old")
            invalidate()
            assert one.get_or_load("k", lambda: "new") == "new"
            eventually(lambda: other.get_or_load("k", lambda: "new") == "new")
            one.invalidate("k")
            eventually(lambda: other.get_or_load("k", lambda: "old") == "old")


def test_copies_are_bounded_and_expire(redis_url: str, namespace: str) -> None:
    """By number and by a time of their own, and never later than in Redis."""
    with cache_at(redis_url, namespace, local_entries_max=5, local_ttl_seconds=0.05) as cache:
        for key in range(20):
            cache.get_or_load(key, lambda: 1)
        assert copies(cache) == 5
        eventually(lambda: cache._local is not None and cache._local.get("19") is None)
    with cache_at(redis_url, namespace + "s", ttl_seconds=0.2, jitter=0, local_ttl_seconds=60) as cache:
        cache.get_or_load("k", lambda: "old")
        eventually(lambda: cache.get_or_load("k", lambda: "new") == "new")


def test_read_then_invalidated_then_put(redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before an announcement is not kept after it."""
    with cache_at(redis_url, namespace) as one, cache_at(redis_url, namespace) as other:
        one.get_or_load("k", lambda: "old")
        look = other._store.look

        local = other._local
        assert local is not None

        def look_slowly(*arguments: Any) -> Any:
            found = look(*arguments)
            ticket = local.ticket('"k"')
            one.invalidate("k")
            eventually(lambda: local.ticket('"k"') != ticket)
            return found

        monkeypatch.setattr(other._store, "look", look_slowly)
        assert other.get_or_load("k", lambda: "new") == "old"
        monkeypatch.undo()
        assert other.get_or_load("k", lambda: "new") == "new"


def test_a_lost_subscription_drops_everything(
    redis_url: str, namespace: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """At once; and nothing is kept before announcements are heard again."""
    with cache_at(redis_url, namespace) as cache, caplog.at_level(logging.WARNING):
        cache.get_or_load("k", lambda: "old")
        assert copies(cache) >= 1
        kill_listeners(client, namespace)
        eventually(lambda: copies(cache) == 0)
        listening(cache)
        assert "no copies" in caplog.text
        cache.get_or_load("k", lambda: "new")
        assert copies(cache) >= 1


@pytest.mark.parametrize("timeout_seconds", [1.0, 30.0])
def test_a_half_open_connection_is_noticed(redis_url: str, namespace: str, timeout_seconds: float) -> None:
    """Nothing arrives and nothing ends: copies count no longer than they may be out of date."""
    address = urlsplit(redis_url)
    host = address.netloc.rpartition("@")[2]
    with (
        Proxy(int(address.port or 6379), str(address.hostname)) as proxy,
        cache_at(
            redis_url.replace(host, f"127.0.0.1:{proxy.port}"), namespace, timeout_seconds=timeout_seconds
        ) as cache,
        cache_at(redis_url, namespace) as other,
    ):
        assert cache.get_or_load("k", lambda: "old") == "old"
        assert cache.get_or_load("k", lambda: "wrong") == "old"
        hits = cache.counts.local_hits
        assert hits >= 1
        stalled_at = time.monotonic()
        assert proxy.half_open() >= 2
        other.invalidate("k")
        other.get_or_load("k", lambda: "new")
        local = cache._local
        assert local is not None
        while local.get('"k"') is not None:
            assert time.monotonic() < stalled_at + VALID_SECONDS + 1
            time.sleep(0.01)
        proxy.break_half_open()
        listening(cache)
        assert cache.get_or_load("k", lambda: "wrong") == "new"


def test_a_subscription_that_leads_elsewhere_is_noticed(redis_url: str, namespace: str) -> None:
    """Only the listener's connection stalls; everything else goes on, and the copies do not count."""
    address = urlsplit(redis_url)
    with (
        Proxy(int(address.port or 6379), str(address.hostname)) as proxy,
        cache_at(redis_url, namespace) as other,
    ):
        url = redis_url.replace(address.netloc.rpartition("@")[2], f"127.0.0.1:{proxy.port}")
        engine = WriteBehind(redis=url, database="sqlite://", tables=[], namespace=namespace)
        cache = engine.cache("profile", ttl_seconds=60, local_entries_max=100)
        assert cache._local is not None
        # The listener's is the first connection, and the only one that is open now.
        cache._local.ticket("k")
        eventually(lambda: cache._local is not None and cache._local.listening)
        engine.links.drop_idle()
        assert proxy.half_open() >= 1
        other.invalidate_all()
        other.get_or_load("k", lambda: "new")
        eventually(lambda: cache._local is not None and not cache._local.listening)
        assert cache.get_or_load("k", lambda: "wrong") == "new"
        listening(cache)
        engine.close()


def test_a_forked_child_listens_for_itself(redis_url: str, namespace: str) -> None:
    """It begins with nothing, and then hears what its parent invalidates."""
    with cache_at(redis_url, namespace) as cache:
        cache.get_or_load("k", lambda: "old")
        ready, go_on = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            good = False
            try:
                good = copies(cache) == 0 and cache.counts.hits == 0
                good = good and cache.get_or_load("k", lambda: "wrong") == "old"
                listening(cache)
                good = good and cache.get_or_load("k", lambda: "wrong") == "old" and copies(cache) >= 1
                os.write(ready[1], b"x")
                os.read(go_on[0], 1)
                eventually(lambda: cache.get_or_load("k", lambda: "new") == "new")
            finally:
                os._exit(0 if good else 1)
        assert os.read(ready[0], 1) == b"x"
        cache.invalidate("k")
        os.write(go_on[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cache.get_or_load("k", lambda: "newer") in {"new", "newer"}
        for end in (*ready, *go_on):
            os.close(end)


def test_a_fork_while_another_thread_notes_a_value(redis_url: str, namespace: str) -> None:
    """The child loads values all the same, and takes for evicted nothing that its parent has loaded."""
    with cache_at(redis_url, namespace) as cache:
        cache.get_or_load("k", lambda: "old")
        with cache._store._kept._lock:
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(int(DEADLINE_SECONDS))
                good = False
                try:
                    good = cache.get_or_load("new", lambda: "new") == "new"
                    cache.invalidate_all()
                    good = good and cache.get_or_load("k", lambda: "newer") == "newer" and not cache.counts.evictions
                finally:
                    os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_readers_beside_invalidations(redis_url: str, namespace: str) -> None:
    """Whoever reads in the process that invalidates never gets what was there before."""
    with cache_at(redis_url, namespace) as cache:
        stored, invalidated = [0], [0]
        ended = threading.Event()

        def read() -> list[tuple[int, int]]:
            behind = []
            while not ended.is_set():
                least = invalidated[0]
                found = cache.get_or_load("k", lambda: stored[0])
                if found < least:
                    behind.append((found, least))
            return behind

        with ThreadPoolExecutor(4) as pool:
            reads = [pool.submit(read) for _ in range(4)]
            for number in range(1, 301):
                stored[0] = number
                cache.invalidate("k") if number % 2 else cache.invalidate_all()
                invalidated[0] = number
            ended.set()
            assert [behind for each in reads for behind in each.result(DEADLINE_SECONDS)] == []
        assert cache.counts.local_hits > 0


def test_the_thread_ends_with_its_cache(redis_url: str, namespace: str) -> None:
    """Also where nobody closes the engine."""
    engine = WriteBehind(redis=redis_url, database="sqlite://", tables=[], namespace=namespace)
    cache = engine.cache("profile", ttl_seconds=60, local_entries_max=10)
    listening(cache)
    assert any(thread.name == "writebehind-cache" for thread in threading.enumerate())
    engine.database.dispose()
    engine.links.close()
    del engine, cache
    gc.collect()
    eventually(lambda: not any(thread.name == "writebehind-cache" for thread in threading.enumerate()))
