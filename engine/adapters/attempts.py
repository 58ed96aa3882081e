"""The attempts of one call of the write script: does what ``core.appending`` yields."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, assert_never

import redis
from hiredis import pack_command

from writebehind.engine.adapters.deadline import Deadline, pause
from writebehind.engine.adapters.links import Link, refusal
from writebehind.engine.adapters.scripts import APPEND
from writebehind.engine.core.appending import Call, Effect, Lost, OpenEpoch, Pause, Refused, Reply, Run, Unfit, Unsent
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import ConfigurationError, RedisUnavailable

if TYPE_CHECKING:
    from writebehind.engine.adapters.appender import Appender

__all__ = ["FENCE_ONLY", "NOT_EXECUTED", "Attempts"]

FENCE_ONLY = b"+"
"""In place of an anchor: nothing is looked for, but older attempts of this client are fenced off."""
NOT_EXECUTED = (redis.exceptions.BusyLoadingError, redis.exceptions.AuthenticationError)
"""Connection errors by redis-py's reckoning, but answers: the command was not executed."""


class Attempts:
    """Performs the effects of one call on one link after another.

    Args:
        appender: whose call it is.
        call: what is appended.
        anchor: an entry above which it will stand.
        history: in which an attempt was lost that was made before, if any.
        deadline: when to give up.

    Attributes:
        identity: the primary that the last attempt was sent to.
        fenced: the stamp of the last attempt where it fences older ones off, or 0.

    Durability, Repeat, Crash: as the write script's, which each attempt is.
    """

    __slots__ = (
        "_anchor",
        "_appender",
        "_call",
        "_deadline",
        "_doubts",
        "_histories",
        "_link",
        "_waited",
        "fenced",
        "identity",
    )

    def __init__(self, appender: "Appender", call: Call, anchor: bytes, history: bytes, deadline: Deadline) -> None:
        self._appender = appender
        self._anchor = anchor
        self._call = call
        self._link: Link | None = None
        self._deadline = deadline
        self._histories = [history] if history else []
        self._doubts: dict[int, Sequence[EntryID]] = {}
        self._waited = False
        self.identity = b""
        self.fenced = 0

    def perform(self, effect: Effect) -> Reply:
        """Do one effect of the write protocol."""
        if isinstance(effect, Run):
            return self._run(effect)
        if isinstance(effect, OpenEpoch):
            return self._open_epoch()
        if isinstance(effect, Pause):
            return self._pause(effect.attempt)
        assert_never(effect)

    def doubts(self, last: bytes) -> Sequence[EntryID]:
        """Return the doubts that the entry with this ID says, by whichever attempt it was appended; see ``Call``."""
        return self._doubts.get(EntryID.parse(last).epoch, ())

    def finish(self) -> None:
        """Hand the link back: all its replies have been read."""
        if self._link is not None:
            self._appender.links.give(self._link)

    def abandon(self) -> None:
        """Close the link."""
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
        doubts: Sequence[EntryID] = ()
        partition = self._call.partition
        history = appender.history(link, partition)
        if effect.retry:
            anchor = appender.rewriter.anchor(partition, self._anchor)
            doubts = self._lost_with_attempts()
            known = next((doubt for doubt in doubts if appender.rewriter.in_sql(partition, doubt)), None)
            if known is not None:
                return Refused("DOUBT", str(known))
        else:
            # Whatever was tried before has not been executed, and will not be.
            self._histories.clear()
            if self._waited:
                self._call.begin(appender.call_id())
                self._waited = False
        if effect.retry and (appender.history(link, partition) != history or history.endswith(b" 0")):
            # Another thread has met, or left, a history meanwhile: what is in doubt has to be asked by that one.
            return Refused("TIMELINE", "another thread has met another history")
        self._histories.append(history)
        self._doubts[int(history.rpartition(b" ")[2])] = doubts
        self._call.through = effect.through
        command = appender.command(link, self._call, anchor, stamp, doubts, through=effect.through)
        # What a lost history had, SQL may have: no search of this one tells.
        return self._send(link, command, fenced_off=effect.retry and not doubts)

    def _send(self, link: Link, command: tuple[Any, ...], *, fenced_off: bool) -> Reply:
        try:
            link.connection.send_packed_command((pack_command(command),), check_health=False)
            return link.receive(disable_decoding=True)  # type: ignore[no-any-return]
        except redis.exceptions.NoScriptError:
            return self._run_text(link, command, fenced_off=fenced_off)
        except (redis.ResponseError, *NOT_EXECUTED) as error:
            return self._refused(refusal(error), fenced_off=fenced_off)
        except redis.RedisError as error:
            return self._lost(link, error)

    def _lost_with_attempts(self) -> Sequence[EntryID]:
        """Return, of each history in which an attempt may have been executed and lost, the first entry lost with it."""
        partition = self._call.partition
        found = (self._appender.rewriter.doubt(partition, history) for history in self._histories)
        return tuple(dict.fromkeys(doubt for doubt in found if doubt is not None))

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
        except ConfigurationError as error:
            return Unfit(error)
        return None

    def _run_text(self, link: Link, command: tuple[Any, ...], *, fenced_off: bool) -> Reply:
        try:
            return link.command(b"EVAL", APPEND.text, *command[2:])  # type: ignore[no-any-return]
        except (redis.ResponseError, *NOT_EXECUTED) as error:
            return self._refused(refusal(error), fenced_off=fenced_off)
        except redis.RedisError as error:
            return self._lost(link, error)

    def _refused(self, refused: Refused, *, fenced_off: bool = False) -> Reply:
        if refused.code in {"LOADING", "MASTERDOWN", "NOAUTH", "READONLY", "UNBLOCKED"} and self._link is not None:
            self._appender.drop(self._link)
            self._link = None
        # The script adds up after it has searched; WRONGTYPE may be the log's own, which was not searched then.
        refused.fenced_off = fenced_off and refused.code == "RANGE"
        return self._appender.judged(self._call, refused, fenced_off=fenced_off)

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
        except ConfigurationError as error:
            return Unfit(error)
        return None

    def _pause(self, attempt: int) -> bool:
        left_seconds = self._deadline.left_seconds()
        if not left_seconds:
            return False
        self._waited = True
        pause(attempt, left_seconds)
        return True
