"""The blocking shell of the write protocol: does on links what ``core.appending`` decides."""

import itertools
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, assert_never

import redis
from hiredis import pack_command

from writebehind.engine.adapters.links import Link, Links, refusal
from writebehind.engine.adapters.memory import Memory
from writebehind.engine.adapters.rewriter import Rewriter
from writebehind.engine.adapters.scripts import APPEND
from writebehind.engine.config import Backpressure, EngineSettings
from writebehind.engine.core.appending import (
    Call,
    Effect,
    Full,
    Lost,
    OpenEpoch,
    Pause,
    Refused,
    Reply,
    Run,
    Unsent,
    append,
)
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.pressure import EXEMPT, OUT_OF_MEMORY, Drainage, Held, admission
from writebehind.engine.errors import RedisUnavailable, WriteBehindError

__all__ = ["Appender"]

PAUSE_SECONDS = 0.005
PAUSE_SECONDS_MAX = 0.5
FENCE_ONLY = b"+"
ANCHOR_SECONDS_MAX = 5.0
"""How old the last known entry may be where a retry begins to search; well below any sensible retention."""
NOT_EXECUTED = (redis.exceptions.BusyLoadingError, redis.exceptions.AuthenticationError)
"""Connection errors by redis-py's reckoning, but answers: the command was not executed."""


class Appender:
    """Appends calls to logs; safe to share between threads.

    Args:
        links: connections.
        keys: the namespace's key names.
        settings: how long one call keeps trying, how far back a retry looks, and the limits of the backlog.
        rewriter: keeps what was accepted, and writes it again where a new history is without it.
        memory: knows whether Redis is short of it.
        policy_of: tells what becomes of a call where a limit is reached.

    Attributes:
        client_id: names this client in mutation IDs and fences.
        suspect: partitions in which earlier attempts may still be on their way, with a stamp above theirs; the next
            call fences them off.

    Durability: a returned entry ID is in the primary's memory. Repeat: appends again; a repetition inside one call,
    after a lost reply, does not. Crash: the call is in the log whole or not at all.
    """

    def __init__(
        self,
        links: Links,
        keys: Keys,
        settings: EngineSettings,
        *,
        rewriter: Rewriter,
        memory: Memory,
        policy_of: Callable[[Call], Backpressure],
    ) -> None:
        self.links = links
        self.rewriter = rewriter
        self.keys = keys
        self.timeout_seconds = settings.write_timeout_seconds
        self.search_entries_max = settings.retry_search_entries_max
        self.policy_of = policy_of
        self._memory = memory
        # By whether Redis is short of memory.
        self._admissions = [
            admission(settings.backlog_entries_max, settings.backlog_seconds_max, short_of_memory=short)
            for short in (False, True)
        ]
        self.renew()

    def renew(self) -> None:
        """Become another client; called in a forked child, whose mutation IDs must not be its parent's."""
        self.client_id = secrets.token_hex(5)
        self._stamps = itertools.count(1)
        self._numbers = itertools.count(1)
        self._last: dict[int, tuple[bytes, float]] = {}
        self.suspect: dict[int, int] = {}
        self._drainage = Drainage()

    def call_id(self) -> str:
        """Return a new call ID: 11 hexadecimal digits of milliseconds, the client ID, a number."""
        return f"{int(time.time() * 1000):011x}{self.client_id}{next(self._numbers):x}"

    def append(self, call: Call) -> tuple[bytes, bytes]:
        """Append one call; return the ID of its last entry and the primary's identity.

        Raises:
            WriteBehindError: as ``core.appending.append`` says.
        """
        return self._drive(call, self._anchor(call))

    def append_all(self, calls: Sequence[Call]) -> list[tuple[bytes, bytes] | Exception]:
        """Append calls of different partitions in one round trip; failures stand in their place.

        No call waits for room in its backlog here, because the others would wait with it: the caller tries again.
        """
        anchors = [self._anchor(call) for call in calls]
        first = self._run_all(calls)
        results: list[tuple[bytes, bytes] | Exception] = []
        for call, anchor, (identity, reply, fenced) in zip(calls, anchors, first, strict=True):
            if type(reply) is bytes:
                results.append((self._done(call, reply, fenced=fenced), identity))
                continue
            unknown = isinstance(reply, Refused) and reply.code == "NOSCRIPT"
            try:
                # Where the reply is lost, the identity's place holds the history that the attempt was made in.
                results.append(self._drive(call, anchor, None if unknown else reply, identity, together=True))
            except Exception as error:  # noqa: BLE001 - handed to the caller, who raises it
                results.append(error)
        return results

    def _run_all(self, calls: Sequence[Call]) -> list[tuple[bytes, Reply, int]]:
        try:
            link = self._link_for(calls)
        except redis.ResponseError as error:
            return [(b"", refusal(error), 0)] * len(calls)
        except (redis.RedisError, RedisUnavailable) as error:
            return [(b"", Unsent(error), 0)] * len(calls)
        replies: list[tuple[bytes, Reply, int]] = []
        stamps = [self.stamp() for _ in calls]
        fenced = [stamp if call.partition in self.suspect else 0 for call, stamp in zip(calls, stamps, strict=True)]
        try:
            for call, fence, stamp in zip(calls, fenced, stamps, strict=True):
                # One by one: Redis works on the first while the others are still being packed.
                packed = pack_command(self.command(link, call, FENCE_ONLY if fence else b"", stamp))
                link.connection.send_packed_command((packed,), check_health=False)
            for fence in fenced:
                try:
                    replies.append((link.identity, link.receive(disable_decoding=True), fence))
                except redis.ResponseError as error:
                    replies.append((link.identity, refusal(error), 0))
        except BaseException as error:
            self.drop(link)
            if isinstance(error, NOT_EXECUTED):
                replies.append((link.identity, refusal(error), 0))
            unanswered = calls[len(replies) :]
            for call in unanswered:
                self.suspect[call.partition] = self.stamp()
            if not isinstance(error, redis.RedisError):
                raise
            return replies + [(self.history(link, call.partition), Lost(error), 0) for call in unanswered]
        self.links.give(link)
        return replies

    def _link_for(self, calls: Sequence[Call]) -> Link:
        link = self.links.take()
        try:
            for call in calls:
                self.rewriter.meet(link.identity, call.partition)
        except (redis.ResponseError, RedisUnavailable):
            self.drop(link)
            raise
        return link

    def _anchor(self, call: Call) -> bytes:
        """Return an entry above which the call will stand; to be asked before its first attempt.

        Where this client knows none of late, it asks: a retry that begins too far back could not tell an entry that was
        never there from one that was flushed and trimmed.
        """
        now = time.monotonic()
        known, at = self._last.get(call.partition, (b"", now))
        if not known or now - at > ANCHOR_SECONDS_MAX:
            known = self._end(call.partition)
            self._last[call.partition] = (known, now)
        return known

    def _end(self, partition: int) -> bytes:
        for _ in range(2):
            try:
                with self.links.link() as link:
                    reply = link.command("XINFO", "STREAM", self.keys.logs[partition])
                    return bytes(dict(zip(reply[::2], reply[1::2], strict=False))[b"last-generated-id"])
            except redis.ResponseError:
                # No log yet.
                break
            except RedisUnavailable:
                # Idle for long, or Redis was restarted: all idle links are as old.
                self.links.drop_idle()
        return b"0-0"

    def _drive(
        self, call: Call, anchor: bytes, reply: Reply = None, history: bytes = b"", *, together: bool = False
    ) -> tuple[bytes, bytes]:
        protocol = append()
        performance = _Performance(self, call, anchor, history if isinstance(reply, Lost) else b"", together=together)
        try:
            effect = next(protocol)
            if reply is not None:
                effect = protocol.send(self.judged(call, reply, together=together))
            while True:
                effect = protocol.send(performance.perform(effect))
        except StopIteration as stop:
            performance.finish()
            return self._done(call, stop.value, fenced=performance.fenced), performance.identity
        except WriteBehindError:
            performance.abandon()
            raise
        except BaseException:
            self.suspect[call.partition] = self.stamp()
            performance.abandon()
            raise

    def _done(self, call: Call, reply: bytes, *, fenced: int) -> bytes:
        """Note what a call has made certain; ``fenced`` is the stamp of a call that fenced older ones off, or 0."""
        now = time.monotonic()
        self._last[call.partition] = (reply, now)
        self.rewriter.keep(call, reply, now)
        if fenced and self.suspect.get(call.partition, 0) < fenced:
            self.suspect.pop(call.partition, None)
        return reply

    def history(self, link: Link, partition: int) -> bytes:
        """Return what the script compares: the primary that a link leads to, and the epoch that is known of it."""
        known = self.rewriter.histories.get(partition)
        return known[1] if known is not None and known[0] == link.identity else link.identity + b" 0"

    def stamp(self) -> int:
        """Return a number above those of all attempts before."""
        return next(self._stamps)

    def judged(self, call: Call, reply: Reply, *, together: bool) -> Reply:
        """Say what is to become of a call that was refused for want of room; return other replies as they are.

        Args:
            call: it.
            reply: what the server answered.
            together: it is one of several, which must not wait for it.
        """
        if not isinstance(reply, Refused) or reply.code not in {"BACKLOG", "OOM"}:
            return reply
        policy = self.policy_of(call)
        if reply.code == "OOM":
            # A full Redis can accept nothing, whatever the policy; but whoever will not wait need not.
            if policy is not Backpressure.REJECT:
                return reply
            held = Held(OUT_OF_MEMORY, 0, 0)
        else:
            held = Held.parse(reply.text)
            if together and policy is Backpressure.BLOCK:
                policy = Backpressure.REJECT
        retry_after = self._drainage.retry_after_seconds(call.partition, held, time.monotonic())
        return Full(policy, call.partition, held, retry_after)

    def command(
        self,
        link: Link,
        call: Call,
        anchor: bytes,
        stamp: int,
        doubt: EntryID | None = None,
        *,
        through: bool = False,
    ) -> tuple[Any, ...]:
        """Return one attempt as a command; an anchor makes it a retry, FENCE_ONLY makes it overtake older calls.

        Args:
            link: where it goes.
            call: what is appended.
            anchor: see above.
            stamp: its number.
            doubt: the first entry that was lost with the history in which an attempt may have been executed.
            through: it is appended whatever the limits say.
        """
        partition = call.partition
        return (
            b"EVALSHA",
            APPEND.sha,
            2 + len(call.records),
            self.keys.logs[partition],
            self.keys.metas[partition],
            *call.records,
            self.history(link, partition),
            self.client_id,
            stamp,
            call.call_id,
            anchor,
            self.search_entries_max if doubt is None else f"{self.search_entries_max} {doubt}",
            *(EXEMPT if through else self._admissions[self._memory.short]),
            *call.arguments,
        )

    def drop(self, link: Link) -> None:
        """Close a link that failed; the idle ones are suspect too."""
        link.close()
        self.links.drop_idle()


class _Performance:
    """Performs the effects of one call on one link after another."""

    __slots__ = ("_anchor", "_appender", "_call", "_deadline", "_histories", "_link", "_together", "fenced", "identity")

    def __init__(self, appender: Appender, call: Call, anchor: bytes, history: bytes, *, together: bool) -> None:
        self._together = together
        self._appender = appender
        self._anchor = anchor
        self._call = call
        self._link: Link | None = None
        self._deadline: float | None = None
        self._histories = [history] if history else []
        self.identity = b""
        self.fenced = 0

    def perform(self, effect: Effect) -> Reply:
        if isinstance(effect, Run):
            return self._run(effect)
        if isinstance(effect, OpenEpoch):
            return self._open_epoch()
        if isinstance(effect, Pause):
            return self._pause(effect.attempt)
        assert_never(effect)

    def finish(self) -> None:
        if self._link is not None:
            self._appender.links.give(self._link)

    def abandon(self) -> None:
        if self._link is not None:
            self._link.close()

    def _run(self, effect: Run) -> Reply:
        refused = self._meet()
        if refused is not None:
            return refused
        appender, link = self._appender, self._link
        if link is None:
            raise RuntimeError("no link is open")
        self.identity = link.identity
        stamp = appender.stamp()
        self.fenced = stamp if effect.retry or self._call.partition in appender.suspect else 0
        anchor = FENCE_ONLY if self.fenced else b""
        doubt = None
        partition = self._call.partition
        if effect.retry:
            anchor = appender.rewriter.anchor(partition, self._anchor)
            for history in self._histories:
                doubt = appender.rewriter.doubt(partition, history) or doubt
                if doubt is not None and appender.rewriter.in_sql(partition, doubt):
                    return Refused("DOUBT", str(doubt))
        self._histories.append(appender.history(link, partition))
        self._call.through = effect.through
        command = appender.command(link, self._call, anchor, stamp, doubt, through=effect.through)
        try:
            link.connection.send_packed_command((pack_command(command),), check_health=False)
            return link.receive(disable_decoding=True)  # type: ignore[no-any-return]
        except redis.exceptions.NoScriptError:
            return self._run_text(link, command)
        except (redis.ResponseError, *NOT_EXECUTED) as error:
            return self._refused(refusal(error))
        except redis.RedisError as error:
            return self._lost(link, error)

    def _meet(self) -> Reply:
        """Take a link where there is none, and meet the history that it leads to; return what went wrong."""
        appender = self._appender
        try:
            if self._link is None:
                self._link = appender.links.take()
            known = appender.rewriter.histories.get(self._call.partition)
            if known is None or known[0] != self._link.identity:
                appender.rewriter.meet(self._link.identity, self._call.partition)
        except (redis.ResponseError, *NOT_EXECUTED) as error:
            return self._refused(refusal(error))
        except (redis.RedisError, RedisUnavailable) as error:
            if self._link is not None:
                appender.drop(self._link)
            self._link = None
            return Unsent(error)
        return None

    def _run_text(self, link: Link, command: tuple[Any, ...]) -> Reply:
        try:
            return link.command(b"EVAL", APPEND.text, *command[2:])  # type: ignore[no-any-return]
        except (redis.ResponseError, *NOT_EXECUTED) as error:
            return self._refused(refusal(error))
        except redis.RedisError as error:
            return self._lost(link, error)

    def _refused(self, refused: Refused) -> Reply:
        if refused.code in {"LOADING", "MASTERDOWN", "NOAUTH", "READONLY", "UNBLOCKED"} and self._link is not None:
            self._appender.drop(self._link)
            self._link = None
        return self._appender.judged(self._call, refused, together=self._together)

    def _lost(self, link: Link, error: Exception) -> Lost:
        self._appender.suspect[self._call.partition] = self._appender.stamp()
        self._appender.drop(link)
        self._link = None
        return Lost(error)

    def _open_epoch(self) -> Reply:
        link = self._link
        try:
            if link is None:
                link = self._link = self._appender.links.take()
            link.identify()
            self._appender.rewriter.reconcile(self._call.partition)
        except (redis.ResponseError, *NOT_EXECUTED) as error:
            return self._refused(refusal(error))
        except (redis.RedisError, RedisUnavailable) as error:
            if link is not None:
                self._appender.drop(link)
            self._link = None
            return Unsent(error)
        return None

    def _pause(self, attempt: int) -> bool:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._appender.timeout_seconds
        if now >= self._deadline:
            return False
        pause = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries
        time.sleep(min(pause, max(0.0, self._deadline - now)))
        return True
