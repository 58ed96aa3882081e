"""An engine takes over the connection settings of a client that the service has."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.sentinel import Sentinel

import servers
from writebehind.engine import AsyncWriteBehind, ConfigurationError, RedisUnavailable, WriteBehind
from writebehind.engine.embedded import EmbeddedRedis

TABLE = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
DEADLINE_SECONDS = 30.0


def entries(url: str, namespace: str) -> int:
    """Count the entries in all logs of a namespace."""
    with redis.Redis.from_url(url) as client:
        return sum(client.xlen(key) for key in client.scan_iter(f"wb:{{{namespace}:*}}:log"))


def test_a_client_with_its_own_retries_writes_once(redis_url: str, namespace: str, sqlite_url: str) -> None:
    """A client's decoding, protocol and retries do not reach the write path."""
    with redis.Redis.from_url(redis_url, decode_responses=True, protocol=3) as client:
        with WriteBehind(redis=client, database=sqlite_url, tables=[TABLE], namespace=namespace) as engine:
            engine.put(TABLE, {"id": 1, "name": "one"})
            assert engine.get(TABLE, 1) == {"id": 1, "name": "one"}
        assert client.ping()
    assert entries(redis_url, namespace) == 1


def test_something_else_is_refused(sqlite_url: str) -> None:
    """What is neither a URL nor a client is named, with what to give instead."""
    with pytest.raises(ConfigurationError, match=r"list is not supported.*URL or a redis\.Redis"):
        WriteBehind(redis=[], database=sqlite_url, tables=[TABLE], namespace="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="not usable"):
        WriteBehind(redis="http://127.0.0.1", database=sqlite_url, tables=[TABLE], namespace="x")


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[Sentinel, str]]:
    """A Sentinel that watches one primary, and the primary's URL."""
    binary = servers.newest_redis_binary()
    with EmbeddedRedis(binary=binary) as primary, EmbeddedRedis(binary=binary) as spare:
        port = int(primary.url.rsplit(":", 1)[1].split("/")[0])
        own = int(spare.url.rsplit(":", 1)[1].split("/")[0])
        spare.stop()  # its port is free now
        settings = tmp_path / "sentinel.conf"
        settings.write_text(f"port {own}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor shop 127.0.0.1 {port} 1\n")
        process = subprocess.Popen([str(binary), str(settings), "--sentinel"], stdout=subprocess.DEVNULL)
        try:
            watcher = Sentinel([("127.0.0.1", own)], socket_timeout=5)  # type: ignore[no-untyped-call]
            deadline = time.monotonic() + DEADLINE_SECONDS
            while True:
                try:
                    watcher.discover_master("shop")  # type: ignore[no-untyped-call]
                    break
                except redis.RedisError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield watcher, primary.url
            for each in watcher.sentinels:
                each.close()
        finally:
            process.terminate()
            process.wait()


def test_a_client_made_by_sentinel_finds_the_primary(
    sentinel: tuple[Sentinel, str], namespace: str, sqlite_url: str
) -> None:
    """The engine's own connections ask Sentinel too."""
    watcher, url = sentinel
    asyncio.run(_through_awaited_sentinel(watcher, namespace, sqlite_url))
    with (
        watcher.master_for("shop") as client,  # type: ignore[no-untyped-call]
        WriteBehind(redis=client, database=sqlite_url, tables=[TABLE], namespace=namespace) as engine,
    ):
        engine.put(TABLE, {"id": 1, "name": "one"})
    assert entries(url, namespace) == 2


async def _through_awaited_sentinel(watcher: Sentinel, namespace: str, sqlite_url: str) -> None:
    known = watcher.sentinels[0].connection_pool.connection_kwargs
    awaited = AsyncSentinel([(known["host"], known["port"])], socket_timeout=5)  # type: ignore[no-untyped-call]
    client = awaited.master_for("shop")
    async with AsyncWriteBehind(redis=client, database=sqlite_url, tables=[TABLE], namespace=namespace) as engine:
        await engine.put(TABLE, {"id": 1, "name": "one"})
    await client.aclose()
    for each in awaited.sentinels:
        await each.aclose()
    # What the service asks of Sentinel holds for the engine, too.
    demands: list[tuple[dict[str, Any], str]] = [
        ({"min_other_sentinels": 1}, "No master found"),
        ({"force_master_ip": "127.0.0.99"}, "127.0.0.99"),
    ]
    for demand, why in demands:
        awaited = AsyncSentinel([(known["host"], known["port"])], socket_timeout=5, **demand)  # type: ignore[no-untyped-call]
        client = awaited.master_for("shop")
        engine = AsyncWriteBehind(redis=client, database=sqlite_url, tables=[TABLE], namespace=namespace)
        with pytest.raises(RedisUnavailable, match=why):
            await engine.start()
        await engine.close()
        await client.aclose()
        for each in awaited.sentinels:
            await each.aclose()
