"""Connections to Redis whose history is known.

A link is one connection together with the identity of the primary that it speaks to. The product never lets
redis-py retry: a repeated write is a second write (redis-py 8 repeats up to ten times on its own).
"""

import os
import secrets
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from writebehind.engine.adapters.scripts import OPEN_EPOCH, Script
from writebehind.engine.core.appending import Refused
from writebehind.engine.core.keys import Keys
from writebehind.engine.errors import ConfigurationError, LogDamaged, RedisUnavailable

__all__ = ["Link", "Links", "open_epoch", "refusal", "unreachable"]

Command = Sequence[Any]

IDLE_SECONDS = 0.005
"""After this long a connection is looked at before it is used again: its server may have closed it."""

EPOCH_STEPS = 2**20
"""From how many numbers the random part of an epoch's is drawn: histories that begin at once have different ones."""

IDENTITY_SECONDS = 1.0
"""How long a connection's primary is taken to be what it was."""


def refusal(error: redis.RedisError) -> Refused:
    """Translate an error reply into its code and text."""
    named = {
        redis.exceptions.NoScriptError: "NOSCRIPT",
        redis.exceptions.ReadOnlyError: "READONLY",
        redis.exceptions.OutOfMemoryError: "OOM",
        redis.exceptions.AuthenticationError: "NOAUTH",
        redis.exceptions.BusyLoadingError: "LOADING",
        redis.exceptions.NoPermissionError: "NOPERM",
        redis.exceptions.MasterDownError: "MASTERDOWN",
        redis.exceptions.TryAgainError: "TRYAGAIN",
        redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    }
    text = str(error)
    for kind, code in named.items():
        if isinstance(error, kind):
            return Refused(code, text)
    code, _, rest = text.partition(" ")
    return Refused(code, rest) if code.isupper() else Refused("ERR", text)


def unreachable(error: BaseException) -> RedisUnavailable:
    """Return the error for a connection that could not be made, with what to do about a certificate that is refused."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return RedisUnavailable(f"Redis cannot be reached: {error}", "check the URL and the server")
    return RedisUnavailable(
        f"Redis cannot be reached, because its certificate is refused: {cause.verify_message}",
        "name the certificate authority in the URL, rediss://host:port/0?ssl_ca_certs=FILE, and a host that the "
        "certificate is for",
    )


class Link:
    """One connection to one Redis server.

    Attributes:
        identity: short form of the server's run ID and replication ID, read when the link was made.
    """

    __slots__ = ("connection", "identified_at", "identity", "idle_since", "pid", "receive")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.receive = connection.read_response
        self.identity = b""
        self.identified_at = 0.0
        self.idle_since = 0.0
        self.pid = os.getpid()

    def identify(self) -> None:
        """Read which primary, and which uninterrupted history of it, this link speaks to.

        Raises:
            redis.RedisError: the server does not answer or does not tell.
            ConfigurationError: the server hides what identifies it.
        """
        self.identity = b""
        server, replication = self.pipeline([("INFO", "server"), ("INFO", "replication")])
        for reply in (server, replication):
            if isinstance(reply, Exception) and not isinstance(reply, redis.exceptions.NoPermissionError):
                raise reply
        told = [reply for reply in (server, replication) if isinstance(reply, bytes)]
        facts = dict(line.split(b":", 1) for line in b"\n".join(told).splitlines() if b":" in line)
        run, history = facts.get(b"run_id"), facts.get(b"master_replid")
        if not run or not history:
            raise ConfigurationError(
                "Redis does not tell its run_id and master_replid",
                "allow the user INFO: without it a failover cannot be told from normal service",
            )
        self.identified_at = time.monotonic()
        self.identity = run.strip()[:12] + b"-" + history.strip()[:12]

    def command(self, *arguments: Any) -> Any:
        """Send one command and return its reply, undecoded.

        Raises:
            redis.RedisError: an error reply, or the connection failed.
        """
        self.connection.send_packed_command((pack_command(arguments),), check_health=False)
        return self.receive(disable_decoding=True)

    def pipeline(self, commands: Iterable[Command], timeout: float | None = None) -> list[Any]:
        """Send commands at once and return their replies in order; an error reply stands in its place.

        Args:
            commands: the commands.
            timeout: seconds to wait for each reply, where not the connection's own.

        Raises:
            redis.ConnectionError: the connection failed; nothing is known of any of them.
        """
        packed = [pack_command(tuple(command)) for command in commands]
        self.connection.send_packed_command((b"".join(packed),), check_health=False)
        return [self._reply(timeout) for _ in packed]

    def _reply(self, timeout: float | None) -> Any:
        try:
            if timeout is None:
                return self.receive(disable_decoding=True)
            return self.receive(disable_decoding=True, timeout=timeout)
        except redis.ResponseError as error:
            return error

    def script(self, script: Script, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """Run a script, by its SHA-1 first and by its text where the server does not know it.

        Raises:
            redis.RedisError: an error reply, or the connection failed.
        """
        try:
            return self.command(b"EVALSHA", script.sha, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            return self.command(b"EVAL", script.text, len(keys), *keys, *arguments)

    def stale(self) -> bool:
        """Tell whether the server has closed the link while it was idle: then there is something to read."""
        try:
            return bool(self.connection.can_read(timeout=0))
        except redis.RedisError:
            return True

    def close(self) -> None:
        """Close the connection. In a forked child, leave the parent's connection alone."""
        if self.pid == os.getpid():
            self.connection.disconnect()


class Links:
    """A pool of links, shared by threads.

    Args:
        target: a Redis URL, or a ``redis.Redis`` whose pool's settings are taken over (also one made by Sentinel).
        timeout_seconds: how long to wait for a connection or a reply.

    Raises:
        ConfigurationError: the target is something else.
    """

    def __init__(self, target: str | redis.Redis, timeout_seconds: float) -> None:
        own = {
            "protocol": 2,
            "decode_responses": False,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "socket_keepalive": True,
            # The pool counts connections made, not open ones, and refuses the hundred-and-first for ever.
            "max_connections": 2**31 - 1,
        }
        self._pool: Any
        try:
            self._pool = _pool(target, own)
        except ValueError:
            # The parser's own words may quote the password: they must not be seen in a traceback either.
            raise ConfigurationError("the Redis URL is not usable", "use redis://user:password@host:port/0") from None
        self._idle: deque[Link] = deque()
        self._closed = False

    @property
    def database(self) -> int:
        """Number of the Redis database."""
        return int(self._pool.connection_kwargs.get("db") or 0)

    def take(self) -> Link:
        """Return an idle link, or a new one.

        Raises:
            redis.RedisError: no connection could be made.
            ConfigurationError: the server hides its identity.
        """
        try:
            link = self._idle.pop()
        except IndexError:
            return self._new()
        now = time.monotonic()
        if now - link.identified_at > IDENTITY_SECONDS:
            good = self._is_same(link)
        else:
            # What is sent over a connection that has ended has no known outcome.
            good = now - link.idle_since < IDLE_SECONDS or not link.stale()
        if good:
            return link
        link.close()
        self.drop_idle()
        return self._new()

    def _new(self) -> Link:
        link = Link(self._pool.make_connection())
        try:
            link.connection.connect()
            link.identify()
        except BaseException:
            link.close()
            raise
        return link

    def _is_same(self, link: Link) -> bool:
        """Ask a link again: a primary that was demoted and promoted again keeps connections, and has a new history."""
        known = link.identity
        try:
            if not link.stale():
                link.identify()
                if link.identity == known:
                    return True
        except redis.RedisError:
            # It has ended while it was idle; so have the others, and a new one says what is the matter.
            return False
        except BaseException:
            link.close()
            raise
        return False

    def give(self, link: Link) -> None:
        """Take a link back, all replies to which have been read."""
        if self._closed:
            link.close()
            return
        link.idle_since = time.monotonic()
        self._idle.append(link)

    @contextmanager
    def link(self) -> Iterator[Link]:
        """Lend a link; it is closed when the block fails, so that no stray reply can be taken for another's.

        Raises:
            RedisUnavailable: the connection could not be made or failed inside the block.
        """
        try:
            link = self.take()
            if link.stale():
                link.close()
                self.drop_idle()
                link = self.take()
        except redis.RedisError as error:
            raise unreachable(error) from error
        try:
            yield link
        except (redis.ResponseError, LogDamaged):
            # Answers, which were read to their end.
            self.give(link)
            raise
        except redis.RedisError as error:
            link.close()
            raise RedisUnavailable(f"Redis does not answer: {error}", "try later") from error
        except BaseException:
            link.close()
            raise
        self.give(link)

    @contextmanager
    def unidentified(self) -> Iterator[Link]:
        """Lend a new link whose identity was not asked for, since the server may hide it; it is closed afterwards.

        Raises:
            RedisUnavailable: the connection could not be made or failed inside the block.
        """
        link = Link(self._pool.make_connection())
        try:
            link.connection.connect()
            yield link
        except redis.RedisError as error:
            raise unreachable(error) from error
        finally:
            link.close()

    def drop_idle(self) -> None:
        """Close idle links: after one has failed the others are suspect."""
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        """Close all idle links, and each one in use as soon as it is given back."""
        self._closed = True
        self.drop_idle()

    def forget(self) -> None:
        """Leave the parent's connections alone; to be called in a forked child."""
        self._idle = deque()
        self._pool.reset()


def open_epoch(link: Link, keys: Keys, partition: int) -> bytes:
    """Read the primary's identity anew, and open an epoch on it where the current one began elsewhere.

    Returns:
        The current epoch.

    Repeat: harmless.

    Raises:
        redis.RedisError: the server refuses, or the connection failed.
    """
    link.identify()
    arguments = (link.identity, secrets.randbelow(EPOCH_STEPS))
    epoch: bytes = link.script(OPEN_EPOCH, (keys.logs[partition], keys.metas[partition]), arguments)
    return epoch


def _pool(target: Any, own: dict[str, Any]) -> Any:
    if isinstance(target, str):
        return redis.ConnectionPool.from_url(target, **own)
    if not isinstance(target, redis.Redis):
        raise ConfigurationError(
            f"redis={type(target).__name__} is not supported", "give a URL or a redis.Redis client"
        )
    pool = target.connection_pool
    settings = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name not in {"connection_pool", "maint_notifications_config", "maint_notifications_pool_handler"}
    } | own
    if isinstance(pool, SentinelConnectionPool):
        settings.pop("connection_pool", None)
        return SentinelConnectionPool(pool.service_name, pool.sentinel_manager, **settings)  # type: ignore[no-untyped-call]
    return redis.ConnectionPool(connection_class=pool.connection_class, **settings)
