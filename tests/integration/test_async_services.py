"""Caches in an event loop: nothing holds it up, and nothing of the application's holds them up."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from writebehind.engine import AsyncWriteBehind, WriteBehindError

DEADLINE_SECONDS = 30.0

things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))


@pytest.fixture
def engine(redis_url: str, namespace: str, sqlite_url: str) -> AsyncWriteBehind:
    """An engine; the test closes it."""
    return AsyncWriteBehind(redis=redis_url, database=sqlite_url, tables=[things], namespace=namespace)


def test_a_cache_is_made_while_the_engine_starts(engine: AsyncWriteBehind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes on: a start may be waiting for it, to ask an ``AsyncEngine``."""
    asking, made = threading.Event(), threading.Event()
    seen: list[bool] = []

    def check(_: Any) -> None:
        asking.set()
        seen.append(made.wait(DEADLINE_SECONDS / 6))

    monkeypatch.setattr(engine._core.rows, "check", check)

    async def main() -> None:
        starting = asyncio.ensure_future(engine.start())
        await asyncio.to_thread(asking.wait, DEADLINE_SECONDS)
        engine.cache("profile", ttl_seconds=60)
        made.set()
        await starting
        assert seen == [True]
        await engine.close()
        with pytest.raises(WriteBehindError, match="closed"):
            engine.cache("another", ttl_seconds=60)

    asyncio.run(main())


def test_the_applications_threads_are_not_needed(engine: AsyncWriteBehind) -> None:
    """Caches are read however many of the application's threads wait, for that read, say."""
    loaded = threading.Event()

    async def load(key: int) -> int:
        return key + 1

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        occupied = asyncio.ensure_future(asyncio.to_thread(loaded.wait, DEADLINE_SECONDS / 3))
        cache = engine.cache("profile", ttl_seconds=60)
        cached = engine.cache("decorated", ttl_seconds=60).cached()(load)
        try:
            values = [
                await cache.get_or_load(1, load),
                await cache.get_or_load(1, load),
                await cached(2),
                await cached(2),
            ]
        finally:
            loaded.set()
        assert values == [2, 2, 3, 3]
        assert await occupied, "the cache has waited for a thread of the application"
        assert (cache.counts.hits, cache.counts.loads) == (1, 1)
        await engine.close()

    asyncio.run(main())


def test_a_cached_read_belongs_to_the_loop(engine: AsyncWriteBehind) -> None:
    """In another event loop, and once the engine is closed, it is refused; one that loads meanwhile ends with that."""

    async def load() -> int:
        return 1

    async def main() -> None:
        cache = engine.cache("profile", ttl_seconds=60)
        assert await cache.get_or_load(1, load) == 1
        with pytest.raises(WriteBehindError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, cache.get_or_load(1, load))
        loading, go_on = asyncio.Event(), asyncio.Event()

        async def load_slowly() -> int:
            loading.set()
            await go_on.wait()
            return 2

        reading = asyncio.ensure_future(cache.get_or_load(2, load_slowly))
        stopped = asyncio.ensure_future(cache.get_or_load(3, load_slowly))
        await loading.wait()
        await engine.close()
        stopped.cancel()
        go_on.set()
        with pytest.raises(WriteBehindError, match="closed"):
            await reading
        with pytest.raises(asyncio.CancelledError):
            await stopped

    asyncio.run(main())
