"""What a cache keeps in Redis, and what it asks of it.

The entry of a key and its lease are one hash, which one script touches. The version of the cache is another key, on
another server perhaps, so no script can compare it: it is part of the entry's name instead, and is read anew by every
look, in the same round trip, before the entry that is expected to count. A version is random and never comes again:
where it is lost, evicted or because nothing was filled for long, a new one is made, and everything is loaded once more.
"""

import logging
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

import redis

from writebehind.engine.adapters.kept_names import KeptNames
from writebehind.engine.adapters.links import Link, Links, refusal
from writebehind.engine.adapters.scripts import CACHE_FILL, CACHE_INVALIDATE, CACHE_LOOK, CACHE_RELEASE, Script
from writebehind.engine.config import CacheSettings
from writebehind.engine.core.appending import Refused
from writebehind.engine.core.cached_values import NOTHING
from writebehind.engine.core.caching import Found, Lease, State, early_weight, fresh_ms
from writebehind.engine.core.keys import Keys
from writebehind.engine.errors import ConfigurationError, RedisUnavailable

__all__ = ["ALL", "CacheStore"]

logger = logging.getLogger(__name__)

ALL = b"*"
"""Announces that everything is invalid."""
ONE = b"="
"""Before the text of a key that is."""

LATE_LEASES = 10
LATE_SECONDS_MIN = 10.0
"""So long after its lease was taken a load may end for its value to be kept, if nobody takes another one meanwhile: so
many leases, but not less than so many seconds."""

WARN_SECONDS = 60.0
MOVED = {"READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "UNBLOCKED"}


class CacheStore:
    """The part of one cache that is in Redis; may be shared between threads.

    Args:
        links: connections.
        keys: the namespace's key names.
        name: the cache's name.
        settings: how it behaves.
        count: where what was evicted is counted.
    """

    def __init__(
        self, links: Links, keys: Keys, name: str, settings: CacheSettings, count: Callable[[str], None]
    ) -> None:
        self._links = links
        self._keys = keys
        self._name = name
        self._settings = settings
        self._version_key = keys.cache_version(name)
        self._channel = keys.cache_channel(name)
        longest = max(settings.ttl_seconds, settings.ttl_seconds_of(negative=True)) + settings.stale_seconds
        late_seconds = max(LATE_SECONDS_MIN, LATE_LEASES * settings.lease_seconds)
        self._late_ms = _ms(late_seconds)
        # Every fill extends it: so it outlives all that was filled under it, and the loads under way.
        self._version_ms = int(2000 * (longest + late_seconds))
        self._version = b""
        self._count = count
        self._kept = KeptNames()
        self._warned_at = float("-inf")

    def begin(self) -> None:
        """Know nothing of what was filled; to be called in a forked child."""
        self._kept.begin()

    # Reading

    def look(self, text: str, unreadable: str = "") -> tuple[Found, float]:
        """Look a key up, and take the lease where there is no value and nobody has it.

        Args:
            text: the key's text.
            unreadable: why what is there is of no use; or empty.

        Returns:
            What there is, and for how many seconds from before the call it is fresh.

        Repeat: another look. Crash: a lease that was taken runs out.

        Raises:
            RedisUnavailable: Redis cannot be asked.
            ConfigurationError: the user may not.
        """
        if unreadable:
            self._warn("cache %s: a value in Redis cannot be read and is loaded anew: %s", self._name, unreadable)
        token = secrets.token_hex(8).encode()
        chance = 1.0 - random.random()  # noqa: S311 - spreads refreshes
        arguments = (
            token,
            _ms(self._settings.lease_seconds),
            f"{early_weight(self._settings.early_refresh, chance):.6f}",
            _ms(self._settings.stale_seconds),
            int(bool(unreadable)),
            self._late_ms,
        )
        with self._links.link() as link:
            entry, reply = self._ask(link, text, arguments)
            if isinstance(reply, Refused) and reply.code == "WRONGTYPE" and entry:
                self._warn("cache %s: another program has written to %s", self._name, entry)
                link.command("DEL", entry)
                reply = _script(link, CACHE_LOOK, entry, arguments)
            full = isinstance(reply, Refused) and reply.code == "OOM"
            if full and entry:
                # What is there may be read all the same; a lease cannot be taken.
                reply = _script(link, CACHE_LOOK, entry, (b"", *arguments[1:2], "0", *arguments[3:]))
        if full and (isinstance(reply, Refused) or reply[0] == b"busy"):
            return Found(State.UNCACHED), 0.0
        if isinstance(reply, Refused):
            raise self._refused(reply)
        match reply[0]:
            case b"hit":
                return Found(State.HIT, reply[1]), reply[2] / 1000
            case b"stale":
                return Found(State.STALE, reply[1]), 0.0
            case b"leased":
                if not reply[4] and self._kept.gone(entry, time.monotonic()):
                    self._count("evictions")
                return Found(State.LEASED, reply[3] or b"", Lease(entry, token, *reply[1:3])), reply[5] / 1000
            case _:
                return Found(State.BUSY), 0.0

    def _ask(self, link: Link, text: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        """Return the name of the entry that counts, empty where no version can be made, and the script's reply."""
        expected = self._version
        if expected:
            entry = self._entry(expected, text)
            version, reply = link.pipeline(
                [("GET", self._version_key), ("EVALSHA", CACHE_LOOK.sha, 1, entry, *arguments)]
            )
            # The version was read first: if it counted then, what was found under it counted during this call.
            if version == expected:
                if isinstance(reply, redis.exceptions.NoScriptError):
                    return entry, _script(link, CACHE_LOOK, entry, arguments)
                return entry, refusal(reply) if isinstance(reply, redis.RedisError) else reply
        else:
            (version,) = link.pipeline([("GET", self._version_key)])
        if isinstance(version, redis.ResponseError) and refusal(version).code == "WRONGTYPE":
            self._warn("cache %s: another program has written to %s", self._name, self._version_key)
            link.command("DEL", self._version_key)
            version = None
        if version is None:
            made = secrets.token_hex(8)
            refused, version = link.pipeline(
                [("SET", self._version_key, made, "NX", "PX", self._version_ms), ("GET", self._version_key)]
            )
            if version is None:
                version = refused if isinstance(refused, redis.RedisError) else made.encode()
        if isinstance(version, redis.RedisError):
            return "", refusal(version)
        self._version = version
        entry = self._entry(version, text)
        return entry, _script(link, CACHE_LOOK, entry, arguments)

    def fill(self, lease: Lease, payload: bytes, load_seconds: float) -> float | None:
        """Put a value into Redis where nothing has overtaken its load; return how long it is fresh in seconds.

        Returns:
            Seconds from before the call; None where it was not put there: it was invalidated meanwhile, what another
            one began to load later is there, or Redis is full or away.

        Durability: none is promised of what is cached. Repeat: None. Crash: it is there, or the lease runs out.
        """
        settings = self._settings
        ttl = settings.ttl_seconds_of(negative=payload == NOTHING)
        fresh = fresh_ms(ttl, settings.jitter, random.random())  # noqa: S311 - spreads the ends of values
        kept = fresh + _ms(settings.stale_seconds)
        begun = time.monotonic()
        try:
            with self._links.link() as link:
                terms = (lease.token, lease.generation, lease.number)
                cost_ms = max(1, int(1000 * load_seconds))
                reply = _script(link, CACHE_FILL, lease.entry, (*terms, payload, fresh, kept, cost_ms))
                if isinstance(reply, Refused):
                    _script(link, CACHE_RELEASE, lease.entry, (lease.token,))
                    self._warn("cache %s: a loaded value is not cached, Redis refuses: %s", self._name, reply.text)
                    return None
                if reply:
                    self._kept.note(lease.entry, begun + kept / 1000)
                    link.pipeline([("PEXPIRE", self._version_key, self._version_ms, "GT")])
        except RedisUnavailable as error:
            self._warn("cache %s: a loaded value is not cached: %s", self._name, error)
            return None
        return fresh / 1000 if reply else None

    def release(self, lease: Lease, failed: BaseException | None = None) -> None:
        """Give a lease back; where Redis is away it runs out. Repeat: harmless.

        Args:
            lease: what to give back.
            failed: why a value was not refreshed early, where that is told to no caller.
        """
        if failed is not None:
            # What it says may be private, and is raised once the value has expired.
            self._warn("cache %s: an early refresh has failed: %s", self._name, type(failed).__name__)
        try:
            with self._links.link() as link:
                _script(link, CACHE_RELEASE, lease.entry, (lease.token,))
        except RedisUnavailable as error:
            # The caller is about to be told of something worse: its load has failed.
            self._warn("cache %s: a lease is left to run out: %s", self._name, error)

    # Invalidating

    def invalidate(self, text: str) -> None:
        """Remove a value and cancel the load that is under way for it, and announce both.

        Where the version changes meanwhile, loads under the new one have begun after this call, and stay.

        Repeat: harmless. Crash: it is removed and announced, or neither.

        Raises:
            RedisUnavailable: Redis cannot be reached; the value may still be there.
            ConfigurationError: the user may not.
        """
        with self._links.link() as link:
            (version,) = link.pipeline([("GET", self._version_key)])
            if isinstance(version, redis.RedisError):
                raise self._refused(refusal(version))
            entries = [self._entry(version, text)] if version else []
            for entry in entries:
                self._kept.forget(entry)
            self._invalidate(link, entries, ONE + text.encode())

    def invalidate_all(self) -> None:
        """Remove the version, so that a new one is made, and announce it. What is left behind expires.

        Repeat: harmless. Crash: it is removed and announced, or neither.

        Raises:
            RedisUnavailable: Redis cannot be reached; the values may still be there.
            ConfigurationError: the user may not.
        """
        with self._links.link() as link:
            self._invalidate(link, [self._version_key], ALL)

    def _invalidate(self, link: Link, names: list[str], message: bytes) -> None:
        try:
            link.script(CACHE_INVALIDATE, names, (self._channel, message))
        except redis.ResponseError as error:
            raise self._refused(refusal(error)) from error

    def _entry(self, version: bytes, text: str) -> str:
        return self._keys.cache_entry(self._name, version.decode(errors="backslashreplace"), text)

    def _refused(self, refused: Refused) -> Exception:
        if refused.code == "NOPERM" or "ACL failure" in refused.text:
            return ConfigurationError(
                f"Redis refuses what cache {self._name} needs: {refused.text}",
                "'writebehind acl' prints users that may do it",
            )
        if refused.code in MOVED:
            self._links.drop_idle()
        return RedisUnavailable(f"Redis refuses: {refused.code} {refused.text}", "check the server")

    def _warn(self, message: str, *values: object) -> None:
        """Say it now and then: what goes wrong for one value tends to go wrong for many."""
        now = time.monotonic()
        if now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            logger.warning(message, *values)


def _script(link: Link, script: Script, entry: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return link.script(script, (entry,), arguments)
    except redis.ResponseError as error:
        return refusal(error)


def _ms(seconds: float) -> int:
    return max(1, int(1000 * seconds)) if seconds else 0
