"""Cache-aside on a real Redis: one load for all, nothing from before an invalidation after it, nothing that blocks."""

import asyncio
import contextlib
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import cache_reader
from writebehind.engine import (
    Cache,
    ConfigurationError,
    EngineSettings,
    ReadTimeout,
    RedisUnavailable,
    ValidationError,
    WriteBehind,
    WriteBehindError,
)
from writebehind.flushers import initialise, status
from writebehind.flushers.cli import _print_reads
from writebehind.recovery import Verdict, doctor, verify

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 20.0
things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))

Engines = Callable[..., WriteBehind]


@pytest.fixture
def engines(redis_url: str, namespace: str, sqlite_url: str) -> Iterator[Engines]:
    """A factory of engines of one namespace: each is like a process of its own."""
    with contextlib.ExitStack() as stack:

        def make(url: str = redis_url, **settings: Any) -> WriteBehind:
            made = WriteBehind(
                redis=url,
                database=sqlite_url,
                tables=[things],
                namespace=namespace,
                settings=EngineSettings(**{"redis_timeout_seconds": 2.0, **settings}),
            )
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client."""
    with redis.Redis.from_url(redis_url) as made:
        yield made


class Source:
    """What a cache protects: counts its loads, and holds them up where it is told to."""

    def __init__(self) -> None:
        self.value = 0
        self.loads = 0
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()

    def load(self) -> int:
        """Return the value that was there when the load began."""
        value = self.value
        self.loads += 1
        self.entered.release()
        assert self.go_on.wait(DEADLINE_SECONDS)
        return value

    def hold(self) -> None:
        """Hold up loads from now on."""
        self.go_on = threading.Event()
        self.entered = threading.Semaphore(0)

    def wait(self) -> None:
        """Wait until a load has begun."""
        assert self.entered.acquire(timeout=DEADLINE_SECONDS)


def entries(client: Any, namespace: str) -> list[bytes]:
    """Return the names of all entries of a namespace's caches."""
    return list(client.scan_iter(f"wb:{{{namespace}/*", count=1000))


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_loaded_is_found(engines: Engines) -> None:
    """Once for all engines; each caller gets a value of its own."""
    source = Source()
    one, other = (engines().cache("profile", ttl_seconds=60) for _ in range(2))
    first = one.get_or_load(("user", 1), lambda: {"name": "Ada", "tags": ["x"], "n": source.load()})
    assert first == {"name": "Ada", "tags": ["x"], "n": 0}
    first["tags"].append("changed")
    assert other.get_or_load(("user", 1), source.load) == {"name": "Ada", "tags": ["x"], "n": 0}
    assert one.get_or_load(("user", 2), lambda key: key[1]) == 2
    assert source.loads == 1
    assert (one.counts.misses, one.counts.loads, one.counts.hits) == (2, 2, 0)
    assert (other.counts.misses, other.counts.loads, other.counts.hits) == (0, 0, 1)
    assert one.counts.load_seconds > 0


def test_two_hundred_threads_load_once(engines: Engines) -> None:
    """The others wait, and get what was loaded."""
    source = Source()
    source.hold()
    cache = engines().cache("profile", ttl_seconds=60)
    with ThreadPoolExecutor(200) as pool:
        reads = [pool.submit(cache.get_or_load, "cold", source.load) for _ in range(200)]
        source.wait()
        eventually(lambda: cache.counts.waits == 199)
        source.go_on.set()
        assert {read.result(DEADLINE_SECONDS) for read in reads} == {0}
    assert source.loads == cache.counts.loads == 1
    assert cache.counts.misses == 200


@contextlib.contextmanager
def readers(redis_url: str, namespace: str, threads: int, load_seconds: float) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that reads one key at once with many threads; it ends with the block."""
    command = [sys.executable, str(Path(cache_reader.__file__)), redis_url, namespace, str(threads), str(load_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def begin(process: "subprocess.Popen[str]") -> None:
    """Have it begin."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_two_hundred_threads_of_four_processes_load_once(redis_url: str, namespace: str, client: Any) -> None:
    """The lease is everybody's."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(readers(redis_url, namespace, 50, 0.3)) for _ in range(4)]
        for process in processes:
            begin(process)
        found = [number for process in processes for number in json.loads(process.communicate(timeout=60)[0])]
    assert found == [1] * 200
    assert int(client.get(f"loads-of-{namespace}")) == 1
    client.delete(f"loads-of-{namespace}")


def test_a_loader_that_is_killed(redis_url: str, namespace: str, client: Any, engines: Engines) -> None:
    """Its lease runs out, and then another one loads."""
    name = f"loads-of-{namespace}"
    with readers(redis_url, namespace, 1, 1000) as process:
        begin(process)
        eventually(lambda: client.get(name) == b"1")
        process.kill()
        process.wait()
    client.delete(name)
    (entry,) = entries(client, namespace)
    seconds, microseconds = client.time()
    now_ms = seconds * 1000 + microseconds // 1000
    assert int(client.hget(entry, "lease")) - now_ms <= 10_000
    # The rest of the ten seconds need not be sat out.
    client.hset(entry, "lease", now_ms + 300)
    cache = engines().cache("profile", ttl_seconds=60)
    assert cache.get_or_load("cold", lambda: "after all") == "after all"
    assert (cache.counts.waits, cache.counts.loads) == (1, 1)


def test_a_loader_that_hangs(engines: Engines) -> None:
    """After the lease another one loads; what the first one brings in the end is its caller's alone."""
    source = Source()
    source.hold()
    cache = engines().cache("profile", ttl_seconds=60, lease_seconds=0.2)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get_or_load, "k", source.load)
        source.wait()
        assert cache.get_or_load("k", lambda: "second") == "second"
        source.go_on.set()
        assert slow.result(DEADLINE_SECONDS) == 0
    assert cache.get_or_load("k", source.load) == "second"
    assert cache.counts.uncached == 1


def test_a_slow_loader_that_nobody_overtook(engines: Engines, client: Any, namespace: str) -> None:
    """Its lease has run out, and its value counts."""
    cache = engines().cache("profile", ttl_seconds=60)
    other = engines().cache("profile", ttl_seconds=60)
    source = Source()
    source.hold()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get_or_load, "k", source.load)
        source.wait()
        (entry,) = entries(client, namespace)
        client.hset(entry, "lease", 1)
        source.go_on.set()
        assert slow.result(DEADLINE_SECONDS) == 0
    source.value = 1
    assert other.get_or_load("k", source.load) == 0


def test_waiting_has_an_end(engines: Engines) -> None:
    """Who has waited long enough is told so."""
    source = Source()
    source.hold()
    cache = engines().cache("profile", ttl_seconds=60, wait_seconds=0.1)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get_or_load, "k", source.load)
        source.wait()
        with pytest.raises(ReadTimeout, match="another caller has been loading"):
            engines().cache("profile", ttl_seconds=60, wait_seconds=0.1).get_or_load("k", source.load)
        source.go_on.set()
        assert slow.result(DEADLINE_SECONDS) == 0


def test_a_loader_that_raises(engines: Engines, client: Any, namespace: str) -> None:
    """Its caller gets the exception, the next one loads at once, and nothing is cached."""
    cache = engines().cache("profile", ttl_seconds=60)
    source = Source()

    def fail() -> int:
        source.load()
        raise ZeroDivisionError("no")

    source.hold()
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(cache.get_or_load, "k", fail)
        source.wait()
        second = pool.submit(cache.get_or_load, "k", source.load)
        eventually(lambda: cache.counts.waits == 1)
        source.go_on.set()
        with pytest.raises(ZeroDivisionError, match="no"):
            failing.result(DEADLINE_SECONDS)
        assert second.result(DEADLINE_SECONDS) == 0
    assert (cache.counts.loads, cache.counts.load_errors) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load("other", fail)
    assert len(entries(client, namespace)) == 1


@pytest.mark.parametrize("everything", [False, True], ids=["invalidate", "invalidate_all"])
def test_a_load_that_began_before_an_invalidation(engines: Engines, everything: bool) -> None:  # noqa: FBT001 - a parameter
    """It never fills the cache after it; who reads later loads anew, at once."""
    source = Source()
    source.hold()
    cache, other = (engines().cache("profile", ttl_seconds=60) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get_or_load, "k", source.load)
        source.wait()
        source.value = 1
        other.invalidate_all() if everything else other.invalidate("k")
        source.go_on, held = threading.Event(), source.go_on
        source.go_on.set()
        assert other.get_or_load("k", source.load) == 1
        held.set()
        assert slow.result(DEADLINE_SECONDS) == 0
    assert cache.get_or_load("k", source.load) == 1
    assert source.loads == 2


def test_invalidation_reaches_one_key_or_all(engines: Engines) -> None:
    """Of this cache, and of no other."""
    source = Source()
    cache, other = (engines().cache(name, ttl_seconds=60) for name in ("profile", "avatar"))
    for each in (cache, other):
        for key in (1, "1"):
            assert each.get_or_load(key, source.load) == 0
    source.value = 1
    cache.invalidate(1)
    assert [cache.get_or_load(key, source.load) for key in (1, "1")] == [1, 0]
    cache.invalidate_all()
    assert [cache.get_or_load(key, source.load) for key in (1, "1")] == [1, 1]
    assert [other.get_or_load(key, source.load) for key in (1, "1")] == [0, 0]
    assert cache.counts.invalidations == 2


def test_nothing_is_cached_too(engines: Engines, client: Any, namespace: str) -> None:
    """None is remembered, for a shorter time."""
    cache = engines().cache("profile", ttl_seconds=3600)
    assert [cache.get_or_load("nobody", lambda: None) for _ in range(3)] == [None] * 3
    assert (cache.counts.loads, cache.counts.negative_hits, cache.counts.hits) == (1, 2, 2)
    (entry,) = entries(client, namespace)
    assert 20_000 < client.pttl(entry) <= 30_000


def test_every_key_expires(engines: Engines, client: Any, namespace: str) -> None:
    """Values end at different times, none later than it may; leases and versions end, too."""
    cache = engines().cache("profile", ttl_seconds=100, jitter=0.5, stale_seconds=50, lease_seconds=7)
    for key in range(50):
        cache.get_or_load(key, lambda: 1)
    ends = [client.pttl(name) for name in entries(client, namespace)]
    assert all(99_000 <= end <= 150_000 for end in ends)
    assert max(ends) - min(ends) > 10_000
    source = Source()
    source.hold()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get_or_load, "slow", source.load)
        source.wait()
        assert all(0 < client.pttl(name) <= 440_000 for name in client.scan_iter(f"wb:{{{namespace}*", count=1000))
        source.go_on.set()
        slow.result(DEADLINE_SECONDS)


def test_a_value_expires(engines: Engines) -> None:
    """After its time it is loaded again."""
    source = Source()
    cache = engines().cache("profile", ttl_seconds=0.05, jitter=0)
    assert cache.get_or_load("k", source.load) == 0
    source.value = 1
    eventually(lambda: cache.get_or_load("k", source.load) == 1)


def test_an_expired_value_while_another_one_loads(engines: Engines) -> None:
    """Where it is allowed nobody waits; an invalidated one is never given."""
    source = Source()
    cache = engines().cache("profile", ttl_seconds=0.05, jitter=0, stale_seconds=60)
    assert cache.get_or_load("k", source.load) == 0
    source.hold()
    source.value = 1
    with ThreadPoolExecutor(2) as pool:
        reads = []
        while not source.entered.acquire(timeout=0.0):
            reads.append(pool.submit(cache.get_or_load, "k", source.load))
            time.sleep(0.01)
        assert cache.get_or_load("k", source.load) == 0
        assert cache.counts.stale >= 1
        cache.invalidate("k")
        fresh = pool.submit(cache.get_or_load, "k", source.load)
        source.wait()
        source.go_on.set()
        assert fresh.result(DEADLINE_SECONDS) == 1
        assert {read.result(DEADLINE_SECONDS) for read in reads} <= {0, 1}
    assert cache.counts.waits == 0


@pytest.mark.usefixtures("even_chance")
def test_early_refresh(engines: Engines) -> None:
    """With a beta beyond reason the next reader loads at once, while others go on with what is there."""
    source = Source()
    eager = engines().cache("profile", ttl_seconds=60, early_refresh=1e9)
    calm = engines().cache("profile", ttl_seconds=60)
    assert eager.get_or_load("k", source.load) == 0
    source.value = 1
    source.hold()
    with ThreadPoolExecutor(1) as pool:
        refresh = pool.submit(eager.get_or_load, "k", source.load)
        source.wait()
        assert calm.get_or_load("k", source.load) == 0
        assert eager.get_or_load("k", source.load) == 0
        source.go_on.set()
        assert refresh.result(DEADLINE_SECONDS) == 1
    assert calm.get_or_load("k", source.load) == 1


def test_a_value_that_cannot_be_cached(engines: Engines, client: Any, namespace: str) -> None:
    """It is an error with a reason, and nothing is cached."""
    cache = engines().cache("profile", ttl_seconds=60, serializer="json", value_bytes_max=1000)
    for value in (object(), "x" * 1000, float):
        with pytest.raises(ValidationError, match="cannot be cached"):
            cache.get_or_load("k", lambda value=value: value)
    assert entries(client, namespace) == []
    with pytest.raises(ValidationError, match="a cache's key"):
        cache.get_or_load(1.5, lambda: 1)


def test_what_another_program_wrote(
    engines: Engines, client: Any, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts as a miss, is said once in a while, and is overwritten."""
    cache = engines().cache("profile", ttl_seconds=60)
    source = Source()
    cache.get_or_load("k", source.load)
    (entry,) = entries(client, namespace)
    client.hset(entry, "value", b"\xff\xff")
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_load("k", source.load) == 0
        assert cache.get_or_load("k", source.load) == 0
        client.hset(entry, "value", b"m\xc1")
        assert cache.get_or_load("k", source.load) == 0
    assert (source.loads, cache.counts.unreadable) == (3, 2)
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
    client.set(entry, "a string")
    assert [cache.get_or_load("k", source.load) for _ in range(2)] == [0, 0]
    version = f"wb:{{{namespace}}}:cache:profile"
    client.delete(version)
    client.lpush(version, "a list")
    assert [cache.get_or_load("k", source.load) for _ in range(2)] == [0, 0]
    assert source.loads == 5
    for foreign in (b"", b"\xff", b"x}y"):
        client.set(version, foreign)
        assert [cache.get_or_load("k", source.load) for _ in range(2)] == [0, 0]
    assert source.loads == 8


def test_other_types_share_a_cache(engines: Engines) -> None:
    """A value that is not of the type is loaded anew."""
    text = engines().cache("profile", ttl_seconds=60, type=str)
    number = engines().cache("profile", ttl_seconds=60, type=int, serializer="json")
    assert text.get_or_load("k", lambda: "one") == "one"
    assert number.get_or_load("k", lambda: 1) == 1
    assert number.get_or_load("k", lambda: 2) == 1
    assert number.counts.unreadable == 1


def test_a_full_redis(own_redis: "OwnRedisFactory", engines: Engines) -> None:
    """Hits are hits; what is loaded is returned and not cached; invalidation works."""
    server = own_redis({"maxmemory": "0", "maxmemory-policy": "noeviction"})
    cache = engines(server.url).cache("profile", ttl_seconds=60, local_entries_max=10)
    source = Source()
    assert cache.get_or_load("here", source.load) == 0
    with redis.Redis.from_url(server.url) as plain:
        client: Any = plain
        client.config_set("maxmemory", 1)
        assert cache.get_or_load("here", source.load) == 0
        assert [cache.get_or_load("new", source.load) for _ in range(2)] == [0, 0]
        assert cache.counts.uncached == 2
        source.value = 1
        cache.invalidate("here")
        assert cache.get_or_load("here", source.load) == 1
        cache.invalidate_all()
        assert cache.get_or_load("here", source.load) == 1
        client.config_set("maxmemory", 0)
        source.hold()
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(cache.get_or_load, "here", source.load)
            source.wait()
            client.config_set("maxmemory", 1)
            source.go_on.set()
            assert slow.result(DEADLINE_SECONDS) == 1
        client.config_set("maxmemory", 0)
        before = source.loads
        assert cache.get_or_load("here", source.load) == 1
        assert source.loads == before + 1, "the refused fill has not given its lease back"


def test_redis_away(own_redis: "OwnRedisFactory", engines: Engines) -> None:
    """It is an error, or the value is loaded, as was chosen; what was loaded meanwhile is not lost."""
    server = own_redis()
    engine = engines(server.url)
    strict = engine.cache("profile", ttl_seconds=60, lease_seconds=1)
    lax = engine.cache("other", ttl_seconds=60, load_without_redis=True)
    source = Source()

    def kill_and_load() -> int:
        server.kill()
        return source.load()

    assert strict.get_or_load("k", kill_and_load) == 0
    assert strict.counts.uncached == 1
    for call in (strict.invalidate_all, lambda: strict.invalidate("k"), lambda: strict.get_or_load("k", source.load)):
        with pytest.raises(RedisUnavailable):
            call()
    assert [lax.get_or_load("k", source.load) for _ in range(2)] == [0, 0]
    assert source.loads == 3
    with pytest.raises(ZeroDivisionError):
        lax.get_or_load("k", lambda: 1 // 0)
    server.start()
    assert lax.get_or_load("k", source.load) == strict.get_or_load("k", source.load) == 0


def test_decorated_functions(engines: Engines) -> None:
    """Results are cached by argument, or by a key of one's own; exceptions are not."""
    cache = engines().cache("profile", ttl_seconds=60)
    sums = engines().cache("sums", ttl_seconds=60)
    calls: list[Any] = []

    @cache.cached()
    def profile(user: int) -> dict[str, int]:
        """Compute."""
        calls.append(user)
        if user < 0:
            raise ZeroDivisionError
        return {"user": user}

    @sums.cached(key=lambda *numbers: ("sum", *sorted(numbers)))
    def total(*numbers: int) -> int:
        calls.append(numbers)
        return sum(numbers)

    @sums.cached()
    def default(one: int, other: str = "x") -> str:
        calls.append(one)
        return f"{one}{other}"

    assert [profile(1), profile(user=1), profile(2)] == [{"user": 1}, {"user": 1}, {"user": 2}]
    assert calls == [1, 2]
    assert profile.__doc__ == "Compute."
    cache.invalidate(1)
    profile(1)
    assert calls == [1, 2, 1]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            profile(-1)
    assert calls[3:] == [-1, -1]
    assert [total(1, 2), total(2, 1)] == [3, 3]
    assert [default(1), default(1, "x"), default(one=1, other="y")] == ["1x", "1x", "1y"]
    sums.invalidate((1, "x"))
    assert calls[5:] == [(1, 2), 1, 1]


def test_coroutine_functions(engines: Engines) -> None:
    """They load in the event loop, once for all tasks; a cancelled one gives its lease back."""
    cache = engines().cache("profile", ttl_seconds=60)
    calls: list[int] = []

    async def run() -> None:
        go_on = asyncio.Event()
        loop_thread = threading.current_thread()

        @cache.cached(key=lambda user: user)
        async def profile(user: int) -> int:
            assert threading.current_thread() is loop_thread
            calls.append(user)
            await go_on.wait()
            if user < 0:
                raise ZeroDivisionError
            return user

        cancelled = asyncio.create_task(profile(1))
        await asyncio.to_thread(eventually, lambda: calls == [1])
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        tasks = [asyncio.create_task(profile(1)) for _ in range(20)]
        await asyncio.to_thread(eventually, lambda: cache.counts.waits == 19)
        go_on.set()
        assert await asyncio.gather(*tasks) == [1] * 20
        with pytest.raises(ZeroDivisionError):
            await profile(-1)

    asyncio.run(run())
    assert calls == [1, 1, -1]


@pytest.mark.parametrize("again", ["once", "during the look", "during the clean-up"])
def test_a_task_that_is_cancelled_while_redis_is_asked(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """The lease that its thread has taken all the same is given back, however often it is cancelled."""
    cache = engines().cache("profile", ttl_seconds=60, lease_seconds=600, wait_seconds=0)
    asked, go_on, releasing, released = (threading.Event() for _ in range(4))
    look, release = cache._store.look, cache._store.release

    def look_slowly(*arguments: Any) -> Any:
        found = look(*arguments)
        asked.set()
        assert go_on.wait(DEADLINE_SECONDS)
        return found

    def release_slowly(*arguments: Any) -> None:
        releasing.set()
        assert released.wait(DEADLINE_SECONDS)
        release(*arguments)

    @cache.cached()
    async def profile(user: int) -> int:
        return user

    async def run() -> None:
        task = asyncio.create_task(profile(1))
        assert await asyncio.to_thread(asked.wait, DEADLINE_SECONDS)
        task.cancel()
        if again == "during the look":
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.to_thread(releasing.wait, DEADLINE_SECONDS)
        if again == "during the clean-up":
            task.cancel()
            await asyncio.sleep(0)
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(cache._store, "look", look_slowly)
    monkeypatch.setattr(cache._store, "release", release_slowly)
    asyncio.run(run())
    monkeypatch.undo()
    assert cache.get_or_load(1, lambda: 2) == 2


def test_scripts_that_redis_has_forgotten(engines: Engines, client: Any) -> None:
    """They are sent again, wherever that is noticed."""
    cache = engines().cache("profile", ttl_seconds=60)

    def load_and_forget() -> int:
        client.script_flush()
        return 1

    assert cache.get_or_load("k", load_and_forget) == 1
    client.script_flush()
    assert cache.get_or_load("k", lambda: 2) == 1
    client.script_flush()
    cache.invalidate("k")
    assert cache.get_or_load("k", load_and_forget) == 1
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load("other", lambda: load_and_forget() // 0)
    assert cache.get_or_load("other", lambda: 3) == 3
    assert (cache.counts.waits, cache.counts.uncached) == (0, 0)


def test_the_rest_of_the_namespace_is_not_disturbed(engines: Engines, client: Any, namespace: str) -> None:
    """Caches are no foreign keys to verify, and work where the database is away."""
    engine = engines()
    initialise(engine, create_tables=True)
    engine.put(things, {"id": 1})
    cache = engine.cache("profile", ttl_seconds=60, local_entries_max=10)
    cache.get_or_load("k", lambda: 1)
    assert verify(engine).counts[Verdict.FOREIGN] == 0
    assert doctor(engine, retention_seconds=60).findings
    assert cache.get_or_load("k", Source().load) == 1
    away = WriteBehind(
        redis=engine.redis_target, database="postgresql+psycopg://127.0.0.1:1/x", tables=[things], namespace=namespace
    )
    assert away.cache("profile", ttl_seconds=60).get_or_load("k", Source().load) == 1
    away.close()


def test_making_caches(engines: Engines) -> None:
    """One for each name, with the settings that it was made with, as long as its engine lives."""
    engine = engines()
    cache = engine.cache("profile", ttl_seconds=60)
    assert isinstance(cache, Cache)
    assert engine.cache("profile", ttl_seconds=60) is cache
    with pytest.raises(ConfigurationError, match="other settings"):
        engine.cache("profile", ttl_seconds=61)
    with pytest.raises(ConfigurationError, match="cannot be called"):
        engine.cache("pro:file", ttl_seconds=60)
    with pytest.raises(ConfigurationError, match="cannot be decoded"):
        engine.cache("typed", ttl_seconds=60, type=list[str] | set[str])
    engine.close()
    for call in (lambda: cache.get_or_load("k", lambda: 1), cache.invalidate_all, lambda: cache.invalidate("k")):
        with pytest.raises(WriteBehindError, match="closed"):
            call()


# Counting over processes


def test_counts_are_summed(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``status`` has what all processes have met with: those that have ended, and now and then those that run."""
    one, other = engines(), engines()
    initialise(one, create_tables=True)
    assert status(one).caches == {}
    caches = [engine.cache("profile", ttl_seconds=60) for engine in (one, other)]
    for number, cache in enumerate(caches):
        assert [cache.get_or_load(1, lambda: "x") for _ in range(2)] == ["x"] * 2
        assert cache.get_or_load((1, number), lambda: None) is None
    spent = sum(cache.counts.load_seconds for cache in caches)
    other.close()
    monkeypatch.setattr("writebehind.engine.caches.TELL_SECONDS", 0.0)
    for _ in range(3):  # the last one has not told yet
        caches[0].get_or_load(1, lambda: "x")
    counts = status(one).caches["profile"]
    assert (counts.hits, counts.misses, counts.loads, counts.load_errors) == (5, 3, 3, 0)
    assert counts.load_seconds == pytest.approx(spent, abs=1e-5)
    assert counts.hit_rate == 5 / 8
    assert status(one).as_json()["caches"]["profile"]["hits"] == 5
    _print_reads(status(one))
    assert re.match(
        r"reads of cache profile: 62\.5 % hits of 8, 0 local, .* 3 loaded .* 0 evicted\n", capsys.readouterr().out
    )


@pytest.mark.usefixtures("even_chance")
def test_evictions_are_seen(engines: Engines, client: Any) -> None:
    """What is gone before its time counts; what has expired, or was invalidated or refreshed here, does not."""
    engine = engines()
    cache = engine.cache("profile", ttl_seconds=60)
    hasty = engine.cache("hasty", ttl_seconds=0.05, jitter=0.0)
    eager = engine.cache("eager", ttl_seconds=60, early_refresh=1e9)
    for each in (cache, hasty, eager):
        for key in range(3):
            each.get_or_load(key, lambda: "x")
    cache.invalidate(0)
    (name,) = client.scan_iter(f"wb:{{{engine.keys.namespace}/*}}:profile:*:1")
    client.delete(name)
    time.sleep(0.06)
    for each in (cache, hasty, eager):
        for key in range(3):
            each.get_or_load(key, lambda: "x")
    assert [each.counts.evictions for each in (cache, hasty, eager)] == [1, 0, 0]
    assert (eager.counts.loads, hasty.counts.loads) == (6, 6)
    cache.invalidate_all()
    cache.get_or_load(2, lambda: "x")
    assert cache.counts.evictions == 1
