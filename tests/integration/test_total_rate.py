"""The rate that all flushers of a namespace share, on real servers."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

from running import flushing
from writebehind.engine import ConfigurationError, EngineSettings, WriteBehind
from writebehind.engine.adapters.hits import Hits
from writebehind.flushers import Flusher, FlusherSettings, initialise, status, total_rate
from writebehind.flushers.pacing import BURST_SECONDS
from writebehind.flushers.total_rate import TotalRate

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

DEADLINE_SECONDS = 30.0

accounts = sa.Table(
    "accounts",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text),
)


@contextlib.contextmanager
def made(redis_url: str, sqlite_url: str, namespace: str, settings: EngineSettings | None = None) -> Any:
    """Make an initialised engine of four partitions, and close it."""
    with WriteBehind(
        redis=redis_url, database=sqlite_url, tables=[accounts], namespace=namespace, partitions=4, settings=settings
    ) as engine:
        initialise(engine, create_tables=True)
        yield engine


def fill(engine: WriteBehind, count: int, note: str = "") -> None:
    """Put so many records."""
    with engine.batch() as batch:
        for number in range(count):
            batch.put(accounts, {"id": number, "note": note})


def until(happened: Callable[[], object]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_two_flushers_share_a_rate(
    redis_url: str, sqlite_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever each of them takes, SQL gets no more than the rate, one second's worth, and the batches under way."""
    rate, rows = 400, 2000
    taken: list[tuple[float, str, int]] = []

    def noting(*given: Any) -> Flusher:
        """Make a flusher that notes what it gives SQL."""
        flusher = Flusher(*given)
        assert flusher._total_rate is not None
        take = flusher._total_rate.take

        def note(count: int) -> None:
            taken.append((time.monotonic(), flusher.holder, count))
            take(count)

        monkeypatch.setattr(flusher._total_rate, "take", note)
        return flusher

    settings = FlusherSettings(linger_seconds=0, rows_per_second_total_max=rate, lease_ttl_seconds=2)
    with made(redis_url, sqlite_url, namespace) as engine, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(flushing(engine, settings, noting))
        until(lambda: sorted(Counter(each.holder for each in status(engine).partitions).values()) == [2, 2])
        fill(engine, rows)
        until(lambda: status(engine).backlog == 0)
    assert len({holder for _, holder, _ in taken}) == 2, "both had a part"
    assert sum(count for *_, count in taken) == rows
    begun = taken[0][0]
    total = 0
    for now, _, count in taken:
        total += count
        assert total <= rate * (now - begun + 1 + 2 * BURST_SECONDS) + 1


def test_flushers_of_two_rates_do_not_lock_each_other_out(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """As while the rate is changed, one flusher after the other."""
    with made(redis_url, sqlite_url, namespace) as engine:
        hits = Hits(engine.links, engine.keys)
        high, low = (TotalRate(hits, engine.keys.flushed(rate), rate, wait_seconds_max=0.5) for rate in (1000, 10))
        low.take(20)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while low.wait_seconds():
            high.take(50)
            high.wait_seconds()
            assert time.monotonic() < deadline, "the lower rate never had its turn"
            time.sleep(0.05)


def test_a_full_redis_does_not_stop_flushers(
    own_redis: "OwnRedisFactory", sqlite_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts no hits; flushers make room in it first, say so in one line, and keep to the rate again afterwards."""
    server = own_redis({"maxmemory-policy": "noeviction"})
    settings = FlusherSettings(linger_seconds=0, rows_per_second_total_max=100, retention_seconds=0)
    caplog.set_level(logging.WARNING, "writebehind.flushers.total_rate")
    with (
        redis.Redis.from_url(server.url) as plain,
        made(server.url, sqlite_url, namespace, EngineSettings(record_ttl_seconds=0.1)) as engine,
    ):
        client: Any = plain
        fill(engine, 1000, "x" * 2000)
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 1_000_000)
        with flushing(engine, settings) as flusher:
            until(lambda: status(engine).backlog == 0)
            told = [each.getMessage() for each in caplog.records if each.name == total_rate.__name__]
            assert len(told) == 1
            assert "rows_per_second_total_max does not hold for now" in told[0]
            assert "OOM" in told[0]
            client.config_set("maxmemory", 0)
            fill(engine, 300)
            until(lambda: status(engine).backlog == 0)
            assert client.zcard(engine.keys.flushed(100)) > 0
            assert flusher.tally.takeovers == 4


def test_a_rate_above_what_a_limiter_counts(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """Several operations are one unit then, and the rate is the same."""
    rate = 250_000
    with made(redis_url, sqlite_url, namespace) as engine:
        shared = TotalRate(Hits(engine.links, engine.keys), engine.keys.flushed(rate), rate, wait_seconds_max=0.5)
        begun = time.monotonic()
        shared.take(3 * rate)
        assert 0 < shared.wait_seconds() <= 0.5
        until(lambda: shared.wait_seconds() == 0)
        assert time.monotonic() - begun >= 1.9


@pytest.mark.parametrize("rate", [0, -1, 2.5, True])
def test_a_rate_that_is_none(rate: Any) -> None:
    """It is told when the settings are made."""
    with pytest.raises(ConfigurationError, match="rows_per_second_total_max"):
        FlusherSettings(rows_per_second_total_max=rate)
