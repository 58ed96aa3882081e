"""Rate limiters on real servers: many processes, full servers, lost replies, clocks that are set back."""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import redis
import sqlalchemy as sa

import servers
from clocked import START, Clocked, Reply, units_max
from writebehind.drills.proxy import Mishap, Proxy
from writebehind.engine import (
    ConfigurationError,
    EngineSettings,
    Hit,
    RateLimiter,
    RedisUnavailable,
    ValidationError,
    WriteBehind,
)
from writebehind.engine.adapters.scripts import HIT
from writebehind.engine.core.limits import Limits
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import FlusherSettings, drain, initialise, status
from writebehind.recovery import Verdict, verify

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

UNREACHABLE = "postgresql+psycopg://nobody@127.0.0.1:1/none"
PROCESSES = 8
HAMMERING_SECONDS = 1.0
TIMEOUT_SECONDS = 0.25

things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))

BINARIES: dict[str, Callable[[], Path | None]] = {
    "the first one found": lambda: None,
    "Redis 8.2": servers.newest_redis_binary,
    "Valkey 8.1": servers.valkey_binary,
}

Make = Callable[..., WriteBehind]


@pytest.fixture(scope="module", params=BINARIES)
def any_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server of each kind in turn."""
    with EmbeddedRedis(binary=BINARIES[request.param]()) as server:
        servers.session_processes.add(server.pid)
        yield server.url


@pytest.fixture
def make(redis_url: str, namespace: str) -> Iterator[Make]:
    """Make engines whose database is away: limiters have no need of it."""
    with contextlib.ExitStack() as stack:

        def factory(**options: Any) -> WriteBehind:
            given: dict[str, Any] = {
                "redis": redis_url,
                "database": UNREACHABLE,
                "tables": [things],
                "namespace": namespace,
                "settings": EngineSettings(redis_timeout_seconds=5),
            }
            engine = WriteBehind(**(given | options))
            stack.callback(engine.close)
            return engine

        yield factory


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url) as plain:
        yield plain


def key_of(engine: WriteBehind, subject: str, limiter: str = "api") -> bytes:
    """Return the name of a subject's key."""
    return engine.keys.hits(limiter, subject.encode())


def test_hits_are_admitted_up_to_the_limit(any_server: str, make: Make) -> None:
    """Each subject and limiter counts for itself, in all engines together; a refused hit says when to come again."""
    engine, other = make(redis=any_server), make(redis=any_server)
    limiter = engine.rate_limiter("api", limit=3, window_seconds=60)
    same = other.rate_limiter("api", limit=3, window_seconds=60)
    assert [limiter.hit("user:1"), same.hit("user:1")] == [Hit(True, 2, 0.0), Hit(True, 1, 0.0)]  # noqa: FBT003
    assert limiter.peek("user:1", 2).allowed is False
    assert limiter.peek("user:1").remaining == 1
    assert limiter.hit("user:1").allowed
    late = limiter.hit("user:1")
    assert (late.allowed, late.remaining) == (False, 0)
    assert 30 < late.retry_after_seconds <= 60
    assert limiter.hit("user:2", cost=3).allowed
    assert engine.rate_limiter("mail", limit=3, window_seconds=60).hit("user:1").allowed
    same.reset("user:1")
    assert limiter.hit("user:1", cost=2) == Hit(True, 1, 0.0)  # noqa: FBT003
    assert not limiter.hit("user:1", cost=2)
    assert limiter.hit("user:1")
    same.reset("user:1")
    same.reset("user:1")


def test_after_the_wait_there_is_room(any_server: str, make: Make) -> None:
    """Who waits as long as was said is admitted, if nobody else comes; Redis keeps nothing beyond the window."""
    engine = make(redis=any_server)
    limiter = engine.rate_limiter("api", limit=2, window_seconds=0.2)
    with redis.Redis.from_url(any_server) as plain:
        assert limiter.hit("user:3")
        assert 0 < plain.pttl(key_of(engine, "user:3")) <= 201
        for _ in range(3):
            while late := limiter.hit("user:3", cost=2):
                pass
            assert 0 < late.retry_after_seconds <= 0.2
            # A millisecond, because clocks do not run alike: this one may be faster than that of the server.
            time.sleep(late.retry_after_seconds + 0.001)
            assert limiter.hit("user:3", cost=2)


def test_several_limits_admit_together_or_not_at_all(any_server: str, make: Make) -> None:
    """A hit that one limit refuses counts in none; the scarcest says what is left, the slowest when to come again."""
    limiter = make(redis=any_server).rate_limiter("api", limits=[(4, 60.0), (2, 0.2)])
    assert limiter.hit("user:4", cost=2) == Hit(True, 0, 0.0)  # noqa: FBT003
    refused = [limiter.hit("user:4", cost=2) for _ in range(5)]
    assert not any(refused)
    assert 0 < refused[-1].retry_after_seconds <= 0.2
    time.sleep(refused[-1].retry_after_seconds + 0.001)
    assert limiter.hit("user:4", cost=2) == Hit(True, 0, 0.0)  # noqa: FBT003
    last = limiter.hit("user:4")
    assert 30 < last.retry_after_seconds <= 60


def test_what_can_never_be_admitted(make: Make) -> None:
    """It is said at once, and counts nothing."""
    limiter = make().rate_limiter("api", limits=[(10, 60), (5, 1)])
    with pytest.raises(ValidationError, match="6 units can never be admitted, the limit is 5"):
        limiter.hit("user:1", cost=6)
    with pytest.raises(ValidationError, match="the subject"):
        limiter.hit("")
    assert limiter.peek("user:1").remaining == 5


WINDOWS = ((20, 50_000), (50, 250_000))


def hammer(engine: WriteBehind, number: int, results: Path) -> None:
    """Hit as fast as possible; write down time and cost of what was admitted, by the clock of the server."""
    limits = Limits("api", WINDOWS, 20)
    hits = engine.rate_limiter("api", limits=[(20, 0.05), (50, 0.25)])._hits
    admitted = []
    deadline = time.monotonic() + HAMMERING_SECONDS
    for cost in itertools.cycle((1, 3, 1, 1 + number % 4)):
        reply = Reply(*hits.hit(limits, "all", cost, count=True))
        if reply.allowed:
            admitted.append((reply.clock, cost))
        if time.monotonic() > deadline:
            break
    (results / f"{number}.json").write_text(json.dumps(admitted))


def test_many_processes_at_once(any_server: str, make: Make, tmp_path: Path) -> None:
    """Eight processes hammer one subject: no window has more than the limit, and none of the limits is left unused."""
    engine = make(redis=any_server).start()
    children = []
    for number in range(PROCESSES):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                hammer(engine, number, tmp_path)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * PROCESSES
    admitted = [tuple(each) for path in tmp_path.glob("*.json") for each in json.loads(path.read_text())]
    for limit, window in WINDOWS:
        assert limit - 4 < units_max(admitted, window) <= limit
    assert sum(cost for _, cost in admitted) > 2 * 50


# The clock of the test


def test_hits_at_the_same_moment(client: Any, namespace: str) -> None:
    """They are as many as they are, and there is room for all again when the window is over, not before."""
    script = Clocked(client, namespace, (3, 100))
    assert [script.hit(START).left for _ in range(3)] == [2, 1, 0]
    assert script.hit(START + 99) == (0, 0, 1, START + 99)
    assert script.hit(START + 100).left == 2


def test_a_replica_behind_is_promoted(client: Any, namespace: str) -> None:
    """Its clock is 5 s behind: nothing is admitted twice, and room comes by the later clock."""
    seconds = 1_000_000
    script = Clocked(client, namespace, (10, 60 * seconds))
    for number in range(10):
        assert script.hit(START + number * seconds).allowed
    behind = START + 4 * seconds
    assert script.hit(behind) == (0, 0, 56 * seconds, behind)
    assert script.hit(START + 60 * seconds - 1).wait == 1
    assert script.hit(START + 60 * seconds).left == 0


def test_a_clock_that_was_far_ahead(client: Any, namespace: str) -> None:
    """It is corrected by a day: what was hit counts as hit just now, and nobody waits for longer than a window."""
    seconds = 1_000_000
    script = Clocked(client, namespace, (10, 60 * seconds), (3, seconds))
    ahead = START + 86_400 * seconds
    for number in range(9):
        assert script.hit(ahead + number * seconds).allowed
    assert script.hit(START, 3, count=False) == (0, 0, 60 * seconds, START)
    assert script.hit(START + 1, 1).wait == seconds - 1
    assert script.hit(START + seconds).left == 0
    assert not script.hit(START + 2 * seconds).allowed
    assert script.hit(START + 60 * seconds).left == 2
    assert script.kept() == 2


def test_memory_is_bounded(client: Any, namespace: str) -> None:
    """No more hits are kept than the limit has units; what has passed goes in pieces, refused hits take nothing."""
    script = Clocked(client, namespace, (500, 1000))
    for number in range(600):
        script.hit(START + number // 100)
    assert script.kept() == 500
    assert client.memory_usage(namespace, samples=0) < 500 * 200
    kept = []
    for number in range(6):
        script.hit(START + 2000 + number)
        kept.append(script.kept())
    assert kept == [401, 302, 203, 104, 5, 6]


# Faults


@pytest.mark.parametrize("passed", [False, True], ids=["first hit", "with a hit that has passed"])
def test_a_full_redis_counts_nothing(own_redis: "OwnRedisFactory", make: Make, *, passed: bool) -> None:
    """It refuses before anything has happened; looking and resetting go on."""
    engine = make(redis=own_redis({"maxmemory-policy": "noeviction"}).url).start()
    limiter = engine.rate_limiter("api", limit=5, window_seconds=60)
    key = key_of(engine, "user:1").decode()
    with redis.Redis.from_url(engine.redis_target) as plain:  # type: ignore[arg-type]
        full: Any = plain
        script = Clocked(full, key, (5, 60_000_000))
        if passed:
            script.hit(START)
            script.hit(START + 59_000_000)
        before = full.zrange(key, 0, -1, withscores=True)
        full.config_set("maxmemory", 1)
        with pytest.raises(RedisUnavailable, match=r"OOM.*nothing was counted"):
            limiter.hit("user:2")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            script.hit(START + 61_000_000)
        assert full.zrange(key, 0, -1, withscores=True) == before
        assert limiter.peek("user:2").remaining == 5
        # All hits are taken together: the memory is there.
        assert not passed or script.hit(START - 10_000_000).left == 2
        limiter.reset("user:1")
        assert not full.exists(key)


def test_a_lost_reply(redis_url: str, client: Any, make: Make) -> None:
    """It is an error and no admission; the hit may have been counted, once, and nothing is repeated."""
    with Proxy(urlsplit(redis_url).port or 6379) as proxy:
        settings = EngineSettings(redis_timeout_seconds=TIMEOUT_SECONDS)
        engine = make(redis=f"redis://127.0.0.1:{proxy.port}/0", settings=settings)
        limiter = engine.rate_limiter("api", limit=10, window_seconds=60)
        assert limiter.hit("user:1").remaining == 9
        for mishap, left in ((Mishap.CUT_BEFORE, 8), (Mishap.CUT_AFTER, 6), (Mishap.STALL, 4)):
            proxy.inject(mishap, HIT.sha)
            with pytest.raises(RedisUnavailable):
                limiter.hit("user:1")
            assert limiter.hit("user:1").remaining == left


def test_redis_is_away(make: Make) -> None:
    """Nothing is admitted, and nothing is pretended."""
    limiter = make(redis="redis://127.0.0.1:1/0").rate_limiter("api", limit=10, window_seconds=60)
    for use in (limiter.hit, limiter.peek, limiter.reset):
        with pytest.raises(RedisUnavailable):
            use("user:1")


def test_redis_is_restarted(own_redis: "OwnRedisFactory", make: Make) -> None:
    """What was hit is there again from its file, and the script is sent anew."""
    server = own_redis({"appendfsync": "always"})
    limiter = make(redis=server.url).rate_limiter("api", limit=10, window_seconds=60)
    assert limiter.hit("user:1", cost=4).remaining == 6
    server.kill()
    with pytest.raises(RedisUnavailable):
        limiter.hit("user:1")
    server.start()
    assert limiter.hit("user:1").remaining == 5


def test_a_replica_refuses(own_redis: "OwnRedisFactory", make: Make) -> None:
    """A primary that was demoted counts nothing; promoted again, it goes on."""
    server = own_redis()
    limiter = make(redis=server.url).rate_limiter("api", limit=10, window_seconds=60)
    assert limiter.hit("user:1").remaining == 9
    with redis.Redis.from_url(server.url) as plain:
        plain.replicaof("127.0.0.1", 1)
        with pytest.raises(RedisUnavailable, match="READONLY"):
            limiter.hit("user:1")
        plain.replicaof("NO", "ONE")
    assert limiter.hit("user:1").remaining == 8


@pytest.mark.parametrize("foreign", ["a string", "the newest", "the oldest", "the oldest in the window", "in between"])
def test_a_foreign_key(any_server: str, make: Make, foreign: str) -> None:
    """Where the key holds something else this is said, nothing is written, and a reset helps."""
    engine = make(redis=any_server)
    limiter = engine.rate_limiter("api", limits=[(3, 60), (4, 120)])
    key = key_of(engine, "user:1")
    with redis.Redis.from_url(any_server) as plain:
        client: Any = plain
        if foreign == "a string":
            client.set(key, "foreign")
        else:
            assert all(limiter.hit("user:1") for _ in range(3))
            times = [at for _, at in client.zrange(key, 0, -1, withscores=True)]
            at = {
                "the newest": times[2] + 1,
                "the oldest": times[2] - 100e6,
                "the oldest in the window": times[0] - 1,
                "in between": (times[0] + times[1]) / 2,
            }
            client.zadd(key, {"foreign": at[foreign]})
        tell_foreign(limiter, client, key)


def tell_foreign(limiter: RateLimiter, client: Any, key: bytes) -> None:
    """See that hits say that a key is not the engine's, and leave it alone, until it is reset."""
    before = client.dump(key)
    with pytest.raises(ConfigurationError, match=r"rate limiter api: the key .* not the engine's") as caught:
        limiter.hit("user:1")
    assert "user:1" not in str(caught.value)
    assert client.dump(key) == before
    limiter.reset("user:1")
    assert limiter.hit("user:1")


def test_a_closed_engine(make: Make) -> None:
    """Its limiters are closed with it."""
    engine = make()
    limiter = engine.rate_limiter("api", limit=10, window_seconds=60)
    engine.close()
    with pytest.raises(Exception, match="closed"):
        limiter.hit("user:1")


def test_records_and_hits_do_not_meet(make: Make, sqlite_url: str) -> None:
    """Nobody who looks through the namespace takes hits for records, or removes them."""
    engine = make(database=sqlite_url, partitions=1)
    initialise(engine, create_tables=True)
    limiter = engine.rate_limiter("things", limit=10, window_seconds=60)
    for subject in ("1", "things:1", "}:things:1", ":00}:things:1"):
        limiter.hit(subject)
    engine.put(things, {"id": 1})
    assert drain(engine, 20, FlusherSettings(linger_seconds=0)).backlog == 0
    assert [finding.verdict for finding in verify(engine).findings] == []
    assert {verdict: count for verdict, count in verify(engine).counts.items() if count} == {Verdict.AGREES: 1}
    assert status(engine).halted == []
    assert limiter.peek("1").remaining == 9
