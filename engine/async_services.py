"""Caches and rate limiters as a service in an event loop uses them; Redis is asked in threads."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from writebehind.engine.caches import Cache, Run, arguments_of, wants_key
from writebehind.engine.config import CacheSettings
from writebehind.engine.core.caching import CacheCounts
from writebehind.engine.core.limits import Hit
from writebehind.engine.rate_limiter import RateLimiter

__all__ = ["AsyncCache", "AsyncRateLimiter"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class AsyncRateLimiter:
    """A ``RateLimiter`` whose calls are awaited; made by ``AsyncWriteBehind``.

    A hit whose caller is cancelled may have been counted.

    Args:
        limiter: does it.
        run: runs it in a thread.
    """

    __slots__ = ("_limiter", "_run")

    def __init__(self, limiter: RateLimiter, run: Run) -> None:
        self._limiter = limiter
        self._run = run

    async def hit(self, subject: str, cost: int = 1) -> Hit:
        """Count a hit, if each limit has room for all of its cost; see ``RateLimiter.hit``."""
        return await self._run(self._limiter.hit, subject, cost)

    async def peek(self, subject: str, cost: int = 1) -> Hit:
        """Tell what would become of a hit, and count nothing; see ``RateLimiter.peek``."""
        return await self._run(self._limiter.peek, subject, cost)

    async def reset(self, subject: str) -> None:
        """Forget all hits of a subject; see ``RateLimiter.reset``."""
        await self._run(self._limiter.reset, subject)


class AsyncCache:
    """A ``Cache`` whose calls and loaders are awaited; made by ``AsyncWriteBehind``.

    Args:
        cache: does it.
        run: runs it in a thread.
    """

    __slots__ = ("_cache", "_run")

    def __init__(self, cache: Cache, run: Run) -> None:
        self._cache = cache
        self._run = run

    @property
    def name(self) -> str:
        """The cache's name."""
        return self._cache.name

    @property
    def settings(self) -> CacheSettings:
        """How it behaves."""
        return self._cache.settings

    @property
    def counts(self) -> CacheCounts:
        """What this process has seen so far."""
        return self._cache.counts

    async def get_or_load(self, key: Any, loader: Callable[..., Any]) -> Any:
        """Return the cached value of a key, or have it loaded by one caller for all; see ``Cache.get_or_load``.

        Args:
            key: a str, int, bool or UUID, or a tuple of such.
            loader: what computes the value in the event loop, an ``async def`` as a rule; called with the key where it
                requires an argument.

        Durability, Repeat, Crash, Raises: as ``Cache.get_or_load``. Cancelled: as a crash, but the lease is given back.

        Raises:
            WriteBehindError: the engine belongs to another event loop, or was closed before the value was there.
        """
        return await self._read(key, lambda: loader(key) if wants_key(loader) else loader())

    async def _read(self, key: Any, loader: Callable[[], Any]) -> Any:
        async def load() -> Any:
            found = loader()
            return await found if inspect.isawaitable(found) else found

        return await self._cache.get_or_await(key, load, self._run)

    def cached(
        self, *, key: Callable[..., Any] | None = None
    ) -> Callable[[Callable[Arguments, Awaitable[Result]]], Callable[Arguments, Awaitable[Result]]]:
        """Return a decorator that caches the results of an ``async def``; see ``Cache.cached``."""

        def decorate(function: Callable[Arguments, Awaitable[Result]]) -> Callable[Arguments, Awaitable[Result]]:
            key_of = key or arguments_of(function)

            @functools.wraps(function)
            async def awaited(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
                found: Result = await self._read(key_of(*args, **kwargs), lambda: function(*args, **kwargs))
                return found

            return awaited

        return decorate

    async def invalidate(self, key: Any) -> None:
        """Forget a key's value everywhere; see ``Cache.invalidate``."""
        await self._run(self._cache.invalidate, key)

    async def invalidate_all(self) -> None:
        """Forget the values of all keys; see ``Cache.invalidate_all``."""
        await self._run(self._cache.invalidate_all)
