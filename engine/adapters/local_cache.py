"""Copies of cached values in this process, dropped when somebody announces that they are invalid.

A thread listens on a connection of its own. That the connection is up proves nothing: it may be half open, or lead to
a server that is not the primary any more. So the thread publishes a beat to itself, over the connections that all else
uses, several times in a few seconds. Announcements come in the order in which they were made; when a beat is heard, all
that was announced before it was sent has been heard, too. From then on copies count for ``VALID_SECONDS`` after the
sending of the beat, by the clock of whoever reads, and no longer: not while the network stalls, nor after this process
was frozen. Where the subscription ends, everything is dropped at once, and nothing is kept before the next one works.
"""

import logging
import secrets
import threading
import time
import weakref
from typing import Any

import redis
from hiredis import pack_command

from writebehind.engine.adapters.cache_store import ALL, ONE
from writebehind.engine.adapters.links import Link, Links
from writebehind.engine.core.local_entries import LocalEntries, Ticket
from writebehind.engine.errors import ConfigurationError, RedisUnavailable

__all__ = ["VALID_SECONDS", "LocalCache"]

logger = logging.getLogger(__name__)

VALID_SECONDS = 3.0
"""How long after the last beat that was heard copies count: the longest time for which one may be out of date."""

BEAT_SECONDS = 0.5
LOOK_SECONDS = 0.1
RECONNECT_SECONDS = 0.2
STOP_SECONDS_MAX = 5.0
WARN_SECONDS = 60.0


class LocalCache:
    """The copies of one cache; may be shared between threads.

    Args:
        links: connections.
        channel: where invalidations are announced.
        entries_max: how many copies, at least 1.
    """

    def __init__(self, links: Links, channel: str, entries_max: int) -> None:
        self._links = links
        self._channel = channel
        self._entries_max = entries_max
        self.renew()

    def renew(self) -> None:
        """Begin with nothing: when it is made, and in a forked child, where the thread is gone."""
        self._lock = threading.Lock()
        self._entries = LocalEntries(self._entries_max)
        self._valid_until = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def listening(self) -> bool:
        """Whether copies count at the moment."""
        return time.monotonic() < self._valid_until

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: str) -> bytes | None:
        """Return a copy that counts."""
        now = time.monotonic()
        with self._lock:
            return self._entries.get(text, now) if now < self._valid_until else None

    def ticket(self, text: str) -> Ticket | None:
        """Return what ``put`` asks for, to be taken before a value is read; None while nothing can be kept.

        Begins to listen where nobody has yet.
        """
        if self._thread is None:
            self._listen()
        with self._lock:
            return self._entries.ticket(text) if time.monotonic() < self._valid_until else None

    def put(self, text: str, payload: bytes, until: float, ticket: Ticket | None) -> None:
        """Keep a copy, unless its key was invalidated since the ticket was taken."""
        with self._lock:
            if ticket is not None and time.monotonic() < self._valid_until:
                self._entries.put(text, payload, until, ticket)

    def drop(self, text: str) -> None:
        """Forget a copy, and what is being read for it."""
        with self._lock:
            self._entries.drop(text)

    def drop_all(self) -> None:
        """Forget everything, and what is being read."""
        with self._lock:
            self._entries.drop_all()

    def stop(self) -> None:
        """End the thread and forget everything; nothing is kept any more. Repeat: harmless."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS_MAX)
        self.lost()

    def _listen(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                arguments = (weakref.ref(self), self._links, self._channel, self._stopping)
                self._thread = threading.Thread(target=_listen, args=arguments, daemon=True, name="writebehind-cache")
                self._thread.start()

    # For the thread

    def heard(self, sent_at: float) -> None:
        """Note that everything announced before a time has been heard."""
        with self._lock:
            if not self._stopping.is_set():
                self._valid_until = sent_at + VALID_SECONDS

    def announced(self, message: bytes) -> None:
        """Drop what an announcement is about; one that nobody understands is about everything."""
        if message != ALL and message.startswith(ONE):
            self.drop(message.removeprefix(ONE).decode(errors="replace"))
        else:
            self.drop_all()

    def lost(self) -> None:
        """Drop everything, and keep nothing until the next beat is heard."""
        with self._lock:
            self._valid_until = 0.0
            self._entries.drop_all()


class _Gone(Exception):
    """The cache that the thread listens for is not there any more."""


def _listen(known: "weakref.ref[LocalCache]", links: Links, channel: str, stopping: threading.Event) -> None:
    warned_at = float("-inf")
    while not stopping.is_set():
        reason: object = "it was quiet for too long"
        try:
            with links.unidentified() as link:
                _follow(known, links, link, channel, stopping)
        except _Gone:
            return
        except (RedisUnavailable, ConfigurationError) as error:
            reason = error
        except Exception as error:
            # Whatever it is, it may pass, and the thread must not end with it.
            logger.exception("listening to %s", channel)
            reason = error
        finally:
            cache = known()
            if cache is not None:
                cache.lost()
        if cache is None:
            return
        del cache
        if not stopping.is_set() and time.monotonic() - warned_at >= WARN_SECONDS:
            warned_at = time.monotonic()
            logger.warning("no copies of %s are kept until announcements are heard again: %s", channel, reason)
        stopping.wait(RECONNECT_SECONDS)


def _follow(
    known: "weakref.ref[LocalCache]", links: Links, link: Link, channel: str, stopping: threading.Event
) -> None:
    """Pass on what is announced, until the connection ends or no beat has been heard for too long."""
    own = f"{channel}:{secrets.token_hex(8)}"
    subscribe: tuple[Any, ...] = ("SUBSCRIBE", channel, own)
    link.connection.send_packed_command((pack_command(subscribe),), check_health=False)
    for _ in (channel, own):
        link.receive(disable_decoding=True)
    beats: dict[bytes, float] = {}
    beat = 0
    heard_at = last = time.monotonic()
    due = True
    while not stopping.is_set() and time.monotonic() - heard_at < VALID_SECONDS:
        if due:
            last, beat = time.monotonic(), beat + 1
            beats[b"%d" % beat] = last
            with links.link() as other:
                other.command("PUBLISH", own, beat)
        if link.connection.can_read(timeout=LOOK_SECONDS):
            _, where, message = _announcement(link.receive(disable_decoding=True))
            cache = known()
            if cache is None:
                raise _Gone
            if where != own.encode():
                cache.announced(message)
            elif message in beats:
                heard_at = beats[message]
                cache.heard(heard_at)
                beats = {number: at for number, at in beats.items() if at > heard_at}
            del cache
        due = time.monotonic() - last >= BEAT_SECONDS


def _announcement(reply: Any) -> tuple[bytes, bytes, bytes]:
    if not isinstance(reply, list) or len(reply) != 3:  # noqa: PLR2004 - kind, channel, message
        raise redis.ConnectionError(f"no announcement: {reply!r}")
    return reply[0], reply[1], reply[2]
