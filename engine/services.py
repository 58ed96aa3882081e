"""What an engine offers beside its tables: caches and rate limiters."""

import re
import threading
from collections.abc import Callable, Sequence

from writebehind.engine.adapters.hits import Hits
from writebehind.engine.adapters.links import Links
from writebehind.engine.caches import Cache
from writebehind.engine.config import CacheSettings
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.limits import Limits
from writebehind.engine.errors import ConfigurationError, WriteBehindError
from writebehind.engine.rate_limiter import RateLimiter

__all__ = ["Services"]


class Services:
    """The caches and rate limiters of one engine; safe to share between threads.

    Args:
        links: connections.
        keys: the namespace's key names.
    """

    __slots__ = ("_caches", "_closed", "_keys", "_links", "_making")

    def __init__(self, links: Links, keys: Keys) -> None:
        self._links = links
        self._keys = keys
        self._caches: dict[str, Cache] = {}
        self._closed = False
        self._making = threading.Lock()

    def rate_limiter(
        self,
        name: str,
        limit: int | None,
        window_seconds: float | None,
        limits: Sequence[tuple[int, float]] | None,
        ensure_started: Callable[[], None],
    ) -> RateLimiter:
        """Return a limiter that all processes share who name it; one is as good as another of the same name.

        Args:
            name: 1 to 32 letters, digits, ``_``, ``-`` and ``.``; subjects of different limiters are different.
            limit: units of each subject that are admitted in any window, 1 to 100,000.
            window_seconds: the window's length, 0.001 to 366 days.
            limits: in place of these, up to 8 of such pairs, all of which a hit has to meet.
            ensure_started: called before the first hit.

        Raises:
            ConfigurationError: no such limiter is possible.
        """
        checked = Limits.of(name, limit, window_seconds, limits)
        return RateLimiter(Hits(self._links, self._keys), checked, ensure_started)

    def cache(self, name: str, settings: CacheSettings) -> Cache:
        """Return the cache of a name, for anything that can be computed; it has nothing to do with the tables.

        Args:
            name: 1 to 64 of a-z, A-Z, 0-9, ``_``, ``-`` and ``.``; processes that use the same one share the values.
            settings: how it behaves in this process.

        Repeat: gives the same cache. No connection is opened before it is used; the database is never asked.

        Raises:
            ConfigurationError: a value is not possible, or the cache is there already with other settings.
            WriteBehindError: the engine is closed.
        """
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise ConfigurationError(
                f"a cache cannot be called {name!r}", "use 1 to 64 of a-z, A-Z, 0-9, '_', '-', '.'"
            )
        with self._making:
            # A lock of its own: the engine's start asks servers while it holds the other one.
            if self._closed:
                raise WriteBehindError("this engine is closed", "make a new one")
            cache = self._caches.get(name)
            if cache is None:
                cache = self._caches[name] = Cache(self._links, self._keys, name, settings)
        if cache.settings != settings:
            raise ConfigurationError(
                f"cache {name} is there already, with other settings", "make it once and share it, or name another"
            )
        return cache

    def close(self) -> None:
        """Close the caches. Repeat: harmless."""
        with self._making:
            # From here on no cache is added.
            self._closed = True
        for cache in self._caches.values():
            cache.close()

    def after_fork(self) -> None:
        """Become clients of their own, in a forked child."""
        self._making = threading.Lock()
        for cache in self._caches.values():
            cache.after_fork()
