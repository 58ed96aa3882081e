"""One read of a cache: does what ``core.caching`` yields, except to call the loader."""

import random
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from writebehind.engine.adapters.cache_store import CacheStore
from writebehind.engine.adapters.local_cache import LocalCache
from writebehind.engine.config import CacheSettings
from writebehind.engine.core.caching import Effect, Fill, Found, Look, Release, State, pause_seconds
from writebehind.engine.core.local_entries import Ticket
from writebehind.engine.errors import RedisUnavailable

__all__ = ["CachedRead", "Done", "Loads", "resume"]

LOCAL_WAIT_SECONDS = 0.5
"""How long a thread waits for a load of its own process before it looks again."""

Loads = dict[str, threading.Event]
"""What is being loaded in this process, by the texts of keys, and what is set when it is done."""


class Count(Protocol):
    """Adds to a field of ``CacheCounts``."""

    def __call__(self, name: str, amount: float = 1) -> None:
        """Add."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a read, with its value."""

    value: Any


def resume(
    steps: Generator[Effect, Any, Any], answer: object = None, error: BaseException | None = None
) -> Effect | Done:
    """Give a read the reply to its effect, or the error that it ended in; return what it needs next."""
    try:
        return steps.send(answer) if error is None else steps.throw(error)
    except StopIteration as done:
        return Done(done.value)


class CachedRead:
    """The blocking effects of one read.

    Args:
        store: the part in Redis.
        local: the part in this process, if any.
        loads: what is being loaded in this process.
        settings: the cache's.
        count: where it is counted.
        text: the key's text.
    """

    def __init__(
        self,
        *,
        store: CacheStore,
        local: LocalCache | None,
        loads: Loads,
        settings: CacheSettings,
        count: Count,
        text: str,
    ) -> None:
        self._store = store
        self._local = local
        self._loads = loads
        self._settings = settings
        self._count = count
        self._text = text
        self._ticket: Ticket | None = None
        self._found: tuple[bytes, float] | None = None
        self._loaded: threading.Event | None = None
        self._load_seconds = 0.0
        self._fresh_until = 0.0
        self._deadline: float | None = None

    def perform(self, effect: Look | Fill | Release) -> Any:
        """Do one effect and return its reply.

        Raises:
            RedisUnavailable, ConfigurationError: see ``CacheStore``.
        """
        if isinstance(effect, Look):
            return self._look(effect.unreadable)
        if isinstance(effect, Fill):
            begun = time.monotonic()
            fresh_seconds = self._store.fill(effect.lease, effect.payload, self._load_seconds)
            if fresh_seconds is None:
                return False
            self._found = effect.payload, begun + fresh_seconds
            return True
        if isinstance(effect, Release):
            # The load may have taken longer than the value was fresh for.
            fresh = time.monotonic() < self._fresh_until
            self._store.release(effect.lease, effect.failed if fresh else None)
            return fresh
        assert_never(effect)

    def _look(self, unreadable: str) -> Found:
        # The ticket first: what is announced from here on makes it void.
        self._ticket = self._local.ticket(self._text) if self._local is not None else None
        begun = time.monotonic()
        try:
            found, fresh_seconds = self._store.look(self._text, unreadable)
        except RedisUnavailable:
            if self._settings.load_without_redis:
                return Found(State.UNCACHED)
            raise
        self._fresh_until = begun + fresh_seconds
        self._found = (found.payload, self._fresh_until) if found.state is State.HIT else None
        return found

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count and time what the block loads, and tell other threads that it is being loaded."""
        self._loaded = self._loads[self._text] = threading.Event()
        begun = time.monotonic()
        try:
            yield
        except BaseException:
            self._count("load_errors")
            raise
        finally:
            self._load_seconds = time.monotonic() - begun
            self._count("loads")
            self._count("load_seconds", self._load_seconds)

    def pause_seconds(self, attempt: int) -> float:
        """Return how long to wait before the next look; 0 where the time to wait is over."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._settings.wait_seconds
        return max(0.0, min(self._deadline - now, pause_seconds(attempt, random.random())))  # noqa: S311 - spreads looks

    def wait(self, attempt: int) -> bool:
        """Wait before the next look; a load of this process wakes those who wait for it. False: the time is over."""
        seconds = self.pause_seconds(attempt)
        if not seconds or self._deadline is None:
            return False
        loading = self._loads.get(self._text)
        if loading is None:
            time.sleep(seconds)
        else:
            loading.wait(min(LOCAL_WAIT_SECONDS, self._deadline - time.monotonic()))
        return True

    def keep(self) -> None:
        """Keep a copy of what was found, or filled, in this process; called once it has been decoded."""
        if self._local is not None and self._found is not None:
            payload, until = self._found
            longest = self._settings.local_ttl_seconds
            if longest is not None:
                until = min(until, time.monotonic() + longest)
            self._local.put(self._text, payload, until, self._ticket)

    def end(self) -> None:
        """Wake those who wait for what was loaded here."""
        if self._loaded is not None:
            if self._loads.get(self._text) is self._loaded:
                self._loads.pop(self._text, None)
            self._loaded.set()
