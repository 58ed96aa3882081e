"""The blocking shell of the write protocol: does on links what ``core.appending`` decides."""

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import redis
from hiredis import pack_command

from writebehind.engine.adapters.attempts import FENCE_ONLY, NOT_EXECUTED, Attempts
from writebehind.engine.adapters.deadline import Deadline
from writebehind.engine.adapters.links import Link, Links, refusal
from writebehind.engine.adapters.memory import Memory
from writebehind.engine.adapters.rewriter import Rewriter
from writebehind.engine.adapters.scripts import APPEND
from writebehind.engine.config import Backpressure, EngineSettings
from writebehind.engine.core.appending import Call, Full, Lost, Refused, Reply, Unfit, Unsent, append
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.origin import Origin
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.pressure import EXEMPT, OUT_OF_MEMORY, Drainage, Held, admission
from writebehind.engine.errors import ConfigurationError, RedisUnavailable, WriteBehindError

__all__ = ["Appender", "Result"]

Result = tuple[bytes, bytes] | Full | Refused | Exception
"""What becomes of a call: the last entry's ID and the primary's identity, or why it is not accepted.

Only ``Full`` and ``Refused`` say for certain that nothing of it was written, and that the server itself has refused it.
"""

ANCHOR_SECONDS_MAX = 5.0
"""How old the last known entry may be where a retry begins to search; well below any sensible retention."""


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
        (anchor,) = self._anchors([call.partition])
        result = self._drive(call, anchor, Deadline(self.timeout_seconds))
        if not isinstance(result, tuple):
            raise RuntimeError("a call of its own ends by itself")  # noqa: TRY004 - a broken invariant
        return result

    def append_all(self, sent: Sequence[tuple[Call, Deadline]]) -> list[Result]:
        """Append calls of different partitions in one round trip; failures stand in their place.

        No call waits for room here, because the others would wait with it: the caller begins it anew. What else may
        pass is waited for until the call's deadline, which it may share with others.
        """
        found = dict(itertools.chain.from_iterable(self.append_each(sent)))
        return [found[number] for number in range(len(sent))]

    def append_each(self, sent: Sequence[tuple[Call, Deadline]]) -> Iterator[list[tuple[int, Result]]]:
        """Do what ``append_all`` does; yield what becomes of the calls, by number, those first that need no more."""
        calls = [call for call, _ in sent]
        anchors = self._anchors([call.partition for call in calls])
        first = self._run_all(calls)
        yield [
            (number, (self._done(calls[number], reply, fenced=fenced), identity))
            for number, (identity, reply, fenced) in enumerate(first)
            if type(reply) is bytes
        ]
        for number, ((call, deadline), anchor, (identity, reply, _)) in enumerate(
            zip(sent, anchors, first, strict=True)
        ):
            if type(reply) is bytes:
                continue
            unknown = isinstance(reply, Refused) and reply.code == "NOSCRIPT"
            try:
                # Where the reply is lost, the identity's place holds the history that the attempt was made in.
                known = None if unknown else reply
                yield [(number, self._drive(call, anchor, deadline, known, identity, together=True))]
            except Exception as error:  # noqa: BLE001 - handed to the caller, who raises it
                yield [(number, error)]

    def _run_all(self, calls: Sequence[Call]) -> list[tuple[bytes, Reply, int]]:
        """Make the first attempt of each call; one that its partition is not fit for stays out, and the others go."""
        try:
            link = self.links.take()
        except redis.ResponseError as error:
            return [(b"", refusal(error), 0)] * len(calls)
        except ConfigurationError as error:
            return [(b"", Unfit(error), 0)] * len(calls)
        except (redis.RedisError, RedisUnavailable) as error:
            return [(b"", Unsent(error), 0)] * len(calls)
        try:
            unmet = self._meet_each(link, [call.partition for call in calls])
        except RedisUnavailable as error:
            self.drop(link)
            return [(b"", Unsent(error), 0)] * len(calls)
        except BaseException:
            self.drop(link)
            raise
        replies = iter(self._exchange(link, [call for call in calls if call.partition not in unmet]))
        return [(b"", unmet[call.partition], 0) if call.partition in unmet else next(replies) for call in calls]

    def _meet_each(self, link: Link, partitions: Sequence[int]) -> dict[int, Reply]:
        """Meet the history of each partition; return what is the matter with those that cannot be written to."""
        unmet: dict[int, Reply] = {}
        for partition in partitions:
            try:
                self.rewriter.meet(link.identity, partition)
            except redis.ResponseError as error:
                unmet[partition] = refusal(error)
            except ConfigurationError as error:
                unmet[partition] = Unfit(error)
        return unmet

    def _exchange(self, link: Link, calls: Sequence[Call]) -> list[tuple[bytes, Reply, int]]:
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

    def _anchors(self, partitions: Sequence[int]) -> list[bytes]:
        """Return an entry of each partition above which a call will stand; to be asked before its first attempt.

        Where this client knows none of late, it asks: a retry that begins too far back could not tell an entry that was
        never there from one that was flushed and trimmed.
        """
        now = time.monotonic()
        known = self._last
        unknown = [each for each in partitions if each not in known or now - known[each][1] > ANCHOR_SECONDS_MAX]
        if unknown:
            known.update({each: (end, now) for each, end in zip(unknown, self._ends(unknown), strict=True)})
        return [known[each][0] for each in partitions]

    def _ends(self, partitions: Sequence[int]) -> list[bytes]:
        for _ in range(2):
            try:
                with self.links.link() as link:
                    told = link.pipeline([("XINFO", "STREAM", self.keys.logs[each]) for each in partitions])
                return [_end(reply) for reply in told]
            except RedisUnavailable:
                # Idle for long, or Redis was restarted: all idle links are as old.
                self.links.drop_idle()
            except ConfigurationError:
                break  # each call says so
        return [b"0-0"] * len(partitions)

    def _drive(
        self,
        call: Call,
        anchor: bytes,
        deadline: Deadline,
        reply: Reply = None,
        history: bytes = b"",
        *,
        together: bool = False,
    ) -> tuple[bytes, bytes] | Full | Refused:
        protocol = append(together=together)
        attempts = Attempts(self, call, anchor, history if isinstance(reply, Lost) else b"", deadline)
        try:
            effect = next(protocol)
            if reply is not None:
                effect = protocol.send(self.judged(call, reply))
            while True:
                effect = protocol.send(attempts.perform(effect))
        except StopIteration as stop:
            attempts.finish()
            if isinstance(stop.value, Full | Refused):
                return stop.value
            call.doubts = attempts.doubts(stop.value)
            return self._done(call, stop.value, fenced=attempts.fenced), attempts.identity
        except WriteBehindError:
            attempts.abandon()
            raise
        except BaseException:
            self.suspect[call.partition] = self.stamp()
            attempts.abandon()
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

    def judged(self, call: Call, reply: Reply, *, fenced_off: bool = False) -> Reply:
        """Say what is to become of a call that was refused for want of room; return other replies as they are.

        Args:
            call: it.
            reply: what the server answered.
            fenced_off: the script looks for earlier attempts, and fences them off, before it looks for room.
        """
        if not isinstance(reply, Refused) or reply.code not in {"BACKLOG", "OOM"}:
            return reply
        if reply.code == "OOM":
            # A full Redis does not take the fence either.
            held, fenced_off = Held(OUT_OF_MEMORY, 0, 0), False
        else:
            held = Held.parse(reply.text)
        retry_after = self._drainage.retry_after_seconds(call.partition, held, time.monotonic())
        return Full(self.policy_of(call), call.partition, held, retry_after, fenced_off)

    def command(
        self,
        link: Link,
        call: Call,
        anchor: bytes,
        stamp: int,
        doubts: Sequence[EntryID] = (),
        *,
        through: bool = False,
    ) -> tuple[Any, ...]:
        """Return one attempt as a command; an anchor makes it a retry, FENCE_ONLY makes it overtake older calls.

        Args:
            link: where it goes.
            call: what is appended.
            anchor: see above.
            stamp: its number.
            doubts: of each lost history in which an attempt may have been executed, the first entry lost with it.
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
            f"{self.search_entries_max} {Origin(doubts=doubts)}" if doubts else self.search_entries_max,
            *(EXEMPT if through else self._admissions[self._memory.short_of(call.payload_bytes)]),
            *call.arguments,
        )

    def drop(self, link: Link) -> None:
        """Close a link that failed; the idle ones are suspect too."""
        link.close()
        self.links.drop_idle()


def _end(told: Any) -> bytes:
    """Read the end of a log; ``0-0`` where there is none yet."""
    if isinstance(told, redis.ResponseError):
        return b"0-0"
    return bytes(dict(zip(told[::2], told[1::2], strict=False))[b"last-generated-id"])
