"""Cache-aside as a service uses it; how it works stands in ``core.caching``."""

import asyncio
import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from writebehind.engine.adapters.cache_store import CacheStore
from writebehind.engine.adapters.cached_read import CachedRead, Done, Loads, resume
from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.local_cache import LocalCache
from writebehind.engine.adapters.read_counters import CacheCounters
from writebehind.engine.config import CacheSettings
from writebehind.engine.core.cached_values import NOTHING, Codec, key_text
from writebehind.engine.core.caching import CacheCounts, Fill, Found, Load, Look, Release, Wait, fetch
from writebehind.engine.core.keys import Keys
from writebehind.engine.errors import RedisUnavailable, WriteBehindError

__all__ = ["Cache", "Run", "arguments_of", "wants_key"]

logger = logging.getLogger(__name__)

TELL_SECONDS = 5.0
"""How often a cache tells what it has counted, where it is read in Redis."""

Perform = Callable[[Look | Fill | Release], Any]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Run(Protocol):
    """Runs blocking work in a thread."""

    def __call__(
        self, work: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Awaitable[Result]:
        """Run it."""


class Cache:
    """A cache of anything that can be computed, made by ``WriteBehind.cache``; may be shared between threads.

    Args:
        links: connections.
        keys: the namespace's key names.
        name: the cache's name.
        settings: how it behaves.
    """

    def __init__(self, links: Links, keys: Keys, name: str, settings: CacheSettings) -> None:
        self.name = name
        self.settings = settings
        self._codec = Codec(settings.serializer, settings.type, settings.value_bytes_max)
        self._counters = CacheCounters(links, keys, name)
        self._count = self._counters.add
        self._store = CacheStore(links, keys, name, settings, self._count)
        self._local = (
            LocalCache(links, keys.cache_channel(name), settings.local_entries_max)
            if settings.local_entries_max
            else None
        )
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._loads: Loads = {}
        self._told_at = time.monotonic()

    # Reading

    def get_or_load(self, key: Any, loader: Callable[..., Any]) -> Any:
        """Return the cached value of a key, or have it loaded by one caller for all.

        Args:
            key: a str, int, bool or UUID, or a tuple of such.
            loader: what computes the value; called with the key where it requires an argument. None is cached, too,
                as the knowledge that there is nothing.

        Returns:
            The value as it comes out of the cache, made anew for each caller: without ``type=`` a tuple has become a
            list and a Decimal a str, also for the caller who has loaded it.

        Durability: none is promised; what Redis loses is loaded again.
        Repeat: gives the same until it expires or is invalidated.
        Crash: of a caller that loads: others wait until its lease has run out, then one of them loads.

        Raises:
            ReadTimeout: another caller's load took longer than ``wait_seconds``.
            RedisUnavailable: Redis cannot be asked, and ``load_without_redis`` is off.
            ValidationError: the key is unusable, or what the loader returned cannot be cached.
            Exception: what the loader raises; it is never cached.
        """
        text = key_text(key)
        payload = self._local_payload(text)
        if payload is not None:
            return self._codec.decode(payload)
        read = self._read(text)
        steps = fetch(self._codec, self._count)
        try:
            effect = resume(steps)
            while not isinstance(effect, Done):
                try:
                    answer: Any
                    if isinstance(effect, Load):
                        with read.loading():
                            answer = loader(key) if wants_key(loader) else loader()
                    elif isinstance(effect, Wait):
                        answer = read.wait(effect.attempt)
                    else:
                        answer = self._perform(read, effect)
                except BaseException as error:  # noqa: BLE001 - the protocol gives the lease back and raises it again
                    effect = resume(steps, error=error)
                else:
                    effect = resume(steps, answer)
            read.keep()
        finally:
            read.end()
        return effect.value

    async def get_or_await(self, key: Any, loader: Callable[[], Awaitable[Any]], run: Run = asyncio.to_thread) -> Any:
        """Do the same with a loader that is awaited; Redis is asked in threads, which ``run`` provides."""
        text = key_text(key)
        payload = self._local_payload(text)
        if payload is not None:
            return self._codec.decode(payload)
        read = self._read(text)
        steps = fetch(self._codec, self._count)
        try:
            effect = resume(steps)
            while not isinstance(effect, Done):
                try:
                    answer: Any
                    if isinstance(effect, Load):
                        with read.loading():
                            answer = await loader()
                    elif isinstance(effect, Wait):
                        answer = seconds = read.pause_seconds(effect.attempt)
                        await asyncio.sleep(seconds)
                    else:
                        answer = await _in_thread(functools.partial(self._perform, read), effect, run)
                except BaseException as error:  # noqa: BLE001 - the protocol gives the lease back and raises it again
                    effect = resume(steps, error=error)
                else:
                    effect = resume(steps, answer)
            read.keep()
        finally:
            read.end()
        return effect.value

    def _read(self, text: str) -> CachedRead:
        self._require_open()
        return CachedRead(
            store=self._store,
            local=self._local,
            loads=self._loads,
            settings=self.settings,
            count=self._count,
            text=text,
        )

    def cached(
        self, *, key: Callable[..., Any] | None = None
    ) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
        """Return a decorator that caches a function's results; for ``async def``, too, which loads in the event loop.

        Args:
            key: makes the key from the arguments. Otherwise it is the argument where the function has one, or the tuple
                of all, with defaults: functions that share a cache need a key that tells them apart.
        """

        def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
            key_of = key or arguments_of(function)

            if inspect.iscoroutinefunction(function):

                @functools.wraps(function)
                async def awaited(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
                    return await self.get_or_await(key_of(*args, **kwargs), lambda: function(*args, **kwargs))

                return cast("Callable[Arguments, Result]", awaited)

            @functools.wraps(function)
            def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
                return cast("Result", self.get_or_load(key_of(*args, **kwargs), lambda: function(*args, **kwargs)))

            return called

        return decorate

    # Invalidating

    def invalidate(self, key: Any) -> None:
        """Forget a key's value everywhere, and have nothing cached that is being loaded for it now.

        When this returns, no ``get_or_load`` that begins later gives what was loaded before, from Redis or from this
        process; copies in other processes go when they hear of it, in a moment, and in three seconds at the most.

        Durability: as Redis's: a crash or a failover that takes Redis back takes it back to the old value.
        Repeat: harmless. Crash: it has happened, or it has not.

        Raises:
            RedisUnavailable: Redis cannot be reached; the old value may be there still: call again.
            ValidationError: the key is unusable.
        """
        text = key_text(key)
        self._require_open()
        self._count("invalidations")
        try:
            self._store.invalidate(text)
        finally:
            if self._local is not None:
                self._local.drop(text)

    def invalidate_all(self) -> None:
        """Forget the values of all keys, as ``invalidate`` does of one, at the same small cost.

        Durability, Repeat, Crash, Raises: as ``invalidate``.
        """
        self._require_open()
        self._count("invalidations")
        try:
            self._store.invalidate_all()
        finally:
            if self._local is not None:
                self._local.drop_all()

    # Counting and ending

    @property
    def counts(self) -> CacheCounts:
        """What this process has seen so far."""
        return self._counters.counts()

    def close(self) -> None:
        """End the cache with its engine, and tell what it has counted. Repeat: harmless."""
        self._closed = True
        if self._local is not None:
            self._local.stop()
        with contextlib.suppress(RedisUnavailable):
            self._counters.tell()

    def after_fork(self) -> None:
        """Become a cache of its own, in a forked child."""
        self._begin()
        self._counters.begin()
        self._store.begin()
        if self._local is not None:
            self._local.renew()

    def _require_open(self) -> None:
        if self._closed:
            raise WriteBehindError(f"the engine of cache {self.name} is closed", "make a new one")

    def _perform(self, read: CachedRead, effect: Look | Fill | Release) -> Any:
        """Do an effect; now and then tell what was counted, over the connection that has just served."""
        answer = read.perform(effect)
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            with contextlib.suppress(RedisUnavailable):
                self._counters.tell()
        return answer

    def _local_payload(self, text: str) -> bytes | None:
        payload = self._local.get(text) if self._local is not None else None
        if payload is not None:
            self._count("hits")
            self._count("local_hits")
            if payload == NOTHING:
                self._count("negative_hits")
        return payload


async def _in_thread(perform: Perform, effect: Look | Fill | Release, run: Run) -> Any:
    """Do an effect in a thread. That cannot be cancelled: who is gives back what it may have taken meanwhile."""
    if isinstance(effect, Release):
        giving = asyncio.ensure_future(_give_back(perform, effect, run))
        if await _finished(giving):
            raise asyncio.CancelledError
        return giving.result()
    doing = asyncio.ensure_future(run(perform, effect))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await _finished(doing)
        found = None if doing.cancelled() or doing.exception() else doing.result()
        if isinstance(found, Found) and found.lease is not None:
            await _finished(asyncio.ensure_future(_give_back(perform, Release(found.lease), run)))
        raise


async def _give_back(perform: Perform, lease: Release, run: Run) -> bool:
    try:
        return bool(await run(perform, lease))
    except WriteBehindError as error:
        # The engine was closed meanwhile, or Redis is away; the caller is about to be told of something worse.
        logger.warning("a lease is left to run out: %s", error)
        return False


async def _finished(doing: asyncio.Future[Any]) -> bool:
    """Wait for what takes no longer than Redis's timeouts; return whether the task was cancelled meanwhile."""
    cancelled = False
    while not doing.done():
        try:
            await asyncio.wait([doing])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


def wants_key(loader: Callable[..., Any]) -> bool:
    """Tell whether a loader cannot be called without an argument."""
    try:
        parameters = inspect.signature(loader).parameters.values()
    except (TypeError, ValueError):
        return False  # written in C, without a signature
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(each.kind in positional and each.default is each.empty for each in parameters)


def arguments_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes a key of a function's arguments: the one where it has one, or the tuple of all."""
    signature = inspect.signature(function)

    def key_of(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = tuple(bound.arguments.values())
        return values[0] if len(values) == 1 else values

    return key_of
